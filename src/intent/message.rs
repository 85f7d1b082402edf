//! What writes and the drain tell the keeper, through its mailbox.

use super::regions::RegionRange;
use crate::mailbox::Letter;

/// A message to a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A write of this queue is parked until all of these regions are hot.
    Want { queue: usize, regions: RegionRange },
    /// A region marked ahead is in use.
    Look,
    /// The drain's answer to a grace: whether everything is durable that it had in hand when it was asked, and that it
    /// did not put back.
    Graced { id: u64, durable: bool },
    /// The write of a record by a queue has been answered.
    Written { record: u64, ok: bool },
    /// Write nothing more, and end.
    Stop,
}

impl Letter for Message {
    fn is_only_a_ring(&self) -> bool {
        *self == Self::Look
    }
}
