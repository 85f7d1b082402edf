//! A set of tracks that is not changing: what is out of sync of a volume that is down.

use crate::geometry::TrackNo;
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
        while let Some(track) = bitmap.next_set(at) {
            self.0.insert(track.0);
            at = TrackNo(track.0 + 1);
        }
    }

    /// Sets the tracks in `bitmap`.
    pub fn mark(&self, bitmap: &Bitmap) {
        for track in &self.0 {
            bitmap.set(TrackNo(track));
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
