//! What the host and the world do: writers that each wait for the last answer before they ask again, over all volumes
//! and queues, so that every write depends on those before it; and disturbances of every kind.

use crate::controller::Command;
use crate::devices::{Fate, Mode};
use crate::options::{Options, SECTOR, TRACK_SECTORS};
use crate::side::{Asked, What};
use crate::trace::Note;
use crate::world::{Event, Timer, World};
use farpoint::frontend::{Handler, Op, Request};
use farpoint::uploader::Message;
use std::sync::atomic::Ordering::Relaxed;

/// Somebody who writes.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    sequence: u32,
    /// Waits for its answer, or for its turn.
    pub busy: bool,
}

impl World {
    /// Sets the writers to work.
    pub fn start_writers(&mut self) {
        self.active = true;
        for writer in 0..self.writers.len() {
            if !self.writers[writer].busy {
                self.writers[writer].busy = true;
                self.ready.push(Event::Writer(writer));
            }
        }
    }

    /// A writer issues its next request, if a tag is free where it wants to.
    pub fn issue(&mut self, writer: usize) {
        self.writers[writer].busy = self.active;
        if !self.active {
            return;
        }
        let volume = self.rng.below(self.volumes.len());
        let queue = self.rng.below(self.options.queues);
        let free = self.volumes[volume].side.asked[queue].iter().position(Option::is_none);
        let Some(tag) = free else {
            self.set_timer(20, Timer::Think(writer));
            return;
        };
        let (start, count) = self.choose_sectors(volume);
        self.ask(writer, volume, queue, tag, start, count);
    }

    /// Where to write: mostly at a hot track, whole or in part or across several.
    fn choose_sectors(&mut self, volume: usize) -> (usize, usize) {
        let sectors = self.volumes[volume].side.devices.sectors;
        let tracks = if self.rng.chance(3, 4) { self.options.hot } else { self.options.tracks };
        let track = self.rng.below(tracks);
        let whole = TRACK_SECTORS * (1 + self.rng.below(self.options.tracks_per_write));
        let (offset, count) = match self.rng.below(4) {
            0 => (0, whole),
            1 => (0, TRACK_SECTORS),
            _ => (self.rng.below(TRACK_SECTORS), 1 + self.rng.below(whole)),
        };
        let start = (track * TRACK_SECTORS + offset).min(sectors - 1);
        (start, count.min(sectors - start))
    }

    fn ask(&mut self, writer: usize, volume: usize, queue: usize, tag: usize, start: usize, count: usize) {
        let rates = &self.options.rates;
        let (read, flush) = (rates.read, rates.flush);
        let (discard, durable) = (rates.discard, rates.durable);
        let drawn = self.rng.next() % 256;
        if drawn < read {
            self.ask_for(writer, (volume, queue, tag), (start, count), Op::Read);
        } else if drawn < read + flush {
            self.ask_for(writer, (volume, queue, tag), (0, 0), Op::Flush);
        } else if self.rng.chance(discard, 256) {
            let op = self.rng.pick(&[Op::Discard, Op::WriteZeroes { keep: false }, Op::WriteZeroes { keep: true }]);
            self.ask_for(writer, (volume, queue, tag), (start, count), op);
        } else {
            let durable = self.rng.chance(durable, 256);
            self.ask_for(writer, (volume, queue, tag), (start, count), Op::Write { durable });
        }
    }

    /// Hands a request to a queue.
    pub fn ask_for(&mut self, writer: usize, place: (usize, usize, usize), sectors: (usize, usize), op: Op) {
        let ((volume, queue, tag), (start, count)) = (place, sectors);
        self.writers[writer].sequence += 1;
        let sequence = self.writers[writer].sequence;
        let mut write = || self.checker.issue(writer, sequence, volume, start, count);
        let what = match op {
            Op::Read => What::Read,
            Op::Flush => What::Flush,
            Op::Write { durable } => What::Write { write: write(), durable },
            Op::Discard | Op::WriteZeroes { .. } => What::Zero { write: write() },
        };
        match what {
            What::Read | What::Flush => self.coverage.reads += 1,
            _ => self.coverage.writes += 1,
        }
        let issued = self.checker.tick();
        let asked = Asked { writer, what, start, count, issued, failed: false, flushed: false };
        let side = &mut self.volumes[volume].side;
        side.asked[queue][tag] = Some(asked);
        if what == What::Read {
            side.devices.host_memory[queue][tag].clear();
            side.devices.host_memory[queue][tag].resize(count, crate::checker::Stamp::BLANK);
        }
        let tag = u16::try_from(tag).expect("small");
        self.note(Note::Issue { volume, queue, tag, asked });
        let length = u32::try_from(count as u64 * SECTOR).expect("small");
        let request = Request { op, offset: start as u64 * SECTOR, length };
        self.with_host(volume, queue, |host, io| host.arrive(tag, request, io));
    }

