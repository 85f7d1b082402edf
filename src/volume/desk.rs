//! The keeper of a volume's intent behind a lock, for all who make its writes: a queue those that its cold writes wait
//! for, at once and on its own ring; the metadata thread all others. Nobody holds the lock while anything is written.
//!
//! **No letter is overlooked.** A queue reads its letters to the keeper itself, at the end of its turn, and comes back
//! after it has left the answer to one of its writes. If somebody else has the lock just then, who may have read the
//! mailbox before, it leaves them there and rings the thread, which takes the lock after that.

use crate::doorbell::Doorbell;
use crate::frontend::{Attended, IntentDesk, IntentWrite};
use crate::intent::{Figures, Keeper, Limits, LogStart, Mailbox, Message, Queues, Regions, Write};
use crate::metadata::area::{Extent, IntentArea, WRITE_BYTES_MAX};
use crate::metadata::layout::REGIONS_PER_PAGE;
use crate::metadata::media::Hot;
use crate::tracking::Tracking;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

/// Takes the news of a failed write.
pub type Told = Box<dyn FnOnce(&io::Error) + Send>;

/// The durable intent as it was found, and where it is kept.
pub struct Intent<'a> {
    pub area: IntentArea,
    /// In bytes.
    pub region_size: u64,
    /// The regions that media shows hot.
    pub hot: &'a Hot,
    pub log: LogStart,
    /// After a failed write of the metadata writes to cold regions wait until the volume goes down, instead of failing.
    pub suspend: bool,
    /// Told once, when that happens.
    pub failed: Told,
}

impl fmt::Debug for Intent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intent").field("region_size", &self.region_size).finish_non_exhaustive()
    }
}

/// Bounds of every keeper.
const HOT_MAX: u64 = 1024;
const IDLE_MS: u64 = 10_000;
const AHEAD: u64 = 8;
const BATCH: usize = 4096;

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct OnDesk {
    pub keeper: Keeper,
    /// Taken and not read yet.
    letters: Vec<Message>,
    /// The thread is to end.
    pub stopped: bool,
}

/// A volume's keeper, and whatever it works with.
pub(super) struct Desk {
    kept: Mutex<OnDesk>,
    pub regions: Arc<Regions>,
    pub tracking: Arc<Tracking>,
    pub area: IntentArea,
    pub mailbox: Arc<Mailbox>,
    pub bells: Arc<[Doorbell]>,
    /// Time 0 of all milliseconds.
    began: Instant,
    failure: Mutex<Failure>,
}

/// The first failed write, until it is told, and who wants to hear of it.
struct Failure {
    error: Option<io::Error>,
    told: Option<Told>,
}

impl Desk {
    pub fn new(
        intent: Intent<'_>,
        regions: Arc<Regions>,
        tracking: Arc<Tracking>,
        (mailbox, bells): (Arc<Mailbox>, Arc<[Doorbell]>),
        began: Instant,
    ) -> Self {
        let Intent { area, hot, log, suspend, failed, .. } = intent;
        let limits = Limits { hot_max: HOT_MAX, idle_ms: IDLE_MS, ahead: AHEAD, batch: BATCH, suspend };
        let keeper = Keeper::new(limits, &regions, REGIONS_PER_PAGE, hot.runs(), log);
        let kept = Mutex::new(OnDesk { keeper, letters: Vec::new(), stopped: false });
        let failure = Mutex::new(Failure { error: None, told: Some(failed) });
        Self { kept, regions, tracking, area, mailbox, bells, began, failure }
    }

    pub fn lock(&self) -> MutexGuard<'_, OnDesk> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the keeper what was taken already, and whatever lies in its mailbox.
    pub fn read_letters(&self, kept: &mut OnDesk) {
        self.mailbox.take(&mut kept.letters);
        for letter in kept.letters.drain(..) {
            kept.stopped |= letter == Message::Stop;
            kept.keeper.tell(letter, &self.regions, &self.tracking);
        }
    }

