//! What the write path asks of a queue: requests to the primary, answers to the host, messages to others. The ublk queue
//! is one implementation, the simulation's queue another.

use super::request::Tag;
use crate::tracking::Waiters;
use crate::uploader::{ImageNo, Message};

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
    /// Reads into the tag's memory, from `done` bytes on; answered by [`Host::primary_done`].
    ///
    /// [`Host::primary_done`]: crate::volume::Host::primary_done
    fn read(&mut self, tag: Tag, offset: u64, length: u32, done: u32);
    /// Writes the tag's memory, from `done` bytes on; `primary_done`.
    fn write(&mut self, tag: Tag, offset: u64, length: u32, done: u32, durable: bool);
    /// Makes every acknowledged write durable; `primary_done`.
    fn flush(&mut self, tag: Tag);
    /// Makes a range zero; `primary_done`.
    fn zero(&mut self, tag: Tag, offset: u64, length: u32, how: Zeroing);
    /// Reads a track of the primary into a before-image's memory; answered by `image_read`.
    fn read_image(&mut self, tag: Tag, image: ImageNo, offset: u64, length: u64);
    /// Answers the host: the byte count or 0, or a negative errno.
    fn complete(&mut self, tag: Tag, result: i32);
    /// Memory for a before-image, if there is some left.
    fn take_image(&mut self) -> Option<ImageNo>;
    /// Gives the memory of a before-image back that was not handed to the drain.
    fn free_image(&mut self, image: ImageNo);
    fn tell_drain(&mut self, message: Message);
    /// Rings the doorbells of those who found a claim taken.
    fn wake(&mut self, waiters: Waiters);
    /// A monotonic clock in microseconds; asked only when a write has to wait.
    fn now_us(&self) -> u64;
}
