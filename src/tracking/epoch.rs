//! The epoch word of a daemon: one store of it is the cut of every volume that was armed for it.

use super::sync::{AtomicU64, SeqCst};
use crate::bugs::{Bug, present};

/// Number of the present epoch. It only grows.
#[derive(Debug)]
#[repr(align(128))]
pub struct Epoch(AtomicU64);

impl Epoch {
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub fn number(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// Begins the epoch `number`: the cut. A dependent write can only arrive after the write it depends on was
    /// acknowledged, so it sees this epoch or a later one than that write saw, on whatever volume (P2).
    pub fn begin(&self, number: u64) {
        let before = self.0.swap(number, SeqCst);
        // A planted second cut may come late, and turn the epoch back: that is what is to be found.
        debug_assert!(before <= number || present(Bug::EarlyRelease), "epochs only grow: {before} -> {number}");
    }
}

impl Default for Epoch {
    fn default() -> Self {
        Self::new()
    }
}
