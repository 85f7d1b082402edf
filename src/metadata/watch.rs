//! A medium that is watched: a disk that hangs fails nothing, so somebody has to look at how long it has owed an
//! answer.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::medium::Medium;

/// Metadata that owes an answer for longer than this is stalled: it may never come.
pub const STALL: Duration = Duration::from_secs(5);

/// A medium, and what it was asked and has not answered.
#[derive(Debug)]
pub(super) struct Watched {
    medium: Arc<dyn Medium>,
    /// When each request under way began, the oldest first.
    under_way: Mutex<Vec<Instant>>,
}

impl Watched {
    pub fn new(medium: Arc<dyn Medium>) -> Self {
        Self { medium, under_way: Mutex::new(Vec::with_capacity(8)) }
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T>(&self, question: impl FnOnce(&Arc<dyn Medium>) -> T) -> T {
        let began = self.begin();
        let answer = question(&self.medium);
        self.end(began);
        answer
    }

    /// A request begins; to be given to [`Self::end`] when it is answered.
    pub fn begin(&self) -> Instant {
        // The clock is read under the lock, or a younger request could come before an older one.
        let mut under_way = self.under_way();
        let now = Instant::now();
        under_way.push(now);
        now
    }

    pub fn end(&self, began: Instant) {
        let mut under_way = self.under_way();
        if let Some(at) = under_way.iter().position(|other| *other == began) {
            under_way.remove(at);
        }
    }

    /// For how long the oldest request has been under way, if that is longer than [`STALL`].
    pub fn stalled(&self) -> Option<Duration> {
        self.under_way().first().map(Instant::elapsed).filter(|waited| *waited > STALL)
    }
}

impl Medium for Watched {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.ask(|medium| medium.read(offset, buffer))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(|medium| medium.write(offset, bytes))
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(|medium| medium.write_lazily(offset, bytes))
    }

    fn flush(&self) -> io::Result<()> {
        self.ask(|medium| medium.flush())
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.medium.raw_fd()
    }
}
