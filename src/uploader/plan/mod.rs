//! The drain's decisions: what to read, send and flush next, and what every answer means. Pure: it drives atomics of
//! [`Tracking`] and its own bookkeeping, takes the time as an argument, and leaves all I/O to `ring`. The simulation
//! drives this very code.
//!
//! What it keeps true:
//! * a mark is cleared before its track is read, and the track is claimed while it is read;
//! * a content that was taken is in a slot, an image, `unflushed`, or marked again: nowhere is it only remembered by
//!   a request (H21);
//! * what was acknowledged but not flushed is put back out of sync when a flush fails (H7);
//! * from the cut to its end nothing is read twice: a failed send is repeated from memory, since the track may have
//!   moved on, and where that is impossible the increment is given up;
//! * drained means: no mark, nothing owned by a collision, nothing on its way, and a flush after all of it.

mod grace;
mod read;
mod send;
mod sweep;

use crate::bugs::{Bug, present};
use crate::geometry::{TrackNo, TrackRange};
use crate::increment::AbortReason;
use crate::tracking::Tracking;
use crate::uploader::cargo::{Cargo, ImageNo, Segment, Slot, SlotNo};
use crate::uploader::link::Link;
use crate::uploader::pace::Pace;
use grace::Graces;
use std::collections::{BTreeMap, BTreeSet};
use sweep::Sweep;

/// While a flush is under way no more is sent than this many times what a flush is due after: what is not flushed has
/// to be remembered, and a secondary that never ends its flush would have the memory grow for ever.
const AHEAD_OF_FLUSH: u64 = 4;

/// Bounds of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most requests under way, and the same while the host writes.
    pub window: usize,
    pub window_yielding: usize,
    /// Most tracks in one request.
    pub run_tracks: u64,
    /// A flush is due after this many bytes or milliseconds.
    pub flush_bytes: u64,
    pub flush_ms: u64,
    /// Most tracks that are remembered one by one because they could not be read. Beyond it the drain takes nothing
    /// new until some of them were: then it is the primary that fails, not a track.
    pub unreadable_max: usize,
}

/// What may be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A colliding write waits until its track is at the secondary (seed 004 FIG 6).
    pub send_first: bool,
    /// How long it may, in milliseconds, before the increment is given up.
    pub collision_wait_ms: u64,
    /// Bytes per second, 0 for no limit.
    pub bandwidth: u64,
}

/// A request to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read the tracks from the primary into the slot; answer with [`Drain::read_done`].
    Read(SlotNo, TrackRange),
    /// Write a part of the slot to the secondary; [`Drain::write_done`].
    Write(SlotNo, Segment),
    /// Write a before-image; [`Drain::image_done`].
    WriteImage(ImageNo, TrackNo),
    /// Flush the secondary; [`Drain::flush_done`].
    Flush,
    /// Flush the primary; [`Drain::primary_flushed`].
    FlushPrimary,
}

/// What the increment machine has to be told, with the cut that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    CutReached(u64),
    Drained(u64),
    Abort(u64, AbortReason),
    Folded(u64),
}

/// Totals of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub bytes: u64,
    pub tracks: u64,
    pub zero_tracks: u64,
    pub flushes: u64,
    pub secondary_errors: u64,
    pub primary_errors: u64,
    pub checksum_errors: u64,
}

/// Where the drain is in the volume's increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    number: u64,
    /// A time before the cut: when the drain last looked and saw none.
    before_ms: u64,
    reached: bool,
    drained: bool,
    /// The increment is void; `Abort` was reported.
    doomed: bool,
}

/// The drain of one volume.
#[derive(Debug)]
pub struct Drain {
    limits: Limits,
    policy: Policy,
    paused: bool,
    stopping: bool,
    cargo: Cargo,
    link: Link,
    pace: Pace,
    cut: Option<Cut>,
    /// When it last looked.
    polled_ms: u64,
    cursor: TrackNo,
    sweep: Sweep,
    /// Acknowledged by the secondary, not flushed; and the part that the flush under way covers.
    unflushed: Vec<TrackRange>,
    flushing: Option<Vec<TrackRange>>,
    unflushed_bytes: u64,
    unflushed_since_ms: u64,
    /// Tracks of a run that could not be read: to be read one by one.
    single: BTreeSet<TrackNo>,
    /// Tracks that cannot be read, and when to try again.
    unreadable: BTreeMap<TrackNo, u64>,
    /// Tracks that host writes wait for, and since when.
    urgent: BTreeMap<TrackNo, u64>,
    freed: Vec<ImageNo>,
    /// Claims were let go since somebody last asked.
    released: bool,
    reports: Vec<Report>,
    graces: Graces,
    totals: Totals,
}

