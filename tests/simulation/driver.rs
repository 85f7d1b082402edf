//! Drives a [`Drain`](farpoint::uploader::Drain) as its thread does, one small step at a time: the answers first and
//! the letters, then as many requests as it has, then the last look before it sleeps. It wakes for a letter, an
//! answer, a claim let go, or the time it named, and for nothing else: a wake-up that the code forgets is a drain that
//! never goes on.

use crate::devices::{Fate, Io, IoKind, index};
use crate::trace::Note;
use crate::world::{Volume, World};
use farpoint::increment::AbortReason;
use farpoint::intent::{self, RegionNo};
use farpoint::uploader::{ImageNo, Message, Op, Report};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Answers,
    Letters,
    Poll,
    Doze,
    Sleep,
}

/// What came of a request.
#[derive(Debug, Clone, Copy)]
struct Answer {
    kind: IoKind,
    ok: bool,
}

/// A drain's thread.
#[derive(Debug)]
pub struct Driver {
    phase: Phase,
    /// Requests that ended and whose answers it has not looked at.
    answers: VecDeque<Answer>,
    /// The time of this round: it looks at the clock once in each.
    now_ms: u64,
    /// In the scheduler's hands, and rung since it last took its letters.
    scheduled: bool,
    ringing: bool,
    /// There were marks when it began this round; it has told the writers that it goes to sleep.
    marked: bool,
    dozed: bool,
    pub wake_us: Option<u64>,
    /// Wake-ups for a time that had passed already, one after the other.
    spins: u32,
    /// Per track, images sent for the present cut; and whether an error has excused more than one.
    images_sent: Vec<u8>,
    excused: bool,
    /// Per image, the cut that it belongs to.
    image_cuts: BTreeMap<ImageNo, u64>,
    cut: Option<u64>,
    /// A content that the cut needs could not be read or kept.
    pub image_lost: bool,
    /// Errors of the secondary that the drain was told of.
    secondary_errors: u64,
    /// The longest wait for a collision, and when the present cut was first seen: no write has waited for it longer.
    pub wait_ms: u64,
    cut_seen_ms: u64,
    /// Its requests whose answers it has not looked at, flushes aside.
    under_way: usize,
}

impl Driver {
    pub fn new(tracks: usize, wait_ms: u64) -> Self {
        Self {
            phase: Phase::Answers,
            answers: VecDeque::new(),
            now_ms: 0,
            scheduled: false,
            ringing: false,
            marked: false,
            dozed: false,
            wake_us: None,
            spins: 0,
            images_sent: vec![0; tracks],
            excused: false,
            image_cuts: BTreeMap::new(),
            cut: None,
            image_lost: false,
            secondary_errors: 0,
            wait_ms,
            cut_seen_ms: 0,
            under_way: 0,
        }
    }

    /// Its bell rang. True: it slept and has to be scheduled.
    pub fn rung(&mut self) -> bool {
        self.ringing = true;
        !std::mem::replace(&mut self.scheduled, true)
    }

    fn follow(&mut self, cut: Option<u64>) {
        if self.cut != cut {
            self.cut_seen_ms = self.now_ms;
            self.cut = cut;
            self.excused = false;
            self.images_sent.fill(0);
        }
    }

    /// Something went wrong in this cut: a track may have to be sent again.
    fn excuse(&mut self, cut: Option<u64>) {
        self.follow(cut);
        self.excused = true;
    }

    /// R40: of one track and cut one image is sent, unless a send failed.
    fn image_sent(&mut self, cut: Option<u64>, track: usize) -> bool {
        self.follow(cut);
        self.images_sent[track] += 1;
        self.images_sent[track] == 1 || self.excused
    }
}

impl World {
    /// A drain's thread runs, a little or until it sleeps. False: it sleeps.
    pub fn run_drain(&mut self, volume: usize) -> bool {
        loop {
            if !self.drain_step(volume) {
                return false;
            }
            if self.options.fine {
                return true;
            }
        }
    }

