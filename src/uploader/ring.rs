//! The drain's thread: carries out what `plan` decides, on a ring of its own. It decides nothing itself. It never waits
//! for anything but its ring, so that a secondary that hangs stops nobody's messages.

use super::Mailbox;
use super::cargo::{ImageNo, Segment, SlotNo};
use super::images::Images;
use super::message::Message;
use super::plan::{Drain, Op, Report, Totals};
use super::progress::{Part, Progress};
use super::requests::Requests;
use crate::geometry::{TrackNo, TrackRange};
use crate::memory::{Buffer, Pool};
use crate::secondary::{Secondary, Step};
use crate::storage::{Device, process};
use crate::tracking::{Tracking, Waiter, Waiters};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Fixed files of the ring.
const PRIMARY: types::Fixed = types::Fixed(0);
const SECONDARY: types::Fixed = types::Fixed(1);
/// Longest sleep, in milliseconds: bounds how old the published figures may be.
const SLEEP_MS_MAX: u64 = 1_000;
/// No answer of the secondary for this long, with requests under way, is a stall, in milliseconds.
const STALL_MS: u64 = 5_000;
/// The host counts as writing for this long after it was seen to, in milliseconds.
const QUIET_MS: u64 = 10;

/// What the drain says of itself, for status reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub totals: Totals,
    pub in_transit_tracks: u64,
    pub unreadable_tracks: u64,
    /// The secondary holds everything acknowledged before this time, in milliseconds since the daemon's start.
    pub synced_ms: u64,
    pub link_is_up: bool,
    pub stalled: bool,
    pub paused: bool,
}

/// How long a stop waits for the secondary, in milliseconds. What it has not answered by then is out of sync.
const STOP_MS_MAX: u64 = 5_000;

/// Whatever the drain works with.
pub struct Parts {
    pub tracking: Arc<Tracking>,
    pub primary: Arc<Device>,
    pub secondary_device: Arc<Device>,
    pub secondary: Secondary,
    pub images: Arc<Images>,
    pub mailbox: Arc<Mailbox>,
    pub drain: Drain,
    /// Time 0 of all milliseconds.
    pub began: Instant,
    /// Rings the queues' doorbells.
    pub wake: Box<dyn Fn(Waiters) + Send>,
    /// Takes what the increment machine has to be told.
    pub report: Box<dyn Fn(Report) + Send>,
    /// Takes the answers to graces.
    pub graced: Box<dyn Fn(u64, bool) + Send>,
    /// Told at once when the primary could not be flushed: a stop may be under way that must not be a clean one.
    pub primary_failed: Box<dyn Fn() + Send>,
    pub figures: Arc<Mutex<Figures>>,
    /// Every run gets a checksum, not only those that are kept to be sent again.
    pub checksum_all: bool,
}

/// One request of the ring.
#[derive(Debug, Clone, Copy)]
enum Request {
    Bell,
    /// With what was done of it before.
    Read(SlotNo, TrackRange, Part),
    Write(SlotNo, Segment, Part),
    /// By fallocate in this mode.
    Zero(SlotNo, Segment, i32),
    Image(ImageNo, TrackNo, Part),
    Flush,
    FlushPrimary,
}

impl Request {
    fn is_for_secondary(self) -> bool {
        !matches!(self, Self::Bell | Self::Read(..) | Self::FlushPrimary)
    }
}

/// A run's memory and what was read into it.
///
/// A run is written as soon as it is read, by the same thread, and no one else touches the memory: a checksum over that
/// instant costs more than the copy does and guards next to nothing. One that is kept, because sending failed, has one
/// from then on (H20).
struct Slot {
    buffer: Buffer,
    first: TrackNo,
    /// Of each track, where there is one.
    checksums: Vec<Option<u32>>,
    zero: Vec<bool>,
}

/// The drain of one volume, on its thread.
pub struct Uploader {
    parts: Parts,
    ring: IoUring,
    requests: Requests<Request>,
    slots: Vec<Slot>,
    /// The ring knows the memory of each slot by the slot's number.
    registered: bool,
    messages: Vec<Message>,
    /// Requests to the secondary under way, and since when it owes an answer.
    at_secondary: usize,
    answered_ms: u64,
    paused: bool,
    /// Before this the host counts as writing.
    quiet_from_ms: u64,
    side_by_side: bool,
    /// When the stop has to be over.
    stop_at_ms: Option<u64>,
}

