//! The bandwidth limit of a drain: a token bucket over a monotonic clock in milliseconds. Pure.

/// The bucket holds what may be sent in this time, so that a burst after an idle second stays short.
const BURST_MS: u64 = 100;

/// How fast the drain may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second; 0 is no limit.
    limit: u64,
    /// Bytes that may be sent now, in thousandths; negative after a large request.
    milli_bytes: i128,
    at_ms: u64,
}

impl Pace {
    pub fn new(limit: u64) -> Self {
        Self { limit, milli_bytes: 0, at_ms: 0 }
    }

    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.milli_bytes = 0;
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether something may be sent now.
    pub fn open(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let rate = i128::from(self.limit);
        self.milli_bytes = (self.milli_bytes + rate * i128::from(passed)).min(rate * i128::from(BURST_MS));
        self.limit == 0 || self.milli_bytes > 0
    }

    pub fn spend(&mut self, bytes: u64) {
        if self.limit > 0 {
            self.milli_bytes -= i128::from(bytes) * 1000;
        }
    }

    /// When something may be sent again; `None` if now.
    pub fn opens_at_ms(&self, now_ms: u64) -> Option<u64> {
        if self.limit == 0 || self.milli_bytes > 0 {
            return None;
        }
        let wait = (-self.milli_bytes).cast_unsigned() / u128::from(self.limit) + 1;
        Some(now_ms + u64::try_from(wait).unwrap_or(u64::MAX / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_ten_seconds_it_sends_what_the_limit_allows() {
        let (limit, request) = (10 << 20, 1 << 20);
        let mut pace = Pace::new(limit);
        let (mut sent, mut now) = (0, 0);
        while now < 10_000 {
            if pace.open(now) {
                pace.spend(request);
                sent += request;
            } else {
                now = pace.opens_at_ms(now).expect("waits");
            }
        }
        assert!((limit * 10 - request..=limit * 10 + 2 * request).contains(&sent), "{sent}");
    }

    #[test]
    fn without_a_limit_it_is_always_open() {
        let mut pace = Pace::new(0);
        pace.spend(1 << 40);
        assert!(pace.open(0) && pace.opens_at_ms(0).is_none());
    }
}
