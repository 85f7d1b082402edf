//! The intent writes of one queue: at most one at a time, in memory of its own, on the queue's ring.

use super::intent_write::{IntentDesk, IntentWrite};
use crate::intent::Message;
use crate::memory::{Buffer, MemoryError, Pool};
use io_uring::{opcode, squeue, types};
use std::io;
use std::sync::Arc;

/// The metadata among the ring's fixed files.
pub(super) const METADATA: usize = 2;
/// A write that the metadata turns away for now is repeated this often before it fails.
const AGAIN_MAX: u8 = 16;

/// A queue's part in keeping the intent.
#[derive(Debug)]
pub(super) struct IntentRequests {
    queue: usize,
    desk: Option<(Arc<dyn IntentDesk>, Buffer)>,
    /// For the keeper, who reads them at the end of the turn; and whether there is more for it to look at.
    letters: Vec<Message>,
    answered: bool,
    under_way: Option<(IntentWrite, u8)>,
}

impl IntentRequests {
    /// Of a queue of this depth. Without a desk, or with one that no ring can write for, none is ever made.
    pub fn new(queue: u16, depth: u16, desk: Option<&Arc<dyn IntentDesk>>) -> Result<Self, MemoryError> {
        let desk = desk.filter(|desk| desk.raw_fd().is_some()).map(|desk| {
            let memory = Pool::new(1, desk.bytes())?.take();
            Ok(memory.map(|memory| (desk.clone(), memory)))
        });
        let desk = desk.transpose()?.flatten();
        let letters = Vec::with_capacity(usize::from(depth));
        Ok(Self { queue: usize::from(queue), desk, letters, answered: false, under_way: None })
    }

    /// Takes a letter to the keeper; says whether it did. If not, nobody here would read it.
    pub fn take(&mut self, letter: Message) -> bool {
        if self.desk.is_some() {
            self.letters.push(letter);
        }
        self.desk.is_some()
    }

    /// At the end of a turn: what is to be submitted for this turn's letters, and whether parked writes may go on.
    pub fn attend(&mut self) -> (Option<squeue::Entry>, bool) {
        let answered = std::mem::take(&mut self.answered);
        let Some((desk, memory)) = self.desk.as_mut().filter(|_| answered || !self.letters.is_empty()) else {
            return (None, false);
        };
        let room = if self.under_way.is_none() { Some(&mut memory[..]) } else { None };
        let attended = desk.attend(self.queue, &mut self.letters, room);
        let entry = attended.write.map(|write| {
            self.under_way = Some((write, 0));
            entry(&write, memory)
        });
        (entry, attended.rung)
    }

    /// The write under way was answered: with a byte count, or a negative errno. Says what to submit if it is not done.
    pub fn answered(&mut self, result: i32) -> Option<squeue::Entry> {
        let ((write, again), (desk, memory)) = (self.under_way.take()?, self.desk.as_mut()?);
        let whole = u32::try_from(result) == Ok(write.length);
        // One that moved a part is repeated as a whole: the same bytes in the same place.
        let turned_away = result > 0 || result == -libc::EAGAIN || result == -libc::EINTR;
        if !whole && turned_away && again < AGAIN_MAX {
            self.under_way = Some((write, again + 1));
            return Some(entry(&write, memory));
        }
        let error = if result < 0 { io::Error::from_raw_os_error(-result) } else { io::ErrorKind::WriteZero.into() };
        desk.answer(write, if whole { Ok(()) } else { Err(error) });
        self.answered = true;
        None
    }

    /// Whether nobody should wait for the write under way: its metadata has failed or hangs.
    pub fn is_hopeless(&self) -> bool {
        self.under_way.is_some() && self.desk.as_ref().is_some_and(|(desk, _)| desk.is_hopeless())
    }

    /// The queue ends. A write under way is given up, and its memory with it. That it may still land is harmless: a
    /// record only adds regions, a page shows what was true when it was submitted and nothing is written that it lacks,
    /// and the file stays locked until it is answered (H23).
    pub fn leave(mut self) {
        if let Some(((write, _), (desk, memory))) = self.under_way.take().zip(self.desk.take()) {
            std::mem::forget(memory);
            desk.answer(write, Err(io::Error::other("the queue that wrote it has ended")));
        }
    }
}

fn entry(write: &IntentWrite, memory: &mut Buffer) -> squeue::Entry {
    let file = types::Fixed(u32::try_from(METADATA).unwrap_or(u32::MAX));
    let entry = opcode::Write::new(file, memory.as_mut_ptr(), write.length);
    entry.offset(write.offset).rw_flags(libc::RWF_DSYNC).build()
}
