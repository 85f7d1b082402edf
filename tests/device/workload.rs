//! The writers: each issues its next write only after the last one was acknowledged, on alternating volumes, so that
//! every write depends on all that were acknowledged before. No two writes in flight overlap.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::disk::{Buffer, Disk};
use crate::history::History;
use crate::sector::{self, SECTOR, SECTOR_BYTES, Stamp};

/// Positions tried before a writer gives another one its turn.
const TRIES: usize = 50;
/// Of 100 writes, so many go to the hot part, and after so many writes comes a flush.
const HOT_PER_CENT: u64 = 75;
const FLUSH_EVERY: u64 = 97;

/// How to write.
#[derive(Debug, Clone)]
pub struct Shape {
    pub devices: Vec<PathBuf>,
    pub writers: u32,
    /// Smallest write and the unit of all, in bytes.
    pub block: u64,
    /// Largest write, in bytes.
    pub largest: u64,
    /// Bytes at the start of every volume that most writes go to.
    pub hot: u64,
    /// Between two writes of a writer.
    pub pause: Duration,
    pub seed: u64,
    /// Go on after an error instead of ending.
    pub errors_allowed: bool,
}

/// What the writers did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    pub writes: u64,
    pub errors: u64,
    /// errno of the last one.
    pub error: i32,
    pub longest: Duration,
    pub bytes: u64,
}

/// Pseudo-random numbers, the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

/// Where writes are under way: volume, first sector, end.
type Busy = Mutex<Vec<(usize, u64, u64)>>;

/// The writers, running.
#[derive(Debug)]
pub struct Workload {
    pub history: Arc<History>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Totals, String>>>,
}

impl Workload {
    pub fn start(shape: &Shape) -> io::Result<Self> {
        let history = Arc::new(History::new(shape.writers as usize));
        let (stop, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(Busy::default()));
        let mut threads = Vec::new();
        for number in 0..shape.writers {
            let disks = shape.devices.iter().map(|path| Disk::open(path, true)).collect::<io::Result<Vec<_>>>()?;
            let writer = Writer {
                number,
                disks,
                shape: shape.clone(),
                history: history.clone(),
                busy: busy.clone(),
                random: Random::new(shape.seed << 8 | u64::from(number)),
                buffer: Buffer::new(usize::try_from(shape.largest).unwrap_or(SECTOR)),
                totals: Totals::default(),
            };
            let stop = stop.clone();
            threads.push(thread::spawn(move || writer.run(&stop)));
        }
        Ok(Self { history, stop, threads })
    }

    /// Whether a writer has given up already.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops the writers and waits for their last writes.
    pub fn end(self) -> Result<Totals, String> {
        self.stop.store(true, SeqCst);
        let mut all = Totals::default();
        for thread in self.threads {
            let totals = thread.join().map_err(|_| "a writer panicked".to_owned())??;
            all.writes += totals.writes;
            all.errors += totals.errors;
            all.error = if totals.error == 0 { all.error } else { totals.error };
            all.longest = all.longest.max(totals.longest);
            all.bytes += totals.bytes;
        }
        Ok(all)
    }
}

struct Writer {
    number: u32,
    disks: Vec<Disk>,
    shape: Shape,
    history: Arc<History>,
    busy: Arc<Busy>,
    random: Random,
    buffer: Buffer,
    totals: Totals,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool) -> Result<Totals, String> {
        let mut turn = u64::from(self.number);
        while !stop.load(SeqCst) {
            turn += 1;
            let volume = usize::try_from(turn).unwrap_or(0) % self.disks.len();
            self.write(volume)?;
            if turn.is_multiple_of(FLUSH_EVERY) && self.disks[volume].flush().is_err() {
                self.failed(volume, &io::Error::last_os_error(), "flush")?;
            }
            if !self.shape.pause.is_zero() {
                thread::sleep(self.shape.pause);
            }
        }
        Ok(self.totals)
    }

    fn write(&mut self, volume: usize) -> Result<(), String> {
        let Some((lba, sectors)) = self.claim(volume) else {
            thread::yield_now();
            return Ok(());
        };
        let number = u32::try_from(volume).unwrap_or(u32::MAX);
        let write = self.history.next(self.number);
        let length = usize::try_from(sectors).unwrap_or(0) * SECTOR;
        for (lba, sector) in (lba..).zip(self.buffer.bytes_mut()[..length].chunks_exact_mut(SECTOR)) {
            sector::fill(sector, &Stamp { write, volume: number, lba });
        }
        self.history.issue(self.number, number, lba, sectors);
        let began = Instant::now();
        let result = self.disks[volume].write(&self.buffer, length, lba * SECTOR_BYTES);
        self.totals.longest = self.totals.longest.max(began.elapsed());
        self.history.answer(self.number, result.is_ok());
        self.busy().retain(|claim| *claim != (volume, lba, lba + sectors));
        self.totals.writes += 1;
        self.totals.bytes += length as u64;
        result.or_else(|error| self.failed(volume, &error, "write"))
    }

    fn failed(&mut self, volume: usize, error: &io::Error, what: &str) -> Result<(), String> {
        self.totals.errors += 1;
        self.totals.error = error.raw_os_error().unwrap_or(-1);
        if self.shape.errors_allowed {
            // Not to fill the kernel's log with them.
            thread::sleep(Duration::from_millis(20));
            return Ok(());
        }
        Err(format!("writer {}: {what} to volume {volume} failed: {error}", self.number))
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, Vec<(usize, u64, u64)>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on the volume where nobody else writes now: first sector and count.
    fn claim(&mut self, volume: usize) -> Option<(u64, u64)> {
        let unit = self.shape.block / SECTOR_BYTES;
        let end = self.disks[volume].size() / SECTOR_BYTES / unit;
        let hot = (self.shape.hot / SECTOR_BYTES / unit).clamp(1, end);
        for _ in 0..TRIES {
            let units = self.units();
            let area = if self.random.below(100) < HOT_PER_CENT { hot } else { end };
            let start = self.random.below(area).min(end.saturating_sub(units));
            let claim = (volume, start * unit, (start + units) * unit);
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            let free = busy.iter().all(|other| other.0 != volume || other.2 <= claim.1 || claim.2 <= other.1);
            if free {
                busy.push(claim);
                return Some((claim.1, units * unit));
            }
        }
        None
    }

    /// A length in blocks: mostly small, sometimes up to the largest.
    fn units(&mut self) -> u64 {
        let most = (self.shape.largest / self.shape.block).max(1);
        let limit = match self.random.below(10) {
            0..4 => 1,
            4..7 => 16,
            7..9 => most.div_ceil(4),
            _ => most,
        };
        1 + self.random.below(limit.min(most))
    }
}
