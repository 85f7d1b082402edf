//! The second half of the drain's decisions: what is read is sent, and what is sent is flushed.

use super::{AHEAD_OF_FLUSH, Drain, Op};
use crate::bugs::{Bug, present};
use crate::geometry::{TrackNo, TrackRange};
use crate::increment::AbortReason;
use crate::tracking::Tracking;
use crate::uploader::cargo::{ImageNo, ImageState, Segment, Slot, SlotNo};

impl Drain {
    /// A part of a slot is at the secondary, or failed to get there.
    pub fn write_done(&mut self, slot: SlotNo, segment: Segment, ok: bool, now_ms: u64, tracking: &Tracking) {
        if ok {
            self.acknowledged(segment.tracks, segment.zero, now_ms, tracking);
        } else {
            self.failed(now_ms);
        }
        self.segment_done(slot, segment, ok, tracking);
    }

    fn segment_done(&mut self, slot: SlotNo, segment: Segment, ok: bool, tracking: &Tracking) {
        let again = (self.cut_counts() && !present(Bug::ResendFromPrimary)) || ok;
        self.cargo.end_segment(slot, segment, !ok && again);
        let Slot::Sending { tracks, waiting, sending, claimed } = &self.cargo.slots[slot.0] else { return };
        let (tracks, claimed, ended) = (*tracks, *claimed, *sending == 0 && (waiting.is_empty() || !again));
        if !ok && !again {
            tracking.mark_out_of_sync(segment.tracks);
        }
        if ended {
            // Without an increment a run that failed is not kept: what it held is marked and will be read anew.
            if !again {
                tracking.mark_out_of_sync(tracks);
            }
            if claimed {
                self.release(tracks, tracking);
            }
            self.cargo.end(slot);
        }
    }

    /// A before-image is at the secondary, or failed to get there.
    pub fn image_done(&mut self, image: ImageNo, ok: bool, now_ms: u64, tracking: &Tracking) {
        let Some((track, ImageState::Sending)) = self.cargo.images.get(&image).copied() else { return };
        if ok {
            self.acknowledged(TrackRange::one(track), false, now_ms, tracking);
        } else {
            self.failed(now_ms);
        }
        self.image_ended(image, track, ok, tracking);
    }

    fn image_ended(&mut self, image: ImageNo, track: TrackNo, ok: bool, tracking: &Tracking) {
        if !ok && self.cut_counts() {
            self.cargo.image_again(image);
            return;
        }
        if !ok {
            tracking.mark_out_of_sync(TrackRange::one(track));
        }
        self.cargo.end_image(image);
        if !present(Bug::ImageFreedEarly) {
            self.freed.push(image);
        }
    }

    /// The content in memory is not what was read (H20). It is never sent; the secondary has nothing to do with it.
    pub fn slot_damaged(&mut self, slot: SlotNo, segment: Segment, now_ms: u64, tracking: &Tracking) {
        self.damaged(now_ms);
        self.segment_done(slot, segment, false, tracking);
    }

    /// As [`Self::slot_damaged`], of a before-image.
    pub fn image_damaged(&mut self, image: ImageNo, now_ms: u64, tracking: &Tracking) {
        let Some((track, ImageState::Sending)) = self.cargo.images.get(&image).copied() else { return };
        self.damaged(now_ms);
        self.image_ended(image, track, false, tracking);
    }

    fn damaged(&mut self, now_ms: u64) {
        self.totals.checksum_errors += 1;
        self.doom(AbortReason::ImageLost);
        self.not_there();
        if present(Bug::DamageFailsLink) {
            self.failed(now_ms);
        }
    }

    /// What was to be sent is not at the secondary, and will be marked again: older marks than they look.
    fn not_there(&mut self) {
        self.sweep.void();
        self.cargo.forget_ages();
    }

    fn acknowledged(&mut self, tracks: TrackRange, zero: bool, now_ms: u64, tracking: &Tracking) {
        self.link.succeeded();
        if self.unflushed.is_empty() {
            self.unflushed_since_ms = now_ms;
        }
        let (_, bytes) = tracking.geometry().bytes(tracks);
        self.unflushed.push(tracks);
        self.unflushed_bytes += bytes;
        self.totals.bytes += bytes;
        self.totals.tracks += tracks.count;
        if zero {
            self.totals.zero_tracks += tracks.count;
        }
    }

    /// A request to the secondary failed: what it carried is not there.
    fn failed(&mut self, now_ms: u64) {
        self.not_there();
        self.totals.secondary_errors += 1;
        self.link.failed(now_ms);
    }

    // Flushing.

