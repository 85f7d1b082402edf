//! Wakes a thread that sleeps in `io_uring_enter`: an eventfd with a poll that is always armed in the thread's ring. Or
//! one that has no ring, and sleeps on the eventfd itself.
//! A Rust waker does not. Nothing is said with it but "look": messages lie elsewhere.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// A doorbell. Rung by anyone, answered by one thread.
#[derive(Debug)]
pub struct Doorbell {
    event: EventFd,
    /// Rung and not answered: ringing again would change nothing and costs a system call.
    rung: AtomicBool,
}

impl Doorbell {
    pub fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, rung: AtomicBool::new(false) })
    }

    /// Wakes the thread, at once or when it next sleeps.
    pub fn ring(&self) {
        if !self.rung.swap(true, SeqCst) {
            // It can only fail if the counter were full, and then the thread has been told.
            let _ = self.event.write(1);
        }
    }

    /// To be called when the armed poll has completed, before looking at what there is to do.
    ///
    /// The counter is emptied before the flag falls: the other way round a ring in between would be emptied away with
    /// the flag left up, and no later ring would be heard.
    pub fn answer(&self) {
        let _ = self.event.read();
        self.rung.store(false, SeqCst);
    }

    /// Sleeps until it rings or the time is over, for a thread that has no ring. To be answered all the same.
    pub fn wait(&self, milliseconds: u64) {
        let timeout = i32::try_from(milliseconds).ok().and_then(|time| PollTimeout::try_from(time).ok());
        // Interrupted, it looks once too often.
        let _ = poll(&mut [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)], timeout.unwrap_or(PollTimeout::MAX));
    }

    /// Whether it was rung and is not answered.
    pub fn is_rung(&self) -> bool {
        self.rung.load(SeqCst)
    }

    /// For the armed poll.
    pub fn raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
