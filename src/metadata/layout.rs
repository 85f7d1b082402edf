//! Where everything lies in the metadata of a volume. All of it is fixed when the volume is created.
//!
//! ```text
//!     0  superblock, slot A                   one page
//!  4096  superblock, slot B                   one page
//!  8192  nothing yet, zeroes
//! 16384  intent pages, one bit per region     `intent_pages` pages
//!        intent log                           two pages for each of `log_slots` records
//!        save area: the exact tracks of a clean stop
//! ```

use crate::geometry::Geometry;

/// Everything is read and written in units of this: what devices write whole at best, and aligned for direct I/O.
pub const PAGE_BYTES: usize = 4096;
/// Before the bits of an intent page; see [`super::pages`].
pub const PAGE_HEADER_BYTES: usize = 32;
/// Bits in an intent page.
pub const REGIONS_PER_PAGE: u64 = ((PAGE_BYTES - PAGE_HEADER_BYTES) * 8) as u64;
/// The same, in words.
pub const WORDS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / 8;
/// Unit of durable intent that nobody chose, and the largest.
pub use crate::intent::{REGION_SIZE_DEFAULT as REGION_BYTES, REGION_SIZE_MAX as REGION_BYTES_MAX};

/// Where the two superblocks are.
pub const SLOTS: [u64; 2] = [0, PAGE];
/// The first intent page.
pub const INTENT_OFFSET: u64 = 16384;
/// Records that the intent log has room for, per intent page, and at least and at most. The more there are, the more
/// cold writes share one write of a page.
const LOG_SLOTS_PER_PAGE: u64 = 16;
const LOG_SLOTS_MIN: u32 = 64;
const LOG_SLOTS_MAX: u32 = 256;
/// Before the tracks in the save area; see [`super::saved`].
pub const SAVED_HEADER_BYTES: u64 = 64;

const PAGE: u64 = PAGE_BYTES as u64;
/// A record of the intent log: the same page twice.
pub const RECORD_BYTES: usize = 2 * PAGE_BYTES;
/// Tracks in a container of a roaring bitmap, its bytes when it is full, and what describes it.
const CONTAINER_TRACKS: u64 = 1 << 16;
const CONTAINER_BYTES: u64 = 8192 + 16;
/// What a treemap adds per bitmap of 2^32 tracks, amply.
const BITMAP_BYTES: u64 = 64;

/// Offsets and sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub intent_offset: u64,
    pub intent_pages: u64,
    /// Records that the intent log has room for, at least two.
    pub log_slots: u32,
    pub save_offset: u64,
    pub save_bytes: u64,
}

impl Layout {
    /// The layout of a new volume.
    pub fn new(geometry: &Geometry, region_bytes: u64) -> Self {
        let intent_pages = regions(geometry, region_bytes).div_ceil(REGIONS_PER_PAGE);
        let slots = u32::try_from(intent_pages * LOG_SLOTS_PER_PAGE).unwrap_or(LOG_SLOTS_MAX);
        let slots = slots.clamp(LOG_SLOTS_MIN, LOG_SLOTS_MAX);
        Self::with_slots(geometry, intent_pages, slots)
    }

    /// With a log of so many slots.
    pub fn with_slots(geometry: &Geometry, intent_pages: u64, log_slots: u32) -> Self {
        let tracks = geometry.tracks();
        let worst = SAVED_HEADER_BYTES
            + 8
            + tracks.div_ceil(CONTAINER_TRACKS) * CONTAINER_BYTES
            + tracks.div_ceil(1 << 32) * BITMAP_BYTES;
        let save_offset = INTENT_OFFSET + intent_pages * PAGE + u64::from(log_slots) * RECORD_BYTES as u64;
        let save_bytes = worst.next_multiple_of(PAGE);
        Self { intent_offset: INTENT_OFFSET, intent_pages, log_slots, save_offset, save_bytes }
    }

    /// Where the intent log begins: behind the pages.
    pub fn log_offset(&self) -> u64 {
        self.intent_offset + self.intent_pages * PAGE
    }

    /// How large the file or device has to be.
    pub fn bytes(&self) -> u64 {
        self.save_offset.saturating_add(self.save_bytes)
    }

    /// Whether this can be the layout of a volume with so many regions in a file or device of `size` bytes.
    pub fn is_sound(&self, regions: u64, size: u64) -> bool {
        let aligned = [self.intent_offset, self.save_offset, self.save_bytes].iter().all(|at| at.is_multiple_of(PAGE));
        let pages = self.intent_pages.checked_mul(PAGE).and_then(|bytes| bytes.checked_add(self.intent_offset));
        let log_end = pages.and_then(|end| end.checked_add(u64::from(self.log_slots) * RECORD_BYTES as u64));
        aligned
            && self.intent_offset >= 2 * PAGE
            && self.intent_pages == regions.div_ceil(REGIONS_PER_PAGE)
            && log_end.is_some_and(|end| end <= self.save_offset)
            && self.log_slots > 1
            && self.save_bytes > SAVED_HEADER_BYTES
            && self.bytes() <= size
    }
}

/// Number of regions of a volume.
pub fn regions(geometry: &Geometry, region_bytes: u64) -> u64 {
    geometry.size().div_ceil(region_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    #[test]
    fn intent_takes_at_most_64_kib_per_tib() {
        for (size, track, log_kib) in [
            (TIB, 65536, 1152),
            (64 * TIB, 65536, 2048),
            (1024 * TIB, 1 << 20, 2048),
            (TIB / 4, 65536, 512),
            (1, 4096, 512),
        ] {
            let layout = Layout::new(&Geometry::new(size, track).expect("valid"), REGION_BYTES);
            assert!(layout.intent_pages * PAGE <= 65536 * size.div_ceil(TIB), "{size}: {layout:?}");
            assert_eq!(layout.save_offset - layout.log_offset(), log_kib << 10);
            assert!(layout.is_sound(size.div_ceil(REGION_BYTES), layout.bytes()));
            assert!(!layout.is_sound(size.div_ceil(REGION_BYTES), layout.bytes() - 1));
        }
    }

    #[test]
    fn areas_that_overlap_or_lack_pages_are_not_sound() {
        let geometry = Geometry::new(TIB, 65536).expect("valid");
        let (good, size, count) = (Layout::new(&geometry, REGION_BYTES), 1 << 30, TIB / REGION_BYTES);
        assert!(good.is_sound(count, size));
        for bad in [
            Layout { intent_offset: 4096, ..good },
            Layout { intent_offset: 16385, ..good },
            Layout { intent_pages: good.intent_pages - 1, ..good },
            Layout { save_offset: good.save_offset - 4096, ..good },
            Layout { log_slots: good.log_slots + 1, ..good },
            Layout { log_slots: 1, ..good },
            Layout { save_bytes: 0, ..good },
            Layout { save_bytes: u64::MAX - 4095, ..good },
            Layout { save_offset: u64::MAX - 4095, ..good },
        ] {
            assert!(!bad.is_sound(count, size), "{bad:?}");
        }
    }
}
