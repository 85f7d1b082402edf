//! The metadata thread of a volume: carries out what the keeper of the intent decides. It decides nothing itself. It
//! sleeps on its bell, and in the page writes, which only writes to cold regions wait for.
//!
//! Pages that are to be written at the same time are written together, with one flush; what is wanted meanwhile goes
//! with the next write of its page, or with the next record of the log (group commit).

use super::VolumeError;
use crate::doorbell::Doorbell;
use crate::frontend::Shared;
use crate::intent::{
    Figures, Keeper, Limits, LogStart, Message, Op, PageNo, Queues, REGION_SIZE_DEFAULT, Record, Regions,
};
use crate::memory::Words;
use crate::metadata::STALL;
use crate::metadata::layout::REGIONS_PER_PAGE;
use crate::metadata::pages::IntentArea;
use crate::storage::process;
use crate::tracking::Tracking;
use crate::uploader;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest sleep, in milliseconds.
const SLEEP_MS_MAX: u64 = 10_000;

/// Where the pages of the intent and its log lie.
pub trait Pages: Send {
    /// Writes a page; durable when it returns. Blocks.
    fn write(&self, page: PageNo, words: &[u64]) -> io::Result<()>;
    /// Writes a page that is durable after the next flush. Blocks.
    fn write_lazily(&self, page: PageNo, words: &[u64]) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
    /// Writes a record of the log; durable when it returns. Blocks.
    fn write_record(&self, record: &Record) -> io::Result<()>;
}

/// The durable intent as it was found, and where it is kept.
pub struct Intent {
    pub pages: Box<dyn Pages>,
    /// In bytes.
    pub region_size: u64,
    /// One bit for each region that media shows hot.
    pub hot: Vec<u64>,
    pub log: LogStart,
    /// After a failed write of the metadata writes to cold regions wait until the volume goes down, instead of failing.
    pub suspend: bool,
    /// Told once, when that happens.
    pub failed: Box<dyn FnOnce(&io::Error) + Send>,
}

impl fmt::Debug for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intent").field("region_size", &self.region_size).finish_non_exhaustive()
    }
}

impl Pages for IntentArea {
    fn write(&self, page: PageNo, words: &[u64]) -> io::Result<()> {
        Self::write(self, page.0, words)
    }

    fn write_lazily(&self, page: PageNo, words: &[u64]) -> io::Result<()> {
        Self::write_lazily(self, page.0, words)
    }

    fn flush(&self) -> io::Result<()> {
        Self::flush(self)
    }

    fn write_record(&self, record: &Record) -> io::Result<()> {
        Self::write_record(self, record)
    }
}

/// What the thread says of itself.
#[derive(Debug, Default)]
pub struct IntentStatus {
    figures: Mutex<Figures>,
    /// When the request under way began, in milliseconds of the daemon's clock and 1; 0 without one.
    writing_since_ms: AtomicU64,
}

impl IntentStatus {
    pub fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request takes so long that nobody should wait for it any more.
    pub fn hangs(&self, began: Instant) -> bool {
        let since_ms = self.writing_since_ms.load(SeqCst);
        since_ms != 0 && Duration::from_millis(now_ms(began).saturating_sub(since_ms)) > STALL
    }
}

/// Bounds of every keeper.
const HOT_MAX: u64 = 1024;
const IDLE_MS: u64 = 10_000;
const AHEAD: u64 = 8;
const BATCH: usize = 4096;
/// Most pages that are written together. A few, so that writes that wait for them go on while the next are written.
const TOGETHER: usize = 16;

/// The regions of a volume, and the thread that keeps their intent.
#[derive(Debug)]
pub(super) struct Kept {
    pub regions: Arc<Regions>,
    pub status: Arc<IntentStatus>,
    shared: Arc<Shared>,
    /// None if no intent is kept: then every region passes for hot.
    thread: Option<JoinHandle<()>>,
}

