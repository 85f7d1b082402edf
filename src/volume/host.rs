//! A host request's life, one queue's worth of it (ARCHITECTURE.md: a write's life).
//!
//! 1. Arrive: pin the regions touched; unless media shows all of them hot, be parked until it does, or fail (H1, H9).
//! 2. Be let in to an epoch, or be parked while the volume holds. Only now: a write that waits for slow metadata must
//!    not count as in flight, or it would hold up a cut.
//! 3. Mark every track touched. After a cut, settle the collisions: tracks that the cut still needs.
//! 4. Write to the primary.
//! 5. Done, well or badly: mark again, count down, unpin, answer.
//!
//! A state machine per tag without locks, allocation or logging; all I/O goes through [`QueueIo`]. It runs on the
//! queue's own thread only. It must never let a write that collides reach the primary before the old content is safe,
//! and never wait for anything: what cannot go on is parked, and looked at again when the doorbell rings.

use crate::bugs::{Bug, present};
use crate::frontend::{Handler, Op, QueueIo, Request, Tag, Zeroing};
use crate::geometry::{TrackNo, TrackRange};
use crate::intent::{self, RegionRange, Regions};
use crate::tracking::{Admission, Collision, Ticket, Tracking, Waiter};
use crate::uploader::{ImageRead, Message};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A request that the primary turns away for now is repeated this often before it fails.
const AGAIN_MAX: u8 = 16;

/// Totals of one queue; read by others at any time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct HostCounters {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub errors: AtomicU64,
    pub read_bytes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub collisions: AtomicU64,
    pub collisions_kept: AtomicU64,
    pub collisions_sent_first: AtomicU64,
    /// Writes whose first wait was for a track that somebody was reading or sending already.
    pub collisions_waited: AtomicU64,
    /// Longest time a write was parked, in microseconds.
    pub wait_us_max: AtomicU64,
    /// Writes that waited for their intent, and the longest wait of one, in microseconds.
    pub intent_waits: AtomicU64,
    pub intent_wait_us_max: AtomicU64,
}

/// Adds without a locked instruction: each counter has one writer.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Relaxed) + value, Relaxed);
}

