//! A set of queues.

/// Queues whose doorbells are to be rung.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queues(u64);

impl Queues {
    pub(super) fn add(&mut self, queue: usize) {
        debug_assert!(queue < crate::tracking::QUEUES_MAX);
        self.0 |= 1 << (queue % 64);
    }

    pub fn none(self) -> bool {
        self.0 == 0
    }

    /// Takes a queue out; says whether it was in.
    pub fn remove(&mut self, queue: usize) -> bool {
        let was = self.contains(queue);
        self.0 &= !(1 << (queue % 64));
        was
    }

    pub fn contains(self, queue: usize) -> bool {
        self.0 >> (queue % 64) & 1 == 1
    }
}
