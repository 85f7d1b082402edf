//! The two sides of a queue: what the write path asks of it, and what it brings to the write path. The ublk queue is
//! one implementation of the first, the simulation's queue another; both bring the same to the same [`Handler`].

use super::request::{Request, Tag};
use crate::intent;
use crate::tracking::Waiters;
use crate::uploader::{ImageNo, ImageRead, Message};

/// How a range of the primary is to be made zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroing {
    /// The space may be given back.
    Punch,
    /// The space stays allocated.
    Keep,
}

/// What a queue can do for a request. Each submission is answered once, by the call that its comment names.
pub trait QueueIo {
    /// Reads into the tag's memory, from `done` bytes on; answered by [`Handler::primary_done`].
    fn read(&mut self, tag: Tag, offset: u64, length: u32, done: u32);
    /// Writes the tag's memory, from `done` bytes on; [`Handler::primary_done`].
    fn write(&mut self, tag: Tag, offset: u64, length: u32, done: u32, durable: bool);
    /// Makes every acknowledged write durable; [`Handler::primary_done`].
    fn flush(&mut self, tag: Tag);
    /// Makes a range zero; [`Handler::primary_done`].
    fn zero(&mut self, tag: Tag, offset: u64, length: u32, how: Zeroing);
    /// Reads the rest of a track of the primary into a before-image's memory; [`Handler::image_read`].
    fn read_image(&mut self, tag: Tag, read: ImageRead);
    /// Answers the host: the byte count or 0, or a negative errno.
    fn complete(&mut self, tag: Tag, result: i32);
    /// Memory for a before-image, if there is some left.
    fn take_image(&mut self) -> Option<ImageNo>;
    /// Gives the memory of a before-image back that was not handed to the drain.
    fn free_image(&mut self, image: ImageNo);
    fn tell_drain(&mut self, message: Message);
    fn tell_keeper(&mut self, message: intent::Message);
    /// Rings the doorbells of those who found a claim taken.
    fn wake(&mut self, waiters: Waiters);
    /// A monotonic clock in microseconds; asked only when a write has to wait.
    fn now_us(&self) -> u64;
}

/// What a queue brings.
pub trait Handler {
    /// A request has come.
    fn arrive(&mut self, tag: Tag, request: Request, io: &mut impl QueueIo);
    /// The primary has answered: a byte count, 0, or a negative errno.
    fn primary_done(&mut self, tag: Tag, result: i32, io: &mut impl QueueIo);
    /// The primary has answered the read of a before-image: a byte count, or a negative errno.
    fn image_read(&mut self, tag: Tag, read: ImageRead, result: i32, io: &mut impl QueueIo);
    /// The doorbell rang.
    fn rung(&mut self, io: &mut impl QueueIo);
    /// Whether a request is under way that has to be ended; those that only wait to begin have not.
    fn is_serving(&self) -> bool;
}
