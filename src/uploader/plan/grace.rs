//! Graces: somebody, the keeper of the intent, wants to know when everything that the drain has in hand at this moment
//! is durable at the secondary. Then a region without marks differs in nothing from its copy (H3, H7).
//!
//! And whether the primary has flushed as well: what it holds in a volatile cache the secondary may have durably, and a
//! power cut would leave the two different in a region that nobody writes to, and so nobody remembers.
//!
//! What could not be sent is no longer in hand, and a grace says nothing of it: whoever asks has looked before how
//! often something was put back ([`crate::tracking::Tracking::put_back`]), and looks again afterwards.

use super::{Drain, Op};
use crate::bugs::{Bug, present};

#[derive(Debug, Clone, Copy)]
struct Grace {
    id: u64,
    /// What was in hand when it was asked for has lower serial numbers.
    serial: u64,
    /// All of that is acknowledged, and durable when the flush of this number has succeeded.
    flush: Option<u64>,
    /// The flush of the primary that has to succeed: one that begins after the grace was asked for.
    primary: u64,
}

/// Graces that were asked for, and answers to be passed on.
#[derive(Debug, Default)]
pub(super) struct Graces {
    waiting: Vec<Grace>,
    answers: Vec<(u64, bool)>,
    /// Flushes begun and ended. One is under way at a time.
    pub begun: u64,
    pub ended: u64,
    /// The same of the primary.
    primary_begun: u64,
    primary_ended: u64,
}

impl Graces {
    /// One has everything acknowledged and waits for nothing but a flush that has not begun.
    pub fn want_flush(&self) -> bool {
        self.waiting.iter().any(|grace| grace.flush.is_some_and(|flush| flush > self.begun))
    }
}

impl Drain {
    /// Somebody asks for a grace; [`Self::take_graced`] has the answer, sooner or later.
    pub fn grace(&mut self, id: u64) {
        let (serial, _) = self.cargo.serials();
        let primary = self.graces.primary_begun + 1;
        self.graces.waiting.push(Grace { id, serial, flush: None, primary });
    }

