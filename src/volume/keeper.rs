//! The metadata thread of a volume: makes the writes of the intent that no host write waits for, and those that no
//! queue has made itself. It decides nothing. It sleeps on its bell, and in the writes.
//!
//! Pages that are to be written at the same time are written together, with one flush, those side by side in one write;
//! what is wanted meanwhile goes with the next record of the log (group commit).

use super::VolumeError;
use super::desk::{Desk, Intent};
use crate::doorbell::Doorbell;
use crate::frontend::IntentDesk;
use crate::intent::{Figures, Mailbox, Message, Op, REGION_SIZE_DEFAULT, Regions, Write};
use crate::memory::{Buffer, Pool, Words};
use crate::metadata::area::{Extent, WRITE_BYTES_MAX};
use crate::storage::process;
use crate::tracking::Tracking;
use crate::uploader;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest sleep, in milliseconds.
const SLEEP_MS_MAX: u64 = 10_000;
/// Most writes that are made together; not too many, so that whoever waits for room in the log goes on meanwhile.
const TOGETHER: usize = 32;
/// How often a stop looks after writes that wait for their intent.
const ATTEND: Duration = Duration::from_millis(100);

/// How the volume's threads reach each other.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    pub drain: Arc<uploader::Mailbox>,
    pub keeper: Arc<Mailbox>,
    /// One per queue.
    pub bells: Arc<[Doorbell]>,
    /// Time 0 of all times.
    pub began: Instant,
}

/// The regions of a volume, and who keeps their intent.
#[derive(Debug)]
pub(super) struct Kept {
    pub regions: Arc<Regions>,
    mail: Mail,
    /// None if no intent is kept: then every region passes for hot.
    desk: Option<Arc<Desk>>,
    thread: Option<JoinHandle<()>>,
}

impl Kept {
    pub fn start(
        name: &str,
        intent: Option<Intent<'_>>,
        tracking: &Arc<Tracking>,
        mail: Mail,
    ) -> Result<Self, VolumeError> {
        let geometry = *tracking.geometry();
        let region_size = intent.as_ref().map_or(REGION_SIZE_DEFAULT, |intent| intent.region_size);
        let words = usize::try_from(Regions::count_of(&geometry, region_size)).unwrap_or(usize::MAX);
        let regions = Arc::new(Regions::new(geometry, region_size, Words::new(words)?));
        let mut kept = Self { regions: regions.clone(), mail, desk: None, thread: None };
        let Some(intent) = intent else {
            regions.heat_all();
            return Ok(kept);
        };
        let mail = kept.mail.clone();
        let desk = Desk::new(intent, regions, tracking.clone(), (mail.keeper, mail.bells), mail.began);
        let desk = Arc::new(desk);
        let mut thread = Thread { desk: desk.clone(), drain: mail.drain, memory: memory()?, doubted: false };
        kept.desk = Some(desk);
        let thread = thread::Builder::new().name(format!("{name}-intent")).spawn(move || thread.run());
        kept.thread = Some(thread.map_err(VolumeError::Keeper)?);
        Ok(kept)
    }

    /// For the queues.
    pub fn desk(&self) -> Option<Arc<dyn IntentDesk>> {
        self.desk.clone().map(|desk| desk as Arc<dyn IntentDesk>)
    }

    /// What the keeper says of itself.
    pub fn figures(&self) -> Figures {
        self.desk.as_ref().map(|desk| desk.figures()).unwrap_or_default()
    }

    fn hangs(&self) -> bool {
        self.desk.as_ref().is_some_and(|desk| desk.area.is_stalled())
    }

