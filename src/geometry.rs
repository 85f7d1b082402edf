//! Tracks and the bytes they cover. Pure arithmetic: the only place that turns an offset into a track or back.

use std::fmt;
use std::ops::Range;

/// Smallest and largest track, in bytes.
pub const TRACK_SIZE_MIN: u64 = 4 << 10;
pub const TRACK_SIZE_MAX: u64 = 1 << 20;
/// The track size of a volume that names none, in bytes.
pub const TRACK_SIZE_DEFAULT: u64 = 64 << 10;

/// Index of a track within its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackNo(pub u64);

impl fmt::Display for TrackNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrackRange {
    pub start: TrackNo,
    pub count: u64,
}

impl TrackRange {
    pub fn one(track: TrackNo) -> Self {
        Self { start: track, count: 1 }
    }

    pub fn end(self) -> u64 {
        self.start.0 + self.count
    }

    pub fn numbers(self) -> Range<u64> {
        self.start.0..self.end()
    }

    pub fn iter(self) -> impl Iterator<Item = TrackNo> {
        self.numbers().map(TrackNo)
    }

    pub fn contains(self, track: TrackNo) -> bool {
        self.numbers().contains(&track.0)
    }
}

/// Why a volume cannot be cut into tracks as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    #[error("a track of {0} bytes is not possible; use a power of two from 4 KiB to 1 MiB")]
    TrackSize(u64),
    #[error("a volume of 0 bytes has no tracks; give it a primary with a size")]
    Empty,
}

/// Size of a volume and of its tracks. The last track may be shorter than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    track_shift: u32,
}

impl Geometry {
    /// `size` and `track_size` in bytes; `track_size` a power of two from 4 KiB to 1 MiB.
    pub fn new(size: u64, track_size: u64) -> Result<Self, GeometryError> {
        if !track_size.is_power_of_two() || !(TRACK_SIZE_MIN..=TRACK_SIZE_MAX).contains(&track_size) {
            return Err(GeometryError::TrackSize(track_size));
        }
        if size == 0 {
            return Err(GeometryError::Empty);
        }
        Ok(Self { size, track_shift: track_size.trailing_zeros() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn track_size(&self) -> u64 {
        1 << self.track_shift
    }

    /// Number of tracks.
    pub fn tracks(&self) -> u64 {
        self.size.div_ceil(self.track_size())
    }

    /// Every track that `length` bytes from `offset` touch; none for a length of 0.
    pub fn touched(&self, offset: u64, length: u64) -> TrackRange {
        let start = offset >> self.track_shift;
        if length == 0 {
            return TrackRange { start: TrackNo(start), count: 0 };
        }
        let last = (offset + length - 1) >> self.track_shift;
        TrackRange { start: TrackNo(start), count: last - start + 1 }
    }

    /// Offset and length in bytes of a run of tracks, the short last track included.
    pub fn bytes(&self, range: TrackRange) -> (u64, u64) {
        let offset = range.start.0 << self.track_shift;
        let end = (range.end() << self.track_shift).min(self.size);
        (offset, end - offset)
    }

    /// Bytes in `count` tracks, not minding that the last one may be short.
    pub fn bytes_of(&self, count: u64) -> u64 {
        (count << self.track_shift).min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn impossible_geometries_are_refused() {
        for track_size in [0, 1, 4095, 4097, 2048, 2 << 20] {
            assert_eq!(Geometry::new(1 << 20, track_size), Err(GeometryError::TrackSize(track_size)));
        }
        assert_eq!(Geometry::new(0, 4096), Err(GeometryError::Empty));
    }

    #[test]
    fn the_last_track_may_be_short() {
        let geometry = Geometry::new(4096 * 3 + 512, 4096).expect("valid");
        assert_eq!(geometry.tracks(), 4);
        assert_eq!(geometry.bytes(TrackRange { start: TrackNo(2), count: 2 }), (8192, 4608));
        assert_eq!(geometry.bytes(TrackRange::one(TrackNo(3))), (12288, 512));
    }

    proptest! {
        #[test]
        fn a_range_of_bytes_lies_within_the_tracks_it_touches(
            shift in 12_u32..=20, size in 1_u64..1 << 40, at in 0_u64..1 << 40, length in 1_u64..1 << 25
        ) {
            let geometry = Geometry::new(size, 1 << shift).expect("valid");
            let offset = at % size;
            let length = length.min(size - offset);
            let touched = geometry.touched(offset, length);
            let (start, covered) = geometry.bytes(touched);
            prop_assert!(start <= offset && offset + length <= start + covered);
            prop_assert!(touched.end() <= geometry.tracks());
            // No track too many: shortening by one at either end would uncover a byte.
            prop_assert!(offset < start + geometry.track_size());
            prop_assert!(offset + length > (touched.end() - 1) << shift);
        }
    }
}
