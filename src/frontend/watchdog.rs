//! A control command that the kernel never answers (H28), or a look at a disk that hangs, must not keep whoever asks
//! for it: it runs on a thread of its own, which is left behind when it takes too long.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// However little is left, this much is given to each: an answer at once is no hang.
const LIMIT_MIN: Duration = Duration::from_millis(200);

/// A limit that several questions share, so that many of them together take no longer than one that hangs.
#[derive(Debug, Clone, Copy)]
pub struct Limit(Instant);

impl Limit {
    pub fn new(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// What `question` answers, if it does so in time.
    pub fn ask<T: Send + 'static>(self, question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, answer) = mpsc::channel();
        let body = move || drop(done.send(question()));
        thread::Builder::new().name("question".to_owned()).spawn(body).ok()?;
        answer.recv_timeout(self.0.saturating_duration_since(Instant::now()).max(LIMIT_MIN)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_is_never_answered_keeps_nobody() {
        let began = Instant::now();
        let limit = Limit::new(Duration::from_millis(50));
        assert_eq!(limit.ask(|| 1), Some(1));
        for _ in 0..2 {
            assert_eq!(limit.ask(thread::park), None);
        }
        assert_eq!(limit.ask(|| 2), Some(2), "the next has its time all the same");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
