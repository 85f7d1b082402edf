//! The keeper's clock hand: goes round the hot regions and finds those that nobody has used of late.

use super::regions::RegionNo;

/// A round under way, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep {
    /// Where the hand stands.
    pub hand: RegionNo,
    /// Regions that it has still to pass; 0 when it rests.
    pub left: u64,
    /// It may go round once more; and it has met a region that would be cooled then.
    twice: bool,
    spared: bool,
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
            twice: false,
            spared: false,
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
            (self.left, self.twice, self.wanted, self.worth) = (regions, false, u64::MAX, u64::MAX);
        } else if excess > 0 && now_ms >= self.pressed_at_ms {
            self.pressed_at_ms = now_ms + self.pressed_pause_ms;
            self.pressed_pause_ms = (4 * self.pressed_pause_ms).min(idle_ms.max(PRESSED_MS));
            // Twice round if need be: the first time whatever was used gets its second chance.
            (self.left, self.twice, self.wanted, self.worth) = (regions, true, excess, excess.div_ceil(WORTH));
            self.spared = false;
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

    /// The region under the hand is spared this time, because it was used.
    pub fn spare(&mut self) {
        self.spared = true;
    }

    /// When the next round begins, with so many regions too many.
    pub fn due_ms(&self, excess: u64) -> u64 {
        if excess > 0 { self.idle_at_ms.min(self.pressed_at_ms) } else { self.idle_at_ms }
    }

    /// The hand goes on to `next`, which is not before it.
    pub fn pass(&mut self, next: RegionNo, regions: u64) {
        self.left = self.left.saturating_sub(next.0 - self.hand.0);
        self.hand = if next.0 >= regions { RegionNo(0) } else { next };
        if self.left == 0 && self.spared && std::mem::take(&mut self.twice) {
            self.left = regions;
        }
        if self.wanted == 0 {
            self.left = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regions that a round that begins now passes, if it spares the one it comes to first so many times.
    fn passed(sweep: &mut Sweep, now_ms: u64, excess: u64, mut spares: u64) -> u64 {
        let mut passed = 0;
        sweep.begin(now_ms, 10, excess, 1000);
        while !sweep.rests() {
            if spares > 0 {
                spares -= 1;
                sweep.spare();
            }
            sweep.pass(RegionNo(sweep.hand.0 + 1), 10);
            passed += 1;
        }
        passed
    }

    #[test]
    fn a_pressed_round_is_made_twice_only_for_what_it_has_spared() {
        let mut sweep = Sweep::new(1000);
        assert_eq!(passed(&mut sweep, 0, 5, 0), 10, "only regions that have to stay hot");
        assert_eq!(passed(&mut sweep, 50, 5, 1), 20);
        assert_eq!(passed(&mut sweep, 60, 5, 1), 0, "not yet again");
        assert_eq!(passed(&mut sweep, 250, 5, 20), 20, "and not three times");
        assert_eq!(passed(&mut sweep, 1000, 0, 20), 10, "who is not pressed comes again later");
    }
}