    /// What is to be written, in the memory that it is written from.
    pub fn put(&self, keeper: &Keeper, write: Write, memory: &mut [u8]) -> Option<Extent> {
        match write {
            Write::Page(page) => Some(self.area.page(page, keeper.page(page), memory)),
            Write::Record(number) => keeper.record(number).map(|record| self.area.record(record, memory)),
        }
    }

    /// Rings those whose writes may go on.
    pub fn ring(&self, queues: Queues) {
        for (queue, bell) in self.bells.iter().enumerate() {
            if queues.contains(queue) {
                bell.ring();
            }
        }
    }

    fn failure(&self) -> MutexGuard<'_, Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write has failed. The metadata thread tells of it: a log that nobody reads must not keep a queue (H26).
    pub fn fail(&self, error: io::Error) {
        self.failure().error.get_or_insert(error);
        self.mailbox.bell().ring();
    }

    /// Whoever wants to hear of the first failed write does, once. May block.
    pub fn tell_failure(&self) {
        let told = {
            let failure = &mut *self.failure();
            failure.error.take().and_then(|error| Some((error, failure.told.take()?)))
        };
        if let Some((error, told)) = told {
            told(&error);
        }
    }

    /// Says of itself, for status reports.
    pub fn figures(&self) -> Figures {
        self.lock().keeper.figures()
    }

    /// The next write that others wait for, in this memory, ready to be submitted.
    fn next_write(&self, keeper: &mut Keeper, memory: &mut [u8]) -> Option<IntentWrite> {
        let record = keeper.poll_waited()?;
        let Extent { offset, length } = self.put(keeper, Write::Record(record), memory)?;
        let Ok(asked) = self.area.asked() else {
            // Whoever had the error tells of it.
            keeper.written(Write::Record(record), false, &self.regions);
            return None;
        };
        Some(IntentWrite { record, offset, length: u32::try_from(length).unwrap_or(u32::MAX), asked })
    }
}

impl IntentDesk for Desk {
    fn raw_fd(&self) -> Option<RawFd> {
        self.area.raw_fd()
    }

    fn bytes(&self) -> usize {
        WRITE_BYTES_MAX
    }

