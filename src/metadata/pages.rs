//! Intent pages: one bit per region, set before data is written there and cleared long after.
//!
//! All numbers little-endian:
//!
//! ```text
//! offset  size
//!      0     4  magic "FPIN"
//!      4     4  CRC32C of the page but these four bytes
//!      8     8  number of the page
//!     16    16  the volume's id, so that a page left by another volume is none of ours
//!     32        one bit per region, in words of 64; bits behind the last region mean nothing
//! ```
//!
//! A page that is not exactly that reads as all ones (H5): never as zeroes, never as an older content. A page of zeroes
//! has never been written; it reads as all ones too, which is how a new volume has everything to copy.

use std::io;
use std::ops::Range;

use super::layout::{Layout, PAGE_BYTES, PAGE_HEADER_BYTES, REGIONS_PER_PAGE, WORDS_PER_PAGE};
use super::medium::{CHUNK_BYTES, Chunk, Medium, Page, checksum};
use super::tracks::Tracks;
use crate::bugs::{Bug, present};
use crate::geometry::Geometry;

const MAGIC: &[u8; 4] = b"FPIN";
const CRC: usize = 4;
const NUMBER: usize = 8;
const VOLUME: usize = 16;

/// What a page on media turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Valid,
    /// Never written.
    Absent,
    Damaged,
}

/// A page with these bits; those of words that are missing are zero.
pub fn encode(volume: [u8; 16], number: u64, words: &[u64]) -> Page {
    let mut page = Page::ZERO;
    page.put(0, MAGIC);
    page.put(NUMBER, &number.to_le_bytes());
    page.put(VOLUME, &volume);
    for (bytes, word) in page.0[PAGE_HEADER_BYTES..].chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let crc = page.checksum(CRC);
    page.put(CRC, &crc.to_le_bytes());
    page
}

/// What a page turned out to be, and its words; none where no region is hot. All ones if it is not the page `number` of
/// this volume, whole.
pub fn decode(page: &[u8; PAGE_BYTES], volume: [u8; 16], number: u64) -> (Found, Box<[u64]>) {
    let ones = || Box::from([u64::MAX; WORDS_PER_PAGE]);
    if *page == Page::ZERO.0 {
        return (Found::Absent, ones());
    }
    let holds = |at: usize, bytes: &[u8]| page[at..at + bytes.len()] == *bytes;
    let ours = holds(0, MAGIC)
        && holds(NUMBER, &number.to_le_bytes())
        && holds(VOLUME, &volume)
        && holds(CRC, &checksum(page, CRC).to_le_bytes());
    if !ours {
        return (Found::Damaged, if present(Bug::DamagedPageIsCold) { Box::default() } else { ones() });
    }
    let (words, _) = page[PAGE_HEADER_BYTES..].as_chunks();
    let is_cold = words.iter().all(|word| *word == [0; 8]);
    let words = if is_cold { Box::default() } else { words.iter().map(|word| u64::from_le_bytes(*word)).collect() };
    (Found::Valid, words)
}

/// The regions that are hot on media.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// How many regions there are.
    pub regions: u64,
    /// The words of each page, a bit for each region; bits behind the last region are zero. None where no region is
    /// hot, as of most pages of a huge volume: what is not there takes no time to go through.
    pages: Box<[Box<[u64]>]>,
    /// Pages that were read as all ones because they are damaged.
    pub damaged_pages: u64,
    /// Pages that were read as all ones because they were never written.
    pub absent_pages: u64,
}

impl Hot {
    /// Of so many regions none.
    pub fn none(regions: u64) -> Self {
        let pages = (0..regions.div_ceil(REGIONS_PER_PAGE)).map(|_| Box::default()).collect();
        Self { regions, pages, damaged_pages: 0, absent_pages: 0 }
    }