    /// Calls `stop`, which waits for every write of the host, and sees to it that none waits for its intent for ever:
    /// where metadata hangs, or has failed and writes wait for that to be mended, they get an error now.
    pub fn while_attended<T>(&self, stop: impl FnOnce() -> T) -> T {
        let stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(SeqCst) {
                    if self.regions.has_failed() || self.hangs() {
                        self.regions.fail(false);
                        self.mail.bells.iter().for_each(Doorbell::ring);
                    }
                    thread::park_timeout(ATTEND);
                }
            });
            let result = stop();
            stopped.store(true, SeqCst);
            result
        })
    }

    /// Ends the thread. An error if media may lack what it should show.
    pub fn stop(mut self) -> Result<(), VolumeError> {
        self.mail.keeper.tell(Message::Stop);
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                if self.hangs() {
                    // It ends when the device answers; until then it keeps the metadata locked (H23).
                    return Err(VolumeError::MetadataStalled);
                }
                thread::sleep(ATTEND / 10);
            }
            thread.join().map_err(|_| VolumeError::Metadata)?;
        }
        if self.regions.is_in_doubt() {
            return Err(VolumeError::Doubt);
        }
        if self.regions.has_failed() { Err(VolumeError::Metadata) } else { Ok(()) }
    }
}

impl Drop for Kept {
    /// The volume could not be made: nobody waits for the thread.
    fn drop(&mut self) {
        self.mail.keeper.tell(Message::Stop);
    }
}

/// Memory for the writes that are made together, one behind the other.
fn memory() -> Result<Buffer, VolumeError> {
    let pool = Pool::new(1, TOGETHER * WRITE_BYTES_MAX)?;
    Ok(pool.take().expect("a pool that nobody has taken from"))
}

/// Whatever the thread works with.
struct Thread {
    desk: Arc<Desk>,
    drain: Arc<uploader::Mailbox>,
    memory: Buffer,
    doubted: bool,
}

impl Thread {
    /// Runs until it is told to stop.
    fn run(&mut self) {
        process::become_io_flusher().unwrap_or_else(|error| {
            tracing::warn!("the metadata thread may have to wait for memory: {error}");
        });
        let desk = self.desk.clone();
        let mut writes = Vec::with_capacity(TOGETHER);
        loop {
            // The bell before the letters: one that comes after they were taken rings again.
            desk.mailbox.bell().answer();
            let mut kept = desk.lock();
            desk.read_letters(&mut kept);
            if kept.stopped {
                drop(kept);
                return desk.tell_failure();
            }
            let now = desk.now_ms();
            let (mut grace, mut alone, mut used) = (None, false, 0);
            while writes.len() < TOGETHER && grace.is_none() && !alone {
                match kept.keeper.poll(now, &desk.regions, &desk.tracking) {
                    None => break,
                    Some(Op::Grace(id)) => grace = Some(id),
                    Some(Op::Write(write)) => {
                        let extent = desk.put(&kept.keeper, write, &mut self.memory[used..]);
                        used += extent.map_or(0, |extent| extent.length);
                        writes.extend(extent.map(|extent| (write, extent)));
                        // Who waits for a record does not wait for pages as well.
                        alone = matches!(write, Write::Record(_));
                    }
                }
            }
            let (wakes, wake_at) = (kept.keeper.take_wakes(), kept.keeper.wake_at(now));
            drop(kept);
            desk.ring(wakes);
            desk.tell_failure();
            self.say_doubt();
            if let Some(id) = grace {
                self.drain.tell(uploader::Message::Grace(id));
            } else if writes.is_empty() {
                let until = wake_at.unwrap_or(u64::MAX);
                desk.mailbox.bell().wait(until.saturating_sub(now).min(SLEEP_MS_MAX));
            }
            self.write(&mut writes);
        }
    }

    /// Makes these writes, and tells the keeper.
    fn write(&mut self, writes: &mut Vec<(Write, Extent)>) {
        if writes.is_empty() {
            return;
        }
        let result = self.store(writes);
        let ok = result.is_ok();
        if let Err(error) = result {
            self.desk.fail(error);
        }
        let mut kept = self.desk.lock();
        for (write, _) in writes.drain(..) {
            kept.keeper.written(write, ok, &self.desk.regions);
        }
        let wakes = kept.keeper.take_wakes();
        drop(kept);
        self.desk.ring(wakes);
    }

