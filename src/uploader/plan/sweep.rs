//! The lag, as a time: how far back the secondary is whole. Pure bookkeeping; the drain tells it what happens.

/// Measures the lag. One pass of the cursor over the volume sends whatever was marked before the pass began; once all
/// of that is acknowledged and flushed, the secondary holds everything from before then.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sweep {
    pub began_ms: u64,
    /// When the oldest mark was made that had to be passed over, as far as is known; 0 if nothing is.
    pub oldest_passed_ms: Option<u64>,
    /// A finished pass: when it began, and the serial that the oldest unacknowledged run must have passed.
    pub finished: Option<(u64, u64)>,
    pub acknowledged_ms: u64,
    pub flushing_ms: u64,
    pub synced_ms: u64,
}

impl Sweep {
    pub fn begin(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        self.oldest_passed_ms = None;
    }

    /// Marks have appeared that are older than they look, maybe behind the cursor: neither this pass nor one that is
    /// not acknowledged yet says anything.
    pub fn void(&mut self) {
        self.oldest_passed_ms = Some(0);
        self.finished = None;
    }
}
