//! What the keeper knows of one page of the intent: its bits as they are to be on media, which of them media still
//! shows, and the records that name those that it does not show yet.

use super::regions::RegionNo;
use crate::bugs::{Bug, present};

/// Index of a page of the intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub u64);

/// A page. At most one write of it is under way (H4).
#[derive(Debug)]
pub(super) struct Page {
    first: RegionNo,
    /// As the next write will carry them; nothing as long as none was ever set, as of most pages of a huge volume.
    bits: Box<[u64]>,
    regions: u64,
    /// Cleared since the last write was submitted: the page or a record shows them, on media or on its way there.
    pub clearing: Vec<RegionNo>,
    /// Cleared by the write under way: media may or may not show them.
    pub cleared_by_write: Vec<RegionNo>,
    pub writing: bool,
    /// The oldest record of the log that stands in for the page as media has it, and for the write under way; and the
    /// newest that ever did.
    logged: u64,
    settling: u64,
    newest: u64,
    /// To be written so that no record stands in for it any more.
    pub due: bool,
}

/// No record stands in for the page.
const NO_RECORD: u64 = u64::MAX;

impl Page {
    pub fn new(first: RegionNo, regions: u64) -> Self {
        Self {
            first,
            bits: Box::default(),
            regions,
            clearing: Vec::new(),
            cleared_by_write: Vec::new(),
            writing: false,
            logged: NO_RECORD,
            settling: NO_RECORD,
            newest: NO_RECORD,
            due: false,
        }
    }

    fn place(&self, region: RegionNo) -> (usize, u64) {
        let bit = region.0 - self.first.0;
        (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
    }

    /// Words that are missing are zero.
    pub fn words(&self) -> &[u64] {
        &self.bits
    }

    pub fn is_set(&self, region: RegionNo) -> bool {
        let (word, bit) = self.place(region);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    pub fn set(&mut self, region: RegionNo, hot: bool) {
        let (word, bit) = self.place(region);
        if hot {
            if self.bits.is_empty() {
                self.bits = vec![0; usize::try_from(self.regions.div_ceil(64)).unwrap_or(usize::MAX)].into();
            }
            self.bits[word] |= bit;
        } else if let Some(bits) = self.bits.get_mut(word) {
            *bits &= !bit;
        }
    }

    /// The first set bit that is not before `from`.
    pub fn next_set(&self, from: RegionNo) -> Option<RegionNo> {
        let (first, bit) = self.place(from);
        let mut mask = !(bit - 1);
        for (word, bits) in self.bits.iter().enumerate().skip(first) {
            let ahead = bits & mask;
            if ahead != 0 {
                return Some(RegionNo(self.first.0 + word as u64 * 64 + u64::from(ahead.trailing_zeros())));
            }
            mask = u64::MAX;
        }
        None
    }

    /// Whether it is to be written: media differs from what it is to show, and no write under way will change that.
    pub fn is_dirty(&self) -> bool {
        !self.clearing.is_empty() || self.due
    }

    /// The record of this number carries a region of the page that was set; says whether it is the first.
    pub fn log(&mut self, number: u64) -> bool {
        self.logged = self.logged.min(number);
        std::mem::replace(&mut self.newest, number) != number
    }

    /// Whether a record stands in for what no write of the page has carried yet.
    pub fn is_logged(&self) -> bool {
        self.logged != NO_RECORD
    }

    /// The oldest record that stands in for the page.
    pub fn needed(&self) -> u64 {
        if present(Bug::RecordLetGoEarly) { self.logged } else { self.logged.min(self.settling) }
    }

    /// A write with the bits as they are now is submitted.
    pub fn begin_write(&mut self) {
        self.writing = true;
        self.due = false;
        self.cleared_by_write.append(&mut self.clearing);
        self.settling = self.needed();
        self.logged = NO_RECORD;
    }

    /// The write under way is durable. No record is needed any more that was begun before it: its regions are in the
    /// page, or were cleared again.
    pub fn end_write(&mut self) {
        self.writing = false;
        self.settling = NO_RECORD;
        self.cleared_by_write.clear();
    }
}
