//! The log of dm-log-writes, as `Documentation/admin-guide/device-mapper/log-writes.rst` and the target itself describe
//! it: one entry for each write, in the order in which the medium got them. What was written without a flush enters the
//! log with the next flush; a write with FUA enters it when it is done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Magic, version, number of entries, and the unit of everything else.
const HEAD_BYTES: usize = 28;
/// Sector, sectors, flags, and the length of a mark, which follows.
const ENTRY_BYTES: usize = 32;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Written here; the content is at this place in the log.
    Write {
        data: u64,
    },
    Discard,
    /// Said by whoever tests.
    Mark(String),
    /// A flush without content.
    Flush,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Bytes of the device.
    pub offset: u64,
    pub length: u64,
    /// Not moved with regard to others: it is a flush, has FUA, or is a mark.
    pub ordered: bool,
    /// All before it is on the medium.
    pub flush: bool,
}

/// An opened log.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    pub entries: Vec<Entry>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl WriteLog {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut head = [0; HEAD_BYTES + 4];
        file.read_exact_at(&mut head, 0)?;
        if (word(&head, 0), word(&head, 8)) != (MAGIC, VERSION) {
            return Err(io::Error::other("not a log of dm-log-writes"));
        }
        let unit = word(&head, 24) & u64::from(u32::MAX);
        let (mut entries, mut at) = (Vec::new(), unit);
        for _ in 0..word(&head, 16) {
            let mut fixed = [0; ENTRY_BYTES];
            file.read_exact_at(&mut fixed, at)?;
            let (offset, length, flags) = (word(&fixed, 0) * unit, word(&fixed, 8) * unit, word(&fixed, 16));
            let data = at + unit;
            let kind = if flags & MARK != 0 {
                let mut text = vec![0; usize::try_from(word(&fixed, 24).min(unit)).unwrap_or(0)];
                file.read_exact_at(&mut text, at + ENTRY_BYTES as u64)?;
                Kind::Mark(String::from_utf8_lossy(&text).into_owned())
            } else if flags & DISCARD != 0 {
                Kind::Discard
            } else if length == 0 {
                Kind::Flush
            } else {
                Kind::Write { data }
            };
            at = data + if matches!(kind, Kind::Write { .. }) { length } else { 0 };
            let ordered = flags & (FLUSH | FUA | MARK) != 0;
            entries.push(Entry { kind, offset, length, ordered, flush: flags & FLUSH != 0 });
        }
        Ok(Self { file, entries })
    }

    /// The content of a write, or the zeroes that a discard leaves.
    pub fn content(&self, entry: &Entry, into: &mut [u8]) -> io::Result<()> {
        if let Kind::Write { data } = entry.kind {
            return self.file.read_exact_at(into, data);
        }
        into.fill(0);
        Ok(())
    }
}
