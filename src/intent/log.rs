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
//!
//! **Several are under way at a time**, for on most devices a record takes far longer than it takes to begin the next,
//! and whoever comes a moment too late for one should not have to wait for its end. They may end in any order, and each
//! counts from its own end on. So after a crash some may be missing before the newest: each says how many before it
//! were not all durable when it was begun (`unsure`).

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
    /// Records directly before it of which one or more were under way when it was begun.
    pub unsure: u64,
    pub regions: Vec<RegionNo>,
}

/// Where the log of a volume goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStart {
    /// Records there is room for, at least two.
    pub slots: u64,
    /// Number of the next record. No older one counts.
    pub next: u64,
}

impl LogStart {
    /// Of a log that nothing was written to yet.
    pub fn empty(slots: u64) -> Self {
        Self { slots, next: 1 }
    }
}

/// The log of one volume.
#[derive(Debug)]
pub(super) struct Log {
    slots: u64,
    next: u64,
    /// The oldest record that counts by what media says; at first the one with which a start has emptied the log.
    told: u64,
    /// Behind the newest record that names anything, and behind the newest that may name what was cleared since.
    named: u64,
    cleared: u64,
    /// Records and the pages that they stand in for, oldest first.
    open: VecDeque<(u64, PageNo)>,
    /// The records under way, oldest first.
    writing: VecDeque<Record>,
}

/// Most records under way, from the oldest to the newest.
pub const RECORDS_UNDER_WAY_MAX: u8 = 4;

impl Log {
    pub fn new(start: LogStart) -> Self {
        let LogStart { slots, next } = start;
        Self { slots, next, told: next - 1, named: 0, cleared: 0, open: VecDeque::new(), writing: VecDeque::new() }
    }

    /// The oldest record that counts; the next one if none does.
    fn tail(&self) -> u64 {
        self.open.front().map_or(self.next, |(number, _)| *number)
    }

    /// The oldest record under way; the next one if none is.
    fn oldest(&self) -> u64 {
        self.writing.front().map_or(self.next, |record| record.number)
    }

    /// Whether a record can be begun: not too many are under way, and its slot is free whichever of them is the newest
    /// after a crash.
    pub fn has_room(&self) -> bool {
        let few = self.next - self.oldest() < u64::from(RECORDS_UNDER_WAY_MAX).min(self.slots);
        let free = !self.is_full() && self.next - self.told < self.slots;
        few && (free || present(Bug::RecordWrittenOver))
    }

    /// Whether no record can be begun before pages are written: with it in place no slot would be free.
    pub fn is_full(&self) -> bool {
        self.next + 1 - self.tail() >= self.slots
    }

    /// Whether pages should be written, so that there will be room: three quarters of the slots count, or all but the
    /// one that has to be free.
    pub fn is_pressed(&self) -> bool {
        let counting = self.next - self.tail();
        4 * counting >= 3 * self.slots || counting + 1 >= self.slots
    }

    /// Regions were cleared on media: any record until now may name them.
    pub fn note_cleared(&mut self) {
        self.cleared = self.next;
    }

    /// Whether media counts records that no page needs any more and that may name what was cleared, and can be told not
    /// to: after a crash it would be copied again for nothing.
    pub fn is_stale(&self) -> bool {
        let on_its_way = self.writing.back().map_or(0, |newest| newest.tail);
        self.has_room() && self.told.max(on_its_way) < self.tail().min(self.named).min(self.cleared)
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
        let number = self.next;
        let unsure = if present(Bug::RecordGapUntold) { 0 } else { number - self.oldest() };
        self.writing.push_back(Record { number, tail: self.tail(), unsure, regions });
        self.next += 1;
    }

    /// A record under way.
    pub fn writing(&self, number: u64) -> Option<&Record> {
        self.writing.iter().find(|record| record.number == number)
    }

    pub fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// A record under way is durable: its regions.
    pub fn end(&mut self, number: u64) -> Vec<RegionNo> {
        let at = self.writing.iter().position(|record| record.number == number);
        let Some(record) = at.and_then(|at| self.writing.remove(at)) else { return Vec::new() };
        // An older one may end later.
        self.told = self.told.max(record.tail);
        let mut regions = record.regions;
        if present(Bug::RecordEndsOthers) {
            self.writing.iter_mut().for_each(|other| regions.append(&mut other.regions));
        }
        regions
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
        Log::new(LogStart::empty(slots))
    }

    fn record(log: &mut Log, pages: &[PageNo]) -> Record {
        assert!(log.has_room());
        for page in pages {
            log.stands_in_for(*page);
        }
        log.begin(pages.iter().map(|page| RegionNo(page.0)).collect());
        let record = log.writing.back().expect("begun").clone();
        log.end(record.number);
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
        log.begin(Vec::new());
        assert!(!log.is_stale() && log.has_room(), "it is on its way");
        let empty = log.writing(2).expect("begun");
        assert_eq!((empty.tail, empty.regions.len()), (2, 0));
        log.end(2);
        assert!(!log.is_stale(), "or it would be told for ever");
    }

    #[test]
    fn what_is_told_by_a_durable_record_is_not_told_again_beside_an_older_one() {
        let mut log = log(8);
        for page in [PAGE, PageNo(4)] {
            log.stands_in_for(page);
            log.begin(vec![]);
        }
        // The first hangs, the pages of both are written, and something was cleared.
        log.end(2);
        log.settle(|_| u64::MAX);
        log.note_cleared();
        assert!(log.is_stale());
        log.begin(vec![]);
        log.end(3);
        assert!(log.writing(1).is_some() && !log.is_stale());
    }

    #[test]
    fn the_slot_of_a_record_that_media_counts_is_never_written_to() {
        // From the record on with which a start has emptied the log.
        for (slots, first) in (2..10).flat_map(|slots| [(slots, 1), (slots, 7)]) {
            let mut log = Log::new(LogStart { slots, next: first });
            // What the newest record says that is certainly on media, and the numbers of those under way.
            let (mut told, mut under_way) = (first - 1, Vec::new());
            for step in 0..4000_u64 {
                if log.has_room() && step % 5 != 0 {
                    let number = log.next();
                    if step % 7 != 0 {
                        log.stands_in_for(PAGE);
                    }
                    log.begin(vec![]);
                    assert!(number < told + slots, "record {number} would be written over one from {told} on");
                    assert!(under_way.iter().all(|other| number < other + slots), "two in a slot");
                    under_way.push(number);
                } else if !under_way.is_empty() {
                    let number = under_way.swap_remove(usize::try_from(step * step).expect("small") % under_way.len());
                    told = log.writing(number).expect("under way").tail.max(told);
                    log.end(number);
                } else {
                    let next = log.next;
                    log.settle(|_| next - step % slots.min(next));
                }
            }
            assert!(log.next > 400, "{slots} slots get stuck");
        }
    }
}
