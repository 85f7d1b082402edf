//! The first half of the drain's decisions: which marked tracks are read next, and what became of the reading.

use super::Drain;
use crate::bugs::{Bug, present};
use crate::geometry::{TrackNo, TrackRange};
use crate::tracking::Tracking;
use crate::uploader::cargo::{Slot, SlotNo};

/// How long an unreadable track is left alone, in milliseconds.
const UNREADABLE_RETRY_MS: u64 = 10_000;

impl Drain {
    pub(super) fn next_read(&mut self, now_ms: u64, tracking: &Tracking) -> Option<(SlotNo, TrackRange)> {
        let slot = self.cargo.free_slot()?;
        self.unreadable.retain(|_, retry_at| *retry_at > now_ms);
        // One that cannot be read is not tried again and again: its writer's wait runs out.
        let readable = |track: &TrackNo| !self.cargo.has(*track) && !self.unreadable.contains_key(track);
        // The oldest wait first: by their numbers, a track further up could wait for as long as others keep coming.
        let waiting = self.urgent.iter().filter(|(track, _)| readable(track));
        let urgent = waiting.min_by_key(|(_, since_ms)| **since_ms).map(|(track, _)| *track);
        if let Some(track) = urgent {
            let taken = self.take(track, 1, tracking, |_, _| true);
            if taken.count > 0 {
                self.cargo.begin_read(slot, taken, now_ms);
                return Some((slot, taken));
            }
        }
        if !self.pace.open(now_ms) {
            return None;
        }
        let full = self.unreadable.len() + self.single.len() >= self.limits.unreadable_max;
        let tracks = if full { self.take_single(tracking) } else { self.take_next(now_ms, tracking) }?;
        self.cargo.begin_read(slot, tracks, now_ms);
        Some((slot, tracks))
    }

    fn take(
        &mut self,
        start: TrackNo,
        max: u64,
        tracking: &Tracking,
        wanted: impl Fn(&Self, TrackNo) -> bool,
    ) -> TrackRange {
        let (taken, let_go) = tracking.take(start, max, |track| wanted(self, track));
        self.released |= let_go;
        taken
    }

    /// Takes one of the tracks that are to be read one by one. It is read or found unreadable, so there will be room
    /// for others: were these left alone as well, a primary that failed for a moment would stop the drain for ever.
    fn take_single(&mut self, tracking: &Tracking) -> Option<TrackRange> {
        let mut at = TrackNo(0);
        while let Some(&track) = self.single.range(at..).next() {
            at = TrackNo(track.0 + 1);
            if !tracking.out_of_sync().is_set(track) {
                // A colliding write has read it meanwhile.
                self.single.remove(&track);
            } else if !self.cargo.has(track) && !self.unreadable.contains_key(&track) {
                let taken = self.take(track, 1, tracking, |_, _| true);
                if taken.count > 0 {
                    return Some(taken);
                }
            }
        }
        None
    }

    /// Takes the next run behind the cursor, going round once.
    fn take_next(&mut self, now_ms: u64, tracking: &Tracking) -> Option<TrackRange> {
        if tracking.out_of_sync().count() == 0 {
            return None;
        }
        let start = self.cursor;
        let (mut from, mut wrapped) = (start, false);
        loop {
            let Some(track) = tracking.out_of_sync().next_set(from) else {
                if wrapped {
                    return None;
                }
                (from, wrapped) = (TrackNo(0), true);
                self.pass_ended(now_ms);
                continue;
            };
            if wrapped && track >= start {
                return None;
            }
            let max = if self.single.contains(&track) { 1 } else { self.limits.run_tracks };
            let taken = self.take(track, max, tracking, |drain, track| {
                (!drain.cargo.has(track) || present(Bug::SentTwiceAtOnce))
                    && !drain.unreadable.contains_key(&track)
                    && (max == 1 || !drain.single.contains(&track))
            });
            if taken.count > 0 {
                self.cursor = TrackNo(taken.end());
                return Some(taken);
            }
            self.passed_over(track);
            from = TrackNo(track.0 + 1);
        }
    }

    /// A marked track could not be taken. If an older content of it is on its way, the mark is younger than that run.
    fn passed_over(&mut self, track: TrackNo) {
        let on_its_way = self.cargo.has(track) && !self.cargo.has_image(track);
        let mark_ms = if on_its_way { self.cargo.oldest_taken_ms().unwrap_or(0) } else { 0 };
        let oldest = self.sweep.oldest_passed_ms.get_or_insert(mark_ms);
        *oldest = mark_ms.min(*oldest);
    }

    fn pass_ended(&mut self, now_ms: u64) {
        // A pass during an increment says nothing of what is recorded apart, nor of what is kept in images.
        if self.cut.is_none() && self.sweep.finished.is_none() {
            let all_before = self.sweep.oldest_passed_ms.unwrap_or(u64::MAX).min(self.sweep.began_ms);
            self.sweep.finished = Some((all_before, self.cargo.serials().0));
        }
        self.sweep.begin(now_ms);
    }

    /// The slot's tracks were read; `zero` says of each whether it is all zeroes.
    pub fn read_done(&mut self, slot: SlotNo, tracking: &Tracking, zero: impl Fn(TrackNo) -> bool) {
        let Slot::Reading(tracks) = self.cargo.slots[slot.0] else { return };
        for track in tracks.iter() {
            self.single.remove(&track);
        }
        let claimed = self.policy.send_first && self.cut.is_some();
        self.cargo.read(slot, claimed, zero);
        if !claimed {
            self.release(tracks, tracking);
        }
    }

    /// The slot's tracks could not be read: they stay marked, and the others go on (H15).
    pub fn read_failed(&mut self, slot: SlotNo, now_ms: u64, tracking: &Tracking) {
        let Slot::Reading(tracks) = self.cargo.slots[slot.0] else { return };
        self.totals.primary_errors += 1;
        self.sweep.void();
        tracking.image_lost(tracks);
        self.released = true;
        if tracks.count == 1 {
            self.single.remove(&tracks.start);
            self.unreadable.insert(tracks.start, now_ms + UNREADABLE_RETRY_MS);
        } else {
            self.single.extend(tracks.iter());
        }
        self.cargo.end(slot);
    }
}