    pub fn count(&self) -> u64 {
        self.pages.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn contains(&self, region: u64) -> bool {
        let (page, word, bit) = place(region);
        self.pages.get(page).and_then(|words| words.get(word)).is_some_and(|word| word & bit != 0)
    }

    pub fn insert(&mut self, region: u64) {
        let (page, word, bit) = place(region);
        if region < self.regions {
            let words = &mut self.pages[page];
            if words.is_empty() {
                *words = Box::from([0; WORDS_PER_PAGE]);
            }
            words[word] |= bit;
        }
    }

    /// Every region.
    pub fn fill(&mut self) {
        for page in 0..self.pages.len() {
            self.put(page, Box::from([u64::MAX; WORDS_PER_PAGE]));
        }
    }

    /// These are the words of a page, as far as it has regions.
    fn put(&mut self, page: usize, mut words: Box<[u64]>) {
        let regions = self.regions - page as u64 * REGIONS_PER_PAGE;
        for (word, first) in words.iter_mut().zip((0..).step_by(64)) {
            let there = regions.saturating_sub(first);
            if there < 64 {
                *word &= (1 << there) - 1;
            }
        }
        let is_cold = words.iter().all(|word| *word == 0);
        self.pages[page] = if is_cold { Box::default() } else { words };
    }

    /// The words of one page; none if no region is hot.
    pub fn page(&self, page: u64) -> &[u64] {
        usize::try_from(page).ok().and_then(|page| self.pages.get(page)).map_or(&[], |words| words)
    }

    /// Every track of every hot region.
    pub fn tracks(&self, geometry: &Geometry, region_bytes: u64) -> Tracks {
        let per_region = (region_bytes / geometry.track_size()).max(1);
        let tracks = |run: Range<u64>| run.start * per_region..(run.end * per_region).min(geometry.tracks());
        self.runs().map(tracks).collect()
    }

    /// The hot regions, as runs without a gap between their regions.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true)?;
            at = self.next(start, false).unwrap_or(self.regions);
            Some(start..at)
        })
    }

    /// The first region from `from` on that is hot, or that is not; found word by word.
    fn next(&self, from: u64, hot: bool) -> Option<u64> {
        let (first_page, first_word, bit) = place(from);
        let (mut skipped, mut behind) = (first_word, !(bit - 1));
        for (page, words) in self.pages.iter().enumerate().skip(first_page) {
            let cold: &[u64] = if hot { &[] } else { &[0; WORDS_PER_PAGE] };
            let words = if words.is_empty() { cold } else { words };
            for (at, word) in words.iter().enumerate().skip(skipped) {
                let found = if hot { *word } else { !word } & behind;
                if found != 0 {
                    let region = page as u64 * REGIONS_PER_PAGE + at as u64 * 64 + u64::from(found.trailing_zeros());
                    return Some(region).filter(|region| *region < self.regions);
                }
                behind = u64::MAX;
            }
            (skipped, behind) = (0, u64::MAX);
        }
        None
    }
}

/// Page, word and bit of a region.
fn place(region: u64) -> (usize, usize, u64) {
    let within = region % REGIONS_PER_PAGE;
    let index = |number| usize::try_from(number).unwrap_or(usize::MAX);
    (index(region / REGIONS_PER_PAGE), index(within / 64), 1 << (within % 64))
}

