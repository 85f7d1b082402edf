//! Whether the secondary answers: back-off with jitter after a failure, one probe at a time until it answers again.
//! Pure; time comes in as milliseconds of a monotonic clock (H21, H33).

/// First and longest pause after a failure, in milliseconds.
const BACK_OFF_MS_MIN: u64 = 100;
const BACK_OFF_MS_MAX: u64 = 30_000;

/// State of the way to the secondary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    failures: u32,
    retry_at_ms: u64,
    /// State of the jitter's generator; never 0.
    random: u64,
}

impl Link {
    /// `seed` makes the jitter differ between volumes, so that they do not all retry at once.
    pub fn new(seed: u64) -> Self {
        Self { failures: 0, retry_at_ms: 0, random: seed | 1 }
    }

    pub fn is_up(&self) -> bool {
        self.failures == 0
    }

    /// How many requests may be under way now: `window` when up, one when probing, none while backing off.
    pub fn allows(&self, now_ms: u64, window: usize) -> usize {
        if self.failures == 0 { window } else { usize::from(now_ms >= self.retry_at_ms) }
    }

    /// When to try again, if that is in the future.
    pub fn retry_at_ms(&self, now_ms: u64) -> Option<u64> {
        (self.failures > 0 && now_ms < self.retry_at_ms).then_some(self.retry_at_ms)
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub fn failed(&mut self, now_ms: u64) {
        if self.failures > 0 && now_ms < self.retry_at_ms {
            // The others of the window that failed with the first one are the same failure.
            return;
        }
        let pause = (BACK_OFF_MS_MIN << self.failures.min(16)).min(BACK_OFF_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at_ms = now_ms + pause / 2 + self.random() % pause;
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_backs_off_longer_and_longer_within_bounds_and_probes_once() {
        let (mut link, mut now) = (Link::new(9), 0);
        for round in 0..20_u32 {
            link.failed(now);
            assert_eq!(link.allows(now, 8), 0);
            let retry = link.retry_at_ms(now).expect("in the future");
            let pause = (BACK_OFF_MS_MIN << round.min(16)).min(BACK_OFF_MS_MAX);
            assert!((pause / 2..pause * 3 / 2).contains(&(retry - now)), "{} of {pause}", retry - now);
            now = retry;
            assert_eq!(link.allows(now, 8), 1);
        }
        link.succeeded();
        assert_eq!((link.allows(now, 8), link.is_up()), (8, true));
    }
}
