//! Drives the [`Group`] machines as a controller does: one thread, one thing at a time, each effect a step of its own,
//! so that host and drains run between any two of them.

use crate::checker::Stamp;
use crate::trace::Note;
use crate::world::{Timer, World};
use farpoint::group::{Group, GroupEffect, VolumeId};
use farpoint::increment::{AbortReason, Effect, Event, IncrementNo};
use farpoint::uploader::{Message, Report};
use std::collections::VecDeque;

/// What a user asks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Start(Vec<usize>),
    Run(u64),
    Complete(u64),
    Abort(u64),
    Pause(usize, bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Input {
    Command(Command),
    Timer(Event),
    Report(usize, Report),
}

/// One thing that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Arm(usize, u64),
    Begin(u64),
    Look(usize),
    Effect(u64, GroupEffect),
}

/// A group from its start to its end, and what the judge wants to know of it.
#[derive(Debug)]
pub struct Running {
    pub group: Group,
    pub number: u64,
    pub volumes: Vec<usize>,
    /// When `start` was answered, on the global counter.
    pub answered: Option<u64>,
    pub ran: bool,
    pub aborted: bool,
    /// What the secondaries held when the group was drained, until the first of its volumes goes on: the point.
    pub point: Option<Vec<Vec<Stamp>>>,
}

/// The controller's thread.
#[derive(Debug)]
pub struct Controller {
    pub groups: Vec<Running>,
    numbers: u64,
    /// The highest number of a cut that was made.
    pub numbers_used: u64,
    inbox: VecDeque<Input>,
    acts: VecDeque<Act>,
    scheduled: bool,
}

impl Controller {
    pub fn new() -> Self {
        Self {
            groups: Vec::new(),
            numbers: 0,
            numbers_used: 0,
            inbox: VecDeque::new(),
            acts: VecDeque::new(),
            scheduled: false,
        }
    }

    /// The numbers go on behind this one.
    pub fn begin_after(&mut self, number: u64) {
        (self.numbers, self.numbers_used) = (number, number);
    }

    pub fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.inbox.is_empty() && self.acts.is_empty()
    }

    /// Whether the volume belongs to no group, nor to one that was asked for.
    pub fn is_free(&self, volume: usize) -> bool {
        let asked = self.inbox.iter().any(|input| match input {
            Input::Command(Command::Start(volumes)) => volumes.contains(&volume),
            _ => false,
        });
        !asked && self.groups.iter().all(|running| !running.volumes.contains(&volume))
    }

    fn find(&mut self, number: u64) -> Option<&mut Running> {
        self.groups.iter_mut().find(|running| running.number == number)
    }
}

impl World {
    /// Whether the controller has nothing left to do for now.
    pub fn controller_rests(&self) -> bool {
        self.controller.inbox.is_empty() && self.controller.acts.is_empty()
    }

    fn tell_controller(&mut self, input: Input) {
        self.controller.inbox.push_back(input);
        if !std::mem::replace(&mut self.controller.scheduled, true) {
            self.ready.push(crate::world::Event::Controller);
        }
    }

    pub fn command(&mut self, command: Command) {
        self.tell_controller(Input::Command(command));
    }

    pub fn tell_controller_report(&mut self, volume: usize, report: Report) {
        self.tell_controller(Input::Report(volume, report));
    }

