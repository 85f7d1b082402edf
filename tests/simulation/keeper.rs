//! Drives a [`Keeper`](farpoint::intent::Keeper) as its thread does, one small step at a time: answers, letters, then
//! what it wants to do. It wakes for its bell, a page that was written and the time it named, and for nothing else. And
//! as queues do: the letters, a write that is waited for, and the bell if there is more.

use crate::devices::IoKind;
use crate::disk::PAGE_SECTORS;
use crate::options::Deaf;
use crate::trace::Note;
use crate::world::World;
use farpoint::intent::{Keeper, Message, Op, Regions, Write};
use farpoint::metadata::{log, pages};
use farpoint::uploader;
use std::collections::VecDeque;
use std::sync::Arc;

/// Longest sleep of the thread, in microseconds.
const SLEEP_US_MAX: u64 = 10_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Bell,
    Letters,
    Poll,
}

/// A keeper's thread.
#[derive(Debug)]
pub struct KeeperDriver {
    pub keeper: Keeper,
    phase: Phase,
    /// Pages that were written, or a record, and whether well.
    pub answers: VecDeque<(Write, bool)>,
    pub letters: VecDeque<Message>,
    scheduled: bool,
    ringing: bool,
    pub wake_us: Option<u64>,
    /// A queue is about to look after it.
    pub attended: bool,
    /// Records under way that a queue writes.
    by_queue: Vec<u64>,
    /// Page writes so far: each has a number.
    writes: usize,
}

impl KeeperDriver {
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            phase: Phase::Bell,
            answers: VecDeque::new(),
            letters: VecDeque::new(),
            scheduled: false,
            ringing: false,
            wake_us: None,
            attended: false,
            by_queue: Vec::new(),
            writes: 0,
        }
    }

    /// Its bell rang. True: it slept and has to be scheduled.
    pub fn rung(&mut self) -> bool {
        self.ringing = true;
        !std::mem::replace(&mut self.scheduled, true)
    }
}

impl World {
    fn regions(&self, index: usize) -> Arc<Regions> {
        self.volumes[index].regions.clone()
    }

    /// A keeper's thread does one thing. False: it sleeps.
    pub fn run_keeper(&mut self, index: usize) -> bool {
        self.coverage.keeper_steps += 1;
        let (regions, now_us) = (self.regions(index), self.now_us);
        let volume = &mut self.volumes[index];
        let driver = &mut volume.kept;
        match driver.phase {
            Phase::Bell => {
                driver.ringing = false;
                driver.letters.extend(volume.side.letters.drain(..));
                driver.phase = Phase::Letters;
            }
            Phase::Letters => {
                if let Some((write, ok)) = driver.answers.pop_front() {
                    driver.keeper.written(write, ok, &regions);
                } else if let Some(letter) = driver.letters.pop_front() {
                    driver.keeper.tell(letter, &regions, &volume.tracking);
                } else {
                    driver.phase = Phase::Poll;
                }
            }
            Phase::Poll => match driver.keeper.poll(now_us / 1000, &regions, &volume.tracking) {
                Some(op) => self.keeper_op(index, op),
                None => {
                    driver.phase = Phase::Bell;
                    if !driver.ringing && driver.answers.is_empty() {
                        driver.scheduled = false;
                        let wake_ms = driver.keeper.wake_at(now_us / 1000).unwrap_or(u64::MAX / 1000);
                        driver.wake_us = Some((wake_ms * 1000).clamp(now_us + 100, now_us + SLEEP_US_MAX));
                        self.ring_for_keeper(index);
                        return false;
                    }
                }
            },
        }
        self.ring_for_keeper(index);
        true
    }

    /// A queue does at once what the thread does step by step, but for writes that nobody waits for.
    pub fn attend(&mut self, index: usize) {
        let (regions, now_ms) = (self.regions(index), self.now_us / 1000);
        let volume = &mut self.volumes[index];
        let driver = &mut volume.kept;
        driver.attended = false;
        for letter in driver.letters.drain(..).chain(volume.side.letters.drain(..)) {
            driver.keeper.tell(letter, &regions, &volume.tracking);
        }
        if let Some(record) = driver.keeper.poll_waited() {
            driver.by_queue.push(record);
            self.keeper_op(index, Op::Write(Write::Record(record)));
        }
        let volume = &mut self.volumes[index];
        volume.side.ring_keeper |= volume.kept.keeper.has_work(now_ms) && volume.side.deaf != Some(Deaf::Work);
        self.ring_for_keeper(index);
    }

    fn keeper_op(&mut self, index: usize, op: Op) {
        self.note(Note::Keeper(index, op));
        let volume = &mut self.volumes[index];
        if let Op::Write(write) = op
            && volume.side.devices.is_writing_there(write)
        {
            return self.breach("H4", format!("volume {index}: {write:?} while the same place is being written"));
        }
        match op {
            Op::Grace(id) => volume.side.tell_drain(uploader::Message::Grace(id)),
            Op::Write(Write::Page(page)) => {
                let number = volume.kept.writes;
                volume.kept.writes += 1;
                let id = volume.side.devices.volume_id;
                let content = pages::encode(id, page.0, volume.kept.keeper.page(page));
                volume.side.devices.pages.insert(number, (page, content));
                volume.side.submit(IoKind::WritePage(number), 0, PAGE_SECTORS);
                self.coverage.page_writes += 1;
            }
            Op::Write(Write::Record(number)) => {
                let record = volume.kept.keeper.record(number).expect("begun");
                let devices = &mut volume.side.devices;
                let mut content = Box::new([0; log::RECORD_BYTES]);
                log::put(devices.volume_id, record, &mut content[..]);
                devices.records.insert(number, content);
                volume.side.submit(IoKind::WriteRecord(number), 0, 2 * PAGE_SECTORS);
                self.coverage.records += 1;
            }
        }
    }

    fn ring_for_keeper(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        let queues = volume.kept.keeper.take_wakes();
        if !queues.none() && volume.side.deaf != Some(Deaf::Intent) {
            for (queue, ring) in volume.side.ring_queues.iter_mut().enumerate() {
                *ring |= queues.contains(queue);
            }
        }
        self.collect(index);
    }

    /// A page of the intent, or a record of its log, is on media or could not be written.
    pub fn answer_keeper(&mut self, index: usize, kind: IoKind, ok: bool) {
        let volume = &mut self.volumes[index];
        let devices = &mut volume.side.devices;
        let write = match kind {
            IoKind::WritePage(number) => devices.pages.remove(&number).map(|(page, _)| Write::Page(page)),
            IoKind::WriteRecord(number) => devices.records.remove(&number).map(|_| Write::Record(number)),
            _ => None,
        };
        let write = write.expect("a write of the intent that is under way");
        let by_queue = volume.kept.by_queue.iter().position(|record| Write::Record(*record) == write);
        if let Some(at) = by_queue {
            let record = volume.kept.by_queue.swap_remove(at);
            volume.side.letters.push_back(Message::Written { record, ok });
            volume.side.left_letter = true;
        } else {
            volume.kept.answers.push_back((write, ok));
            volume.side.ring_keeper = true;
        }
        self.collect(index);
    }

    /// The administrator takes down what metadata has suspended: whoever waits for it gets an error.
    pub fn end_suspension(&mut self) {
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            if volume.regions.has_failed() && !volume.regions.refuses() {
                volume.regions.fail(false);
                volume.side.ring_all_queues();
                self.collect(index);
            }
        }
    }
}