impl Kept {
    pub fn start(
        name: &str,
        intent: Option<Intent>,
        tracking: &Arc<Tracking>,
        shared: &Arc<Shared>,
    ) -> Result<Self, VolumeError> {
        let geometry = *tracking.geometry();
        let region_size = intent.as_ref().map_or(REGION_SIZE_DEFAULT, |intent| intent.region_size);
        let words = usize::try_from(Regions::count_of(&geometry, region_size)).unwrap_or(usize::MAX);
        let regions = Arc::new(Regions::new(geometry, region_size, Words::new(words)?));
        let mut kept = Self { regions: regions.clone(), status: Arc::default(), shared: shared.clone(), thread: None };
        let Some(Intent { pages, hot, log, suspend, failed, .. }) = intent else {
            regions.heat_all();
            return Ok(kept);
        };
        let limits = Limits {
            hot_max: HOT_MAX,
            idle_ms: IDLE_MS,
            ahead: AHEAD,
            batch: BATCH,
            suspend,
        };
        let keeper = Keeper::new(limits, &regions, REGIONS_PER_PAGE, &hot, log);
        let (tracking, shared, status) = (tracking.clone(), shared.clone(), kept.status.clone());
        let parts = Parts { keeper, regions, tracking, pages, shared, status, failed };
        let thread = thread::Builder::new().name(format!("{name}-intent")).spawn(move || run(parts));
        kept.thread = Some(thread.map_err(VolumeError::Keeper)?);
        Ok(kept)
    }