    pub fn tell_controller_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Run(number) => self.tell_controller(Input::Timer(Event::RunTimer(IncrementNo(number)))),
            Timer::Increment(number) => self.tell_controller(Input::Timer(Event::IncrementTimer(IncrementNo(number)))),
            Timer::Complete(number) => self.tell_controller(Input::Command(Command::Complete(number))),
            Timer::Think(_) => {}
        }
    }

    /// The controller's thread does one thing. False: it sleeps.
    pub fn run_controller(&mut self) -> bool {
        if let Some(act) = self.controller.acts.pop_front() {
            self.act(act);
            return true;
        }
        let Some(input) = self.controller.inbox.pop_front() else {
            self.controller.scheduled = false;
            return false;
        };
        match input {
            Input::Command(command) => self.obey(command),
            Input::Timer(event) => {
                let (Event::RunTimer(number) | Event::IncrementTimer(number)) = event else { return true };
                self.with_group(number.0, |group, effects| group.timer(event, effects));
            }
            Input::Report(volume, report) => {
                // A report that is about another increment of the volume came too late.
                let (number, event) = match report {
                    Report::CutReached(number) => (number, Event::CutReached),
                    Report::Drained(number) => (number, Event::Drained),
                    Report::Abort(number, reason) => (number, Event::Abort(reason)),
                    Report::Folded(number) => (number, Event::Folded),
                };
                self.with_group(number, |group, effects| group.member(VolumeId(volume), event, effects));
            }
        }
        true
    }

    fn with_group(&mut self, number: u64, call: impl FnOnce(&mut Group, &mut Vec<GroupEffect>)) {
        let Some(running) = self.controller.find(number) else { return };
        let mut effects = Vec::new();
        call(&mut running.group, &mut effects);
        self.plan(number, effects);
    }

    /// Effects in their order; a cut is armed everywhere, then begun, then told.
    fn plan(&mut self, number: u64, effects: Vec<GroupEffect>) {
        for effect in effects {
            let GroupEffect::Cut(volumes) = &effect else {
                self.controller.acts.push_back(Act::Effect(number, effect));
                continue;
            };
            let acts = &mut self.controller.acts;
            acts.extend(volumes.iter().map(|volume| Act::Arm(volume.0, number)));
            acts.push_back(Act::Begin(number));
            acts.extend(volumes.iter().map(|volume| Act::Look(volume.0)));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(volumes) => self.start(volumes),
            Command::Run(number) => {
                self.note(Note::Command("run", number));
                self.with_group(number, |group, effects| {
                    let _ = group.run(effects);
                });
            }
            Command::Complete(number) => {
                self.note(Note::Command("increment-complete", number));
                self.with_group(number, |group, effects| {
                    let _ = group.complete(effects);
                });
            }
            Command::Abort(number) => {
                self.note(Note::Command("abort", number));
                self.with_group(number, |group, effects| {
                    let _ = group.abort(AbortReason::Request, effects);
                });
            }
            Command::Pause(volume, paused) => {
                self.note(Note::Drain(volume, Message::Pause(paused)));
                self.volumes[volume].side.tell_drain(Message::Pause(paused));
                self.collect(volume);
            }
        }
    }

    fn start(&mut self, volumes: Vec<usize>) {
        self.controller.numbers += 1;
        let number = self.controller.numbers;
        self.note(Note::Command("start", number));
        for &volume in volumes.iter().filter(|_| !self.options.forgetful) {
            if let Some(media) = &self.volumes[volume].side.devices.media {
                // Before the cut: a number that was given is never given again.
                media.update(|superblock| superblock.last_increment = number).expect("a sound disk");
            }
        }
        let ids: Vec<_> = volumes.iter().map(|&volume| VolumeId(volume)).collect();
        let mut effects = Vec::new();
        match Group::start(IncrementNo(number), &ids, &mut effects) {
            Ok(group) => self.controller.groups.push(Running {
                group,
                number,
                volumes,
                answered: None,
                ran: false,
                aborted: false,
                point: None,
            }),
            Err(refusal) => self.breach("control", format!("start over idle volumes: {refusal}")),
        }
        self.plan(number, effects);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Arm(volume, number) => {
                self.note(Note::Arm(volume, number));
                let tracking = &self.volumes[volume].tracking;
                let ready = tracking.change_recording().count() == 0 && tracking.unfolded().is_none();
                if !ready {
                    self.breach("control", format!("volume {volume} is armed for {number} before its spare is ready"));
                }
                self.volumes[volume].tracking.arm(number);
            }
            Act::Begin(number) => {
                self.note(Note::Begin(number));
                self.epoch.begin(number);
                self.controller.numbers_used = self.epoch.number();
            }
            Act::Look(volume) => {
                self.volumes[volume].side.tell_drain(Message::Look);
                self.collect(volume);
            }
            Act::Effect(number, effect) => {
                self.note(Note::Effect(number, effect.clone()));
                self.carry_out_effect(number, effect);
            }
        }
    }

    fn carry_out_effect(&mut self, number: u64, effect: GroupEffect) {
        match effect {
            GroupEffect::Member(VolumeId(volume), effect) => self.member_effect(number, volume, effect),
            GroupEffect::AllReached => {
                let answered = self.checker.tick();
                if let Some(running) = self.controller.find(number) {
                    running.answered = Some(answered);
                }
                if !self.options.manual && self.rng.chance(self.options.rates.prompt, 256) {
                    self.command(Command::Run(number));
                }
            }
            GroupEffect::AllDrained => self.drained(number),
            GroupEffect::Aborted(..) => {
                self.coverage.aborted += 1;
                if let Some(running) = self.controller.find(number) {
                    running.aborted = true;
                }
            }
            GroupEffect::Left(VolumeId(volume)) => {
                if let Some(running) = self.controller.find(number) {
                    running.volumes.retain(|other| *other != volume);
                }
            }
            GroupEffect::Ended => {
                self.controller.groups.retain(|running| running.number != number);
            }
            GroupEffect::Cut(_) => unreachable!("planned apart"),
        }
    }

    fn member_effect(&mut self, number: u64, volume: usize, effect: Effect) {
        match effect {
            Effect::SetRunTimer(_) => {
                if !self.timer_is_set(Timer::Run(number)) {
                    self.set_timer(self.options.run_timer_us, Timer::Run(number));
                }
            }
            Effect::SetIncrementTimer(_) => {
                if !self.timer_is_set(Timer::Increment(number)) {
                    self.set_timer(self.options.increment_timer_us, Timer::Increment(number));
                }
            }
            Effect::Release => {
                if let Some(running) = self.controller.find(number) {
                    running.ran = true;
                }
                self.volumes[volume].tracking.release();
                self.volumes[volume].side.ring_all_queues();
                self.collect(volume);
            }
            Effect::Retire { aborted } => {
                self.check_unchanged(number);
                if !aborted {
                    self.coverage.completed += 1;
                }
                self.volumes[volume].tracking.retire(aborted);
                self.volumes[volume].side.ring_all_queues();
                self.volumes[volume].side.tell_drain(Message::Look);
                self.collect(volume);
            }
        }
    }

    /// The secondaries are the point now: it has to be consistent, recent and durable, and to stay as it is.
    fn drained(&mut self, number: u64) {
        self.coverage.points += 1;
        let Some(running) = self.controller.find(number) else { return };
        let (volumes, answered) = (running.volumes.clone(), running.answered.unwrap_or(u64::MAX));
        let point: Vec<Vec<Stamp>> =
            volumes.iter().map(|&volume| self.volumes[volume].side.devices.secondary.durable.clone()).collect();
        for &volume in &volumes {
            if !self.volumes[volume].side.devices.secondary.is_durable() {
                self.breach("P3", format!("volume {volume} is said to be drained and its secondary was not flushed"));
            }
        }
        let verdict = self.checker.check_point(&volumes, &point, answered);
        self.judge(verdict);
        if let Some(running) = self.controller.find(number) {
            running.point = Some(point);
        }
        if self.options.manual {
            return;
        }
        if self.rng.chance(self.options.rates.prompt, 256) {
            self.command(Command::Complete(number));
        } else {
            let after_us = self.rng.between(1, 40_000);
            self.set_timer(after_us, Timer::Complete(number));
        }
    }

    /// A point does not change between the moment it is drained and the end of its increment, which is the first
    /// retire.
    fn check_unchanged(&mut self, number: u64) {
        let Some(running) = self.controller.find(number) else { return };
        let Some(point) = running.point.take() else { return };
        let volumes = running.volumes.clone();
        for (volume, point) in volumes.into_iter().zip(point) {
            if self.volumes[volume].side.devices.secondary.live != point {
                let text = format!("volume {volume}: the point changed before increment {number} was complete");
                self.breach("P4", text);
                return;
            }
        }
    }
}