    pub(super) fn flush_due(&self, now_ms: u64, tracking: &Tracking) -> bool {
        if self.unflushed.is_empty() || self.flushing.is_some() || self.link.allows(now_ms, 1) == 0 {
            return false;
        }
        let end_of_drain = self.cut.is_some() && tracking.out_of_sync().count() == 0 && self.cargo.is_empty();
        end_of_drain
            || self.stopping
            || self.graces.want_flush()
            || self.unflushed_bytes >= self.limits.flush_bytes
            || now_ms >= self.unflushed_since_ms + self.limits.flush_ms
    }

    /// Whether as much was acknowledged since the flush under way began as may be remembered.
    pub(super) fn is_ahead_of_flush(&self) -> bool {
        self.flushing.is_some() && self.unflushed_bytes >= AHEAD_OF_FLUSH * self.limits.flush_bytes
    }

    pub(super) fn begin_flush(&mut self) -> Op {
        self.graces.begun += 1;
        self.flushing = Some(std::mem::take(&mut self.unflushed));
        self.unflushed_bytes = 0;
        self.sweep.flushing_ms = self.sweep.acknowledged_ms;
        Op::Flush
    }

    /// Everything acknowledged before the flush is durable, or all of it must be taken for lost (H7).
    pub fn flush_done(&mut self, ok: bool, now_ms: u64, tracking: &Tracking) {
        self.graces.ended = self.graces.begun;
        let covered = self.flushing.take().unwrap_or_default();
        if ok || present(Bug::FlushFailureIgnored) {
            self.totals.flushes += 1;
            self.link.succeeded();
            self.sweep.synced_ms = self.sweep.synced_ms.max(self.sweep.flushing_ms);
            return;
        }
        self.failed(now_ms);
        self.doom(AbortReason::FlushFailed);
        self.sweep.acknowledged_ms = self.sweep.synced_ms;
        // What was acknowledged since the last good flush, the later part included: the failed one may have eaten it.
        for tracks in covered.into_iter().chain(std::mem::take(&mut self.unflushed)) {
            tracking.mark_out_of_sync(tracks);
        }
        // And what is on its way: a part may have been in the cache already (a file without direct I/O).
        for tracks in self.cargo.being_sent() {
            tracking.mark_out_of_sync(tracks);
        }
        self.unflushed_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::geometry::Geometry;
    use crate::memory::Words;
    use crate::tracking::{Bitmap, Epoch};
    use std::sync::Arc;

    const TRACK: u64 = 4096;
    const TRACKS: u64 = 1 << 12;
    const RUN: u64 = 4;
    const FLUSH: u64 = 16 * TRACK;

    fn tracking() -> Tracking {
        let geometry = Geometry::new(TRACKS * TRACK, TRACK).expect("valid");
        let words = || Words::new(usize::try_from(Bitmap::words_for(TRACKS)).expect("few")).expect("memory");
        let bitmap = || Bitmap::new(TRACKS, words());
        let tracking = Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()]);
        tracking.out_of_sync().set_all();
        tracking
    }

    /// Everything but flushes is answered, until nothing is left to do.
    fn send_all(drain: &mut Drain, tracking: &Tracking) {
        loop {
            let ops: Vec<Op> = std::iter::from_fn(|| drain.poll(0, tracking)).collect();
            if ops.is_empty() {
                return;
            }
            for op in ops {
                match op {
                    Op::Read(slot, _) => drain.read_done(slot, tracking, |_| false),
                    Op::Write(slot, segment) => drain.write_done(slot, segment, true, 0, tracking),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_flush_that_hangs_bounds_what_is_remembered_and_its_end_lets_the_drain_go_on() {
        let limits = Limits {
            window: 4,
            window_yielding: 4,
            run_tracks: RUN,
            flush_bytes: FLUSH,
            flush_ms: 10,
            unreadable_max: 64,
        };
        let policy = Policy { send_first: false, collision_wait_ms: 1000, bandwidth: 0 };
        for ok in [true, false] {
            let (mut drain, tracking) = (Drain::new(limits, policy, 1), tracking());
            send_all(&mut drain, &tracking);
            // What was under way when the bound was reached is acknowledged all the same.
            let most = AHEAD_OF_FLUSH * FLUSH + 4 * RUN * TRACK;
            assert!((AHEAD_OF_FLUSH * FLUSH..=most).contains(&drain.unflushed_bytes), "{}", drain.unflushed_bytes);
            let before = drain.totals().bytes;
            drain.flush_done(ok, 0, &tracking);
            if !ok {
                assert_eq!(tracking.out_of_sync().count(), TRACKS, "all that was acknowledged");
                continue;
            }
            // The next flush begins at once, and what it does not cover goes on beside it.
            send_all(&mut drain, &tracking);
            assert!(drain.flushing.is_some());
            assert!(drain.totals().bytes >= before + AHEAD_OF_FLUSH * FLUSH);
        }
    }
}
