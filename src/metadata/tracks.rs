//! A set of tracks that is not changing: what is out of sync of a volume that is down.

use crate::geometry::{TrackNo, TrackRange};
use crate::tracking::Bitmap;
use roaring::RoaringTreemap;

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

    pub fn count(&self) -> u64 {
        self.0.len()
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