    /// Calls `stop`, which waits for every write of the host, and sees to it that none waits for its intent for ever:
    /// where metadata hangs, or has failed and writes wait for that to be mended, they get an error now.
    pub fn while_attended<T>(&self, stop: impl FnOnce() -> T) -> T {
        let stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(SeqCst) {
                    if self.regions.has_failed() || self.status.hangs(self.shared.began) {
                        self.regions.fail(false);
                        self.shared.ring_all();
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
        self.shared.keeper.tell(Message::Stop);
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                if self.status.hangs(self.shared.began) {
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
        self.shared.keeper.tell(Message::Stop);
    }
}

/// How often a stop looks after writes that wait for their intent.
const ATTEND: Duration = Duration::from_millis(100);

/// Whatever the thread works with.
struct Parts {
    pub keeper: Keeper,
    pub regions: Arc<Regions>,
    pub tracking: Arc<Tracking>,
    pub pages: Box<dyn Pages>,
    /// Its mailbox, the drain's, and the queues' bells.
    pub shared: Arc<Shared>,
    pub status: Arc<IntentStatus>,
    /// Told once, when a page could not be written.
    pub failed: Box<dyn FnOnce(&io::Error) + Send>,
}

/// Runs until it is told to stop.
fn run(parts: Parts) {
    process::become_io_flusher().unwrap_or_else(|error| {
        tracing::warn!("the metadata thread may have to wait for memory: {error}");
    });
    let Parts { mut keeper, regions, tracking, pages, shared, status, failed } = parts;
    let (began, mut failed, mut doubted) = (shared.began, Some(failed), false);
    let (mut messages, mut together) = (Vec::new(), Vec::with_capacity(TOGETHER));
    loop {
        // The bell before the letters: one that comes after they were taken rings again.
        shared.keeper.bell().answer();
        shared.keeper.take(&mut messages);
        let stop = messages.contains(&Message::Stop);
        for message in messages.drain(..) {
            keeper.tell(message, &regions, &tracking);
        }
        if stop {
            return;
        }
        if regions.is_in_doubt() && !doubted {
            doubted = true;
            tracing::error!(
                "a flush of the primary has failed, so that it may have lost what it acknowledged; check it: until the \
                 volume comes up again no region is cleared, and it cannot be stopped cleanly"
            );
        }
        let now = now_ms(began);
        let mut op = keeper.poll(now, &regions, &tracking);
        while let Some(Op::Write(page)) = op {
            together.push(page);
            op = if together.len() < TOGETHER { keeper.poll(now, &regions, &tracking) } else { None };
        }
        ring(keeper.take_wakes(), &shared.bells);
        if let Some(Op::Grace(id)) = op {
            shared.drain.tell(uploader::Message::Grace(id));
        } else if op.is_none() && together.is_empty() {
            *status.figures.lock().unwrap_or_else(PoisonError::into_inner) = keeper.figures();
            let until = keeper.wake_at(now).unwrap_or(u64::MAX);
            shared.keeper.bell().wait(until.saturating_sub(now).min(SLEEP_MS_MAX));
            continue;
        }
        let begins = || status.writing_since_ms.store(now_ms(began).max(1), SeqCst);
        let mut result = Ok(());
        // First the record, for which writes wait.
        if op == Some(Op::Record) {
            result = write_record(&*pages, &keeper, begins);
            keeper.recorded(result.is_ok(), &regions);
            ring(keeper.take_wakes(), &shared.bells);
        }
        if result.is_ok() {
            result = write(&*pages, &keeper, &together, begins);
        }
        status.writing_since_ms.store(0, SeqCst);
        for page in together.drain(..) {
            keeper.written(page, result.is_ok(), &regions);
        }
        ring(keeper.take_wakes(), &shared.bells);
        if let Err(error) = result
            && let Some(failed) = failed.take()
        {
            failed(&error);
        }
    }
}

/// Writes the record as the keeper has it now; durable when it returns.
fn write_record(pages: &dyn Pages, keeper: &Keeper, begins: impl Fn()) -> io::Result<()> {
    begins();
    keeper.record().map_or(Ok(()), |record| pages.write_record(record))
}

/// Writes the pages as the keeper has them now; durable when it returns. `begins` is told of each request.
fn write(pages: &dyn Pages, keeper: &Keeper, numbers: &[PageNo], begins: impl Fn()) -> io::Result<()> {
    if let [page] = numbers {
        begins();
        return pages.write(*page, keeper.page(*page));
    }
    for page in numbers {
        begins();
        pages.write_lazily(*page, keeper.page(*page))?;
    }
    if numbers.is_empty() {
        return Ok(());
    }
    begins();
    pages.flush()
}

/// Rings those whose writes may go on.
fn ring(queues: Queues, bells: &[Doorbell]) {
    for (queue, bell) in bells.iter().enumerate() {
        if queues.contains(queue) {
            bell.ring();
        }
    }
}

fn now_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("keeper", &self.keeper).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use crate::intent::{RegionNo, RegionRange};
    use crate::tracking::{Bitmap, Epoch};
    use crate::uploader::{Images, Mailbox};
    use std::sync::mpsc::{Receiver, Sender, channel};

    const REGION: RegionRange = RegionRange { start: RegionNo(1), count: 1 };
    /// What the regions of a page are of a volume.
    const PAGE_SIZE: u64 = REGIONS_PER_PAGE * REGION_SIZE_DEFAULT;

    /// What was asked for: a page and its first word, to be durable at once or with the flush; the regions of a record.
    #[derive(Debug, PartialEq)]
    enum Asked {
        Record(Vec<RegionNo>),
        Write(PageNo, u64),
        WriteLazily(PageNo, u64),
        Flush,
    }

    /// Pages that are written when the test says so, and how.
    struct Told(Sender<Asked>, Receiver<io::Result<()>>);

    impl Told {
        fn ask(&self, what: Asked) -> io::Result<()> {
            self.0.send(what).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)?
        }
    }

    impl Pages for Told {
        fn write(&self, page: PageNo, words: &[u64]) -> io::Result<()> {
            self.ask(Asked::Write(page, words[0]))
        }

        fn write_lazily(&self, page: PageNo, words: &[u64]) -> io::Result<()> {
            self.ask(Asked::WriteLazily(page, words[0]))
        }

        fn flush(&self) -> io::Result<()> {
            self.ask(Asked::Flush)
        }

        fn write_record(&self, record: &Record) -> io::Result<()> {
            self.ask(Asked::Record(record.regions.clone()))
        }
    }

    struct Bench {
        kept: Kept,
        shared: Arc<Shared>,
        asked: Receiver<Asked>,
        answer: Sender<io::Result<()>>,
        failures: Receiver<String>,
    }

    fn bench(suspend: bool) -> Bench {
        bench_with_log(suspend, LogStart::NONE)
    }

    fn bench_with_log(suspend: bool, log: LogStart) -> Bench {
        let geometry = Geometry::new(3 * PAGE_SIZE, 1 << 20).expect("valid");
        let words = |count: u64| Words::new(usize::try_from(count).expect("small")).expect("memory");
        let bitmap = || Bitmap::new(geometry.tracks(), words(Bitmap::words_for(geometry.tracks())));
        let tracking = Arc::new(Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()]));
        let shared = Arc::new(Shared {
            images: Arc::new(Images::new(0, 4096).expect("none")),
            drain: Arc::new(Mailbox::new(8).expect("a bell")),
            keeper: Arc::new(crate::intent::Mailbox::new(8).expect("a bell")),
            bells: Box::new([Doorbell::new().expect("a bell")]),
            zeroing: crate::storage::Zeroing { unmap: None, keep: None },
            abandoned: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            handed_over: std::sync::atomic::AtomicUsize::new(0),
            began: Instant::now(),
        });
        let ((ask, asked), (answer, answers), (fail, failures)) = (channel(), channel(), channel());
        let intent = Intent {
            pages: Box::new(Told(ask, answers)),
            region_size: REGION_SIZE_DEFAULT,
            hot: Vec::new(),
            log,
            suspend,
            failed: Box::new(move |error| drop(fail.send(error.to_string()))),
        };
        let kept = Kept::start("test", Some(intent), &tracking, &shared).expect("a thread");
        Bench { kept, shared, asked, answer, failures }
    }

    impl Bench {
        /// A write arrives that finds its region cold.
        fn want(&self) {
            self.want_those(REGION);
        }

        fn want_those(&self, regions: RegionRange) {
            assert!(!self.kept.regions.pin(regions).hot);
            self.shared.keeper.tell(Message::Want { queue: 0, regions });
        }

        fn wait_for_bell(&self) {
            self.shared.bells[0].wait(10_000);
            self.shared.bells[0].answer();
        }
    }

    #[test]
    fn a_write_goes_on_when_its_page_is_written() {
        let bench = bench(false);
        bench.want();
        assert_eq!(bench.asked.recv().expect("a write"), Asked::Write(PageNo(0), 0b10));
        assert!(!bench.kept.regions.all_hot(REGION), "not while the page is being written");
        bench.answer.send(Ok(())).expect("the thread");
        bench.wait_for_bell();
        assert!(bench.kept.regions.all_hot(REGION));
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn pages_that_are_wanted_together_are_written_with_one_flush() {
        let bench = bench(false);
        bench.want();
        assert_eq!(bench.asked.recv().expect("a write"), Asked::Write(PageNo(0), 0b10));
        // These come while the first one is written.
        let later = [1, 2].map(|page| RegionRange { start: RegionNo(page * REGIONS_PER_PAGE), count: 1 });
        for regions in later {
            bench.want_those(regions);
        }
        for asked in [Asked::WriteLazily(PageNo(1), 1), Asked::WriteLazily(PageNo(2), 1), Asked::Flush] {
            bench.answer.send(Ok(())).expect("the thread");
            assert_eq!(bench.asked.recv().expect("a write"), asked);
            assert!(later.iter().all(|regions| !bench.kept.regions.all_hot(*regions)), "not before the flush");
        }
        bench.answer.send(Ok(())).expect("the thread");
        while !later.iter().all(|regions| bench.kept.regions.all_hot(*regions)) {
            bench.wait_for_bell();
        }
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn with_a_log_they_are_named_in_one_record() {
        let bench = bench_with_log(false, LogStart { slots: 4, ..LogStart::NONE });
        bench.want();
        assert_eq!(bench.asked.recv().expect("a write"), Asked::Write(PageNo(0), 0b10));
        let later = [1, 2].map(|page| RegionRange { start: RegionNo(page * REGIONS_PER_PAGE), count: 1 });
        for regions in later {
            bench.want_those(regions);
        }
        bench.answer.send(Ok(())).expect("the thread");
        assert_eq!(bench.asked.recv().expect("a write"), Asked::Record(later.map(|regions| regions.start).to_vec()));
        assert!(later.iter().all(|regions| !bench.kept.regions.all_hot(*regions)), "not before it is durable");
        bench.answer.send(Ok(())).expect("the thread");
        while !later.iter().all(|regions| bench.kept.regions.all_hot(*regions)) {
            bench.wait_for_bell();
        }
        bench.kept.stop().expect("clean");
    }

    #[test]
    fn a_failed_page_write_is_told_once_and_no_stop_is_clean_after_it() {
        for suspend in [false, true] {
            let bench = bench(suspend);
            bench.want();
            bench.asked.recv().expect("a write");
            bench.answer.send(Err(io::Error::other("worn out"))).expect("the thread");
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
