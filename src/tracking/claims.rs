//! Who may read or test a track at this instant: a try-lock per track, striped over a fixed table, and the list of who
//! found one taken. Never blocks: whoever finds a claim taken parks its work and is told when one is let go.

use super::sync::{AtomicU64, SeqCst};
use crate::geometry::TrackNo;

/// Number of stripes; tracks this far apart share one. Larger than any run of tracks that is claimed at once (a
/// request of 32 MiB in tracks of 4 KiB), so that no run meets itself.
#[cfg(not(feature = "loom"))]
pub const STRIPES: u64 = 1 << 16;
/// One word of them, so that loom has few atomics to follow.
#[cfg(feature = "loom")]
pub const STRIPES: u64 = 64;

/// Most queues a volume may have: each waiter has a bit.
pub const QUEUES_MAX: usize = 32;

/// Somebody who can find a claim taken: a queue or the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter(u32);

impl Waiter {
    pub const DRAIN: Self = Self(63);

    pub fn queue(index: usize) -> Self {
        debug_assert!(index < QUEUES_MAX);
        Self(u32::try_from(index).unwrap_or(0))
    }

    fn bit(self) -> u64 {
        1 << self.0
    }
}

/// Those to be told, as taken from [`Claims::take_waiters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiters(u64);

impl Waiters {
    pub fn none(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, waiter: Waiter) -> bool {
        self.0 & waiter.bit() != 0
    }
}

/// The claims of one volume.
#[derive(Debug)]
pub struct Claims {
    stripes: Box<[AtomicU64]>,
    waiting: AtomicU64,
}

impl Claims {
    pub fn new() -> Self {
        Self { stripes: (0..STRIPES / 64).map(|_| AtomicU64::new(0)).collect(), waiting: AtomicU64::new(0) }
    }

    fn place(track: TrackNo) -> (usize, u64) {
        let stripe = track.0 % STRIPES;
        (usize::try_from(stripe / 64).unwrap_or(0), 1 << (stripe % 64))
    }

    /// Takes the claim if it is free. If it is not, `waiter` is noted and will be found by whoever lets it go.
    #[inline]
    pub(super) fn claim(&self, track: TrackNo, waiter: Waiter) -> bool {
        let (word, bit) = Self::place(track);
        if self.stripes[word].fetch_or(bit, SeqCst) & bit == 0 {
            return true;
        }
        // Noted first, then tried again: the holder lets go first, then looks who is noted. One of the two sees.
        self.note(waiter);
        self.stripes[word].fetch_or(bit, SeqCst) & bit == 0
    }

    /// `waiter` will be found by whoever lets a claim go next.
    #[inline]
    pub(super) fn note(&self, waiter: Waiter) {
        self.waiting.fetch_or(waiter.bit(), SeqCst);
    }

    /// Whether somebody has the claim at this instant.
    pub fn is_claimed(&self, track: TrackNo) -> bool {
        let (word, bit) = Self::place(track);
        self.stripes[word].load(SeqCst) & bit != 0
    }

    #[inline]
    pub(super) fn release(&self, track: TrackNo) {
        let (word, bit) = Self::place(track);
        let before = self.stripes[word].fetch_and(!bit, SeqCst);
        debug_assert!(before & bit != 0, "track {track} was not claimed");
    }

    /// Whoever found a claim taken since the last call. To be asked after claims were let go; those returned must be
    /// told, by ringing their doorbells.
    #[inline]
    pub fn take_waiters(&self) -> Waiters {
        if self.waiting.load(SeqCst) == 0 {
            return Waiters(0);
        }
        Waiters(self.waiting.swap(0, SeqCst))
    }
}

impl Default for Claims {
    fn default() -> Self {
        Self::new()
    }
}
