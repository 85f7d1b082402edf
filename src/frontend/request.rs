//! From the kernel's description of a request to ours, with everything checked in one place.

/// Sectors are 512 bytes in every ublk field, whatever the device's block size.
pub const SECTOR_SHIFT: u32 = 9;

/// Operations of `struct ublksrv_io_desc`, the low byte of its `op_flags` (`include/uapi/linux/ublk_cmd.h`).
const OP_READ: u32 = 0;
const OP_WRITE: u32 = 1;
const OP_FLUSH: u32 = 2;
const OP_DISCARD: u32 = 3;
const OP_WRITE_ZEROES: u32 = 5;
/// Flags of the same field, not shifted.
const FLAG_FUA: u32 = 1 << 13;
const FLAG_NOUNMAP: u32 = 1 << 15;

/// Index of a request among those its queue may have in flight.
pub type Tag = u16;

/// What a host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    /// `durable`: on the primary's media before it is acknowledged (FUA).
    Write {
        durable: bool,
    },
    Flush,
    /// The range must read back as zeroes, like every discard here (H18).
    Discard,
    /// `keep`: leave the space allocated (NOUNMAP).
    WriteZeroes {
        keep: bool,
    },
}

/// A request of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub op: Op,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// Reads a descriptor. `None`: an operation that was never advertised.
    pub fn parse(op_flags: u32, start_sector: u64, sectors: u32) -> Option<Self> {
        let op = match op_flags & 0xff {
            OP_READ => Op::Read,
            OP_WRITE => Op::Write { durable: op_flags & FLAG_FUA != 0 },
            OP_FLUSH => Op::Flush,
            OP_DISCARD => Op::Discard,
            OP_WRITE_ZEROES => Op::WriteZeroes { keep: op_flags & FLAG_NOUNMAP != 0 },
            _ => return None,
        };
        if op == Op::Flush {
            // The kernel leaves whatever it likes in the range of a flush, the sector -1 for one.
            return Some(Self { op, offset: 0, length: 0 });
        }
        let fits = sectors <= u32::MAX >> SECTOR_SHIFT && start_sector <= u64::MAX >> SECTOR_SHIFT;
        fits.then_some(Self { op, offset: start_sector << SECTOR_SHIFT, length: sectors << SECTOR_SHIFT })
    }

    /// Whether the request changes data: whether it has to be tracked.
    pub fn modifies(&self) -> bool {
        matches!(self.op, Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_read_with_its_flags_where_they_are() {
        let parse = |flags| Request::parse(flags, 8, 16).map(|request| request.op);
        assert_eq!(parse(0), Some(Op::Read));
        assert_eq!(parse(1), Some(Op::Write { durable: false }));
        assert_eq!(parse(1 | 1 << 13), Some(Op::Write { durable: true }));
        assert_eq!(parse(2), Some(Op::Flush));
        assert_eq!(parse(3), Some(Op::Discard));
        assert_eq!(parse(5), Some(Op::WriteZeroes { keep: false }));
        assert_eq!(parse(5 | 1 << 15), Some(Op::WriteZeroes { keep: true }));
        assert_eq!(parse(4), None);
        assert_eq!(parse(255), None);
    }

    #[test]
    fn sectors_become_bytes_and_nothing_overflows() {
        let request = Request::parse(1, 8, 16).expect("a write");
        assert_eq!((request.offset, request.length), (4096, 8192));
        assert_eq!(Request::parse(3, 0, u32::MAX >> 9).map(|r| r.length), Some(u32::MAX >> 9 << 9));
        assert_eq!(Request::parse(3, 0, (u32::MAX >> 9) + 1), None);
        assert_eq!(Request::parse(0, u64::MAX, 1), None);
    }

    #[test]
    fn a_flush_is_one_whatever_its_range_says() {
        let flush = Request { op: Op::Flush, offset: 0, length: 0 };
        assert_eq!(Request::parse(2, u64::MAX, 0), Some(flush));
        assert_eq!(Request::parse(2, 8, u32::MAX), Some(flush));
    }
}
