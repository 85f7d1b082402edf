//! The keeper's clock hand: goes round the hot regions and finds those that nobody has used of late.

use super::regions::RegionNo;

/// A round under way, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep {
    /// Where the hand stands.
    pub hand: RegionNo,
    /// Regions that it has still to pass; 0 when it rests.
    pub left: u64,
    /// Regions that it is to cool before it rests, and how many of those would make another soon worth while.
    wanted: u64,
    worth: u64,
    /// When the hand goes on after a stretch, in milliseconds.
    pub goes_on_ms: u64,
    /// When the next round begins by itself, and when one may begin because too many are hot, in milliseconds.
    pub idle_at_ms: u64,
    pub pressed_at_ms: u64,
    pressed_pause_ms: u64,
}

/// A round that too many hot regions have set off is followed by another no sooner than this, in milliseconds; four
/// times as long each time while rounds find few to cool, since those with marks stay hot and going round takes time.
const PRESSED_MS: u64 = 50;
/// Few are less than this part of those that are too many.
const WORTH: u64 = 8;

impl Sweep {
    pub fn new(idle_ms: u64) -> Self {
        Self {
            hand: RegionNo(0),
            left: 0,
            wanted: 0,
            worth: u64::MAX,
            goes_on_ms: 0,
            idle_at_ms: idle_ms,
            pressed_at_ms: 0,
            pressed_pause_ms: PRESSED_MS,
        }
    }

    pub fn rests(&self) -> bool {
        self.left == 0
    }

    /// Begins a round if one is due.
    pub fn begin(&mut self, now_ms: u64, regions: u64, excess: u64, idle_ms: u64) {
        if now_ms >= self.idle_at_ms {
            self.idle_at_ms = now_ms + idle_ms;
            (self.left, self.wanted, self.worth) = (regions, u64::MAX, u64::MAX);
        } else if excess > 0 && now_ms >= self.pressed_at_ms {
            self.pressed_at_ms = now_ms + self.pressed_pause_ms;
            self.pressed_pause_ms = (4 * self.pressed_pause_ms).min(idle_ms.max(PRESSED_MS));
            // Twice round: the first time whatever was used gets its second chance.
            (self.left, self.wanted, self.worth) = (2 * regions, excess, excess.div_ceil(WORTH));
        }
    }

    /// The region under the hand was cooled.
    pub fn found(&mut self) {
        self.wanted -= 1;
        self.worth -= 1;
        if self.worth == 0 {
            self.worth = u64::MAX;
            self.pressed_pause_ms = PRESSED_MS;
        }
    }

    /// When the next round begins, with so many regions too many.
    pub fn due_ms(&self, excess: u64) -> u64 {
        if excess > 0 { self.idle_at_ms.min(self.pressed_at_ms) } else { self.idle_at_ms }
    }

    /// The hand goes on to `next`, which is not before it.
    pub fn pass(&mut self, next: RegionNo, regions: u64) {
        self.left = self.left.saturating_sub(next.0 - self.hand.0);
        self.hand = if next.0 >= regions { RegionNo(0) } else { next };
        if self.wanted == 0 {
            self.left = 0;
        }
    }
}
