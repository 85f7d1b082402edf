//! One indicator per track, set and cleared by any thread at any time, with an exact count (seed 004 \[0047\]) and a
//! summary that lets a search pass over what is clean: finding the next mark costs the same for 1 GiB and 1 PiB.

use super::sync::{AtomicU64, SeqCst};
use crate::geometry::{TrackNo, TrackRange};
use crate::memory::Words;

/// Bits in a word, and words in the block that one summary bit stands for.
const WORD_BITS: u64 = 64;
const BLOCK_WORDS: u64 = 64;
const BLOCK_BITS: u64 = WORD_BITS * BLOCK_WORDS;

/// A set of tracks.
#[derive(Debug)]
pub struct Bitmap {
    tracks: u64,
    words: Words,
    /// A bit per block of words. Set after any bit in the block is set; cleared by a search that found the block clean
    /// and then, having cleared it, looked again.
    summary: Box<[AtomicU64]>,
    count: Count,
}

/// Number of set bits. A setter counts before it sets, and whoever clears counts after that: for an instant the value
/// may be too large, never too small. Were it 0 while a track is marked, a volume could be said to be in sync for as
/// long as somebody rests half way. It is exact whenever no one is (H35).
#[derive(Debug)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Bitmap {
    /// An empty set over `tracks` tracks; `words` are zero, at least one bit per track.
    pub fn new(tracks: u64, words: Words) -> Self {
        debug_assert!(words.len() as u64 >= Self::words_for(tracks), "a bit per track");
        let blocks = tracks.div_ceil(BLOCK_BITS);
        let summary = (0..blocks.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect();
        Self { tracks, words, summary, count: Count(AtomicU64::new(0)) }
    }

    /// Takes its memory early; see [`Words::populate`].
    pub fn populate(&self) {
        self.words.populate();
    }

    /// Words of memory that a set over `tracks` tracks takes.
    pub fn words_for(tracks: u64) -> u64 {
        tracks.div_ceil(WORD_BITS)
    }

    #[inline]
    fn place(track: TrackNo) -> (usize, u64) {
        (index(track.0 / WORD_BITS), 1 << (track.0 % WORD_BITS))
    }

    #[inline]
    pub fn is_set(&self, track: TrackNo) -> bool {
        let (word, bit) = Self::place(track);
        self.words[word].load(SeqCst) & bit != 0
    }

    /// Sets the track's indicator; returns whether it was clear.
    #[inline]
    pub fn set(&self, track: TrackNo) -> bool {
        let (word, bit) = Self::place(track);
        self.set_bits(word, bit)
    }

    /// Sets the indicators of the tracks, a word at a time; what lies beyond the end is passed over.
    #[inline]
    pub fn set_run(&self, tracks: TrackRange) {
        for (word, bits) in self.words_in(tracks) {
            self.set_bits(word, bits);
        }
    }

    /// The words that the tracks lie in, each with the bits of those in it; what lies beyond the end is left out.
    #[inline]
    fn words_in(&self, tracks: TrackRange) -> impl Iterator<Item = (usize, u64)> {
        let (start, end) = (tracks.start.0, tracks.end().min(self.tracks));
        let words = if start < end { start / WORD_BITS..end.div_ceil(WORD_BITS) } else { 0..0 };
        words.map(move |word| {
            let (from, to) = (start.max(word * WORD_BITS), end.min((word + 1) * WORD_BITS));
            (index(word), u64::MAX >> (WORD_BITS - (to - from)) << (from % WORD_BITS))
        })
    }

    /// Sets bits of a word; returns whether one of them was clear.
    #[inline]
    fn set_bits(&self, word: usize, bits: u64) -> bool {
        // A load first: a hot track is mostly marked already, and a load does not take the cache line from the others.
        // It is enough for the mark's purpose, since whoever clears the bit later reads the track after that.
        let clear = bits & !self.words[word].load(SeqCst);
        if clear == 0 {
            return false;
        }
        self.count.0.fetch_add(u64::from(clear.count_ones()), SeqCst);
        let others = clear & self.words[word].fetch_or(clear, SeqCst);
        if others != 0 {
            self.count.0.fetch_sub(u64::from(others.count_ones()), SeqCst);
        }
        if others == clear {
            return false;
        }
        let (summary, bit) = Self::place(TrackNo(word as u64 / BLOCK_WORDS));
        if self.summary[summary].load(SeqCst) & bit == 0 {
            self.summary[summary].fetch_or(bit, SeqCst);
        }
        true
    }

    /// Clears the track's indicator; returns whether it was set. Of several callers one is told so.
    #[inline]
    pub fn clear(&self, track: TrackNo) -> bool {
        let (word, bit) = Self::place(track);
        if self.words[word].load(SeqCst) & bit == 0 || self.words[word].fetch_and(!bit, SeqCst) & bit == 0 {
            return false;
        }
        self.count.0.fetch_sub(1, SeqCst);
        true
    }

    /// Number of tracks set. Constant time.
    #[inline]
    pub fn count(&self) -> u64 {
        self.count.0.load(SeqCst)
    }

    /// Number of tracks set, by looking at every one: what [`Self::count`] must say when no one is half way.
    pub fn count_exactly(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(SeqCst).count_ones())).sum()
    }

    /// The first set track that is not before `from`.
    pub fn next_set(&self, from: TrackNo) -> Option<TrackNo> {
        if from.0 >= self.tracks {
            return None;
        }
        let first = from.0 / BLOCK_BITS;
        if let Some(track) = self.next_in_block(first, from.0) {
            return Some(track);
        }
        let blocks = self.tracks.div_ceil(BLOCK_BITS);
        let mut block = first + 1;
        while block < blocks {
            let (summary, bit) = Self::place(TrackNo(block));
            let ahead = self.summary[summary].load(SeqCst) & !(bit - 1);
            if ahead == 0 {
                block = (block / WORD_BITS + 1) * WORD_BITS;
                continue;
            }
            block = block / WORD_BITS * WORD_BITS + u64::from(ahead.trailing_zeros());
            if let Some(track) = self.next_in_block(block, block * BLOCK_BITS) {
                return Some(track);
            }
            self.summarise(block);
            block += 1;
        }
        None
    }

    /// Sets every track. Only before the volume serves anyone.
    pub fn set_all(&self) {
        let whole = index(self.tracks / WORD_BITS);
        for word in &self.words[..whole] {
            word.store(u64::MAX, SeqCst);
        }
        let rest = self.tracks % WORD_BITS;
        if rest > 0 {
            self.words[whole].store((1 << rest) - 1, SeqCst);
        }
        for summary in &self.summary {
            summary.store(u64::MAX, SeqCst);
        }
        self.count.0.store(self.tracks, SeqCst);
    }

    /// How many tracks are set from `start` on without a gap, found word by word.
    pub fn run_length(&self, start: TrackNo) -> u64 {
        let mut at = start.0;
        while at < self.tracks {
            let (word, _) = Self::place(TrackNo(at));
            let ones = u64::from((self.words[word].load(SeqCst) >> (at % WORD_BITS)).trailing_ones());
            at += ones;
            if ones == 0 || !at.is_multiple_of(WORD_BITS) {
                break;
            }
        }
        at.min(self.tracks) - start.0
    }

    /// Whether any track of the run is set, found word by word.
    pub fn any_set(&self, tracks: TrackRange) -> bool {
        self.words_in(tracks).any(|(word, bits)| self.words[word].load(SeqCst) & bits != 0)
    }

    /// Moves every track that is set here to `other`, of the same size, a word at a time. At no instant is one in
    /// neither.
    pub fn move_to(&self, other: &Self) {
        let mut at = TrackNo(0);
        while let Some(track) = self.next_set(at) {
            let (word, _) = Self::place(track);
            let bits = self.words[word].load(SeqCst);
            other.set_bits(word, bits);
            let gone = bits & self.words[word].fetch_and(!bits, SeqCst);
            self.count.0.fetch_sub(u64::from(gone.count_ones()), SeqCst);
            // The same word again if somebody has set another bit of it meanwhile.
            at = TrackNo(track.0 / WORD_BITS * WORD_BITS);
        }
    }

    /// Clears every track.
    pub fn clear_all(&self) {
        let mut at = TrackNo(0);
        while let Some(track) = self.next_set(at) {
            self.clear(track);
            at = TrackNo(track.0 + 1);
        }
    }

    fn next_in_block(&self, block: u64, from: u64) -> Option<TrackNo> {
        let end = self.tracks.min((block + 1) * BLOCK_BITS);
        let mut at = from;
        while at < end {
            let (word, bit) = Self::place(TrackNo(at));
            let ahead = self.words[word].load(SeqCst) & !(bit - 1);
            if ahead != 0 {
                return Some(TrackNo(at / WORD_BITS * WORD_BITS + u64::from(ahead.trailing_zeros())));
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    /// The block was found clean: says so in the summary, then looks again. A setter sets its bit before the summary,
    /// so either the look sees the bit or the setter sets the summary after this cleared it.
    fn summarise(&self, block: u64) {
        let (summary, bit) = Self::place(TrackNo(block));
        self.summary[summary].fetch_and(!bit, SeqCst);
        if self.next_in_block(block, block * BLOCK_BITS).is_some() {
            self.summary[summary].fetch_or(bit, SeqCst);
        }
    }
}

/// An index into memory that exists: a track count that memory was found for fits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the words of this many tracks are in memory, so usize holds it")]
fn index(word: u64) -> usize {
    word as usize
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bitmap(tracks: u64) -> Bitmap {
        Bitmap::new(tracks, Words::new(index(Bitmap::words_for(tracks))).expect("memory"))
    }

    #[test]
    fn all_of_an_odd_number_of_tracks_can_be_set() {
        for tracks in [1, 63, 64, 65, 4096, 4097, 300_001] {
            let bitmap = bitmap(tracks);
            bitmap.set_all();
            assert_eq!((bitmap.count(), bitmap.count_exactly()), (tracks, tracks));
            assert_eq!(bitmap.next_set(TrackNo(tracks - 1)), Some(TrackNo(tracks - 1)));
            bitmap.clear_all();
            assert_eq!((bitmap.count(), bitmap.count_exactly(), bitmap.next_set(TrackNo(0))), (0, 0, None));
        }
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_what_is_set(set in prop::collection::vec((0_u64..9000, 1_u64..300), 0..40)) {
            let bitmap = bitmap(9000);
            let tracks: BTreeSet<u64> = set.iter().flat_map(|(at, count)| *at..(at + count).min(9000)).collect();
            for track in &tracks {
                bitmap.set(TrackNo(*track));
            }
            let (mut at, mut found) = (0, BTreeSet::new());
            while let Some(start) = bitmap.next_set(TrackNo(at)) {
                let count = bitmap.run_length(start);
                prop_assert!(count > 0);
                found.extend(start.0..start.0 + count);
                at = start.0 + count;
            }
            prop_assert_eq!(found, tracks);
        }

        #[test]
        fn a_run_is_set_as_its_tracks_are(
            runs in prop::collection::vec((0_u64..9000, 0_u64..300), 0..40),
        ) {
            let (by_runs, by_tracks) = (bitmap(9000), bitmap(9000));
            for (start, count) in runs {
                by_runs.set_run(TrackRange { start: TrackNo(start), count });
                (start..(start + count).min(9000)).for_each(|track| {
                    by_tracks.set(TrackNo(track));
                });
            }
            prop_assert_eq!((by_runs.count(), by_runs.count_exactly()), (by_tracks.count(), by_tracks.count()));
            let mut at = TrackNo(0);
            while let Some(track) = by_tracks.next_set(at) {
                prop_assert_eq!(by_runs.next_set(at), Some(track));
                at = TrackNo(track.0 + 1);
            }
        }

        #[test]
        fn a_run_holds_a_mark_if_one_of_its_tracks_does(
            set in prop::collection::btree_set(0_u64..9000, 0..20), start in 0_u64..9000, count in 0_u64..400,
        ) {
            let bitmap = bitmap(9000);
            for track in &set {
                bitmap.set(TrackNo(*track));
            }
            let tracks = TrackRange { start: TrackNo(start), count: count.min(9000 - start) };
            prop_assert_eq!(bitmap.any_set(tracks), set.range(tracks.numbers()).next().is_some());
        }

        #[test]
        fn what_is_moved_is_there_and_no_longer_here(
            here in prop::collection::btree_set(0_u64..9000, 0..300),
            there in prop::collection::btree_set(0_u64..9000, 0..300),
        ) {
            let (from, to) = (bitmap(9000), bitmap(9000));
            for track in &here {
                from.set(TrackNo(*track));
            }
            for track in &there {
                to.set(TrackNo(*track));
            }
            from.move_to(&to);
            let all: BTreeSet<u64> = here.union(&there).copied().collect();
            prop_assert_eq!((from.count(), from.count_exactly()), (0, 0));
            prop_assert_eq!((to.count(), to.count_exactly()), (all.len() as u64, all.len() as u64));
            prop_assert_eq!((0..9000).filter(|track| to.is_set(TrackNo(*track))).collect::<BTreeSet<_>>(), all);
            prop_assert_eq!(to.next_set(TrackNo(0)).is_some(), to.count() > 0);
        }

        #[test]
        fn it_holds_what_a_set_holds(steps in prop::collection::vec((0_u8..3, 0_u64..9000), 1..400)) {
            let bitmap = bitmap(9000);
            let mut model = BTreeSet::new();
            for (kind, track) in steps {
                match kind {
                    0 => prop_assert_eq!(bitmap.set(TrackNo(track)), model.insert(track)),
                    1 => prop_assert_eq!(bitmap.clear(TrackNo(track)), model.remove(&track)),
                    _ => prop_assert_eq!(
                        bitmap.next_set(TrackNo(track)).map(|t| t.0),
                        model.range(track..).next().copied()
                    ),
                }
                prop_assert_eq!(bitmap.count(), model.len() as u64);
            }
            prop_assert_eq!(bitmap.count_exactly(), model.len() as u64);
        }
    }
}
