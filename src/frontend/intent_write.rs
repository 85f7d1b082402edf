//! How a queue has the intent of its own cold writes made durable without waking anybody: it asks the desk for the
//! write that they wait for, and makes it on its own ring, beside its other requests.

use crate::intent::Message;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

/// A record of the intent's log to be written, in the memory that was given for it.
#[derive(Debug, Clone, Copy)]
pub struct IntentWrite {
    /// Its number.
    pub record: u64,
    pub offset: u64,
    pub length: u32,
    /// When it was asked for.
    pub asked: Instant,
}

/// What came of looking after the keeper.
#[derive(Debug, Default)]
pub struct Attended {
    /// To be submitted now, durably, and answered with [`IntentDesk::answer`].
    pub write: Option<IntentWrite>,
    /// Writes of the queue that asked may go on. Others have been rung.
    pub rung: bool,
}

/// The keeper of the intent, for queues.
pub trait IntentDesk: fmt::Debug + Send + Sync {
    /// The metadata, for the ring's fixed files; `None` if no ring can write there.
    fn raw_fd(&self) -> Option<RawFd>;
    /// Memory that a write takes, in bytes.
    fn bytes(&self) -> usize;
    /// Reads these letters to the keeper, and those that others have left, and says what is to be written now, in
    /// `memory`; without memory, because all that the queue has is in use, it only reads. Never waits: if somebody
    /// else has the lock, the letters are left, and the metadata thread is rung.
    fn attend(&self, queue: usize, letters: &mut Vec<Message>, memory: Option<&mut [u8]>) -> Attended;
    /// The write was answered, or is given up, which is an error. To be followed by [`Self::attend`], if there is still
    /// a queue to do so: the error rings.
    fn answer(&self, write: IntentWrite, result: io::Result<()>);
    /// Whether the metadata has failed or hangs, so that nobody should wait for a write there.
    fn is_hopeless(&self) -> bool;
}
