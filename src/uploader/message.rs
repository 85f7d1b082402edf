//! What others tell a drain, through its mailbox.

use super::cargo::ImageNo;
use super::plan::Policy;
use crate::geometry::TrackNo;
use crate::mailbox::Letter;

/// A message to a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A write that collided with this cut kept the track's content in this image.
    Image {
        image: ImageNo,
        track: TrackNo,
        cut: u64,
    },
    /// A write that collided with this cut could not read its track; the image's memory is free already.
    ImageLost {
        cut: u64,
    },
    /// A write that collided with this cut could not keep the track's content: it has marked the track again and waits
    /// until it has been sent. It has waited since then, in milliseconds.
    GivenBack {
        track: TrackNo,
        since_ms: u64,
        cut: u64,
    },
    /// A write that collided with this cut waits until whoever reads the track has done so. It has waited since then,
    /// in milliseconds.
    Want {
        track: TrackNo,
        since_ms: u64,
        cut: u64,
    },
    /// Something changed that the drain sees for itself: a cut, its end, an earlier write that finished, a mark.
    Look,
    /// The keeper of the intent asks for a grace.
    Grace(u64),
    Pause(bool),
    Policy(Policy),
    /// Finish what is under way, flush, and end.
    Stop,
}

impl Letter for Message {
    fn is_only_a_ring(&self) -> bool {
        *self == Self::Look
    }
}