    /// Answers to graces: whether everything that arrived is durable. False: the primary could not be flushed.
    pub fn take_graced(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.graces.answers)
    }

    pub(super) fn primary_flush_due(&mut self) -> Option<Op> {
        let graces = &mut self.graces;
        let wanted = graces.waiting.iter().any(|grace| grace.primary > graces.primary_begun);
        if !wanted || self.stopping || graces.primary_begun > graces.primary_ended || present(Bug::PrimaryNotFlushed) {
            return None;
        }
        graces.primary_begun += 1;
        Some(Op::FlushPrimary)
    }

    /// The primary has flushed, or failed to.
    pub fn primary_flushed(&mut self, ok: bool) {
        self.graces.primary_ended = self.graces.primary_begun;
        if !ok {
            // What was asked for before is not durable there, and never will be for certain.
            let refused = self.graces.waiting.drain(..).map(|grace| (grace.id, false));
            self.graces.answers.extend(refused);
        }
    }

    pub(super) fn settle_graces(&mut self) {
        if self.graces.waiting.is_empty() {
            return;
        }
        let oldest = self.cargo.oldest_serial();
        let next_flush = self.graces.begun + u64::from(!self.unflushed.is_empty());
        let Graces { waiting, answers, ended, primary_ended, .. } = &mut self.graces;
        waiting.retain_mut(|grace| {
            if grace.flush.is_none() && oldest >= grace.serial {
                grace.flush = Some(if present(Bug::ClearedBeforeFlush) { 0 } else { next_flush });
            }
            let flushed = *primary_ended >= grace.primary || present(Bug::PrimaryNotFlushed);
            let durable = flushed && grace.flush.is_some_and(|flush| *ended >= flush);
            if durable {
                answers.push((grace.id, true));
            }
            !durable
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::geometry::Geometry;
    use crate::memory::Words;
    use crate::tracking::{Admission, Bitmap, Epoch};
    use std::sync::Arc;

    fn tracking() -> Tracking {
        let geometry = Geometry::new(16 * 4096, 4096).expect("valid");
        let bitmap = || Bitmap::new(16, Words::new(1).expect("memory"));
        Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()])
    }

    /// As a write does.
    fn mark(tracking: &Tracking, tracks: TrackRange) {
        let Admission::Admitted(ticket) = tracking.admit(0) else { panic!("nothing holds") };
        let _ = tracking.finish(ticket, tracks);
    }

    fn drain() -> Drain {
        let limits = Limits {
            window: 4,
            window_yielding: 4,
            run_tracks: 2,
            flush_bytes: 1 << 30,
            flush_ms: 10,
            unreadable_max: 64,
        };
        Drain::new(limits, Policy { send_first: false, collision_wait_ms: 1000, bandwidth: 0 }, 1)
    }

    /// Reads the next run and gives its slot and the part to be written.
    fn read_one(drain: &mut Drain, tracking: &Tracking) -> (SlotNo, Segment) {
        let Some(Op::Read(slot, tracks)) = drain.poll(0, tracking) else { panic!("nothing to read") };
        drain.read_done(slot, tracking, |_| false);
        assert_eq!(drain.poll(0, tracking), Some(Op::Write(slot, Segment { tracks, zero: false })));
        (slot, Segment { tracks, zero: false })
    }

    #[test]
    fn with_nothing_in_hand_it_is_given_when_the_primary_has_flushed() {
        let (mut drain, tracking) = (drain(), tracking());
        for ok in [true, false] {
            drain.grace(7);
            assert_eq!(drain.poll(0, &tracking), Some(Op::FlushPrimary));
            assert_eq!((drain.poll(0, &tracking), drain.take_graced()), (None, vec![]));
            drain.primary_flushed(ok);
            drain.poll(0, &tracking);
            assert_eq!(drain.take_graced(), [(7, ok)]);
        }
    }

    #[test]
    fn it_waits_for_what_is_in_hand_and_for_a_flush_that_began_after_that() {
        let (mut drain, tracking) = (drain(), tracking());
        mark(&tracking, TrackRange { start: TrackNo(0), count: 1 });
        let (first, part) = read_one(&mut drain, &tracking);
        drain.write_done(first, part, true, 0, &tracking);
        mark(&tracking, TrackRange { start: TrackNo(4), count: 1 });
        let (second, late) = read_one(&mut drain, &tracking);
        drain.grace(1);
        assert_eq!(drain.poll(10, &tracking), Some(Op::FlushPrimary));
        drain.primary_flushed(true);
        assert_eq!(drain.poll(10, &tracking), Some(Op::Flush));
        drain.write_done(second, late, true, 10, &tracking);
        // What comes later is none of this grace's.
        mark(&tracking, TrackRange { start: TrackNo(8), count: 1 });
        read_one(&mut drain, &tracking);
        drain.flush_done(true, 12, &tracking);
        assert_eq!(drain.poll(12, &tracking), Some(Op::Flush), "the next one does not wait for its time");
        assert_eq!(drain.take_graced(), [], "the first began before the second run was acknowledged");
        drain.flush_done(true, 13, &tracking);
        drain.poll(13, &tracking);
        assert_eq!(drain.take_graced(), [(1, true)]);
    }

    #[test]
    fn what_failed_is_not_waited_for_but_counted() {
        for what in 0..3 {
            let (mut drain, tracking) = (drain(), tracking());
            mark(&tracking, TrackRange { start: TrackNo(0), count: 1 });
            let Some(Op::Read(slot, tracks)) = drain.poll(0, &tracking) else { panic!("nothing to read") };
            let before = tracking.put_back();
            drain.grace(1);
            assert_eq!(drain.poll(0, &tracking), Some(Op::FlushPrimary));
            drain.primary_flushed(true);
            if what == 0 {
                drain.read_failed(slot, 0, &tracking);
            } else {
                drain.read_done(slot, &tracking, |_| false);
                drain.poll(0, &tracking);
                drain.write_done(slot, Segment { tracks, zero: false }, what == 2, 0, &tracking);
            }
            if what == 2 {
                assert_eq!(drain.poll(10, &tracking), Some(Op::Flush));
                drain.flush_done(false, 10, &tracking);
            }
            // The mark is gone again at once: to look for it would not be enough.
            drain.poll(20_000, &tracking);
            assert_eq!((drain.take_graced(), tracking.put_back() > before), (vec![(1, true)], true), "{what}");
        }
    }
}