impl Drain {
    pub fn new(limits: Limits, policy: Policy, seed: u64) -> Self {
        Self {
            limits,
            policy,
            paused: false,
            stopping: false,
            cargo: Cargo::new(limits.window),
            link: Link::new(seed),
            pace: Pace::new(policy.bandwidth),
            cut: None,
            polled_ms: 0,
            cursor: TrackNo(0),
            sweep: Sweep::default(),
            unflushed: Vec::new(),
            flushing: None,
            unflushed_bytes: 0,
            unflushed_since_ms: 0,
            single: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            urgent: BTreeMap::new(),
            freed: Vec::new(),
            released: false,
            reports: Vec::new(),
            graces: Graces::default(),
            totals: Totals::default(),
        }
    }

    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Begin nothing new but a last flush.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing is left to wait for once stopped: what is on its way has arrived and was flushed, or was given
    /// up.
    pub fn is_settled(&self) -> bool {
        self.unflushed.is_empty() && self.flushing.is_none()
    }

    /// The end: whatever is not known to be durable at the secondary is put back out of sync.
    pub fn give_up(&mut self, tracking: &Tracking) {
        for tracks in self.cargo.all_tracks() {
            tracking.mark_out_of_sync(tracks);
        }
        for tracks in self.flushing.take().into_iter().flatten().chain(std::mem::take(&mut self.unflushed)) {
            tracking.mark_out_of_sync(tracks);
        }
    }