    fn drain_step(&mut self, index: usize) -> bool {
        let now_ms = self.volumes[index].driver.now_ms;
        let volume = &mut self.volumes[index];
        match volume.driver.phase {
            Phase::Answers => match volume.driver.answers.pop_front() {
                Some(answer) => self.look_at(index, answer),
                None => volume.driver.phase = Phase::Letters,
            },
            Phase::Letters => {
                volume.driver.ringing = !volume.driver.answers.is_empty();
                volume.driver.dozed = false;
                volume.driver.now_ms = self.now_us / 1000;
                self.open_letters(index);
                let volume = &mut self.volumes[index];
                volume.driver.marked = volume.tracking.out_of_sync().count() > 0;
                volume.driver.phase = Phase::Poll;
            }
            Phase::Poll => {
                volume.driver.follow(volume.tracking.cut());
                if let Some(op) = volume.drain.poll(now_ms, &volume.tracking) {
                    self.carry_out(index, op);
                } else {
                    let answer_wakes = volume.driver.marked && volume.drain.expects_answer();
                    let sleep = volume.driver.dozed || answer_wakes;
                    volume.driver.phase = if sleep { Phase::Sleep } else { Phase::Doze };
                }
            }
            Phase::Doze => {
                // No answer will come that makes it look again, so a mark has to: the word, then one more look.
                volume.driver.dozed = true;
                volume.drain.doze(now_ms, &volume.tracking);
                volume.driver.phase = Phase::Poll;
            }
            Phase::Sleep => {
                volume.driver.phase = Phase::Answers;
                if !volume.driver.ringing {
                    volume.driver.scheduled = false;
                    self.sleep(index);
                    return false;
                }
            }
        }
        self.collect_drain(index);
        true
    }

    fn open_letters(&mut self, index: usize) {
        while let Some(message) = self.volumes[index].side.mailbox.pop_front() {
            self.note(Note::Drain(index, message));
            let volume = &mut self.volumes[index];
            match message {
                Message::Image { image, track, cut } => {
                    volume.driver.image_cuts.insert(image, cut);
                    volume.drain.add_image(&volume.tracking, image, track, cut);
                }
                Message::ImageLost { cut } => volume.drain.image_lost(&volume.tracking, cut),
                Message::GivenBack { track, since_ms, cut } => {
                    volume.drain.given_back(&volume.tracking, track, since_ms, cut);
                }
                Message::Want { track, since_ms, cut } => volume.drain.want(track, since_ms, cut),
                Message::Look | Message::Stop => {}
                Message::Grace(id) => volume.drain.grace(id),
                Message::Pause(paused) => volume.drain.pause(paused),
                Message::Policy(policy) => {
                    volume.driver.wait_ms = policy.collision_wait_ms;
                    volume.drain.set_policy(policy);
                }
            }
        }
    }

    /// It sleeps until the time it names. A time that has passed, again and again, is a thread that never sleeps.
    fn sleep(&mut self, index: usize) {
        let now_us = self.now_us;
        let volume = &mut self.volumes[index];
        let now_ms = volume.driver.now_ms;
        let wake_ms = volume.drain.wake_at(now_ms, &volume.tracking);
        let spins = wake_ms.is_some_and(|wake| wake <= now_ms);
        volume.driver.wake_us = wake_ms.map(|wake| (wake * 1000).max(now_us + 1000));
        volume.driver.spins = if spins { volume.driver.spins + 1 } else { 0 };
        if volume.driver.spins > 20 {
            let text = format!("volume {index}: wants to be woken at {wake_ms:?} ms when it is {now_ms} ms, for ever");
            self.breach("spin", text);
        }
    }

    fn carry_out(&mut self, index: usize, op: Op) {
        self.note(Note::Poll(index, op));
        self.volumes[index].driver.under_way += usize::from(!matches!(op, Op::Flush | Op::FlushPrimary));
        if self.volumes[index].driver.under_way > self.options.limits.window {
            self.breach("window", format!("volume {index} has more requests under way than its window allows"));
        }
        match op {
            Op::Read(slot, tracks) => self.read_run(index, slot, tracks),
            Op::Write(slot, segment) => {
                if self.damaged() {
                    let volume = &mut self.volumes[index];
                    let now_ms = volume.driver.now_ms;
                    volume.driver.excuse(volume.tracking.cut());
                    volume.driver.image_lost = true;
                    volume.driver.under_way -= 1;
                    volume.drain.slot_damaged(slot, segment, now_ms, &volume.tracking);
                } else {
                    self.send(index, IoKind::SendRun(slot, segment), segment.tracks);
                }
            }
            Op::WriteImage(image, track) => self.write_image(index, image, track),
            Op::FlushPrimary => {
                let side = &mut self.volumes[index].side;
                side.devices.cache.begin_flush(None, &side.devices.primary);
                side.submit(IoKind::FlushPrimary, 0, 0);
            }
            Op::Flush => {
                self.volumes[index].side.devices.secondary.begin_flush();
                self.volumes[index].side.submit(IoKind::FlushSecondary, 0, 0);
            }
        }
    }

    fn write_image(&mut self, index: usize, image: ImageNo, track: farpoint::geometry::TrackNo) {
        if self.damaged() {
            let volume = &mut self.volumes[index];
            let now_ms = volume.driver.now_ms;
            volume.driver.excuse(volume.tracking.cut());
            volume.driver.image_lost = true;
            volume.driver.under_way -= 1;
            volume.drain.image_damaged(image, now_ms, &volume.tracking);
            return;
        }
        let volume = &mut self.volumes[index];
        let cut = volume.tracking.cut();
        // One of a cut that was aborted may still have to go, before whatever is newer of its track (H14).
        let of_this_cut = volume.driver.image_cuts.get(&image).copied() == cut;
        if of_this_cut && !volume.driver.image_sent(cut, crate::devices::index(track.0)) {
            self.breach("R40", format!("a second image of track {index}:{track} in cut {cut:?}"));
        }
        self.send_image(index, image, track);
    }

