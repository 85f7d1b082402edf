//! One run: rounds of work under faults, each ended by two questions. With the faults still there, is every request of
//! the host answered within the bounds? And once they are healed, do all groups end and the secondaries catch up?

use crate::checker::{Checker, Violation};
use crate::controller::Command;
use crate::crash::Stop;
use crate::options::Options;
use crate::rng::Rng;
use crate::trace::Note;
use crate::world::{Coverage, World};
use farpoint::metadata::media::recover;

/// Simulated time and steps within which everything is in sync once devices are well: the longest back-off, the longest
/// time that an unreadable track is left alone, and generous room.
const SETTLE_US_MAX: u64 = 120_000_000;
const SETTLE_STEPS_MAX: u64 = 60_000;
/// Steps within which what can go on does so: every event is chosen many times over.
const ANSWER_STEPS_MAX: u64 = 30_000;

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub violation: Option<Violation>,
    pub coverage: Coverage,
    pub options: Options,
    pub trace: Vec<String>,
}

/// The make-up of a seed's run.
pub fn options(seed: u64) -> Options {
    Options::draw(&mut Rng::new(seed ^ 0xa5a5_5a5a))
}

/// Runs a seed.
pub fn run(seed: u64, options: Options, verbose: bool) -> Outcome {
    if verbose {
        println!("{options:#?}");
    }
    let mut world = World::new(options, seed, verbose);
    for _ in 0..world.options.rounds {
        let crash = world.rng.chance(world.options.crashes, 8).then(|| world.rng.pick(&[Stop::PowerCut, Stop::Killed]));
        world.work(crash.is_some());
        if let Some(stop) = crash
            && world.violation.is_none()
        {
            world.stop_and_start(stop);
            continue;
        }
        world.answer_all();
        if world.violation.is_none() && world.rng.chance(world.options.stops, 8) {
            world.stop_and_start(Stop::Clean);
            continue;
        }
        world.settle();
        if world.violation.is_some() {
            break;
        }
        if world.rng.chance(1, 2) {
            world.cool_down();
        }
    }
    if world.violation.is_none() {
        world.settle();
    }
    world.outcome()
}

/// Runs a seed up to this step, cuts the power, and lets it settle.
pub fn run_to(seed: u64, options: Options, step: u64) -> Outcome {
    let mut world = World::new(options, seed, false);
    world.faulty = true;
    world.start_writers();
    while world.coverage.steps < step && world.violation.is_none() && world.step() {
        world.disturb();
    }
    world.stop_and_start(Stop::PowerCut);
    world.settle();
    world.outcome()
}

impl World {
    pub fn outcome(self) -> Outcome {
        Outcome { violation: self.violation, coverage: self.coverage, options: self.options, trace: self.trace.lines() }
    }

    /// `crashes`: it will end in a crash.
    fn work(&mut self, crashes: bool) {
        self.note(Note::Phase("work"));
        self.faulty = true;
        self.start_writers();
        let steps = self.options.round_steps;
        let steps = if crashes { self.rng.between(1, steps) } else { steps };
        for step in 0..steps {
            self.disturb();
            if !self.step() || self.violation.is_some() {
                break;
            }
            if step % 512 == 511 {
                self.check_lag();
            }
            // A crash at one of these moments, which are rare, says more than at most others.
            let crowded = self.volumes.iter().any(|volume| volume.side.devices.records.len() > 1);
            if crowded && crashes && self.rng.chance(1, 16) {
                break;
            }
        }
        self.active = false;
    }

    fn requests_open(&self) -> usize {
        self.volumes.iter().flat_map(|volume| &volume.side.asked).flatten().flatten().count()
    }

    /// P5: a hold ends with the run timer, a collision with the longest wait, whatever the secondary does.
    pub fn answer_all(&mut self) {
        self.note(Note::Phase("answer"));
        self.active = false;
        let began = (self.now_us, self.coverage.steps);
        let hold_us = self.options.run_timer_us;
        // The longest wait for collisions that a policy is drawn with; it counts for all tracks of a write together.
        let wait_us = 100_000;
        while self.requests_open() > 0 && self.violation.is_none() {
            self.end_suspension();
            let steps = self.coverage.steps - began.1;
            let bound_us = hold_us + wait_us + steps * self.options.tick_us + 10_000;
            let waited_us = self.now_us - began.0;
            if waited_us > bound_us || steps > ANSWER_STEPS_MAX {
                let open = self.volumes.iter().flat_map(|volume| &volume.side.asked).flatten().flatten().next();
                let text = format!("a request is not answered after {waited_us} us, {steps} steps: {open:?}");
                return self.breach("P5", text);
            }
            if !self.step() {
                return self.breach("P5", "nothing can happen any more and a request is not answered");
            }
        }
    }