/// Raises a maximum, likewise.
fn raise(maximum: &AtomicU64, value: u64) {
    if value > maximum.load(Relaxed) {
        maximum.store(value, Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Waits for its intent.
    Cold,
    /// Waits to be let in.
    Held,
    /// Let in; collisions before `next` are settled, `reading` images are being read. Parked if `parked`.
    Colliding {
        next: TrackNo,
        reading: u16,
        parked: bool,
    },
    /// At the primary; the first `done` bytes are finished.
    Submitted {
        done: u32,
        again: u8,
    },
}

#[derive(Debug)]
struct Slot {
    request: Request,
    tracks: TrackRange,
    /// Pinned; none if it is not a write.
    regions: RegionRange,
    ticket: Option<Ticket>,
    stage: Stage,
    /// When it was parked first, in microseconds; 0 if never.
    parked_us: u64,
    /// It waited for the drain to send a track.
    sent_first: bool,
    /// The cut that it collided with.
    cut: u64,
    /// When it first had to wait for a track, in microseconds; 0 if never. The bound is on all of a write's waits.
    collided_us: u64,
}

/// When the write began to wait for collisions, in milliseconds.
fn waiting_since(collided_us: &mut u64, io: &impl QueueIo) -> u64 {
    if *collided_us == 0 {
        *collided_us = io.now_us().max(1);
    }
    *collided_us / 1000
}

impl Slot {
    const NONE: Request = Request { op: Op::Flush, offset: 0, length: 0 };

    fn new() -> Self {
        let tracks = TrackRange { start: TrackNo(0), count: 0 };
        Self {
            request: Self::NONE,
            tracks,
            regions: RegionRange::NONE,
            ticket: None,
            stage: Stage::Idle,
            parked_us: 0,
            sent_first: false,
            collided_us: 0,
            cut: 0,
        }
    }
}

/// The requests of one queue.
#[derive(Debug)]
pub struct Host {
    queue: usize,
    tracking: Arc<Tracking>,
    regions: Arc<Regions>,
    /// A colliding write waits for the secondary (seed 004 FIG 6).
    send_first: Arc<AtomicBool>,
    counters: Arc<HostCounters>,
    slots: Box<[Slot]>,
    /// Tags that wait for the doorbell, in the order of their arrival; and those that are looked at since it rang. Room
    /// for all of them.
    parked: Vec<Tag>,
    rung: Vec<Tag>,
}

impl Host {
    pub fn new(
        queue: usize,
        depth: u16,
        tracking: Arc<Tracking>,
        regions: Arc<Regions>,
        send_first: Arc<AtomicBool>,
        counters: Arc<HostCounters>,
    ) -> Self {
        let slots = (0..depth).map(|_| Slot::new()).collect();
        let tags = || Vec::with_capacity(usize::from(depth));
        Self { queue, tracking, regions, send_first, counters, slots, parked: tags(), rung: tags() }
    }

    /// Whether a write waits for the doorbell.
    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Step 1, of a write that found a region cold. The keeper answers every letter with a ring, so that it is looked
    /// at again after the last of its regions became hot, or after metadata has failed.
    #[cold]
    fn wait_for_intent(&mut self, tag: Tag, io: &mut impl QueueIo) {
        if self.regions.refuses() {
            return self.end(tag, -libc::EIO, io);
        }
        add(&self.counters.intent_waits, 1);
        let slot = &mut self.slots[usize::from(tag)];
        slot.stage = Stage::Cold;
        let regions = slot.regions;
        self.park(tag, io);
        io.tell_keeper(intent::Message::Want { queue: self.queue, regions });
    }

    /// A parked write that waited for its intent is looked at again.
    fn look_at_intent(&mut self, tag: Tag, io: &mut impl QueueIo) {
        let slot = &self.slots[usize::from(tag)];
        if self.regions.all_hot(slot.regions) {
            let waited = io.now_us().saturating_sub(slot.parked_us);
            raise(&self.counters.intent_wait_us_max, waited);
            self.enter(tag, io);
        } else if self.regions.refuses() {
            self.end(tag, -libc::EIO, io);
        } else {
            self.parked.push(tag);
        }
    }

    /// Steps 2 and 3: be let in, mark, settle collisions.
    fn enter(&mut self, tag: Tag, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        let Admission::Admitted(ticket) = self.tracking.admit(self.queue) else {
            slot.stage = Stage::Held;
            self.park(tag, io);
            return;
        };
        self.tracking.mark(&ticket, slot.tracks);
        let may_collide = self.tracking.may_collide(&ticket);
        slot.ticket = Some(ticket);
        if may_collide {
            slot.stage = Stage::Colliding { next: slot.tracks.start, reading: 0, parked: false };
            self.collide(tag, io);
        } else {
            self.submit(tag, 0, 0, io);
        }
    }

    fn park(&mut self, tag: Tag, io: &impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        if slot.parked_us == 0 {
            slot.parked_us = io.now_us().max(1);
        }
        self.parked.push(tag);
    }

    /// Settles collisions track by track, until one has to be waited for (seed 004 \[0042\] to \[0044\]).
    fn collide(&mut self, tag: Tag, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        let (Stage::Colliding { next, reading, parked }, Some(ticket)) = (&mut slot.stage, &slot.ticket) else {
            return;
        };
        let send_first = self.send_first.load(Relaxed);
        let mut let_go = false;
        while next.0 < slot.tracks.end() && self.tracking.may_collide(ticket) {
            let track = *next;
            match self.tracking.collide(track, Waiter::queue(self.queue)) {
                Collision::None => let_go = true,
                Collision::Owned(cut) => {
                    slot.cut = cut;
                    if !slot.sent_first {
                        add(&self.counters.collisions, 1);
                    }
                    let image = if send_first { None } else { io.take_image() };
                    let Some(image) = image else {
                        // No room to keep the content, or not wanted: the drain sends the track first.
                        self.tracking.disown(track);
                        let_go = true;
                        if !slot.sent_first {
                            slot.sent_first = true;
                            add(&self.counters.collisions_sent_first, 1);
                        }
                        let since_ms = waiting_since(&mut slot.collided_us, io);
                        io.tell_drain(Message::GivenBack { track, since_ms, cut });
                        *parked = true;
                        break;
                    };
                    add(&self.counters.collisions_kept, 1);
                    *reading += 1;
                    let (offset, length) = self.tracking.geometry().bytes(TrackRange::one(track));
                    let length = u32::try_from(length).unwrap_or(u32::MAX);
                    io.read_image(tag, ImageRead { image, offset, length, done: 0, again: 0 });
                }
                Collision::Busy(cut) => {
                    if slot.collided_us == 0 {
                        add(&self.counters.collisions_waited, 1);
                    }
                    // Whoever reads it may be waiting for the secondary in turn: the wait has a bound.
                    let since_ms = waiting_since(&mut slot.collided_us, io);
                    io.tell_drain(Message::Want { track, since_ms, cut });
                    *parked = true;
                    break;
                }
            }
            *next = TrackNo(next.0 + 1);
        }
        let (parked, waiting, track) = (*parked, *reading > 0, *next);
        // Only after a claim was let go: who found one taken and let none go would ring its own doorbell for ever.
        if let_go {
            io.wake(self.tracking.claims().take_waiters());
        }
        if parked {
            self.park(tag, io);
            // A track given back is free for an instant: nobody has noted yet that this queue waits for it.
            if !self.tracking.must_wait(track, Waiter::queue(self.queue)) {
                io.wake(self.tracking.claims().take_waiters());
            }
        } else if !waiting {
            self.submit(tag, 0, 0, io);
        }
    }

    /// Whether the track that a parked write waits for is still to be read. To claim it and give it back each time the
    /// doorbell rings would ring this queue's own doorbell again, for ever.
    fn must_wait(&self, tag: Tag) -> bool {
        let slot = &self.slots[usize::from(tag)];
        let (Stage::Colliding { next, .. }, Some(ticket)) = (slot.stage, &slot.ticket) else { return false };
        self.tracking.may_collide(ticket) && self.tracking.must_wait(next, Waiter::queue(self.queue))
    }

    /// Step 4: to the primary, from `done` bytes on.
    #[inline]
    fn submit(&mut self, tag: Tag, done: u32, again: u8, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        if slot.parked_us != 0 && done == 0 && again == 0 {
            let waited = io.now_us().saturating_sub(slot.parked_us);
            raise(&self.counters.wait_us_max, waited);
        }
        slot.stage = Stage::Submitted { done, again };
        let Request { op, offset, length } = slot.request;
        match op {
            Op::Read => io.read(tag, offset + u64::from(done), length - done, done),
            Op::Write { durable } => io.write(tag, offset + u64::from(done), length - done, done, durable),
            Op::Flush => io.flush(tag),
            Op::Discard | Op::WriteZeroes { keep: false } => io.zero(tag, offset, length, Zeroing::Punch),
            Op::WriteZeroes { keep: true } => io.zero(tag, offset, length, Zeroing::Keep),
        }
    }

    /// Step 5: second mark, count, answer.
    #[inline]
    fn end(&mut self, tag: Tag, answer: i32, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        slot.stage = Stage::Idle;
        let (counters, length) = (&*self.counters, u64::from(slot.request.length));
        match slot.request.op {
            Op::Read => {
                add(&counters.reads, 1);
                add(&counters.read_bytes, length);
            }
            Op::Write { .. } => {
                add(&counters.writes, 1);
                add(&counters.write_bytes, length);
            }
            Op::Flush => add(&counters.flushes, 1),
            Op::Discard | Op::WriteZeroes { .. } => add(&counters.discards, 1),
        }
        if answer < 0 {
            add(&counters.errors, 1);
        }
        if let Some(ticket) = slot.ticket.take()
            && self.tracking.finish(ticket, slot.tracks)
        {
            io.tell_drain(Message::Look);
        }
        self.regions.unpin(std::mem::replace(&mut slot.regions, RegionRange::NONE));
        io.complete(tag, answer);
    }
}

impl Handler for Host {
    /// A request has come.
    #[inline]
    fn arrive(&mut self, tag: Tag, request: Request, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        debug_assert_eq!(slot.stage, Stage::Idle, "tag {tag} is in use");
        slot.request = request;
        slot.parked_us = 0;
        slot.sent_first = false;
        slot.collided_us = 0;
        if request.modifies() {
            slot.tracks = self.tracking.geometry().touched(request.offset, u64::from(request.length));
            slot.regions = self.regions.of(slot.tracks);
            let pinned = self.regions.pin(slot.regions);
            if pinned.tell {
                io.tell_keeper(intent::Message::Look);
            }
            if pinned.hot { self.enter(tag, io) } else { self.wait_for_intent(tag, io) }
        } else {
            self.submit(tag, 0, 0, io);
        }
    }

    /// The primary has answered: a byte count, 0, or a negative errno.
    #[inline]
    fn primary_done(&mut self, tag: Tag, result: i32, io: &mut impl QueueIo) {
        let slot = &mut self.slots[usize::from(tag)];
        let Stage::Submitted { done, again } = slot.stage else { return };
        let moves_data = matches!(slot.request.op, Op::Read | Op::Write { .. });
        if (result == -libc::EAGAIN || result == -libc::EINTR) && again < AGAIN_MAX {
            return self.submit(tag, done, again + 1, io);
        }
        let answer = match u32::try_from(result) {
            // Nothing moved and no error: the end of a primary that shrank under us.
            Ok(0) if moves_data && done < slot.request.length => -libc::EIO,
            Ok(moved) if moves_data && done + moved < slot.request.length => {
                return self.submit(tag, done + moved, 0, io);
            }
            Ok(_) if moves_data => i32::try_from(slot.request.length).unwrap_or(-libc::EIO),
            Ok(_) => 0,
            // The block layer fails EAGAIN with noise; it means no more here than that the primary would not.
            Err(_) if result == -libc::EAGAIN => -libc::EIO,
            Err(_) => result,
        };
        if answer < 0 && matches!(slot.request.op, Op::Flush | Op::Write { durable: true }) {
            self.regions.doubt_primary();
        }
        self.end(tag, answer, io);
    }

    /// The primary has answered the read of a before-image. One that it interrupts or turns away for now goes on, or a
    /// moment's want of the kernel's would cost the whole increment.
    fn image_read(&mut self, tag: Tag, read: ImageRead, result: i32, io: &mut impl QueueIo) {
        let turned_away = result == -libc::EAGAIN || result == -libc::EINTR;
        if turned_away && read.again < AGAIN_MAX && !present(Bug::ImageReadOnce) {
            return io.read_image(tag, ImageRead { again: read.again + 1, ..read });
        }
        let moved = u32::try_from(result).unwrap_or(0);
        let done = read.done + moved;
        if moved > 0 && done < read.length && !present(Bug::ImageReadOnce) {
            return io.read_image(tag, ImageRead { done, again: 0, ..read });
        }
        let tracks = self.tracking.geometry().touched(read.offset, 1);
        // The drain is told before the claim goes, or it could find neither mark nor image.
        let cut = self.slots[usize::from(tag)].cut;
        if done == read.length {
            io.tell_drain(Message::Image { image: read.image, track: tracks.start, cut });
            self.tracking.image_read(tracks);
        } else {
            io.free_image(read.image);
            self.tracking.image_lost(tracks);
            io.tell_drain(Message::ImageLost { cut });
        }
        io.wake(self.tracking.claims().take_waiters());
        let slot = &mut self.slots[usize::from(tag)];
        let Stage::Colliding { reading, parked, .. } = &mut slot.stage else { return };
        *reading -= 1;
        if *reading == 0 && !*parked {
            self.submit(tag, 0, 0, io);
        }
    }

    fn is_serving(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.stage, Stage::Colliding { .. } | Stage::Submitted { .. }))
    }

    /// The doorbell rang: whatever was parked is looked at again.
    fn rung(&mut self, io: &mut impl QueueIo) {
        let mut rung = std::mem::take(&mut self.rung);
        rung.append(&mut self.parked);
        for tag in rung.drain(..) {
            let waits = self.must_wait(tag);
            match &mut self.slots[usize::from(tag)].stage {
                Stage::Cold => self.look_at_intent(tag, io),
                Stage::Held => self.enter(tag, io),
                Stage::Colliding { .. } if waits => self.parked.push(tag),
                Stage::Colliding { parked, .. } => {
                    *parked = false;
                    self.collide(tag, io);
                }
                Stage::Idle | Stage::Submitted { .. } => debug_assert!(false, "tag {tag} is not parked"),
            }
        }
        self.rung = rung;
    }
}
