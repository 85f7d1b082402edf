//! A set of tracks that is not changing: what is out of sync of a volume that is down.

use crate::geometry::{TrackNo, TrackRange};
use crate::tracking::Bitmap;
use roaring::RoaringTreemap;
use std::ops::Range;

/// A set of tracks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tracks(RoaringTreemap);

impl Tracks {
    /// The tracks set in `bitmap`, which nobody is changing.
    pub fn of(bitmap: &Bitmap) -> Self {
        let mut tracks = Self::default();
        tracks.add(bitmap);
        tracks
    }

    /// Adds the tracks set in `bitmap`.
    pub fn add(&mut self, bitmap: &Bitmap) {
        let mut at = TrackNo(0);
        while let Some(start) = bitmap.next_set(at) {
            at = TrackNo(start.0 + bitmap.run_length(start));
            self.0.insert_range(start.0..at.0);
        }
        // Runs as runs: a volume of which everything is out of sync takes a few kilobytes.
        self.0.optimize();
    }

    /// Sets the tracks in `bitmap`.
    pub fn mark(&self, bitmap: &Bitmap) {
        // By runs: of a volume that was not yet copied when it went down, there may be a thousand million tracks.
        for (high, low) in self.0.bitmaps() {
            let mut runs = low.iter();
            while let Some(run) = runs.next_range() {
                let start = TrackNo(u64::from(high) << 32 | u64::from(*run.start()));
                bitmap.set_run(TrackRange { start, count: u64::from(run.end() - run.start()) + 1 });
            }
        }
    }

    /// Adds a run of tracks.
    pub fn insert(&mut self, run: Range<u64>) {
        self.0.insert_range(run);
    }

    /// Adds the tracks of `other`.
    pub fn unite(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Keeps runs as runs.
    pub fn compact(&mut self) {
        self.0.optimize();
    }

    pub fn contains(&self, track: TrackNo) -> bool {
        self.0.contains(track.0)
    }

    pub fn is_superset(&self, other: &Self) -> bool {
        self.0.is_superset(&other.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Calls `each` once for every run of `size` tracks, aligned to its size, that holds a track.
    pub fn groups(&self, size: u64, mut each: impl FnMut(u64)) {
        let mut next = 0;
        loop {
            let mut rest = self.0.iter();
            rest.advance_to(next);
            let Some(track) = rest.next() else { break };
            each(track / size);
            let Some(end) = (track / size + 1).checked_mul(size) else { break };
            next = end;
        }
    }
}

impl FromIterator<u64> for Tracks {
    fn from_iter<I: IntoIterator<Item = u64>>(tracks: I) -> Self {
        Self(tracks.into_iter().collect())
    }
}

impl FromIterator<Range<u64>> for Tracks {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut tracks = Self::default();
        runs.into_iter().for_each(|run| tracks.insert(run));
        tracks.compact();
        tracks
    }
}

impl AsRef<RoaringTreemap> for Tracks {
    fn as_ref(&self) -> &RoaringTreemap {
        &self.0
    }
}

impl From<RoaringTreemap> for Tracks {
    fn from(tracks: RoaringTreemap) -> Self {
        Self(tracks)
    }
}

impl From<Tracks> for RoaringTreemap {
    fn from(tracks: Tracks) -> Self {
        tracks.0
    }
}
