//! The intent writes of one queue: a few at a time, each in memory of its own, on the queue's ring.

use super::intent_write::{IntentDesk, IntentWrite};
use crate::intent::{Message, RECORDS_UNDER_WAY_MAX};
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
    desk: Option<Arc<dyn IntentDesk>>,
    /// For the keeper, who reads them at the end of the turn; and whether there is more for it to look at.
    letters: Vec<Message>,
    answered: bool,
    places: Vec<Place>,
}

/// Room for a write, and the one under way there with how often it was repeated.
#[derive(Debug)]
struct Place {
    memory: Buffer,
    under_way: Option<(IntentWrite, u8)>,
}

/// What is to be submitted, and its place: to be given to [`IntentRequests::answered`].
pub(super) type Submission = (u16, squeue::Entry);

impl IntentRequests {
    /// Of a queue of this depth. Without a desk, or with one that no ring can write for, none is ever made.
    pub fn new(queue: u16, depth: u16, desk: Option<&Arc<dyn IntentDesk>>) -> Result<Self, MemoryError> {
        let desk = desk.filter(|desk| desk.raw_fd().is_some()).cloned();
        let pool = desk.as_ref().map(|desk| Pool::new(usize::from(RECORDS_UNDER_WAY_MAX), desk.bytes())).transpose()?;
        let memory = std::iter::from_fn(|| pool.as_ref()?.take());
        let places = memory.map(|memory| Place { memory, under_way: None }).collect();
        let letters = Vec::with_capacity(usize::from(depth));
        Ok(Self { queue: usize::from(queue), desk, letters, answered: false, places })
    }

    /// Takes a letter to the keeper; says whether it did. If not, nobody here would read it.
    pub fn take(&mut self, letter: Message) -> bool {
        if self.desk.is_some() {
            self.letters.push(letter);
        }
        self.desk.is_some()
    }

    /// At the end of a turn: what is to be submitted for this turn's letters, and whether parked writes may go on.
    pub fn attend(&mut self) -> (Option<Submission>, bool) {
        let answered = std::mem::take(&mut self.answered);
        let Some(desk) = self.desk.as_ref().filter(|_| answered || !self.letters.is_empty()) else {
            return (None, false);
        };
        let mut free = (0..).zip(&mut self.places).find(|(_, place)| place.under_way.is_none());
        let attended =
            desk.attend(self.queue, &mut self.letters, free.as_mut().map(|(_, place)| &mut place.memory[..]));
        let submission = attended.write.zip(free).map(|(write, (number, place))| {
            place.under_way = Some((write, 0));
            (number, entry(&write, &mut place.memory))
        });
        (submission, attended.rung)
    }

    /// The write in this place was answered: with a byte count, or a negative errno. Says what to submit if it is not
    /// done.
    pub fn answered(&mut self, number: u16, result: i32) -> Option<Submission> {
        let (desk, place) = (self.desk.as_ref()?, self.places.get_mut(usize::from(number))?);
        let (write, again) = place.under_way.take()?;
        let whole = u32::try_from(result) == Ok(write.length);
        // One that moved a part is repeated as a whole: the same bytes in the same place.
        let turned_away = result > 0 || result == -libc::EAGAIN || result == -libc::EINTR;
        if !whole && turned_away && again < AGAIN_MAX {
            place.under_way = Some((write, again + 1));
            return Some((number, entry(&write, &mut place.memory)));
        }
        let error = if result < 0 { io::Error::from_raw_os_error(-result) } else { io::ErrorKind::WriteZero.into() };
        desk.answer(write, if whole { Ok(()) } else { Err(error) });
        self.answered = true;
        None
    }

    /// Writes under way that nobody should wait for: their metadata has failed or hangs.
    pub fn hopeless(&self) -> usize {
        let under_way = self.places.iter().filter(|place| place.under_way.is_some()).count();
        if under_way > 0 && self.desk.as_ref().is_some_and(|desk| desk.is_hopeless()) { under_way } else { 0 }
    }

    /// The queue ends. Writes under way are given up, and their memory with them. That they may still land is harmless:
    /// a record only adds regions, and the file stays locked until they are answered (H23).
    pub fn leave(self) {
        for Place { memory, under_way } in self.places {
            if let Some(((write, _), desk)) = under_way.zip(self.desk.as_ref()) {
                std::mem::forget(memory);
                desk.answer(write, Err(io::Error::other("the queue that wrote it has ended")));
            }
        }
    }
}

