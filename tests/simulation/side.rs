//! The simulated queues of one volume: what [`Host`](farpoint::volume::Host) asks of the world around it, collected for
//! the scheduler, which decides when each of it happens.

use crate::checker::Violation;
use crate::devices::{Devices, Fate, Io, IoKind, index};
use crate::options::{Deaf, SECTOR};
use farpoint::frontend::{QueueIo, Tag, Zeroing};
use farpoint::intent;
use farpoint::tracking::{Waiter, Waiters};
use farpoint::uploader::{ImageNo, ImageRead, Message};
use std::collections::VecDeque;

/// A request of the host between its issue and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub writer: usize,
    pub what: What,
    pub start: usize,
    pub count: usize,
    /// On the global counter.
    pub issued: u64,
    /// The primary gave it an error.
    pub failed: bool,
    /// The primary was asked to flush for it.
    pub flushed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Read,
    Write { write: u32, durable: bool },
    Zero { write: u32 },
    Flush,
}

/// One volume's devices, mailbox and doorbells.
#[derive(Debug)]
pub struct Side {
    pub volume: usize,
    pub devices: Devices,
    pub now_us: u64,
    /// By queue and tag.
    pub asked: Vec<Vec<Option<Asked>>>,
    pub mailbox: VecDeque<Message>,
    /// The keeper's.
    pub letters: VecDeque<intent::Message>,
    // What the scheduler has to pick up.
    pub submitted: Vec<Io>,
    pub answers: Vec<(usize, Tag, i32)>,
    pub ring_drain: bool,
    pub ring_keeper: bool,
    /// A queue has left a letter for the keeper: somebody has to look after it.
    pub left_letter: bool,
    pub ring_queues: Vec<bool>,
    pub violation: Option<Violation>,
    pub deaf: Option<Deaf>,
}

impl Side {
    pub fn ring(&mut self, waiters: Waiters) {
        if waiters.none() || self.deaf == Some(Deaf::Claim) {
            return;
        }
        self.ring_drain |= waiters.contains(Waiter::DRAIN);
        for (queue, ring) in self.ring_queues.iter_mut().enumerate() {
            *ring |= waiters.contains(Waiter::queue(queue));
        }
    }

    pub fn ring_all_queues(&mut self) {
        self.ring_queues.fill(true);
    }

    pub fn tell_drain(&mut self, message: Message) {
        self.mailbox.push_back(message);
        self.ring_drain = true;
    }

    pub fn submit(&mut self, kind: IoKind, start: usize, count: usize) {
        self.submitted.push(Io { volume: self.volume, kind, start, count, done: 0, fate: Fate::Good });
    }

    fn breach(&mut self, promise: &'static str, text: String) {
        self.violation.get_or_insert(Violation::new(promise, text));
    }
}

/// One queue's view of its volume.
#[derive(Debug)]
pub struct Gate<'a> {
    pub side: &'a mut Side,
    pub queue: usize,
}

impl Gate<'_> {
    fn asked(&mut self, tag: Tag) -> Asked {
        self.side.asked[self.queue][usize::from(tag)].expect("a request of the host")
    }

    fn submit(&mut self, kind: IoKind, offset: u64, length: u64) {
        self.side.submit(kind, index(offset / SECTOR), index(length / SECTOR));
    }

    /// The part of the request that is asked for next is the one after what is done.
    fn check_part(&mut self, tag: Tag, offset: u64, length: u32, done: u32) {
        let asked = self.asked(tag);
        let (start, count) = (asked.start as u64 * SECTOR, asked.count as u64 * SECTOR);
        if offset != start + u64::from(done) || u64::from(done + length) != count {
            self.side.breach("P5", format!("a wrong part, {length} bytes at {offset}, of {asked:?}"));
        }
    }
}

impl QueueIo for Gate<'_> {
    fn read(&mut self, tag: Tag, offset: u64, length: u32, done: u32) {
        self.check_part(tag, offset, length, done);
        let kind = IoKind::HostRead { queue: self.queue, tag, done: index(u64::from(done) / SECTOR) };
        self.submit(kind, offset, u64::from(length));
    }

    fn write(&mut self, tag: Tag, offset: u64, length: u32, done: u32, durable: bool) {
        self.check_part(tag, offset, length, done);
        let asked = self.asked(tag);
        let What::Write { write, durable: wanted } = asked.what else {
            return self.side.breach("P5", format!("a write for {asked:?}"));
        };
        if wanted != durable {
            self.side.breach("P5", format!("FUA did not reach the primary: {asked:?}"));
        }
        let kind = IoKind::HostWrite { queue: self.queue, tag, write, zero: false };
        self.submit(kind, offset, u64::from(length));
    }

    fn flush(&mut self, tag: Tag) {
        if let Some(asked) = &mut self.side.asked[self.queue][usize::from(tag)] {
            asked.flushed = true;
        }
        let devices = &mut self.side.devices;
        devices.cache.begin_flush(Some((self.queue, tag)), &devices.primary);
        self.submit(IoKind::HostFlush { queue: self.queue, tag }, 0, 0);
    }

    fn zero(&mut self, tag: Tag, offset: u64, length: u32, _how: Zeroing) {
        self.check_part(tag, offset, length, 0);
        let asked = self.asked(tag);
        let What::Zero { write } = asked.what else {
            return self.side.breach("P5", format!("zeroes for {asked:?}"));
        };
        let kind = IoKind::HostWrite { queue: self.queue, tag, write, zero: true };
        self.submit(kind, offset, u64::from(length));
    }

    fn read_image(&mut self, tag: Tag, read: ImageRead) {
        let (done, length) = (u64::from(read.done), u64::from(read.length));
        self.submit(IoKind::ReadImage { queue: self.queue, tag, read }, read.offset + done, length - done);
    }

    fn complete(&mut self, tag: Tag, result: i32) {
        self.side.answers.push((self.queue, tag, result));
    }

    fn take_image(&mut self) -> Option<ImageNo> {
        self.side.devices.free_images.pop()
    }

    fn free_image(&mut self, image: ImageNo) {
        self.side.devices.free_images.push(image);
    }

    fn tell_drain(&mut self, message: Message) {
        if message != Message::Look || self.side.deaf != Some(Deaf::Finish) {
            self.side.tell_drain(message);
        }
    }

    fn tell_keeper(&mut self, message: intent::Message) {
        if message != intent::Message::Look {
            self.side.letters.push_back(message);
        }
        self.side.left_letter |= self.side.deaf != Some(Deaf::Letter);
    }

    fn wake(&mut self, waiters: Waiters) {
        self.side.ring(waiters);
    }

    fn now_us(&self) -> u64 {
        self.side.now_us
    }
}