/// Has the ring hold the slots' memory, so that the kernel need not look up and hold its pages for every request anew.
/// Says whether it does; where it cannot, requests take a little longer and that is all.
#[expect(unsafe_code, reason = "registering memory with a ring")]
fn register(ring: &IoUring, slots: &mut [Slot]) -> bool {
    let memory =
        |slot: &mut Slot| libc::iovec { iov_base: slot.buffer.as_mut_ptr().cast(), iov_len: slot.buffer.len() };
    let all: Vec<_> = slots.iter_mut().map(memory).collect();
    // SAFETY: the ring holds the pages by itself; the slots' memory lives as long as the ring, and goes with it.
    let done = unsafe { ring.submitter().register_buffers(&all) };
    done.inspect_err(|error| tracing::debug!("the drain's memory cannot be registered: {error}")).is_ok()
}

fn buffer_index(slot: SlotNo) -> u16 {
    u16::try_from(slot.0).unwrap_or(u16::MAX)
}

impl Uploader {
    /// `window` requests of at most `run_bytes` bytes.
    pub fn new(parts: Parts, window: usize, run_bytes: usize) -> io::Result<Self> {
        let track_size = parts.tracking.geometry().track_size();
        let run_tracks = run_bytes / usize::try_from(track_size).unwrap_or(usize::MAX);
        let pool = Pool::new(window, run_bytes).map_err(io::Error::other)?;
        let slots = (0..window).map_while(|_| pool.take()).map(|buffer| Slot {
            buffer,
            first: TrackNo(0),
            checksums: Vec::with_capacity(run_tracks),
            zero: Vec::with_capacity(run_tracks),
        });
        let mut slots: Vec<Slot> = slots.collect();
        // What the window allows, the bell, a flush of either side.
        let requests = Requests::new(window + 3);
        let entries = u32::try_from(2 * window.next_power_of_two() + 8).unwrap_or(1024);
        let ring = IoUring::builder().build(entries)?;
        ring.submitter().register_files(&[parts.primary.raw_fd(), parts.secondary_device.raw_fd()])?;
        let registered = register(&ring, &mut slots);
        Ok(Self {
            parts,
            ring,
            requests,
            slots,
            registered,
            messages: Vec::new(),
            at_secondary: 0,
            answered_ms: 0,
            paused: false,
            quiet_from_ms: 0,
            side_by_side: true,
            stop_at_ms: None,
        })
    }

    /// Runs until it is told to stop and nothing is under way.
    pub fn run(mut self) -> io::Result<()> {
        let result = self.serve();
        if self.requests.under_way() > 1 {
            // The secondary hangs, or the ring has failed: requests still refer to our memory, and to open files whose
            // locks keep a successor away for as long (H23). They are let go when the last has been answered.
            // Should there be no thread for it, they stay for good.
            let kept = ManuallyDrop::new(self);
            let lingering = thread::Builder::new().name("drain-lingering".to_owned());
            if lingering.spawn(move || ManuallyDrop::into_inner(kept).linger()).is_err() {
                tracing::warn!("requests to a secondary that hangs keep its lock until the daemon ends");
            }
        }
        result
    }