    /// Durable when it returns. The memory holds these writes in their order.
    fn store(&self, writes: &[(Write, Extent)]) -> io::Result<()> {
        let area = &self.desk.area;
        let mut memory = &self.memory[..];
        let side_by_side = writes.chunk_by(|(_, one), (_, next)| one.offset + one.length as u64 == next.offset);
        let mut runs = side_by_side
            .map(|run| {
                let (bytes, rest) = memory.split_at(run.iter().map(|(_, extent)| extent.length).sum());
                memory = rest;
                (run[0].1.offset, bytes)
            })
            .peekable();
        match (runs.next(), runs.peek()) {
            (Some((offset, bytes)), None) => area.write(offset, bytes),
            (first, _) => {
                first.into_iter().chain(runs).try_for_each(|(offset, bytes)| area.write_lazily(offset, bytes))?;
                area.flush()
            }
        }
    }

    fn say_doubt(&mut self) {
        if self.desk.regions.is_in_doubt() && !std::mem::replace(&mut self.doubted, true) {
            tracing::error!(
                "a flush of the primary has failed, so that it may have lost what it acknowledged; check it: until the \
                 volume comes up again no region is cleared, and it cannot be stopped cleanly"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::told::{Asked, Told, intent};
    use super::*;
    use crate::geometry::Geometry;
    use crate::intent::{PageNo, RegionNo, RegionRange};
    use crate::metadata::layout::REGIONS_PER_PAGE;
    use crate::tracking::{Bitmap, Epoch};
    use std::sync::mpsc::Receiver;

    const REGION: RegionRange = RegionRange { start: RegionNo(1), count: 1 };
    /// What the regions of a page are of a volume.
    const PAGE_SIZE: u64 = REGIONS_PER_PAGE * REGION_SIZE_DEFAULT;

    struct Bench {
        kept: Kept,
        told: Arc<Told>,
        failures: Receiver<String>,
    }

    fn bench(suspend: bool, log_slots: u32) -> Bench {
        let geometry = Geometry::new(5 * PAGE_SIZE, 1 << 20).expect("valid");
        let words = |count: u64| Words::new(usize::try_from(count).expect("small")).expect("memory");
        let bitmap = || Bitmap::new(geometry.tracks(), words(Bitmap::words_for(geometry.tracks())));
        let tracking = Arc::new(Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()]));
        let mail = Mail {
            drain: Arc::new(uploader::Mailbox::new(8).expect("a bell")),
            keeper: Arc::new(Mailbox::new(8).expect("a bell")),
            bells: Arc::new([Doorbell::new().expect("a bell")]),
            began: Instant::now(),
        };
        let (told, intent, failures) = intent(&geometry, suspend, log_slots);
        let kept = Kept::start("test", Some(intent), &tracking, mail).expect("a thread");
        Bench { kept, told, failures }
    }

    impl Bench {
        /// A write arrives that finds its region cold.
        fn want(&self, regions: RegionRange) {
            assert!(!self.kept.regions.pin(regions).hot);
            self.kept.mail.keeper.tell(Message::Want { queue: 0, regions });
        }

        fn wait_for_bell(&self) {
            self.kept.mail.bells[0].wait(10_000);
            self.kept.mail.bells[0].answer();
        }

        /// Two more, to the first regions of other pages, that come while the first is named.
        fn want_more_during_the_first(&self, pages: [u64; 2]) -> [RegionRange; 2] {
            self.want(REGION);
            assert_eq!(self.told.asked(), Asked::Record(1, vec![RegionNo(1)]));
            let more = pages.map(|page| RegionRange { start: RegionNo(page * REGIONS_PER_PAGE), count: 1 });
            for regions in more {
                self.want(regions);
            }
            more
        }

        fn await_hot(&self, wanted: &[RegionRange]) {
            while !wanted.iter().all(|regions| self.kept.regions.all_hot(*regions)) {
                self.wait_for_bell();
            }
        }
    }

    #[test]
    fn a_write_goes_on_when_its_record_is_written() {
        let bench = bench(false, 4);
        bench.want(REGION);
        assert_eq!(bench.told.asked(), Asked::Record(1, vec![RegionNo(1)]));
        assert!(!bench.kept.regions.all_hot(REGION), "not while the record is being written");
        bench.told.answer(Ok(()));
        bench.wait_for_bell();
        assert!(bench.kept.regions.all_hot(REGION));
        bench.kept.stop().expect("clean");
    }

    /// Pages of the intent have to be written because the log is full, those of these regions together.
    fn full_log(pages: [u64; 2], together: Vec<Asked>) -> Bench {
        let bench = bench(false, 2);
        let later = bench.want_more_during_the_first(pages);
        let named = Asked::Record(2, later.map(|regions| regions.start).to_vec());
        for asked in [Asked::Write(PageNo(0), vec![0b10]), named] {
            bench.told.answer(Ok(()));
            assert_eq!(bench.told.asked(), asked);
            assert!(later.iter().all(|regions| !bench.kept.regions.all_hot(*regions)), "not before they are named");
        }
        for asked in together {
            bench.told.answer(Ok(()));
            assert_eq!(bench.told.asked(), asked);
            bench.await_hot(&later);
        }
        bench
    }

    #[test]
    fn pages_that_keep_the_log_full_are_written_with_one_flush() {
        let [one, other] = [1, 3].map(|page| Asked::WriteLazily(PageNo(page), vec![1]));
        let bench = full_log([1, 3], vec![one, other, Asked::Flush]);
        bench.told.answer(Ok(()));
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn pages_side_by_side_are_one_write() {
        let bench = full_log([3, 2], vec![Asked::Write(PageNo(2), vec![1, 1])]);
        bench.told.answer(Ok(()));
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn a_flush_that_fails_is_told_like_a_write() {
        let [one, other] = [1, 3].map(|page| Asked::WriteLazily(PageNo(page), vec![1]));
        let bench = full_log([1, 3], vec![one, other, Asked::Flush]);
        bench.told.answer(Err(io::Error::other("worn out")));
        assert_eq!(bench.failures.recv().expect("told"), "worn out");
        assert!(bench.kept.regions.refuses());
        assert!(matches!(bench.kept.stop(), Err(VolumeError::Metadata)));
    }

    #[test]
    fn what_comes_while_a_record_is_written_is_named_in_the_next() {
        let bench = bench(false, 4);
        let later = bench.want_more_during_the_first([1, 2]);
        bench.told.answer(Ok(()));
        assert_eq!(bench.told.asked(), Asked::Record(2, later.map(|regions| regions.start).to_vec()));
        assert!(later.iter().all(|regions| !bench.kept.regions.all_hot(*regions)), "not before it is durable");
        bench.told.answer(Ok(()));
        bench.await_hot(&later);
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn a_failed_write_is_told_once_and_no_stop_is_clean_after_it() {
        for suspend in [false, true] {
            let bench = bench(suspend, 4);
            bench.want(REGION);
            bench.told.asked();
            bench.told.answer(Err(io::Error::other("worn out")));
            bench.wait_for_bell();
            assert_eq!(bench.failures.recv().expect("told"), "worn out");
            assert_eq!(bench.kept.regions.refuses(), !suspend);
            // Whoever is suspended gets its error when the volume goes down.
            bench.kept.while_attended(|| {
                if suspend {
                    bench.wait_for_bell();
                }
            });
            assert!(bench.kept.regions.refuses() && !bench.kept.regions.all_hot(REGION));
            assert!(matches!(bench.kept.stop(), Err(VolumeError::Metadata)));
        }
    }
}
