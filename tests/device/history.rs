//! The log of all writes: when each was issued and when it was acknowledged, by one counter for all writers, so that
//! "acknowledged before that one was issued" is a comparison of two numbers.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sector::WriteId;

/// Not answered yet, or answered with an error: whether it is there is open.
pub const UNACKNOWLEDGED: u64 = u64::MAX;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub issue: u64,
    pub ack: u64,
    pub failed: bool,
    pub volume: u32,
    pub lba: u64,
    pub sectors: u64,
}

impl Write {
    pub fn covers(&self, volume: u32, lba: u64) -> bool {
        self.volume == volume && (self.lba..self.lba + self.sectors).contains(&lba)
    }
}

/// The one clock of a run.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A number larger than every one given before.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }
}

/// All writes so far, each writer's in its own order.
#[derive(Debug)]
pub struct History {
    pub clock: Clock,
    writers: Vec<Mutex<Vec<Write>>>,
}

impl History {
    pub fn new(writers: usize) -> Self {
        Self { clock: Clock::default(), writers: (0..writers).map(|_| Mutex::default()).collect() }
    }

    fn of(&self, writer: u32) -> MutexGuard<'_, Vec<Write>> {
        self.writers[writer as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id that the writer's next write will have.
    pub fn next(&self, writer: u32) -> WriteId {
        WriteId { writer, sequence: self.of(writer).len() as u64 }
    }

    /// The writer's next write is issued now.
    pub fn issue(&self, writer: u32, volume: u32, lba: u64, sectors: u64) {
        let mut writes = self.of(writer);
        let issue = self.clock.tick();
        writes.push(Write { issue, ack: UNACKNOWLEDGED, failed: false, volume, lba, sectors });
    }

    /// The writer's last write has been answered.
    pub fn answer(&self, writer: u32, ok: bool) {
        let now = self.clock.tick();
        if let Some(write) = self.of(writer).last_mut() {
            write.failed = !ok;
            write.ack = if ok { now } else { UNACKNOWLEDGED };
        }
    }

    /// Brings a copy of the log up to date. Only the last write of a writer can have changed.
    pub fn follow(&self, copy: &mut Vec<Vec<Write>>) {
        copy.resize_with(self.writers.len(), Vec::new);
        for (writer, known) in self.writers.iter().zip(copy) {
            let writes = writer.lock().unwrap_or_else(PoisonError::into_inner);
            known.pop();
            known.extend_from_slice(&writes[known.len()..]);
        }
    }
}