fn entry(write: &IntentWrite, memory: &mut Buffer) -> squeue::Entry {
    let file = types::Fixed(u32::try_from(METADATA).unwrap_or(u32::MAX));
    let entry = opcode::Write::new(file, memory.as_mut_ptr(), write.length);
    entry.offset(write.offset).rw_flags(libc::RWF_DSYNC).build()
}

#[cfg(test)]
mod tests {
    use super::super::intent_write::Attended;
    use super::*;
    use crate::intent::{RegionNo, RegionRange};
    use std::os::fd::RawFd;
    use std::sync::Mutex;
    use std::time::Instant;

    const LENGTH: u32 = 8192;
    const LETTER: Message = Message::Want { queue: 0, regions: RegionRange { start: RegionNo(1), count: 1 } };

    /// Has a record to be written whenever there is memory for one.
    #[derive(Debug, Default)]
    struct Eager {
        begun: Mutex<u64>,
        answers: Mutex<Vec<(u64, bool)>>,
        hopeless: bool,
    }

    impl IntentDesk for Eager {
        fn raw_fd(&self) -> Option<RawFd> {
            Some(0)
        }

        fn bytes(&self) -> usize {
            LENGTH as usize
        }

        fn attend(&self, _: usize, letters: &mut Vec<Message>, memory: Option<&mut [u8]>) -> Attended {
            letters.clear();
            let write = memory.map(|memory| {
                let begun = &mut *self.begun.lock().expect("no panic");
                *begun += 1;
                assert!(memory.iter().all(|byte| *byte == 0), "in use");
                memory.fill(u8::try_from(*begun).expect("few"));
                IntentWrite { record: *begun, offset: 0, length: LENGTH, asked: Instant::now() }
            });
            Attended { write, rung: false }
        }

        fn answer(&self, write: IntentWrite, result: io::Result<()>) {
            self.answers.lock().expect("no panic").push((write.record, result.is_ok()));
        }

        fn is_hopeless(&self) -> bool {
            self.hopeless
        }
    }

    fn requests(desk: &Arc<Eager>) -> IntentRequests {
        let desk: Arc<dyn IntentDesk> = desk.clone();
        IntentRequests::new(0, 8, Some(&desk)).expect("memory")
    }

    fn place(submission: Option<Submission>) -> Option<u16> {
        submission.map(|(place, _)| place)
    }

    /// A turn with a cold write: the place of what is submitted.
    fn turn(requests: &mut IntentRequests) -> Option<u16> {
        assert!(requests.take(LETTER));
        place(requests.attend().0)
    }

    #[test]
    fn each_write_has_a_place_of_its_own_until_it_is_answered() {
        let desk = Arc::new(Eager::default());
        let mut requests = requests(&desk);
        let places: Vec<_> = (0..=RECORDS_UNDER_WAY_MAX).map(|_| turn(&mut requests)).collect();
        assert_eq!(places, [Some(0), Some(1), Some(2), Some(3), None]);
        // One that has moved a part, or was turned away, is asked for again in its place.
        for result in [512, -libc::EAGAIN, -libc::EINTR] {
            assert_eq!(place(requests.answered(2, result)), Some(2));
        }
        assert_eq!(place(requests.answered(2, 8192)), None);
        assert_eq!(place(requests.answered(1, -libc::EIO)), None);
        assert_eq!(*desk.answers.lock().expect("no panic"), [(3, true), (2, false)]);
        requests.places[1].memory.fill(0);
        requests.places[2].memory.fill(0);
        assert_eq!(place(requests.attend().0), Some(1), "an answer is reason enough to look");
        assert_eq!((place(requests.attend().0), turn(&mut requests)), (None, Some(2)));
    }

    #[test]
    fn a_write_that_is_turned_away_for_ever_fails() {
        let desk = Arc::new(Eager::default());
        let mut requests = requests(&desk);
        assert_eq!(turn(&mut requests), Some(0));
        let again = (0..100).take_while(|_| requests.answered(0, -libc::EAGAIN).is_some()).count();
        assert_eq!((again, &*desk.answers.lock().expect("no panic")), (16, &vec![(1, false)]));
    }

    #[test]
    fn whoever_leaves_gives_up_all_that_is_under_way() {
        for hopeless in [false, true] {
            let desk = Arc::new(Eager { hopeless, ..Eager::default() });
            let mut requests = requests(&desk);
            assert_eq!(requests.hopeless(), 0, "nothing is under way");
            for _ in 0..3 {
                turn(&mut requests);
            }
            assert!(requests.answered(1, 8192).is_none());
            assert_eq!(requests.hopeless(), if hopeless { 2 } else { 0 });
            requests.leave();
            assert_eq!(*desk.answers.lock().expect("no panic"), [(2, true), (1, false), (3, false)]);
        }
    }
}