    /// A request is answered: the answer has to be the one that a bare primary would have given.
    pub fn answered(&mut self, volume: usize, queue: usize, tag: u16, result: i32) {
        self.note(Note::Answer { volume, queue, tag, result });
        let Some(asked) = self.volumes[volume].side.asked[queue][usize::from(tag)].take() else {
            return self.breach("P5", format!("volume {volume} queue {queue} tag {tag} is answered twice"));
        };
        let length = i32::try_from(asked.count as u64 * SECTOR).expect("small");
        let expected = if matches!(asked.what, What::Read | What::Write { .. }) { length } else { 0 };
        let refused = result < 0 && self.volumes[volume].regions.refuses();
        if result != expected && !(result < 0 && asked.failed) && !refused {
            self.breach("P5", format!("{asked:?} is answered with {result}"));
        }
        match asked.what {
            What::Write { write, .. } | What::Zero { write } => self.checker.answer(write, result >= 0, self.now_us),
            What::Flush if result >= 0 && !asked.flushed => {
                self.breach("P5", format!("a flush did not reach the primary: {asked:?}"));
            }
            What::Flush => {}
            What::Read if result < 0 => {}
            What::Read => {
                let memory = &self.volumes[volume].side.devices.host_memory[queue][usize::from(tag)];
                let verdict = self.checker.check_read(volume, asked.start, memory, asked.issued);
                self.judge(verdict);
            }
        }
        self.next_turn(asked.writer);
    }

    fn next_turn(&mut self, writer: usize) {
        if writer >= self.writers.len() {
            return;
        }
        if self.options.think_us > 0 && self.rng.chance(1, 2) {
            let after_us = self.rng.between(1, self.options.think_us);
            self.set_timer(after_us, Timer::Think(writer));
        } else {
            self.ready.push(Event::Writer(writer));
        }
    }

    // Disturbances.

    /// With the run's rate, something happens that nobody asked the host or the drain about.
    pub fn disturb(&mut self) {
        let rate = self.options.rates.disturb;
        if rate == 0 || !self.rng.chance(1, rate) {
            return;
        }
        let drawn = self.rng.next() % 256;
        let (faults, policy) = (self.options.rates.faults, self.options.rates.policy);
        if drawn < faults {
            self.fault();
        } else if drawn < faults + policy {
            self.change_policy();
        } else {
            self.control();
        }
    }

    fn control(&mut self) {
        let groups = self.controller.groups.len();
        if groups > 0 && self.rng.chance(self.options.rates.aborts, 256) {
            let running = &self.controller.groups[self.rng.below(groups)];
            return self.command(Command::Abort(running.number));
        }
        let usable = |volume: &usize| self.controller.is_free(*volume) && !self.volumes[*volume].regions.has_failed();
        let free: Vec<usize> = (0..self.volumes.len()).filter(usable).collect();
        let all = self.rng.chance(1, 2);
        let chosen: Vec<usize> = free.into_iter().filter(|_| all || self.rng.chance(1, 2)).collect();
        if !chosen.is_empty() {
            self.command(Command::Start(chosen));
        }
    }

    fn change_policy(&mut self) {
        let volume = self.rng.below(self.volumes.len());
        if self.rng.chance(1, 2) {
            let paused = self.rng.chance(1, 2);
            self.volumes[volume].paused = paused;
            return self.command(Command::Pause(volume, paused));
        }
        let policy = Options::draw_policy(&mut self.rng);
        self.note(Note::Policy(volume, policy));
        self.volumes[volume].send_first.store(policy.send_first, Relaxed);
        self.volumes[volume].side.tell_drain(Message::Policy(policy));
        self.collect(volume);
    }

    fn fault(&mut self) {
        let volume = self.rng.below(self.volumes.len());
        match self.rng.below(8) {
            0 | 1 => self.set_secondary(volume, Mode::Healthy),
            2 => self.set_secondary(volume, Mode::Failing),
            3 => self.set_secondary(volume, Mode::Hung),
            4 | 5 => {
                self.note(Note::LoseFlush(volume));
                self.volumes[volume].side.devices.secondary.lose = true;
            }
            6 => {
                let track = self.rng.below(self.options.tracks);
                self.note(Note::Unreadable(volume, track, true));
                self.volumes[volume].side.devices.unreadable[track] = true;
            }
            _ => {
                self.note(Note::Unreadable(volume, 0, false));
                self.volumes[volume].side.devices.unreadable.fill(false);
            }
        }
    }

    /// What hung goes on when the secondary no longer hangs, well or badly.
    pub fn set_secondary(&mut self, volume: usize, mode: Mode) {
        self.note(Note::Secondary(volume, mode));
        let secondary = &mut self.volumes[volume].side.devices.secondary;
        secondary.mode = mode;
        if mode == Mode::Hung {
            return;
        }
        for mut io in std::mem::take(&mut secondary.hung) {
            if mode == Mode::Failing || self.rng.chance(1, 4) {
                io.fate = Fate::Error(io.done + self.rng.below(io.count - io.done + 1));
            }
            self.ready.push(Event::Io(io));
        }
    }

    /// Every device is well again.
    pub fn heal(&mut self) {
        self.faulty = false;
        for volume in 0..self.volumes.len() {
            self.set_secondary(volume, Mode::Healthy);
            let devices = &mut self.volumes[volume].side.devices;
            devices.unreadable.fill(false);
            devices.secondary.lose = false;
            // Only where it is needed: whoever is told anything wakes up, and a lost wake-up would not be noticed.
            if std::mem::take(&mut self.volumes[volume].paused) {
                self.command(Command::Pause(volume, false));
            }
        }
    }
}