    /// P6: with the host silent and devices well, groups end, everything is sent, and both sides are equal.
    pub fn settle(&mut self) {
        if self.violation.is_some() {
            return;
        }
        self.note(Note::Phase("settle"));
        self.heal();
        let began = (self.now_us, self.coverage.steps - self.coverage.keeper_steps);
        let give_up = self.rng.chance(1, 8);
        loop {
            self.urge(give_up);
            let went_on = self.step();
            if self.violation.is_some() {
                return;
            }
            if self.is_quiet() {
                break;
            }
            // Going round the hot regions brings nobody on.
            let steps = self.coverage.steps - self.coverage.keeper_steps - began.1;
            let us = self.now_us - began.0;
            let late = us > SETTLE_US_MAX + steps * self.options.tick_us || steps > SETTLE_STEPS_MAX;
            if !went_on || late {
                let text = format!("after {us} us and {steps} steps nothing goes on: {}", self.describe());
                return self.breach("progress", text);
            }
        }
        self.coverage.settled += 1;
        self.check_settled();
    }

    /// P7: with everything in sync and nobody writing, every region is cleared: a restart would copy nothing.
    fn cool_down(&mut self) {
        self.note(Note::Phase("cool down"));
        let began = self.coverage.steps;
        let hot = |world: &Self| {
            let sound = world.volumes.iter().filter(|volume| !volume.regions.is_in_doubt());
            let kept = sound.map(|volume| volume.kept.keeper.figures());
            kept.filter(|figures| !figures.failed).map(|figures| figures.hot).sum::<u64>()
        };
        while (hot(self) > 0 || self.media_shows_hot()) && self.options.intent.is_some() && self.violation.is_none() {
            if !self.step() || self.coverage.steps > began + SETTLE_STEPS_MAX {
                return self.breach("P7", format!("{} regions stay hot and nobody uses them", hot(self)));
            }
        }
        self.coverage.cooled += 1;
    }

    /// Whether media says of a region that it is hot although its keeper says that none is.
    fn media_shows_hot(&self) -> bool {
        self.volumes.iter().any(|volume| {
            let figures = volume.kept.keeper.figures();
            let devices = &volume.side.devices;
            let (Some(disk), Some(media)) = (&devices.disk, &devices.media) else { return false };
            let at_rest = figures.hot == 0 && !figures.failed && !volume.regions.is_in_doubt();
            let found = || recover(&**disk, &media.superblock()).expect("readable");
            at_rest && (volume.kept.keeper.is_writing() || found().hot.count() > 0)
        })
    }

    /// Goes on with the groups that wait for a command.
    fn urge(&mut self, give_up: bool) {
        if !self.controller_rests() {
            return;
        }
        let mut commands = Vec::new();
        for running in &self.controller.groups {
            if running.aborted {
                continue;
            }
            if give_up {
                commands.push(Command::Abort(running.number));
            } else if running.group.is_drained() {
                commands.push(Command::Complete(running.number));
            } else if running.answered.is_some() && !running.ran {
                commands.push(Command::Run(running.number));
            }
        }
        for command in commands {
            self.command(command);
        }
    }

    fn is_quiet(&self) -> bool {
        self.ready.is_empty()
            && self.controller.is_idle()
            && self.requests_open() == 0
            && self.volumes.iter().all(|volume| !volume.kept.keeper.is_writing() || volume.regions.has_failed())
            && (0..self.volumes.len()).all(|volume| self.is_settled(volume))
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for running in &self.controller.groups {
            text += &format!("group {:?}; ", running.group);
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            let tracking = &volume.tracking;
            text += &format!(
                "volume {index}: cut {:?}, out of sync {}, recording {}, owned {}, in flight {}, in transit {}; ",
                tracking.cut(),
                tracking.out_of_sync().count(),
                tracking.change_recording().count(),
                tracking.owned(),
                tracking.in_flight(),
                volume.drain.tracks_in_transit(),
            );
        }
        text
    }

    /// Both sides are equal and durable, the primary holds what the host wrote, and every count is 0.
    pub fn check_settled(&mut self) {
        self.check_counts();
        self.check_in_sync();
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            let devices = &volume.side.devices;
            let verdict = Checker::check_equal(index, &devices.primary, &devices.secondary.durable)
                .and_then(|()| self.checker.check_read(index, 0, &devices.primary, u64::MAX - 1));
            let (tracking, in_transit) = (&volume.tracking, volume.drain.tracks_in_transit());
            let counts = [
                tracking.out_of_sync().count_exactly(),
                tracking.change_recording().count_exactly(),
                tracking.owned(),
                tracking.in_flight(),
                in_transit,
            ];
            self.judge(verdict);
            if counts != [0; 5] {
                self.breach("P6", format!("volume {index} rests with counts {counts:?}"));
            }
        }
        self.check_lag();
    }

    fn check_lag(&mut self) {
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            let synced_us = volume.drain.synced_ms() * 1000;
            let verdict = self.checker.check_lag(index, &volume.side.devices.secondary.durable, synced_us);
            self.judge(verdict);
        }
    }
}