    pub fn set_policy(&mut self, policy: Policy) {
        if policy.bandwidth != self.pace.limit() {
            self.pace.set_limit(policy.bandwidth);
        }
        self.policy = policy;
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether the last request to the secondary succeeded.
    pub fn link_is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Before the last look: lets the next write wake the drain, if a mark would give it something to do. Where it
    /// would not, because the drain is paused, backs off or has spent its bandwidth, a message or a timer wakes it,
    /// and waking it for every write would only cost.
    pub fn doze(&self, now_ms: u64, tracking: &Tracking) {
        let waits = self.link.retry_at_ms(now_ms).is_some() || self.pace.opens_at_ms(now_ms).is_some();
        if !self.paused && !self.stopping && !waits {
            tracking.doze();
        }
    }

    /// Whether an answer is still to come that will make it look again.
    pub fn expects_answer(&self) -> bool {
        self.cargo.under_way() > 0 || self.flushing.is_some()
    }

    /// Tracks on their way to the secondary.
    pub fn tracks_in_transit(&self) -> u64 {
        self.cargo.tracks()
    }

    pub fn tracks_unreadable(&self) -> u64 {
        self.unreadable.len() as u64
    }

    /// The secondary holds everything that was acknowledged before this time.
    pub fn synced_ms(&self) -> u64 {
        self.sweep.synced_ms
    }

    /// What the increment machine has to be told.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Before-images whose memory is free again.
    pub fn take_freed(&mut self) -> Vec<ImageNo> {
        std::mem::take(&mut self.freed)
    }

    /// Whether claims were let go since the last call: those who found one taken have to be told.
    pub fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    // What collisions bring.

    /// A write that collided with `cut` has read the old content of its track.
    pub fn add_image(&mut self, tracking: &Tracking, image: ImageNo, track: TrackNo, cut: u64) {
        if self.cut.is_some_and(|known| known.number == cut) {
            tracking.in_hand(true);
            self.cargo.add_image(image, track);
        } else {
            // It came late: that increment is over, its write has marked the track, and a newer content may have been
            // sent since. This one must not follow it.
            self.freed.push(image);
        }
        tracking.owner_handed_over();
    }

    /// A colliding write could not read the old content; the track is marked again.
    pub fn image_lost(&mut self, tracking: &Tracking, cut: u64) {
        self.totals.primary_errors += 1;
        tracking.owner_handed_over();
        // Of an increment that is over, it says nothing of the next.
        if self.cut.is_some_and(|known| known.number == cut) {
            self.doom(AbortReason::ImageLost);
        }
    }

    /// A write that collided with `cut` waits until the track has been sent, since the time given. Told late, when that
    /// increment is over, it is nothing to the next: the write waits no longer.
    pub fn want(&mut self, track: TrackNo, since_ms: u64, cut: u64) {
        if self.cut.is_some_and(|known| known.number == cut) || present(Bug::LateWantCounts) {
            let since = self.urgent.entry(track).or_insert(since_ms);
            *since = since_ms.min(*since);
        }
    }

    /// A write that collided with `cut` has marked its track again, and waits.
    pub fn given_back(&mut self, tracking: &Tracking, track: TrackNo, since_ms: u64, cut: u64) {
        tracking.owner_handed_over();
        self.want(track, since_ms, cut);
    }

    // What to do next.

    /// The next request, or nothing until an answer comes or [`Self::wake_at`]. To be asked until it says nothing.
    pub fn poll(&mut self, now_ms: u64, tracking: &Tracking) -> Option<Op> {
        self.observe(now_ms, tracking);
        if let Some(op) = self.primary_flush_due() {
            return Some(op);
        }
        if self.paused || self.stopping {
            return self.flush_due(now_ms, tracking).then(|| self.begin_flush());
        }
        let busy = tracking.in_flight() > 0;
        let window = if busy { self.limits.window_yielding } else { self.limits.window };
        let room = self.cargo.under_way() < self.link.allows(now_ms, window) && !self.is_ahead_of_flush();
        if room && let Some((slot, segment)) = self.cargo.begin_segment() {
            return Some(Op::Write(slot, segment));
        }
        if room && let Some((image, track)) = self.cargo.begin_image() {
            self.pace.spend(tracking.geometry().track_size());
            if present(Bug::ImageFreedEarly) {
                self.freed.push(image);
            }
            return Some(Op::WriteImage(image, track));
        }
        if room
            && (!self.urgent.is_empty() || self.pace.open(now_ms))
            && let Some((slot, tracks)) = self.next_read(now_ms, tracking)
        {
            self.pace.spend(tracking.geometry().bytes_of(tracks.count));
            return Some(Op::Read(slot, tracks));
        }
        self.flush_due(now_ms, tracking).then(|| self.begin_flush())
    }

    /// When to ask again although no answer came.
    pub fn wake_at(&self, now_ms: u64, tracking: &Tracking) -> Option<u64> {
        let flush = (!self.unflushed.is_empty() && self.flushing.is_none())
            .then(|| (self.unflushed_since_ms + self.limits.flush_ms).max(now_ms + 1));
        // A write that retries its admission may hide from a look at the counts for an instant, and tells nobody.
        let unsettled = self.cut.is_some_and(|cut| !cut.reached) || tracking.unfolded().is_some();
        let settling = unsettled.then_some(now_ms + 1);
        let unreadable = self.unreadable.values().filter(|retry_at| **retry_at > now_ms).min().copied();
        let urgent = self.urgent.values().min().map(|since| since + self.policy.collision_wait_ms);
        let pace = if self.paused || self.stopping { None } else { self.pace.opens_at_ms(now_ms) };
        [settling, flush, unreadable, urgent, pace, self.link.retry_at_ms(now_ms)].into_iter().flatten().min()
    }

    /// Follows the cut and its end, and reports what has come about since the last look.
    fn observe(&mut self, now_ms: u64, tracking: &Tracking) {
        let cut = tracking.cut();
        if self.cut.map(|known| known.number) != cut {
            if self.cut.take().is_some() {
                self.retired(tracking);
            }
            let before_ms = self.polled_ms;
            self.cut = cut.map(|number| Cut { number, before_ms, reached: false, drained: false, doomed: false });
        }
        self.polled_ms = now_ms;
        if let Some(aborted) = tracking.unfolded()
            && tracking.fold()
        {
            self.sweep.void();
            self.reports.push(Report::Folded(aborted));
        }
        self.expire_urgent(now_ms, tracking);
        if let Some(known) = &mut self.cut
            && !known.reached
            && tracking.quiesced()
        {
            known.reached = true;
            self.reports.push(Report::CutReached(known.number));
        }
        self.settle_drained(tracking);
        self.settle_lag(now_ms, tracking);
        self.settle_graces();
    }

    /// The increment is over: what was kept only for it is put back out of sync.
    fn retired(&mut self, tracking: &Tracking) {
        self.urgent.clear();
        // What was recorded apart is out of sync from now on, behind the cursor too.
        self.sweep.void();
        // A waiting image's track was marked by the write that collided, so its content need not be sent any more.
        self.freed.extend(self.cargo.give_up_images());
        for index in 0..self.cargo.slots.len() {
            self.give_up_idle_slot(SlotNo(index), tracking);
        }
    }

    /// Without an increment a run that waits to be sent again is marked again instead: its tracks may be newer by now.
    fn give_up_idle_slot(&mut self, slot: SlotNo, tracking: &Tracking) {
        let Slot::Sending { tracks, waiting, sending: 0, claimed } = &self.cargo.slots[slot.0] else { return };
        if self.link.is_up() && !waiting.is_empty() {
            return;
        }
        let (tracks, claimed) = (*tracks, *claimed);
        self.sweep.void();
        tracking.mark_out_of_sync(tracks);
        if claimed {
            self.release(tracks, tracking);
        }
        self.cargo.end(slot);
    }

    /// Whether the volume's increment still counts on what this drain holds.
    fn cut_counts(&self) -> bool {
        self.cut.is_some_and(|cut| !cut.doomed)
    }

    /// The increment can no longer become a consistency point.
    fn doom(&mut self, reason: AbortReason) {
        if let Some(cut) = &mut self.cut
            && !cut.doomed
        {
            cut.doomed = true;
            self.reports.push(Report::Abort(cut.number, reason));
        }
    }

    fn expire_urgent(&mut self, now_ms: u64, tracking: &Tracking) {
        let waits = |track| tracking.out_of_sync().is_set(track) || tracking.claims().is_claimed(track);
        self.urgent.retain(|track, _| waits(*track));
        if self.urgent.values().min().is_some_and(|since| now_ms >= since + self.policy.collision_wait_ms) {
            self.urgent.clear();
            self.doom(AbortReason::CollisionWait);
        }
    }

    fn all_flushed(&self) -> bool {
        self.cargo.is_empty() && self.unflushed.is_empty() && self.flushing.is_none()
    }

    fn settle_drained(&mut self, tracking: &Tracking) {
        let clean = tracking.out_of_sync().count() == 0 && tracking.owned() == 0;
        let done = clean && (self.all_flushed() || present(Bug::DrainedInTransit));
        if let Some(cut) = &mut self.cut
            && cut.reached
            && !cut.drained
            && !cut.doomed
            && clean
        {
            if self.cargo.slots.iter().all(|slot| matches!(slot, Slot::Free | Slot::Sending { claimed: false, .. })) {
                tracking.secure(cut.number);
            }
            if done {
                cut.drained = true;
                self.sweep.synced_ms = self.sweep.synced_ms.max(cut.before_ms);
                self.reports.push(Report::Drained(cut.number));
            }
        }
    }

    fn settle_lag(&mut self, now_ms: u64, tracking: &Tracking) {
        if let Some((began, serial)) = self.sweep.finished
            && self.cargo.serials().1 >= serial
        {
            self.sweep.acknowledged_ms = self.sweep.acknowledged_ms.max(began);
            self.sweep.finished = None;
        }
        if self.all_flushed() {
            tracking.in_hand(false);
            if self.cut.is_none() && tracking.in_sync() {
                self.sweep.synced_ms = now_ms;
            }
        }
    }

    /// The content is safe in memory or at the secondary: others may write the tracks.
    fn release(&mut self, tracks: TrackRange, tracking: &Tracking) {
        tracking.image_read(tracks);
        self.released = true;
    }
}