    fn attend(&self, queue: usize, letters: &mut Vec<Message>, memory: Option<&mut [u8]>) -> Attended {
        let mut kept = match self.kept.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                letters.drain(..).for_each(|letter| self.mailbox.post(letter));
                self.mailbox.bell().ring();
                return Attended::default();
            }
        };
        kept.letters.append(letters);
        self.read_letters(&mut kept);
        let write = memory.and_then(|memory| self.next_write(&mut kept.keeper, memory));
        let (stopped, work) = (kept.stopped, kept.keeper.has_work(self.now_ms()));
        let mut wakes = kept.keeper.take_wakes();
        drop(kept);
        if stopped || work {
            self.mailbox.bell().ring();
        }
        let rung = wakes.remove(queue);
        self.ring(wakes);
        Attended { write, rung }
    }

    fn answer(&self, write: IntentWrite, result: io::Result<()>) {
        let result = self.area.answered(write.asked, result);
        self.mailbox.post(Message::Written { record: write.record, ok: result.is_ok() });
        if let Err(error) = result {
            self.fail(error);
        }
    }

    fn is_hopeless(&self) -> bool {
        self.regions.has_failed() || self.area.is_stalled()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("kept", &self.kept).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::told::intent;
    use super::*;
    use crate::geometry::Geometry;
    use crate::intent::{REGION_SIZE_DEFAULT, RegionNo, RegionRange};
    use crate::memory::Words;
    use crate::tracking::{Bitmap, Epoch};
    use std::sync::mpsc::Receiver;

    fn desk() -> (Desk, Receiver<String>) {
        let geometry = Geometry::new(3 * REGIONS_PER_PAGE * REGION_SIZE_DEFAULT, 1 << 20).expect("valid");
        let words = |count: u64| Words::new(usize::try_from(count).expect("small")).expect("memory");
        let bitmap = || Bitmap::new(geometry.tracks(), words(Bitmap::words_for(geometry.tracks())));
        let tracking = Arc::new(Tracking::new(geometry, 2, Arc::new(Epoch::new()), [bitmap(), bitmap()]));
        let regions = words(Regions::count_of(&geometry, REGION_SIZE_DEFAULT));
        let regions = Arc::new(Regions::new(geometry, REGION_SIZE_DEFAULT, regions));
        let bell = || Doorbell::new().expect("a bell");
        let mail = (Arc::new(Mailbox::new(8).expect("a bell")), Arc::from([bell(), bell()]));
        let (_, intent, failures) = intent(&geometry, false, 4);
        (Desk::new(intent, regions, tracking, mail, Instant::now()), failures)
    }

    fn want(desk: &Desk, queue: usize, region: u64) -> (RegionRange, Message) {
        let regions = RegionRange { start: RegionNo(region), count: 1 };
        desk.regions.pin(regions);
        (regions, Message::Want { queue, regions })
    }

    fn attend(desk: &Desk, queue: usize, letters: &[Message]) -> Attended {
        let mut letters = letters.to_vec();
        let attended = desk.attend(queue, &mut letters, Some(&mut vec![0; desk.bytes()]));
        assert!(letters.is_empty(), "read, or left for who reads them");
        attended
    }

    #[test]
    fn a_queue_has_its_own_intent_and_that_of_others_written() {
        let (desk, _) = desk();
        let mut memory = vec![0; desk.bytes()];
        let ((mine, letter), (other, left)) = (want(&desk, 0, 1), want(&desk, 1, REGIONS_PER_PAGE));
        desk.mailbox.post(left);
        let attended = desk.attend(0, &mut vec![letter], Some(&mut memory));
        let write = attended.write.expect("a record");
        assert_eq!((write.record, write.length, attended.rung), (1, 8192, false));
        assert_eq!(memory[..64], memory[4096..4160], "a record is written twice");
        // What comes meanwhile does not wait for it to be answered.
        let (late, letter) = want(&desk, 1, 5);
        let second = attend(&desk, 1, &[letter]).write.expect("a record of its own");
        assert!(!desk.regions.all_hot(mine) && !desk.mailbox.bell().is_rung(), "the thread has nothing to do");
        desk.answer(write, Ok(()));
        let attended = attend(&desk, 0, &[]);
        assert!(attended.rung && desk.regions.all_hot(mine) && desk.regions.all_hot(other));
        assert!(!desk.regions.all_hot(late) && attended.write.is_none());
        assert_eq!([0, 1].map(|queue| desk.bells[queue].is_rung()), [false, true], "who asks is told, others are rung");
        desk.answer(second, Ok(()));
        assert!(attend(&desk, 1, &[]).rung && desk.regions.all_hot(late));
    }

    #[test]
    fn who_finds_somebody_else_at_it_rings_the_thread() {
        let (desk, _) = desk();
        let (_, letter) = want(&desk, 0, 1);
        let kept = desk.lock();
        assert!(attend(&desk, 0, &[letter]).write.is_none());
        assert!(desk.mailbox.bell().is_rung());
        drop(kept);
        assert!(attend(&desk, 0, &[]).write.is_some(), "what was left is read");
    }

    #[test]
    fn a_failed_write_is_told_and_nothing_is_written_any_more() {
        let (desk, failures) = desk();
        let (cold, letter) = want(&desk, 0, 1);
        let write = attend(&desk, 0, &[letter]).write.expect("a record");
        desk.answer(write, Err(io::Error::other("worn out")));
        assert!(failures.try_recv().is_err() && desk.mailbox.bell().is_rung(), "that is the thread's");
        desk.tell_failure();
        assert_eq!(failures.try_recv().expect("told"), "worn out");
        let attended = attend(&desk, 0, &[]);
        assert!(attended.rung && attended.write.is_none() && desk.is_hopeless() && !desk.regions.all_hot(cold));
        let (_, letter) = want(&desk, 0, 9);
        let attended = attend(&desk, 0, &[letter]);
        assert!(attended.rung && attended.write.is_none(), "whoever comes later must not wait for ever either");
        desk.fail(io::Error::other("still"));
        desk.tell_failure();
        assert!(failures.try_recv().is_err(), "once");
    }
}
