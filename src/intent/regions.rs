//! A word per region: who writes to it at this instant, and whether media shows it hot. Lock-free, no I/O, no clock.
//!
//! **Pins.** A write raises the pins of its regions first and looks whether they are hot in the same step; the keeper
//! cools a region only if it has no pin, in one step too. So a write that found a region hot has a hot one until it
//! unpins, after its second mark; and whoever has cooled a region knows that every write to it has either marked it or
//! waits (H1, H3).

use crate::bugs::{Bug, present};
use crate::geometry::{Geometry, TrackNo, TrackRange};
use crate::memory::Words;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

#[cfg(feature = "loom")]
use crate::memory::sequential::{AtomicU32, AtomicU64};
#[cfg(not(feature = "loom"))]
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Size of a region that nobody chose, and the largest, in bytes.
pub const REGION_SIZE_DEFAULT: u64 = 4 << 20;
pub const REGION_SIZE_MAX: u64 = 64 << 20;

/// The lower half of a word counts pins.
const PIN: u64 = 1;
const PINS: u64 = (1 << 32) - 1;
/// Durable on media, and not about to be cleared.
const HOT: u64 = 1 << 32;
/// Written to since the keeper's last look.
const USED: u64 = 1 << 33;
/// The keeper wants to hear of the first write.
const AHEAD: u64 = 1 << 34;

/// Index of a region within its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionNo(pub u64);

/// A run of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionRange {
    pub start: RegionNo,
    pub count: u64,
}

impl RegionRange {
    pub const NONE: Self = Self { start: RegionNo(0), count: 0 };

    pub fn end(self) -> u64 {
        self.start.0 + self.count
    }

    pub fn iter(self) -> impl Iterator<Item = RegionNo> {
        (self.start.0..self.end()).map(RegionNo)
    }
}

/// What a write finds when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Every region is: the write may go on.
    pub hot: bool,
    /// The keeper wants to look: a region that it marked ahead is in use.
    pub tell: bool,
}

/// The regions of one volume.
#[derive(Debug)]
pub struct Regions {
    geometry: Geometry,
    /// Tracks in a region, as a shift.
    shift: u32,
    words: Words,
    /// 0 while intents can be written, then [`SUSPENDED`] or [`REFUSED`].
    failed: AtomicU32,
    /// 1 once the primary may have lost what it acknowledged.
    doubt: AtomicU32,
}

const SUSPENDED: u32 = 1;
const REFUSED: u32 = 2;

impl Regions {
    /// Every region cold. `region_size` is a power of two and at least a track; `words` are zero, one per region.
    pub fn new(geometry: Geometry, region_size: u64, words: Words) -> Self {
        let shift = (region_size / geometry.track_size()).max(1).trailing_zeros();
        debug_assert!(words.len() as u64 >= Self::count_of(&geometry, region_size), "a word per region");
        Self { geometry, shift, words, failed: AtomicU32::new(0), doubt: AtomicU32::new(0) }
    }

    /// Regions that a volume has.
    pub fn count_of(geometry: &Geometry, region_size: u64) -> u64 {
        geometry.tracks().div_ceil((region_size / geometry.track_size()).max(1))
    }

    pub fn count(&self) -> u64 {
        self.geometry.tracks().div_ceil(1 << self.shift)
    }

    /// Takes their memory early; see [`Words::populate`].
    pub fn populate(&self) {
        self.words.populate();
    }

    /// The regions that a run of tracks lies in.
    #[inline]
    pub fn of(&self, tracks: TrackRange) -> RegionRange {
        let start = tracks.start.0 >> self.shift;
        if tracks.count == 0 {
            return RegionRange { start: RegionNo(start), count: 0 };
        }
        let last = (tracks.end() - 1) >> self.shift;
        RegionRange { start: RegionNo(start), count: last - start + 1 }
    }

    /// The tracks of a region; the last one may have fewer.
    pub fn tracks(&self, region: RegionNo) -> TrackRange {
        let start = region.0 << self.shift;
        let end = ((region.0 + 1) << self.shift).min(self.geometry.tracks());
        TrackRange { start: TrackNo(start), count: end - start }
    }

    fn words_of(&self, regions: RegionRange) -> &[AtomicU64] {
        &self.words[index(regions)]
    }

    // A host write.

