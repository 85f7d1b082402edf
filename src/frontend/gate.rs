//! Where the queues' threads meet: what takes time they do before, each for itself, and then they all begin at once.
//!
//! A daemon that is killed when some of its queues have told the kernel of themselves and others have not leaves a
//! device that Linux 6.12 cannot give to another one (H22). That moment is to be as short as can be.

use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Gate {
    awaited: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    /// Opens when so many have come.
    pub fn new(awaited: usize) -> Self {
        Self { awaited: Mutex::new(awaited), opened: Condvar::new() }
    }

    /// Waits for the others.
    pub fn pass(&self) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        *awaited = awaited.saturating_sub(1);
        if *awaited == 0 {
            self.opened.notify_all();
        }
        while *awaited > 0 {
            awaited = self.opened.wait(awaited).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Some will not come.
    pub fn open(&self) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        self.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn nobody_passes_before_all_have_come_or_it_is_opened() {
        for open in [false, true] {
            let gate = Gate::new(3);
            thread::scope(|scope| {
                let early: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.pass())).collect();
                thread::sleep(Duration::from_millis(50));
                assert!(early.iter().all(|thread| !thread.is_finished()));
                if open { gate.open() } else { gate.pass() }
            });
        }
    }
}