    /// Waits for the last answers; nothing is done with them.
    fn linger(mut self) {
        while self.requests.under_way() > 1 {
            if self.ring.submit_and_wait(1).is_err_and(|error| !is_passing(&error)) {
                break;
            }
            while let Some(completion) = self.ring.completion().next() {
                self.requests.take(completion.user_data());
            }
        }
        if self.requests.under_way() > 1 {
            std::mem::forget(self);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        process::become_io_flusher().unwrap_or_else(|error| {
            tracing::warn!("the drain's thread may have to wait for memory: {error}");
        });
        self.arm_bell()?;
        loop {
            let now = self.now_ms();
            self.look_at_host(now);
            self.read_messages(now);
            let marked = self.parts.tracking.out_of_sync().count() > 0;
            self.work(now)?;
            if !(marked && self.parts.drain.expects_answer()) {
                // No answer will come that makes it look again, so a mark has to: the word, then one more look.
                self.parts.drain.doze(now, &self.parts.tracking);
                self.work(now)?;
            }
            let quiet = self.requests.under_way() <= 1;
            if self.stop_at_ms.is_some_and(|end| now >= end || quiet && self.parts.drain.is_settled()) {
                self.parts.drain.give_up(&self.parts.tracking);
                self.publish(now);
                return Ok(());
            }
            self.sleep(now)?;
            self.reap()?;
        }
    }

    /// Carries out whatever is to be done now, and passes on what came of it.
    fn work(&mut self, now: u64) -> io::Result<()> {
        while let Some(op) = self.parts.drain.poll(now, &self.parts.tracking) {
            self.carry_out(op, now)?;
        }
        self.pass_on();
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.parts.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn read_messages(&mut self, now: u64) {
        let (drain, tracking) = (&mut self.parts.drain, &*self.parts.tracking);
        self.parts.mailbox.take(&mut self.messages);
        for message in self.messages.drain(..) {
            match message {
                Message::Image { image, track, cut } => drain.add_image(tracking, image, track, cut),
                Message::ImageLost { cut } => drain.image_lost(tracking, cut),
                Message::GivenBack { track, since_ms, cut } => drain.given_back(tracking, track, since_ms, cut),
                Message::Want { track, since_ms, cut } => drain.want(track, since_ms, cut),
                Message::Look => {}
                Message::Grace(id) => drain.grace(id),
                Message::Pause(paused) => {
                    self.paused = paused;
                    drain.pause(paused);
                }
                Message::Policy(policy) => drain.set_policy(policy),
                Message::Stop => {
                    self.stop_at_ms.get_or_insert(now + STOP_MS_MAX);
                    drain.stop();
                }
            }
        }
    }

    /// Tells everyone what the last round has brought about.
    fn pass_on(&mut self) {
        for image in self.parts.drain.take_freed() {
            self.parts.images.free(image);
        }
        for report in self.parts.drain.take_reports() {
            (self.parts.report)(report);
        }
        for (id, durable) in self.parts.drain.take_graced() {
            (self.parts.graced)(id, durable);
        }
        // Only if a claim was let go: taking the word otherwise would ring for a claim that is still held, this drain's
        // own bell among them, over and over.
        if self.parts.drain.take_released() {
            let waiters = self.parts.tracking.claims().take_waiters();
            (self.parts.wake)(waiters);
            if waiters.contains(Waiter::DRAIN) {
                self.parts.mailbox.tell(Message::Look);
            }
        }
    }

    fn publish(&self, now: u64) {
        let drain = &self.parts.drain;
        let figures = Figures {
            totals: drain.totals(),
            in_transit_tracks: drain.tracks_in_transit(),
            unreadable_tracks: drain.tracks_unreadable(),
            synced_ms: drain.synced_ms(),
            link_is_up: drain.link_is_up(),
            stalled: self.at_secondary > 0 && now > self.answered_ms + STALL_MS,
            paused: self.paused,
        };
        *self.parts.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    fn sleep(&mut self, now: u64) -> io::Result<()> {
        self.publish(now);
        let until = self.parts.drain.wake_at(now, &self.parts.tracking).unwrap_or(u64::MAX);
        let until = until.min(self.stop_at_ms.unwrap_or(u64::MAX));
        let sleep_ms = until.saturating_sub(now).min(SLEEP_MS_MAX);
        let timeout =
            types::Timespec::new().sec(sleep_ms / 1000).nsec(u32::try_from(sleep_ms % 1000).unwrap_or(0) * 1_000_000);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) || is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn arm_bell(&mut self) -> io::Result<()> {
        let fd = types::Fd(self.parts.mailbox.bell().raw_fd());
        let entry = opcode::PollAdd::new(fd, u32::try_from(libc::POLLIN).unwrap_or(1)).build();
        self.push(entry, Request::Bell)
    }

    #[expect(unsafe_code, reason = "pushing a ring entry")]
    fn push(&mut self, entry: squeue::Entry, request: Request) -> io::Result<()> {
        if request.is_for_secondary() {
            if self.at_secondary == 0 {
                self.answered_ms = self.now_ms();
            }
            self.at_secondary += 1;
        }
        let number = self.requests.put(request);
        let entry = entry.user_data(number);
        loop {
            // SAFETY: every entry refers to memory that outlives it: a slot's or an image's buffer, neither of which is
            // given to anyone else before the plan has seen the completion. The thread ends only when all requests but
            // the bell's, which refers to none, are finished.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            // Not reached: the ring has room for whatever the window allows.
            if let Err(error) = self.ring.submit()
                && !is_passing(&error)
            {
                return Err(error);
            }
        }
    }

    fn carry_out(&mut self, op: Op, now: u64) -> io::Result<()> {
        match op {
            Op::Read(slot, tracks) => {
                self.slots[slot.0].first = tracks.start;
                self.read(slot, tracks, Part::default())
            }
            Op::Write(slot, segment) => self.send(slot, segment, now),
            Op::WriteImage(image, track) if self.parts.images.intact(image) => {
                self.write_image(image, track, Part::default())
            }
            Op::WriteImage(image, _) => {
                self.parts.drain.image_damaged(image, now, &self.parts.tracking);
                Ok(())
            }
            Op::Flush => {
                let entry = opcode::Fsync::new(SECONDARY).flags(types::FsyncFlags::DATASYNC).build();
                self.push(entry, Request::Flush)
            }
            Op::FlushPrimary => {
                let entry = opcode::Fsync::new(PRIMARY).flags(types::FsyncFlags::DATASYNC).build();
                self.push(entry, Request::FlushPrimary)
            }
        }
    }

    fn read(&mut self, slot: SlotNo, tracks: TrackRange, part: Part) -> io::Result<()> {
        let (offset, length) = self.parts.tracking.geometry().bytes(tracks);
        let memory = self.slots[slot.0].buffer.as_mut_ptr().wrapping_add(widen(part.done));
        let (offset, length) = (offset + u64::from(part.done), narrow(length) - part.done);
        let entry = if self.registered {
            opcode::ReadFixed::new(PRIMARY, memory, length, buffer_index(slot)).offset(offset).build()
        } else {
            opcode::Read::new(PRIMARY, memory, length).offset(offset).build()
        };
        self.push(self.side_by_side(entry), Request::Read(slot, tracks, part))
    }

    /// While the host does not write the kernel's own threads carry requests out beside each other. Those that it can
    /// carry out within the call, to memory or a page cache, would otherwise be so one after the other, by this thread;
    /// and beside writes of the host those threads would take the processor from them.
    fn side_by_side(&self, entry: squeue::Entry) -> squeue::Entry {
        if self.side_by_side { entry.flags(squeue::Flags::ASYNC) } else { entry }
    }

    /// Between two looks all of the host's writes may wait for their intent, and none be under way.
    fn look_at_host(&mut self, now: u64) {
        if self.parts.tracking.in_flight() > 0 {
            self.quiet_from_ms = now + QUIET_MS;
        }
        self.side_by_side = now >= self.quiet_from_ms;
    }

    /// Where a segment lies in its slot's memory, and its length.
    fn place(&self, slot: SlotNo, tracks: TrackRange) -> (usize, u32) {
        let geometry = self.parts.tracking.geometry();
        let (_, length) = geometry.bytes(tracks);
        let before = tracks.start.0 - self.slots[slot.0].first.0;
        (widen(narrow(before * geometry.track_size())), narrow(length))
    }

    fn send(&mut self, slot: SlotNo, segment: Segment, now: u64) -> io::Result<()> {
        if !segment.zero && !self.intact(slot, segment.tracks) {
            self.parts.drain.slot_damaged(slot, segment, now, &self.parts.tracking);
            return Ok(());
        }
        let (offset, length) = self.parts.tracking.geometry().bytes(segment.tracks);
        match segment.zero.then(|| self.parts.secondary.zero(offset, length)).flatten() {
            Some(Step::Fallocate { mode, offset, len }) => {
                let entry = opcode::Fallocate::new(SECONDARY, len).offset(offset).mode(mode).build();
                self.push(entry, Request::Zero(slot, segment, mode))
            }
            // Where zeroes cannot be asked for they are written: the slot's memory holds them.
            _ => self.write(slot, segment, Part::default()),
        }
    }

    fn write(&mut self, slot: SlotNo, segment: Segment, part: Part) -> io::Result<()> {
        let (offset, _) = self.parts.tracking.geometry().bytes(segment.tracks);
        let (place, length) = self.place(slot, segment.tracks);
        let memory = self.slots[slot.0].buffer.as_mut_ptr().wrapping_add(place + widen(part.done));
        let (offset, length) = (offset + u64::from(part.done), length - part.done);
        let entry = if self.registered {
            opcode::WriteFixed::new(SECONDARY, memory, length, buffer_index(slot)).offset(offset).build()
        } else {
            opcode::Write::new(SECONDARY, memory, length).offset(offset).build()
        };
        self.push(self.side_by_side(entry), Request::Write(slot, segment, part))
    }

    fn write_image(&mut self, image: ImageNo, track: TrackNo, part: Part) -> io::Result<()> {
        let (offset, length) = self.parts.tracking.geometry().bytes(TrackRange::one(track));
        let memory = self.parts.images.pointer(image).wrapping_add(widen(part.done));
        let entry = opcode::Write::new(SECONDARY, memory, narrow(length) - part.done)
            .offset(offset + u64::from(part.done))
            .build();
        self.push(entry, Request::Image(image, track, part))
    }

    fn reap(&mut self) -> io::Result<()> {
        let now = self.now_ms();
        loop {
            let Some(completion) = self.ring.completion().next() else { return Ok(()) };
            let Some(request) = self.requests.take(completion.user_data()) else { continue };
            if request.is_for_secondary() {
                self.at_secondary -= 1;
                self.answered_ms = now;
            }
            self.finished(request, completion.result(), now)?;
        }
    }

    fn finished(&mut self, request: Request, result: i32, now: u64) -> io::Result<()> {
        let geometry = *self.parts.tracking.geometry();
        match request {
            Request::Bell => {
                self.parts.mailbox.bell().answer();
                return self.arm_bell();
            }
            Request::Read(slot, tracks, part) => match part.after(result, geometry.bytes(tracks).1) {
                Progress::Rest(part) => return self.read(slot, tracks, part),
                Progress::Whole => self.was_read(slot, tracks),
                Progress::Failed => self.parts.drain.read_failed(slot, now, &self.parts.tracking),
            },
            Request::Write(slot, segment, part) => match part.after(result, geometry.bytes(segment.tracks).1) {
                Progress::Rest(part) => return self.write(slot, segment, part),
                whole => self.written(slot, segment, whole == Progress::Whole, result, now),
            },
            Request::Zero(slot, segment, mode) => {
                if result < 0 && self.parts.secondary.zeroing_failed(mode, -result) {
                    return self.write(slot, segment, Part::default());
                }
                self.written(slot, segment, result >= 0, result, now);
            }
            Request::Image(image, track, part) => match part.after(result, geometry.bytes(TrackRange::one(track)).1) {
                Progress::Rest(part) => return self.write_image(image, track, part),
                whole => self.parts.drain.image_done(image, whole == Progress::Whole, now, &self.parts.tracking),
            },
            Request::FlushPrimary => {
                if result < 0 {
                    (self.parts.primary_failed)();
                }
                self.parts.drain.primary_flushed(result >= 0);
            }
            Request::Flush => self.parts.drain.flush_done(result >= 0, now, &self.parts.tracking),
        }
        Ok(())
    }

    fn written(&mut self, slot: SlotNo, segment: Segment, ok: bool, result: i32, now: u64) {
        if !ok && self.parts.drain.link_is_up() {
            let error = io::Error::from_raw_os_error(-result);
            tracing::warn!(
                "secondary {}: write failed: {error}; retrying",
                self.parts.secondary_device.path().display()
            );
        }
        if !ok {
            self.keep(slot, segment.tracks);
        }
        self.parts.drain.write_done(slot, segment, ok, now, &self.parts.tracking);
    }

    fn was_read(&mut self, slot: SlotNo, tracks: TrackRange) {
        let geometry = *self.parts.tracking.geometry();
        let track_size = widen(narrow(geometry.track_size()));
        let (_, length) = geometry.bytes(tracks);
        let Slot { buffer, first, checksums, zero } = &mut self.slots[slot.0];
        checksums.clear();
        zero.clear();
        for track in buffer[..widen(narrow(length))].chunks(track_size) {
            // What is zero is sent as such, and needs none.
            let empty = is_zero(track);
            zero.push(empty);
            checksums.push((self.parts.checksum_all && !empty).then(|| crc32c::crc32c(track)));
        }
        let (first, zero) = (*first, &*zero);
        self.parts.drain.read_done(slot, &self.parts.tracking, |track| zero[widen(narrow(track.0 - first.0))]);
    }

    /// The tracks stay in memory until the secondary takes them: remembers what they are.
    fn keep(&mut self, slot: SlotNo, tracks: TrackRange) {
        let track_size = widen(narrow(self.parts.tracking.geometry().track_size()));
        let (place, length) = self.place(slot, tracks);
        let Slot { buffer, checksums, .. } = &mut self.slots[slot.0];
        let memory = buffer[place..place + widen(length)].chunks(track_size);
        for (track, checksum) in memory.zip(&mut checksums[place / track_size..]) {
            checksum.get_or_insert_with(|| crc32c::crc32c(track));
        }
    }

    /// Whether the segment's memory still is what was read (H20).
    fn intact(&self, slot: SlotNo, tracks: TrackRange) -> bool {
        let track_size = widen(narrow(self.parts.tracking.geometry().track_size()));
        let (place, length) = self.place(slot, tracks);
        let Slot { buffer, checksums, .. } = &self.slots[slot.0];
        let mut memory = buffer[place..place + widen(length)].chunks(track_size).zip(&checksums[place / track_size..]);
        memory.all(|(track, checksum)| checksum.is_none_or(|checksum| crc32c::crc32c(track) == checksum))
    }
}

/// The ring was not entered, for want of memory or because of a signal: entering it again will do.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// Bytes of a run: at most a few MiB, so every width holds them.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn widen(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn is_zero(track: &[u8]) -> bool {
    // By words, and from the front: data rarely begins with zeroes.
    track.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("drain", &self.drain).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Uploader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploader").field("drain", &self.parts.drain).finish_non_exhaustive()
    }
}
