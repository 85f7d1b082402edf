//! The intent log: records of regions that became hot, ahead of the intent pages that are to show them.
//!
//! A record is one page, written twice, so that no one page that rots makes the newest record pass for one that a power
//! cut has torn. Record `n` lies in slot `n` modulo the number of slots. All numbers little-endian:
//!
//! ```text
//! offset  size
//!      0     4  magic "FPLG"
//!      4     4  CRC32C of what is used of the page but these four bytes
//!      8     8  number of the record, from 1
//!     16    16  the volume's id
//!     32     8  number of the oldest record that counts beside it; its own if none does
//!     40     4  number of regions
//!     44     4  how many records before it may be missing
//!     48        the regions, eight bytes each; what is behind them means nothing
//! ```
//!
//! Those that count are the newest record and those from its `tail` on. What lies in other slots says nothing: it was
//! never written, is out of date, or is a record that a power cut has torn, which nobody had gone by yet. Since several
//! are under way at a time, one before the newest may not have come there either: of as many as the newest says,
//! directly before it, and if a copy of what was in its slot before is still there, whole. If any other that counts
//! cannot be read, every region is taken for hot (H5): one that has rotted, or of which a power cut has torn both
//! copies, each somewhere in the middle.

pub use super::layout::RECORD_BYTES;
use super::layout::{Layout, PAGE_BYTES};
use super::medium::{CHUNK_BYTES, Chunk, Medium, Page};
use crate::intent::{LogStart, RECORD_REGIONS_MAX, Record, RegionNo};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

const MAGIC: &[u8; 4] = b"FPLG";
const CRC: usize = 4;
const NUMBER: usize = 8;
const VOLUME: usize = 16;
const TAIL: usize = 32;
const COUNT: usize = 40;
const UNSURE: usize = 44;
const REGIONS: usize = 48;
/// No volume lives to see it; a record with a higher number is none.
const NUMBER_MAX: u64 = 1 << 62;
const TOGETHER: usize = CHUNK_BYTES / RECORD_BYTES;

const _: () = assert!(REGIONS + RECORD_REGIONS_MAX * 8 <= PAGE_BYTES, "a record is a page");

/// A record as it is written, at the beginning of `into`. Only what is used of it is touched: most records name few
/// regions, and host writes wait for them.
pub fn put(volume: [u8; 16], record: &Record, into: &mut [u8]) {
    let (page, copy) = into[..RECORD_BYTES].split_at_mut(PAGE_BYTES);
    let regions = &record.regions[..record.regions.len().min(RECORD_REGIONS_MAX)];
    let used = REGIONS + regions.len() * 8;
    page[..used].fill(0);
    let [count, unsure] = [regions.len() as u64, record.unsure].map(|count| u32::try_from(count).unwrap_or(0));
    page[..CRC].copy_from_slice(MAGIC);
    page[NUMBER..VOLUME].copy_from_slice(&record.number.to_le_bytes());
    page[VOLUME..TAIL].copy_from_slice(&volume);
    page[TAIL..COUNT].copy_from_slice(&record.tail.to_le_bytes());
    page[COUNT..UNSURE].copy_from_slice(&count.to_le_bytes());
    page[UNSURE..REGIONS].copy_from_slice(&unsure.to_le_bytes());
    for (bytes, region) in page[REGIONS..].chunks_exact_mut(8).zip(regions) {
        bytes.copy_from_slice(&region.0.to_le_bytes());
    }
    let crc = checksum(page, regions.len());
    page[CRC..NUMBER].copy_from_slice(&crc.to_le_bytes());
    copy[..used].copy_from_slice(&page[..used]);
}

/// Of a record with so many regions. What is behind them says nothing, and most records name few.
fn checksum(page: &[u8], regions: usize) -> u32 {
    let used = &page[..REGIONS + regions * 8];
    crc32c::crc32c_append(crc32c::crc32c(&used[..CRC]), &used[CRC + 4..])
}

/// The record in a page, if the page is whole and one of this volume.
fn decode(page: &Page, volume: [u8; 16]) -> Option<Record> {
    let number = |at| u64::from_le_bytes(page.get(at));
    let small = |at| u32::from_le_bytes(page.get(at));
    let count = usize::try_from(small(COUNT)).unwrap_or(usize::MAX);
    let ours = page.get::<4>(0) == *MAGIC
        && page.get::<16>(VOLUME) == volume
        && count <= RECORD_REGIONS_MAX
        && number(NUMBER) <= NUMBER_MAX
        && small(CRC) == checksum(&page.0, count);
    if !ours {
        return None;
    }
    let regions = page.0[REGIONS..].as_chunks().0.iter().take(count);
    let regions = regions.map(|bytes| RegionNo(u64::from_le_bytes(*bytes))).collect();
    Some(Record { number: number(NUMBER), tail: number(TAIL), unsure: small(UNSURE).into(), regions })
}

