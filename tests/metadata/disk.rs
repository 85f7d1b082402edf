//! A disk in memory that keeps a log of what was done to it, fails on demand, and can be cut off at any point.

use std::io;
use std::sync::{Mutex, PoisonError};

use farpoint::metadata::medium::Medium;

pub const SECTOR: usize = 512;

/// What was done to the disk.
#[derive(Debug, Clone)]
pub enum Step {
    Write { offset: usize, bytes: Vec<u8>, durable: bool },
    Flush,
}

/// How a failing call leaves the range that it was to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    Old,
    New,
    /// The first half new.
    Half,
}

/// A call that fails: its number, with which error, and what it leaves.
#[derive(Debug, Clone, Copy)]
pub struct Failing {
    pub call: usize,
    pub errno: i32,
    pub leaves: Leaves,
}

#[derive(Debug, Default)]
struct Inner {
    content: Vec<u8>,
    steps: Vec<Step>,
    calls: usize,
    failing: Option<Failing>,
}

#[derive(Debug, Default)]
pub struct Disk(Mutex<Inner>);

impl Disk {
    pub fn new(content: Vec<u8>) -> Self {
        Self(Mutex::new(Inner { content, ..Inner::default() }))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fail(&self, failing: Failing) {
        self.inner().failing = Some(failing);
    }

    pub fn content(&self) -> Vec<u8> {
        self.inner().content.clone()
    }

    /// What was done since the last time this was asked.
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.inner().steps)
    }

    pub fn calls(&self) -> usize {
        self.inner().calls
    }

    fn store(&self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut inner = self.inner();
        assert!(bytes.as_ptr().align_offset(4096) == 0 && bytes.len().is_multiple_of(4096), "not fit for direct I/O");
        let offset = usize::try_from(offset).expect("small");
        let failed = inner.call();
        let count = match failed {
            None => bytes.len(),
            Some(failing) => match failing.leaves {
                Leaves::Old => 0,
                Leaves::New => bytes.len(),
                Leaves::Half => bytes.len() / 2,
            },
        };
        inner.content[offset..offset + count].copy_from_slice(&bytes[..count]);
        inner.steps.push(Step::Write { offset, bytes: bytes.to_vec(), durable });
        failed.map_or(Ok(()), |failing| Err(io::Error::from_raw_os_error(failing.errno)))
    }
}

impl Inner {
    /// Counts a call, and says whether it fails.
    fn call(&mut self) -> Option<Failing> {
        self.calls += 1;
        self.failing.filter(|failing| failing.call + 1 == self.calls)
    }
}

impl Medium for Disk {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.inner();
        if let Some(failing) = inner.call() {
            return Err(io::Error::from_raw_os_error(failing.errno));
        }
        let offset = usize::try_from(offset).expect("small");
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = inner.content.get(offset + at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.store(offset, bytes, true)
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.store(offset, bytes, false)
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.steps.push(Step::Flush);
        let failed = inner.call();
        failed.map_or(Ok(()), |failing| Err(io::Error::from_raw_os_error(failing.errno)))
    }
}
