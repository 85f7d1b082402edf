//! Where tracks go: how a range is made zero on a secondary, as a value; writing and flushing are the same for every
//! kind.
//!
//! Nothing here does I/O or waits: the uploader turns each [`Step`] into a ring entry. Nothing reaches beyond the
//! volume's end: a secondary may be larger than the primary, and what lies behind is not ours. What the kinds of
//! secondary do differently is in one file per kind, with the same verbs in each.

use crate::storage::limits::means_unsupported;
use crate::storage::{Device, Kind, Limits};

mod block;
mod file;

use block::BlockSecondary;
use file::FileSecondary;

/// How to make a range zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write zeroes, as there is no shorter way (any more).
    WriteZeroes { offset: u64, len: u64 },
    /// fallocate(2) with this mode turns the range into zeroes.
    Fallocate { mode: i32, offset: u64, len: u64 },
}

#[derive(Debug)]
enum Way {
    File(FileSecondary),
    Block(BlockSecondary),
}

/// How to write to one secondary.
#[derive(Debug)]
pub struct Secondary {
    way: Way,
    /// Size of the volume, at most that of the secondary.
    size: u64,
}

impl Secondary {
    /// For a volume of `size` bytes (the primary's) on `device`.
    pub fn new(device: &Device, size: u64) -> Self {
        Self::described(device.kind(), device.limits(), size.min(device.size()))
    }

    /// As [`Secondary::new`], without a device.
    pub fn described(kind: Kind, limits: &Limits, size: u64) -> Self {
        let way = match kind {
            Kind::File => Way::File(FileSecondary::new(limits.zeroing)),
            Kind::Block => Way::Block(BlockSecondary::new(limits.zeroing)),
        };
        Self { way, size }
    }

    /// How to make a range zero, in the shortest way that has not been refused.
    pub fn zero(&self, offset: u64, len: u64) -> Option<Step> {
        let len = self.inside(offset, len)?;
        let mode = match &self.way {
            Way::File(way) => way.zeroing(),
            Way::Block(way) => way.zeroing(),
        };
        Some(match mode {
            Some(mode) => Step::Fallocate { mode, offset, len },
            None => Step::WriteZeroes { offset, len },
        })
    }

    /// A fallocate with `mode` has failed with `errno`. `true`: it is not supported after all, which is remembered;
    /// ask [`Secondary::zero`] again. `false`: an error like that of a write. Several may be under way when the first
    /// one is refused; each of them may report.
    pub fn zeroing_failed(&mut self, mode: i32, errno: i32) -> bool {
        if !means_unsupported(errno) {
            return false;
        }
        match &mut self.way {
            Way::File(way) => way.refused(mode),
            Way::Block(way) => way.refused(mode),
        }
        true
    }

    /// How much of a range is inside the volume.
    fn inside(&self, offset: u64, len: u64) -> Option<u64> {
        let inside = self.size.checked_sub(offset)?.min(len);
        (inside > 0).then_some(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Zeroing;
    use crate::storage::limits::{PUNCH_HOLE, ZERO_RANGE};

    const SIZE: u64 = 1 << 20;
    // Of errno.h.
    const ENOSPC: i32 = 28;
    const EOPNOTSUPP: i32 = 95;

    fn secondary(kind: Kind, unmap: Option<i32>) -> Secondary {
        let limits = Limits {
            logical_block: 512,
            physical_block: 4096,
            io_min: 4096,
            io_opt: 0,
            direct: true,
            buffered_because: None,
            discard: None,
            zeroing: Zeroing { unmap, keep: None },
        };
        Secondary::described(kind, &limits, SIZE)
    }

    #[test]
    fn nothing_reaches_beyond_the_end_of_the_volume() {
        let secondary = secondary(Kind::File, Some(PUNCH_HOLE));
        for (offset, len) in [(SIZE, 1), (u64::MAX, u64::MAX), (0, 0)] {
            assert_eq!(secondary.zero(offset, len), None);
        }
        assert_eq!(
            secondary.zero(512, u64::MAX),
            Some(Step::Fallocate { mode: PUNCH_HOLE, offset: 512, len: SIZE - 512 })
        );
    }

    #[test]
    fn a_file_that_refuses_holes_gets_zeroes() {
        let mut secondary = secondary(Kind::File, Some(PUNCH_HOLE));
        assert!(!secondary.zeroing_failed(PUNCH_HOLE, ENOSPC), "a full file system is no missing feature");
        assert!(secondary.zeroing_failed(PUNCH_HOLE, EOPNOTSUPP));
        assert_eq!(secondary.zero(0, 4096), Some(Step::WriteZeroes { offset: 0, len: 4096 }));
        assert!(secondary.zeroing_failed(PUNCH_HOLE, EOPNOTSUPP), "one that was under way is repeated as well");
    }

    #[test]
    fn a_block_device_that_refuses_holes_is_asked_to_zero_first() {
        let mut secondary = secondary(Kind::Block, Some(PUNCH_HOLE));
        assert!(secondary.zeroing_failed(PUNCH_HOLE, EOPNOTSUPP));
        assert!(secondary.zeroing_failed(PUNCH_HOLE, EOPNOTSUPP), "the second of two under way");
        assert_eq!(secondary.zero(0, 4096), Some(Step::Fallocate { mode: ZERO_RANGE, offset: 0, len: 4096 }));
        assert!(secondary.zeroing_failed(ZERO_RANGE, EOPNOTSUPP));
        assert_eq!(secondary.zero(0, 4096), Some(Step::WriteZeroes { offset: 0, len: 4096 }));
    }
}
