//! The scheduler and all that it moves: one thread, one source of chance, simulated time. Whatever the code under test
//! asks for becomes an event that may happen at any later step, in any order; nothing runs that was not told to.

use crate::checker::{Checker, Violation};
use crate::controller::Controller;
use crate::crash::Start;
use crate::devices::{Fate, Io, IoKind, Mode};
use crate::options::Options;
use crate::rng::Rng;
use crate::side::{Gate, What};
use crate::trace::{Note, Trace};
pub use crate::volume::Volume;
use crate::volume::first_start;
use crate::workload::Writer;
use farpoint::frontend::Handler;
use farpoint::geometry::{TrackNo, TrackRange};
use farpoint::tracking::Epoch;
use farpoint::uploader::{ImageNo, SlotNo};
use farpoint::volume::Host;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Something that can happen at the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A request moves on, or is answered.
    Io(Io),
    /// A queue's doorbell is heard.
    Ring { volume: usize, queue: usize },
    /// A drain's thread runs.
    Drain(usize),
    /// The thread of an intent's keeper runs.
    Keeper(usize),
    /// A queue looks after the keeper itself.
    Attend(usize),
    /// The controller's thread runs.
    Controller,
    /// A writer issues its next request.
    Writer(usize),
}

/// Something that happens at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Run(u64),
    Increment(u64),
    Complete(u64),
    Think(usize),
}

/// What a run was made of, to show that it was worth something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Coverage {
    pub steps: u64,
    pub writes: u64,
    pub reads: u64,
    pub points: u64,
    pub completed: u64,
    pub aborted: u64,
    pub images: u64,
    pub secondary_errors: u64,
    pub settled: u64,
    pub keeper_steps: u64,
    pub page_writes: u64,
    pub records: u64,
    pub crashes: u64,
    /// Records that starts have found missing before the newest.
    pub gaps: u64,
    pub cooled: u64,
}

impl Coverage {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.writes += other.writes;
        self.reads += other.reads;
        self.points += other.points;
        self.completed += other.completed;
        self.aborted += other.aborted;
        self.images += other.images;
        self.secondary_errors += other.secondary_errors;
        self.settled += other.settled;
        self.keeper_steps += other.keeper_steps;
        self.page_writes += other.page_writes;
        self.records += other.records;
        self.crashes += other.crashes;
        self.gaps += other.gaps;
        self.cooled += other.cooled;
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    pub options: Options,
    pub rng: Rng,
    pub now_us: u64,
    pub epoch: Arc<Epoch>,
    pub volumes: Vec<Volume>,
    pub controller: Controller,
    pub writers: Vec<Writer>,
    pub checker: Checker,
    pub trace: Trace,
    pub coverage: Coverage,
    pub violation: Option<Violation>,
    /// What can happen now.
    pub ready: Vec<Event>,
    timers: BinaryHeap<Reverse<(u64, u64, Timer)>>,
    timers_set: u64,
    /// Whether the host issues requests, and whether faults happen.
    pub active: bool,
    pub faulty: bool,
}

impl World {
    pub fn new(options: Options, seed: u64, verbose: bool) -> Self {
        let mut rng = Rng::new(!seed);
        let starts = match options.intent {
            Some(_) => (0..options.volumes).map(|index| first_start(index, &options, &mut rng)).collect(),
            None => Vec::new(),
        };
        Self::with(options, seed, verbose, starts)
    }

    /// With volumes that start from this; with none, from the beginning and without metadata.
    pub fn with(options: Options, seed: u64, verbose: bool, starts: Vec<Start>) -> Self {
        let epoch = Arc::new(Epoch::new());
        let mut starts = starts.into_iter();
        let volumes: Vec<_> = (0..options.volumes)
            .map(|index| Volume::new(index, &options, &epoch, seed.wrapping_add(index as u64 + 1), starts.next()))
            .collect();
        let sectors: Vec<usize> = volumes.iter().map(|volume| volume.side.devices.sectors).collect();
        let mut world = Self {
            rng: Rng::new(seed),
            now_us: 1000,
            epoch,
            controller: Controller::new(),
            writers: vec![Writer::default(); options.writers],
            checker: Checker::new(&sectors),
            trace: Trace::new(verbose),
            coverage: Coverage::default(),
            violation: None,
            ready: Vec::with_capacity(256),
            timers: BinaryHeap::new(),
            timers_set: 0,
            active: false,
            faulty: false,
            volumes,
            options,
        };
        for volume in 0..world.volumes.len() {
            world.collect(volume);
        }
        world
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    pub fn breach(&mut self, promise: &'static str, text: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation::new(promise, text));
        }
    }

