//! A file as the secondary: zeroes are holes, as long as the file system makes holes.

use crate::storage::Zeroing;

/// What is known of the file.
#[derive(Debug)]
pub(super) struct FileSecondary {
    zeroing: Option<i32>,
}

impl FileSecondary {
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
            self.zeroing = None;
        }
    }
}
