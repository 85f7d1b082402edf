//! The intent log: names regions in the order in which they became hot, so that writes all over a large volume share
//! one write to media however many pages of the intent their regions lie in. Pure bookkeeping; the keeper decides.
//!
//! A record stands in for the pages of its regions: they count as hot on media from the moment it is durable, and until
//! every one of those pages has been written with them. Records are numbered and lie in a ring of slots; each says
//! which is the oldest that still counts when it is written (`tail`).
//!
//! **No record that counts is ever written over**, not even one that only what media says counts: a record goes to a
//! slot that is free by the newest durable record. For that there is always one more slot than records that count, and
//! the record that says so can be written.

use super::page::PageNo;
use super::regions::RegionNo;
use crate::bugs::{Bug, present};
use std::collections::VecDeque;

/// A record as it is to be on media.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// From 1, one after the other, for as long as the volume lives.
    pub number: u64,
    /// The oldest record that counts beside it; its own number if none does.
    pub tail: u64,
    pub regions: Vec<RegionNo>,
}

/// Where the log of a volume goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStart {
    /// Records there is room for; 0 if there is no log.
    pub slots: u64,
    /// Number of the next record. No older one counts.
    pub next: u64,
}

impl LogStart {
    pub const NONE: Self = Self { slots: 0, next: 1 };
}

/// The log of one volume.
#[derive(Debug)]
pub(super) struct Log {
    slots: u64,
    next: u64,
    /// The oldest record that counts by what media says.
    told: u64,
    /// Behind the newest record that names anything, and behind the newest that may name what was cleared since.
    named: u64,
    cleared: u64,
    /// Records and the pages that they stand in for, oldest first.
    open: VecDeque<(u64, PageNo)>,
    /// The record under way.
    writing: Option<Record>,
}

impl Log {
    pub fn new(start: LogStart) -> Self {
        let LogStart { slots, next } = start;
        Self { slots, next, told: next, named: 0, cleared: 0, open: VecDeque::new(), writing: None }
    }

    /// The oldest record that counts; the next one if none does.
    fn tail(&self) -> u64 {
        self.open.front().map_or(self.next, |(number, _)| *number)
    }

    /// Whether a record can be begun: none is under way, and with it in place one slot is still free.
    pub fn has_room(&self) -> bool {
        let live = self.next + 1 - self.tail();
        self.writing.is_none() && (live < self.slots || present(Bug::RecordWrittenOver) && self.slots > 0)
    }

    pub fn exists(&self) -> bool {
        self.slots > 0
    }

    /// Whether no record can be begun before pages are written.
    pub fn is_full(&self) -> bool {
        self.writing.is_none() && !self.has_room()
    }

    /// Whether pages should be written, so that there will be room: three quarters of the slots count, or all but the
    /// one that has to be free.
    pub fn is_pressed(&self) -> bool {
        let counting = self.next - self.tail();
        self.slots > 0 && (4 * counting >= 3 * self.slots || counting + 1 >= self.slots)
    }

    /// Regions were cleared on media: any record until now may name them.
    pub fn note_cleared(&mut self) {
        self.cleared = self.next;
    }

    /// Whether media counts records that no page needs any more and that may name what was cleared, and can be told not
    /// to: after a crash it would be copied again for nothing.
    pub fn is_stale(&self) -> bool {
        self.has_room() && self.told < self.tail().min(self.named).min(self.cleared)
    }

    /// The pages that records stand in for; some more than once.
    pub fn pages(&self) -> impl Iterator<Item = PageNo> {
        self.open.iter().map(|(_, page)| *page)
    }

    /// The number of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The next record is one of a region in this page; told before it is begun.
    pub fn stands_in_for(&mut self, page: PageNo) {
        self.open.push_back((self.next, page));
        self.named = self.next + 1;
    }

    /// Begins a record of these regions.
    pub fn begin(&mut self, regions: Vec<RegionNo>) {
        self.writing = Some(Record { number: self.next, tail: self.tail(), regions });
        self.next += 1;
    }

    /// The record under way.
    pub fn writing(&self) -> Option<&Record> {
        self.writing.as_ref()
    }

    /// The record under way is durable: its regions.
    pub fn end(&mut self) -> Vec<RegionNo> {
        let Some(record) = self.writing.take() else { return Vec::new() };
        self.told = record.tail;
        record.regions
    }

    /// Pages were written: `needed` says of a page the oldest record that still stands in for it.
    pub fn settle(&mut self, needed: impl Fn(PageNo) -> u64) {
        while let Some((number, page)) = self.open.front()
            && needed(*page) > *number
        {
            self.open.pop_front();
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    const PAGE: PageNo = PageNo(3);

    fn log(slots: u64) -> Log {
        Log::new(LogStart { slots, next: 1 })
    }

    fn record(log: &mut Log, pages: &[PageNo]) -> Record {
        assert!(log.has_room());
        for page in pages {
            log.stands_in_for(*page);
        }
        log.begin(pages.iter().map(|page| RegionNo(page.0)).collect());
        let record = log.writing().expect("begun").clone();
        assert!(!log.has_room(), "one at a time");
        log.end();
        record
    }

    #[test]
    fn a_full_log_waits_for_the_pages_of_its_oldest_record() {
        let mut log = log(4);
        for number in 1..4 {
            assert_eq!(record(&mut log, &[PageNo(number), PAGE]).tail, 1);
        }
        assert!(!log.has_room() && log.is_pressed());
        assert_eq!(log.pages().collect::<Vec<_>>(), [1, 3, 2, 3, 3, 3].map(PageNo));
        // The page that all have in common is written, with what record 1 and 2 name; then the other of record 1.
        log.settle(|page| if page == PAGE { 3 } else { page.0 });
        assert!(!log.has_room(), "record 1 still stands in for a page");
        log.settle(|page| if page == PAGE || page == PageNo(1) { 3 } else { page.0 });
        assert!(log.has_room());
        let last = record(&mut log, &[PAGE]);
        assert_eq!((last.number, last.tail), (4, 2));
        assert!(!log.has_room());
    }

    #[test]
    fn what_media_counts_for_nothing_is_told_once() {
        let mut log = log(4);
        assert!(!log.is_stale(), "an empty log");
        record(&mut log, &[PAGE]);
        assert!(!log.is_stale());
        log.settle(|_| u64::MAX);
        assert!(!log.is_stale(), "nothing was cleared");
        log.note_cleared();
        assert!(log.is_stale());
        let empty = record(&mut log, &[]);
        assert_eq!((empty.number, empty.tail), (2, 2));
        assert!(!log.is_stale(), "or it would be told for ever");
    }

    #[test]
    fn the_slot_of_a_record_that_media_counts_is_never_written_to() {
        for slots in 2..6 {
            let mut log = log(slots);
            let mut told = 1;
            for step in 0..1000_u64 {
                if log.has_room() {
                    let number = log.next();
                    if step % 7 != 0 {
                        log.stands_in_for(PAGE);
                    }
                    log.begin(vec![]);
                    assert!(number < told + slots, "record {number} would be written over one from {told} on");
                    told = log.writing().expect("begun").tail;
                    log.end();
                } else {
                    let next = log.next;
                    log.settle(|_| next - step % slots.min(next));
                }
            }
            assert!(log.next > 100, "{slots} slots get stuck");
        }
    }
}
