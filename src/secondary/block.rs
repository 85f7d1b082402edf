//! A block device as the secondary: a hole if the device zeroes by unmapping, else the kernel zeroes the range, by a
//! command of the device or by writing; only if it refuses even that do we.

use crate::storage::Zeroing;
use crate::storage::limits::{PUNCH_HOLE, ZERO_RANGE};

/// What is known of the device.
#[derive(Debug)]
pub(super) struct BlockSecondary {
    zeroing: Option<i32>,
}

impl BlockSecondary {
    pub(super) fn new(zeroing: Zeroing) -> Self {
        Self { zeroing: zeroing.unmap }
    }

    /// The mode of fallocate(2) that makes zeroes; `None`: write them.
    pub(super) fn zeroing(&self) -> Option<i32> {
        self.zeroing
    }

    /// `mode` is not supported.
    pub(super) fn refused(&mut self, mode: i32) {
        if self.zeroing == Some(mode) {
            self.zeroing = (mode == PUNCH_HOLE).then_some(ZERO_RANGE);
        }
    }
}