    pub fn judge(&mut self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.violation.get_or_insert(violation);
        }
    }

    pub fn note(&mut self, note: Note) {
        self.trace.note(self.now_us, note);
    }

    pub fn set_timer(&mut self, after_us: u64, timer: Timer) {
        self.timers_set += 1;
        self.timers.push(Reverse((self.now_us + after_us, self.timers_set, timer)));
    }

    pub fn timer_is_set(&self, timer: Timer) -> bool {
        self.timers.iter().any(|Reverse((.., set))| *set == timer)
    }

    // Time.

    fn next_due_us(&self) -> Option<u64> {
        let drains = self.volumes.iter().filter_map(|volume| volume.driver.wake_us);
        let keepers = self.volumes.iter().filter_map(|volume| volume.kept.wake_us);
        drains.chain(keepers).chain(self.timers.peek().map(|Reverse((due, ..))| *due)).min()
    }

    /// Sets off whatever is due.
    fn pass_time(&mut self) {
        while let Some(&Reverse((due, _, timer))) = self.timers.peek()
            && due <= self.now_us
        {
            self.timers.pop();
            match timer {
                Timer::Think(writer) => self.ready.push(Event::Writer(writer)),
                _ => self.tell_controller_timer(timer),
            }
        }
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            if volume.driver.wake_us.is_some_and(|due| due <= self.now_us) {
                volume.driver.wake_us = None;
                volume.side.ring_drain = true;
                self.collect(index);
            }
            let volume = &mut self.volumes[index];
            if volume.kept.wake_us.is_some_and(|due| due <= self.now_us) {
                volume.kept.wake_us = None;
                volume.side.ring_keeper = true;
                self.collect(index);
            }
        }
    }

    /// Goes on to the next time at which something happens by itself. False: nothing ever will.
    pub fn leap(&mut self) -> bool {
        let Some(due) = self.next_due_us() else { return false };
        self.now_us = self.now_us.max(due);
        self.pass_time();
        true
    }

    /// One step: time passes, and one event happens. False: nothing can happen any more.
    pub fn step(&mut self) -> bool {
        self.coverage.steps += 1;
        self.now_us += self.rng.next() % (self.options.tick_us + 1);
        if self.next_due_us().is_some_and(|due| due <= self.now_us) {
            self.pass_time();
        }
        while self.ready.is_empty() {
            if !self.leap() {
                return false;
            }
        }
        let chosen = self.choose();
        self.happen(chosen);
        if self.coverage.steps.is_multiple_of(64) {
            self.check_counts();
            self.check_in_sync();
        }
        true
    }

    /// Chooses an event: any, but slow ones less often.
    fn choose(&mut self) -> usize {
        let mut chosen = 0;
        for _ in 0..3 {
            chosen = self.rng.below(self.ready.len());
            let class = match self.ready[chosen] {
                Event::Io(io) => io.kind.class(),
                Event::Drain(_) | Event::Controller | Event::Keeper(_) => 6,
                Event::Ring { .. } | Event::Writer(_) | Event::Attend(_) => 7,
            };
            if self.rng.next() % 8 < self.options.speeds[class] {
                break;
            }
        }
        chosen
    }

    /// The event at this place of `ready` happens.
    pub fn happen(&mut self, chosen: usize) {
        match self.ready[chosen] {
            Event::Io(_) => self.move_io(chosen),
            Event::Ring { volume, queue } => {
                self.ready.swap_remove(chosen);
                self.note(Note::Rung(volume, queue));
                self.volumes[volume].rung[queue] = false;
                self.with_host(volume, queue, |host, io| host.rung(io));
            }
            Event::Drain(volume) => {
                if !self.run_drain(volume) {
                    self.ready.swap_remove(chosen);
                }
            }
            Event::Keeper(volume) => {
                if !self.run_keeper(volume) {
                    let at = self.ready.iter().position(|event| *event == Event::Keeper(volume));
                    self.ready.swap_remove(at.expect("it ran"));
                }
            }
            Event::Attend(volume) => {
                self.ready.swap_remove(chosen);
                self.attend(volume);
            }
            Event::Controller => {
                if !self.run_controller() {
                    self.ready.swap_remove(chosen);
                }
            }
            Event::Writer(writer) => {
                self.ready.swap_remove(chosen);
                self.issue(writer);
            }
        }
    }

    // Requests.

    /// A request moves some sectors, or is answered.
    fn move_io(&mut self, chosen: usize) {
        let Event::Io(mut io) = self.ready[chosen] else { return };
        let devices = &mut self.volumes[io.volume].side.devices;
        if io.kind.to_secondary() && devices.secondary.mode == Mode::Hung {
            self.ready.swap_remove(chosen);
            devices.secondary.hung.push(io);
            return;
        }
        let left = io.goal() - io.done;
        if left > 0 {
            let sectors = if self.rng.chance(1, 2) { left } else { 1 + self.rng.below(left) };
            devices.carry_out(&io, sectors);
            io.done += sectors;
            if io.done < io.goal() || self.rng.chance(1, 2) {
                self.ready[chosen] = Event::Io(io);
                return;
            }
        }
        self.ready.swap_remove(chosen);
        self.finish_io(io);
    }

    /// A request is answered.
    pub fn finish_io(&mut self, io: Io) {
        self.note(Note::Done(io));
        match io.kind {
            IoKind::HostRead { queue, tag, .. } => {
                let fails = matches!(io.fate, Fate::Good | Fate::Short(_))
                    && self.volumes[io.volume].side.devices.cannot_read(&io);
                self.answer_host(&io, queue, tag, fails);
            }
            IoKind::WritePage(_) | IoKind::WriteRecord(_) => self.finish_intent(&io),
            IoKind::HostWrite { queue, tag, .. } | IoKind::HostFlush { queue, tag } => {
                self.settle_cache(&io);
                self.answer_host(&io, queue, tag, false);
            }
            IoKind::ReadImage { queue, tag, read } => {
                let unreadable = self.volumes[io.volume].side.devices.cannot_read(&io);
                let result = outcome(&io, unreadable);
                self.volumes[io.volume].driver.image_lost |= unreadable || matches!(io.fate, Fate::Error(_));
                self.with_host(io.volume, queue, |host, gate| host.image_read(tag, read, result, gate));
            }
            _ => self.answer_drain(&io),
        }
    }

    /// A page of the intent, or a record of its log, is on media, or could not be written.
    fn finish_intent(&mut self, io: &Io) {
        let good = io.fate == Fate::Good;
        if good {
            self.volumes[io.volume].side.devices.persist_intent(io);
        }
        self.answer_keeper(io.volume, io.kind, good);
    }

    /// What a flush or a durable write has made durable.
    fn settle_cache(&mut self, io: &Io) {
        let side = &mut self.volumes[io.volume].side;
        let devices = &mut side.devices;
        match io.kind {
            IoKind::HostFlush { queue, tag } if io.fate == Fate::Again => devices.cache.turn_away((queue, tag)),
            IoKind::HostFlush { queue, tag } => devices.cache.end_flush(Some((queue, tag)), io.fate == Fate::Good),
            IoKind::HostWrite { queue, tag, .. } if matches!(io.fate, Fate::Good | Fate::Short(_)) => {
                let asked = side.asked[queue][usize::from(tag)];
                if asked.is_some_and(|asked| matches!(asked.what, What::Write { durable: true, .. })) {
                    devices.cache.persist(io.start, io.done, &devices.primary);
                }
            }
            _ => {}
        }
    }

    fn answer_host(&mut self, io: &Io, queue: usize, tag: u16, unreadable: bool) {
        let result = outcome(io, unreadable);
        if result < 0
            && let Some(asked) = &mut self.volumes[io.volume].side.asked[queue][usize::from(tag)]
        {
            asked.failed = true;
        }
        self.with_host(io.volume, queue, |host, gate| host.primary_done(tag, result, gate));
    }

    /// Calls a queue's write path, then picks up what it asked for.
    pub fn with_host(&mut self, volume: usize, queue: usize, call: impl FnOnce(&mut Host, &mut Gate<'_>)) {
        let Volume { hosts, side, .. } = &mut self.volumes[volume];
        side.now_us = self.now_us;
        call(&mut hosts[queue], &mut Gate { side, queue });
        self.collect(volume);
    }

    /// Picks up what the volume asked for since the last time.
    pub fn collect(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        if volume.side.ring_drain {
            volume.side.ring_drain = false;
            if volume.driver.rung() {
                self.ready.push(Event::Drain(index));
            }
        }
        if std::mem::take(&mut volume.side.left_letter) {
            // Who finds somebody else at it rings the thread.
            if self.rng.chance(1, 4) {
                volume.side.ring_keeper = true;
            } else if !std::mem::replace(&mut volume.kept.attended, true) {
                self.ready.push(Event::Attend(index));
            }
        }
        if std::mem::take(&mut volume.side.ring_keeper) && volume.kept.rung() {
            self.ready.push(Event::Keeper(index));
        }
        for queue in 0..volume.rung.len() {
            if std::mem::take(&mut volume.side.ring_queues[queue]) && !std::mem::replace(&mut volume.rung[queue], true)
            {
                self.ready.push(Event::Ring { volume: index, queue });
            }
        }
        if let Some(violation) = volume.side.violation.take() {
            self.violation.get_or_insert(violation);
        }
        while let Some(mut io) = self.volumes[index].side.submitted.pop() {
            io.fate = self.fate(&io);
            self.note(Note::Submit(io));
            self.ready.push(Event::Io(io));
        }
        while let Some((queue, tag, result)) = self.volumes[index].side.answers.pop() {
            self.answered(index, queue, tag, result);
        }
    }

    /// How a request will end.
    fn fate(&mut self, io: &Io) -> Fate {
        let rates = &self.options.rates;
        if !self.faulty {
            return Fate::Good;
        }
        let (short, again, error) = match io.kind {
            IoKind::HostRead { .. } | IoKind::HostWrite { zero: false, .. } => {
                (rates.short, rates.again, rates.host_error)
            }
            IoKind::HostWrite { .. } | IoKind::HostFlush { .. } => (0, rates.again, rates.host_error),
            IoKind::SendRun(..) | IoKind::SendImage(..) | IoKind::FlushSecondary | IoKind::FlushPrimary => {
                (0, 0, rates.secondary_error)
            }
            IoKind::WritePage(_) | IoKind::WriteRecord(_) => {
                let fails = self.options.rates.metadata_error;
                let fails = self.rng.chance(fails, 2048);
                return if fails { Fate::Error(self.rng.below(io.count + 1)) } else { Fate::Good };
            }
            IoKind::ReadImage { .. } => (rates.short, rates.again, rates.damage),
            IoKind::ReadRun(_) => (0, 0, rates.damage),
        };
        if short + again + error == 0 {
            return Fate::Good;
        }
        let drawn = self.rng.next() % 256;
        if drawn < short && io.count > 1 {
            Fate::Short(1 + self.rng.below(io.count - 1))
        } else if drawn < short + again {
            Fate::Again
        } else if drawn < short + again + error {
            Fate::Error(self.rng.below(io.count + 1))
        } else {
            Fate::Good
        }
    }

    /// H35: with no one half way, the counts are what the bitmaps hold.
    pub fn check_counts(&mut self) {
        for (index, volume) in self.volumes.iter().enumerate() {
            for bitmap in [volume.tracking.out_of_sync(), volume.tracking.change_recording()] {
                if bitmap.count() != bitmap.count_exactly() {
                    let text = format!("volume {index} counts {} of {}", bitmap.count(), bitmap.count_exactly());
                    self.violation.get_or_insert(Violation::new("H35", text));
                    return;
                }
            }
        }
    }

    /// Who is said to be in sync has an exact and durable copy, but for what unanswered writes are changing right now.
    pub fn check_in_sync(&mut self) {
        for (index, volume) in self.volumes.iter().enumerate() {
            if !volume.tracking.in_sync() {
                continue;
            }
            let devices = &volume.side.devices;
            let open = |sector: usize| {
                let asked = volume.side.asked.iter().flatten().flatten();
                asked.into_iter().any(|asked| (asked.start..asked.start + asked.count).contains(&sector))
            };
            let pairs = devices.primary.iter().zip(&devices.secondary.durable).enumerate();
            if let Some((sector, _)) = pairs.into_iter().find(|(sector, (a, b))| a != b && !open(*sector)) {
                let text = format!("volume {index} is said to be in sync and sector {sector} differs");
                self.violation.get_or_insert(Violation::new("in sync", text));
                return;
            }
        }
    }

    /// Whether the slot's or image's send has to fail because the memory was damaged.
    pub fn damaged(&mut self) -> bool {
        self.faulty && self.options.rates.damage > 0 && self.rng.chance(self.options.rates.damage, 2048)
    }

    pub fn send(&mut self, volume: usize, kind: IoKind, tracks: TrackRange) {
        let side = &mut self.volumes[volume].side;
        let (start, count) = side.devices.sectors_of(tracks);
        let verdict = side.devices.begin_send(volume, kind);
        side.submit(kind, start, count);
        self.judge(verdict);
    }

    pub fn send_image(&mut self, volume: usize, image: ImageNo, track: TrackNo) {
        self.coverage.images += 1;
        self.send(volume, IoKind::SendImage(image, track), TrackRange::one(track));
    }

    pub fn read_run(&mut self, volume: usize, slot: SlotNo, tracks: TrackRange) {
        let side = &mut self.volumes[volume].side;
        let (start, count) = side.devices.sectors_of(tracks);
        side.devices.aim_slot(slot, start);
        side.submit(IoKind::ReadRun(slot), start, count);
    }
}

/// What the primary answers: a byte count, 0, or a negative errno.
fn outcome(io: &Io, unreadable: bool) -> i32 {
    match io.fate {
        _ if unreadable => -libc::EIO,
        Fate::Good if matches!(io.kind, IoKind::HostWrite { zero: true, .. }) => 0,
        Fate::Good | Fate::Short(_) => i32::try_from(io.done as u64 * crate::options::SECTOR).expect("small"),
        Fate::Again => -libc::EAGAIN,
        Fate::Error(_) => -libc::EIO,
    }
}