    /// A request of the drain's ends; the drain will look at its answer.
    pub fn answer_drain(&mut self, io: &Io) {
        let volume = &mut self.volumes[io.volume];
        let devices = &mut volume.side.devices;
        devices.end_send(io.kind);
        let mut ok = io.fate == Fate::Good;
        match io.kind {
            IoKind::ReadRun(_) => ok &= !devices.cannot_read(io),
            IoKind::FlushPrimary => {
                devices.cache.end_flush(None, ok);
                if !ok {
                    volume.regions.doubt_primary();
                }
            }
            IoKind::FlushSecondary => {
                ok &= !std::mem::take(&mut devices.secondary.lose);
                devices.secondary.end_flush(ok, &mut self.rng);
            }
            _ => {}
        }
        if !ok {
            volume.driver.excuse(volume.tracking.cut());
            self.coverage.secondary_errors += u64::from(io.kind.to_secondary());
        }
        volume.driver.answers.push_back(Answer { kind: io.kind, ok });
        volume.side.ring_drain = true;
        self.collect(io.volume);
    }

    fn look_at(&mut self, index: usize, answer: Answer) {
        let now_ms = self.now_ms();
        let Volume { drain, tracking, side, driver, .. } = &mut self.volumes[index];
        driver.under_way -= usize::from(!matches!(answer.kind, IoKind::FlushSecondary | IoKind::FlushPrimary));
        driver.secondary_errors += u64::from(!answer.ok && answer.kind.to_secondary());
        match answer.kind {
            IoKind::ReadRun(slot) if answer.ok => {
                drain.read_done(slot, tracking, |track| side.devices.slot_is_zero(slot, track));
            }
            IoKind::ReadRun(slot) => drain.read_failed(slot, now_ms, tracking),
            IoKind::SendRun(slot, segment) => drain.write_done(slot, segment, answer.ok, now_ms, tracking),
            IoKind::SendImage(image, _) => drain.image_done(image, answer.ok, now_ms, tracking),
            IoKind::FlushPrimary => drain.primary_flushed(answer.ok),
            IoKind::FlushSecondary => drain.flush_done(answer.ok, now_ms, tracking),
            _ => {}
        }
    }

    /// Picks up what a call of the drain has brought about: reports, memory that is free, claims let go.
    fn collect_drain(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        for report in volume.drain.take_reports() {
            self.report(index, report);
        }
        let volume = &mut self.volumes[index];
        if volume.drain.totals().secondary_errors > volume.driver.secondary_errors {
            self.breach("H35", format!("volume {index} counts errors that the secondary did not give"));
        }
        let volume = &mut self.volumes[index];
        for (id, durable) in volume.drain.take_graced() {
            volume.side.letters.push_back(intent::Message::Graced { id, durable });
            volume.side.ring_keeper = true;
        }
        for image in volume.drain.take_freed() {
            volume.side.devices.free_images.push(image);
        }
        if volume.drain.take_released() {
            let waiters = volume.tracking.claims().take_waiters();
            volume.side.ring(waiters);
        }
        self.collect(index);
    }

    fn report(&mut self, index: usize, report: Report) {
        self.note(Note::Report(index, report));
        let driver = &self.volumes[index].driver;
        match report {
            Report::Abort(_, AbortReason::ImageLost) if !driver.image_lost => {
                self.breach("kept", format!("volume {index} gives up for a content that it could have kept"));
            }
            Report::Abort(cut, AbortReason::CollisionWait)
                if driver.cut == Some(cut) && driver.now_ms < driver.cut_seen_ms + driver.wait_ms =>
            {
                self.breach("kept", format!("volume {index} gives up cut {cut} before a write can have waited for it"));
            }
            _ => {}
        }
        self.tell_controller_report(index, report);
    }

    /// Whether the drain says that the secondary is an exact copy, and nothing is left in its hands.
    pub fn is_settled(&self, volume: usize) -> bool {
        let volume = &self.volumes[volume];
        let images = volume.side.devices.free_images.len();
        volume.tracking.in_sync()
            && volume.drain.tracks_in_transit() == 0
            && volume.tracking.in_flight() == 0
            && images == self.options.images
            && volume.side.mailbox.is_empty()
            && (0..volume.regions.count()).all(|region| volume.regions.pins(RegionNo(region)) == 0)
            && index(volume.drain.tracks_unreadable()) == 0
    }
}