/// Reads all intent pages.
pub fn read(medium: &dyn Medium, layout: &Layout, volume: [u8; 16], regions: u64) -> io::Result<Hot> {
    let mut hot = Hot::none(regions);
    let mut chunk = Chunk::new();
    let mut number = 0;
    while number < layout.intent_pages {
        let count = usize::try_from(layout.intent_pages - number).unwrap_or(usize::MAX).min(CHUNK_BYTES / PAGE_BYTES);
        let chunk = &mut chunk.0[..count * PAGE_BYTES];
        medium.read(layout.intent_offset + number * PAGE_BYTES as u64, chunk)?;
        for page in chunk.as_chunks().0 {
            let (found, words) = decode(page, volume, number);
            match found {
                Found::Valid => {}
                Found::Absent => hot.absent_pages += 1,
                Found::Damaged => hot.damaged_pages += 1,
            }
            if !words.is_empty() {
                hot.put(usize::try_from(number).map_err(io::Error::other)?, words);
            }
            number += 1;
        }
    }
    Ok(hot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = *b"0123456789abcdef";
    const PAGE: u64 = REGIONS_PER_PAGE;

    #[test]
    fn every_changed_byte_makes_a_page_all_ones() {
        let words: Box<[u64]> = (0..WORDS_PER_PAGE as u64).map(|at| at * 3).collect();
        let good = encode(ID, 7, &words).0;
        assert_eq!(decode(&good, ID, 7), (Found::Valid, words));
        let ones: Box<[u64]> = Box::from([u64::MAX; WORDS_PER_PAGE]);
        for at in 0..PAGE_BYTES {
            for flip in [1, 0x80, 0xff] {
                let mut page = good;
                page[at] ^= flip;
                assert_eq!(decode(&page, ID, 7), (Found::Damaged, ones.clone()), "byte {at}");
            }
        }
        assert_eq!(decode(&good, ID, 8), (Found::Damaged, ones.clone()), "a page written to the wrong place");
        assert_eq!(decode(&good, *b"fedcba9876543210", 7), (Found::Damaged, ones.clone()), "of another volume");
        assert_eq!(decode(&Page::ZERO.0, ID, 7), (Found::Absent, ones));
    }

    #[test]
    fn the_words_of_a_page_are_there_only_if_a_region_is_hot() {
        let last = WORDS_PER_PAGE - 1;
        let mut words = [0; WORDS_PER_PAGE];
        assert_eq!(decode(&encode(ID, 7, &words).0, ID, 7), (Found::Valid, Box::default()));
        words[last] = 1 << 63;
        assert_eq!(decode(&encode(ID, 7, &words).0, ID, 7), (Found::Valid, Box::from(words)));
        let mut hot = Hot::none(REGIONS_PER_PAGE + 65);
        hot.put(1, Box::from([0, 0b100, 7]));
        assert_eq!((hot.page(1), hot.count()), (&[][..], 0), "bits behind the last region");
        hot.put(1, Box::from([0, 0b101, 7]));
        assert_eq!(hot.page(1), [0, 1, 0]);
        assert_eq!((hot.page(0), hot.page(2)), (&[][..], &[][..]));
    }

    #[test]
    fn runs_are_what_is_hot_and_end_with_the_volume() {
        let runs = |regions, hot_ones: &mut dyn Iterator<Item = u64>| {
            let mut hot = Hot::none(regions);
            hot_ones.for_each(|region| hot.insert(region));
            let runs: Vec<_> = hot.runs().collect();
            let one_by_one: Vec<u64> = (0..regions).filter(|region| hot.contains(*region)).collect();
            assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), one_by_one);
            assert_eq!(hot.count(), one_by_one.len() as u64);
            runs
        };
        assert_eq!(runs(100, &mut (0..0)), []);
        for regions in [100, 128, PAGE, 2 * PAGE + 1] {
            assert_eq!(runs(regions, &mut (0..regions + 70)), vec![0..regions; 1]);
            let mut hot = Hot::none(regions);
            hot.fill();
            assert_eq!(hot.runs().collect::<Vec<_>>(), vec![0..regions; 1]);
        }
        let some = runs(100, &mut [0, 2, 3, 63, 64, 69].into_iter());
        assert_eq!(some, [0..1, 2..4, 63..65, 69..70]);
        let across = runs(4 * PAGE, &mut [PAGE - 1, PAGE].into_iter().chain(3 * PAGE..4 * PAGE));
        assert_eq!(across, [PAGE - 1..PAGE + 1, 3 * PAGE..4 * PAGE]);
    }

    #[test]
    fn hot_regions_are_whole_runs_of_tracks_and_end_with_the_volume() {
        let geometry = Geometry::new((10 << 20) + 4096, 65536).expect("valid");
        let mut hot = Hot::none(3);
        assert_eq!(hot.tracks(&geometry, 4 << 20).count(), 0);
        hot.insert(2);
        hot.insert(3);
        assert_eq!((hot.count(), hot.contains(2), hot.contains(1)), (1, true, false));
        assert_eq!(hot.tracks(&geometry, 4 << 20).count(), geometry.tracks() - 128);
        hot.insert(0);
        assert_eq!(hot.tracks(&geometry, 4 << 20).count(), geometry.tracks() - 64);
        hot.insert(1);
        assert_eq!(hot.tracks(&geometry, 4 << 20).count(), geometry.tracks());
    }
}