    /// The write's first step: holds its regions as they are until [`Self::unpin`].
    #[inline]
    pub fn pin(&self, regions: RegionRange) -> Pinned {
        let (mut all, mut any) = (HOT, 0);
        for word in self.words_of(regions) {
            let before = word.fetch_add(PIN, SeqCst);
            debug_assert!(before & PINS < PINS, "fewer writes than that are under way");
            if before & USED == 0 {
                word.fetch_or(USED, SeqCst);
            }
            if before & AHEAD != 0 && word.fetch_and(!AHEAD, SeqCst) & AHEAD != 0 {
                any |= AHEAD;
            }
            all &= before;
        }
        Pinned { hot: all & HOT != 0 || present(Bug::DataBeforeIntent), tell: any & AHEAD != 0 }
    }

    /// The write's last step, after its second mark: whoever finds no pin finds every mark.
    #[inline]
    pub fn unpin(&self, regions: RegionRange) {
        for word in self.words_of(regions) {
            let before = word.fetch_sub(PIN, SeqCst);
            debug_assert!(before & PINS > 0, "unpinned without a pin");
        }
    }

    /// Whether every region is hot. Of regions that are pinned it stays true once it is.
    pub fn all_hot(&self, regions: RegionRange) -> bool {
        self.words_of(regions).iter().all(|word| word.load(SeqCst) & HOT != 0)
    }

    /// Whether an intent could not be written.
    pub fn has_failed(&self) -> bool {
        self.failed.load(SeqCst) != 0
    }

    /// Whether writes to cold regions are to be answered with an error.
    pub fn refuses(&self) -> bool {
        self.failed.load(SeqCst) == REFUSED
    }

    /// A flush of the primary has failed: what was written before may be lost at a power cut although a later flush
    /// succeeds, for it is told only once (H7). Until the volume comes up again no region is cleared, and no stop is
    /// clean.
    pub fn doubt_primary(&self) {
        self.doubt.store(1, SeqCst);
    }

    pub fn is_in_doubt(&self) -> bool {
        self.doubt.load(SeqCst) != 0 && !present(Bug::PrimaryErrorForgotten)
    }

    // Only whoever has the keeper's lock calls these.

    pub fn is_hot(&self, region: RegionNo) -> bool {
        self.word(region) & HOT != 0
    }

    /// The region is durable on media: who waits for it may go on when told.
    pub fn heat(&self, region: RegionNo) {
        self.words_of(one(region))[0].fetch_or(HOT, SeqCst);
    }

    /// Cools the region unless it is pinned: from then on a write to it has to wait. Says whether it did.
    pub fn cool(&self, region: RegionNo) -> bool {
        let word = &self.words_of(one(region))[0];
        let mut now = word.load(SeqCst);
        loop {
            if now & HOT == 0 || now & PINS != 0 && !present(Bug::ClearedWhilePinned) {
                return false;
            }
            match word.compare_exchange(now, now & !(HOT | AHEAD), SeqCst, SeqCst) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
    }

    /// Whether the region was written to since the last call, or is pinned.
    pub fn take_used(&self, region: RegionNo) -> bool {
        let word = &self.words_of(one(region))[0];
        let now = word.load(SeqCst);
        // One that is in use now is so until it is unpinned: its time begins then.
        now & PINS != 0 || now & USED != 0 && word.fetch_and(!USED, SeqCst) & USED != 0
    }

    pub fn is_used(&self, region: RegionNo) -> bool {
        self.word(region) & USED != 0
    }

    /// The next write to the region tells the keeper.
    pub fn set_ahead(&self, region: RegionNo, ahead: bool) {
        let word = &self.words_of(one(region))[0];
        if ahead {
            word.fetch_or(AHEAD, SeqCst);
        } else {
            word.fetch_and(!AHEAD, SeqCst);
        }
    }

    pub fn is_ahead(&self, region: RegionNo) -> bool {
        self.word(region) & AHEAD != 0
    }

    /// No intent will ever be durable again. Writes to cold regions are refused, or stay parked (`suspend`).
    pub fn fail(&self, suspend: bool) {
        self.failed.fetch_max(if suspend { SUSPENDED } else { REFUSED }, SeqCst);
    }

    /// Every region passes for hot, because nobody keeps the intent.
    pub fn heat_all(&self) {
        for word in self.words.iter() {
            word.fetch_or(HOT, SeqCst);
        }
    }

    /// Pins of a region, for tests.
    pub fn pins(&self, region: RegionNo) -> u64 {
        self.word(region) & PINS
    }

    fn word(&self, region: RegionNo) -> u64 {
        self.words_of(one(region))[0].load(SeqCst)
    }
}

fn one(region: RegionNo) -> RegionRange {
    RegionRange { start: region, count: 1 }
}

/// Indices into memory that exists: the words of this many regions were found for it.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a word of each region is in memory, so usize holds its index")]
fn index(regions: RegionRange) -> Range<usize> {
    regions.start.0 as usize..regions.end() as usize
}