/// What a log on media says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Regions that records name which count.
    pub regions: Vec<RegionNo>,
    /// How many records those are, and how many before the newest are lost: nobody had gone by them.
    pub records: u64,
    pub lost: u64,
    /// Where the log goes on.
    pub start: LogStart,
    /// A record that counts cannot be read: every region may be hot.
    pub damaged: bool,
}

/// Reads the log of a volume.
pub fn read(medium: &dyn Medium, layout: &Layout, volume: [u8; 16]) -> io::Result<Logged> {
    let slots = u64::from(layout.log_slots);
    let mut found = BTreeMap::new();
    // Slots in which a copy of something is whole.
    let mut whole = BTreeSet::new();
    let (mut page, mut chunk) = (Page::ZERO, Chunk::new());
    for first in (0..slots).step_by(TOGETHER) {
        let count = usize::try_from(slots - first).unwrap_or(TOGETHER).min(TOGETHER);
        let copies = &mut chunk.0[..count * RECORD_BYTES];
        medium.read(offset(layout, first), copies)?;
        for (place, copy) in copies.chunks_exact(PAGE_BYTES).enumerate() {
            let slot = first + (place * PAGE_BYTES / RECORD_BYTES) as u64;
            page.0.copy_from_slice(copy);
            let record = decode(&page, volume).filter(|record| record.number % slots == slot);
            if record.is_some() || page.is_zero() {
                whole.insert(slot);
            }
            // Where a write was torn the other copy may be an older record: the newer one counts.
            found.extend(record.map(|record| (record.number, record)));
        }
    }
    let mut start = LogStart::empty(slots);
    let Some((&newest, last)) = found.last_key_value() else {
        return Ok(Logged { regions: Vec::new(), records: 0, lost: 0, start, damaged: false });
    };
    start.next = newest + 1;
    let counting = last.tail..=newest;
    let sure = newest.saturating_sub(last.unsure);
    let mut logged = Logged { regions: Vec::new(), records: 0, lost: 0, start, damaged: false };
    // No writer lets so many count, or begins so many at once: a bug, and not to be gone by.
    if last.tail > newest || last.tail == 0 || newest - last.tail + 1 >= slots || last.unsure >= slots {
        return Ok(Logged { records: 1, damaged: true, ..logged });
    }
    for number in counting {
        match found.get(&number) {
            Some(record) => {
                logged.regions.extend(&record.regions);
                logged.records += 1;
            }
            None if number >= sure && whole.contains(&(number % slots)) => logged.lost += 1,
            None => logged.damaged = true,
        }
    }
    Ok(logged)
}

/// Where a record lies.
pub(super) fn offset(layout: &Layout, number: u64) -> u64 {
    layout.log_offset() + number % u64::from(layout.log_slots) * RECORD_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_record_is_whole_in_memory_that_held_something_longer() {
        let mut bytes = vec![0xff; RECORD_BYTES];
        for count in [RECORD_REGIONS_MAX, 3, 0, 1] {
            let regions = (0..count as u64).map(RegionNo).collect();
            let record = Record { number: 7, tail: 5, unsure: 1, regions };
            put([7; 16], &record, &mut bytes);
            for page in bytes.chunks_exact(PAGE_BYTES) {
                assert_eq!(decode(&Page(page.try_into().expect("a page")), [7; 16]).as_ref(), Some(&record));
            }
        }
    }

    #[test]
    fn a_well_checked_record_whose_number_cannot_be_is_none() {
        let mut bytes = vec![0; RECORD_BYTES];
        let decoded = |bytes: &[u8]| decode(&Page(bytes[..PAGE_BYTES].try_into().expect("a page")), [7; 16]);
        for (number, is_one) in [(1, true), (NUMBER_MAX, true), (NUMBER_MAX + 1, false), (u64::MAX, false)] {
            let record = Record { number, tail: 1, unsure: 0, regions: vec![RegionNo(u64::MAX)] };
            put([7; 16], &record, &mut bytes);
            assert_eq!(decoded(&bytes), is_one.then_some(record));
        }
    }
}
