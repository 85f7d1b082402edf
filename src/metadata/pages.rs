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

use super::layout::{Layout, PAGE_BYTES, PAGE_HEADER_BYTES, WORDS_PER_PAGE};
use super::medium::{CHUNK_BYTES, Chunk, Medium, Page};
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

/// The words of a page, all ones if it is not the page `number` of this volume, whole.
pub fn decode(page: &Page, volume: [u8; 16], number: u64) -> (Found, [u64; WORDS_PER_PAGE]) {
    let ones = [u64::MAX; WORDS_PER_PAGE];
    if page.is_zero() {
        return (Found::Absent, ones);
    }
    let ours = page.get::<4>(0) == *MAGIC
        && u64::from_le_bytes(page.get(NUMBER)) == number
        && page.get::<16>(VOLUME) == volume
        && u32::from_le_bytes(page.get(CRC)) == page.checksum(CRC);
    if !ours {
        return (Found::Damaged, if present(Bug::DamagedPageIsCold) { [0; WORDS_PER_PAGE] } else { ones });
    }
    let mut words = [0; WORDS_PER_PAGE];
    for (word, bytes) in words.iter_mut().zip(page.0[PAGE_HEADER_BYTES..].as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    (Found::Valid, words)
}

/// The regions that are hot on media.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// How many regions there are.
    pub regions: u64,
    /// One bit for each; bits behind the last region are zero.
    pub words: Vec<u64>,
    /// Pages that were read as all ones because they are damaged.
    pub damaged_pages: u64,
    /// Pages that were read as all ones because they were never written.
    pub absent_pages: u64,
}

impl Hot {
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn contains(&self, region: u64) -> bool {
        let word = usize::try_from(region / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (region % 64) & 1 == 1)
    }

    pub fn insert(&mut self, region: u64) {
        if region < self.regions
            && let Some(word) = usize::try_from(region / 64).ok().and_then(|at| self.words.get_mut(at))
        {
            *word |= 1 << (region % 64);
        }
    }

    /// Every region.
    pub fn fill(&mut self) {
        self.words.fill(u64::MAX);
        self.trim();
    }

    /// Bits behind the last region are zero.
    fn trim(&mut self) {
        if let Some(last) = self.words.last_mut().filter(|_| !self.regions.is_multiple_of(64)) {
            *last &= (1 << (self.regions % 64)) - 1;
        }
    }

    /// The words of one page.
    pub fn page(&self, page: u64) -> &[u64] {
        let start = usize::try_from(page).unwrap_or(usize::MAX).saturating_mul(WORDS_PER_PAGE).min(self.words.len());
        &self.words[start..(start + WORDS_PER_PAGE).min(self.words.len())]
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
        let first = usize::try_from(from / 64).ok()?;
        let mut behind = u64::MAX << (from % 64);
        for (place, word) in self.words.iter().enumerate().skip(first) {
            let found = if hot { *word } else { !word } & behind;
            if found != 0 {
                let region = place as u64 * 64 + u64::from(found.trailing_zeros());
                return Some(region).filter(|region| *region < self.regions);
            }
            behind = u64::MAX;
        }
        None
    }
}

/// Reads all intent pages.
pub fn read(medium: &dyn Medium, layout: &Layout, volume: [u8; 16], regions: u64) -> io::Result<Hot> {
    let words = usize::try_from(regions.div_ceil(64)).map_err(io::Error::other)?;
    let mut hot = Hot { regions, words: Vec::with_capacity(words), damaged_pages: 0, absent_pages: 0 };
    let (mut page, mut chunk) = (Page::ZERO, Chunk::new());
    let mut number = 0;
    while number < layout.intent_pages {
        let count = usize::try_from(layout.intent_pages - number).unwrap_or(usize::MAX).min(CHUNK_BYTES / PAGE_BYTES);
        let chunk = &mut chunk.0[..count * PAGE_BYTES];
        medium.read(layout.intent_offset + number * PAGE_BYTES as u64, chunk)?;
        for bytes in chunk.chunks_exact(PAGE_BYTES) {
            page.0.copy_from_slice(bytes);
            let (found, bits) = decode(&page, volume, number);
            match found {
                Found::Valid => {}
                Found::Absent => hot.absent_pages += 1,
                Found::Damaged => hot.damaged_pages += 1,
            }
            hot.words.extend(bits.iter().take(words - hot.words.len()));
            number += 1;
        }
    }
    hot.trim();
    Ok(hot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = *b"0123456789abcdef";

    #[test]
    fn every_changed_byte_makes_a_page_all_ones() {
        let words: Vec<u64> = (0..WORDS_PER_PAGE as u64).map(|at| at * 3).collect();
        let good = encode(ID, 7, &words);
        assert_eq!(decode(&good, ID, 7), (Found::Valid, words.clone().try_into().expect("all words")));
        let ones = [u64::MAX; WORDS_PER_PAGE];
        for at in 0..PAGE_BYTES {
            for flip in [1, 0x80, 0xff] {
                let mut page = good.clone();
                page.0[at] ^= flip;
                assert_eq!(decode(&page, ID, 7), (Found::Damaged, ones), "byte {at}");
            }
        }
        assert_eq!(decode(&good, ID, 8), (Found::Damaged, ones), "a page written to the wrong place");
        assert_eq!(decode(&good, *b"fedcba9876543210", 7), (Found::Damaged, ones), "of another volume");
        assert_eq!(decode(&Page::ZERO, ID, 7), (Found::Absent, ones));
    }

    #[test]
    fn runs_are_what_is_hot_and_end_with_the_volume() {
        let runs = |words: &[u64], regions| {
            let hot = Hot { regions, words: words.to_vec(), damaged_pages: 0, absent_pages: 0 };
            let runs: Vec<_> = hot.runs().collect();
            let one_by_one: Vec<u64> = (0..regions).filter(|region| hot.contains(*region)).collect();
            assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), one_by_one);
            runs
        };
        assert_eq!(runs(&[0, 0], 100), []);
        for regions in [100, 128] {
            assert_eq!(runs(&[u64::MAX, u64::MAX], regions), vec![0..regions; 1]);
        }
        assert_eq!(runs(&[1 << 63 | 0b1101, 0b10_0001], 100), [0..1, 2..4, 63..65, 69..70]);
    }

    #[test]
    fn hot_regions_are_whole_runs_of_tracks_and_end_with_the_volume() {
        let geometry = Geometry::new((10 << 20) + 4096, 65536).expect("valid");
        let mut hot = Hot { regions: 3, words: vec![0], damaged_pages: 0, absent_pages: 0 };
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
