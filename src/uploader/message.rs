//! What others tell a drain, through its mailbox and doorbell.

use super::cargo::ImageNo;
use super::plan::Policy;
use crate::geometry::TrackNo;

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
    /// A colliding write waits until the track has been sent.
    Want(TrackNo),
    /// Something changed that the drain sees for itself: a cut, its end, an earlier write that finished, a mark.
    Look,
    Pause(bool),
    Policy(Policy),
    /// Finish what is under way, flush, and end.
    Stop,
}
