//! The disk beneath the metadata of a simulated volume: sectors that tear, a cache that is lost with the power, and a
//! power that goes after so many writes.

use crate::rng::Rng;
use farpoint::metadata::layout::PAGE_BYTES;
use farpoint::metadata::medium::Medium;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is written at once, or not at all.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a page.
pub const PAGE_SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;

#[derive(Debug)]
struct Inner {
    live: Vec<u8>,
    durable: Vec<u8>,
    rng: Rng,
    /// Calls until the power goes.
    left: Option<u64>,
    off: bool,
}

/// A disk in memory.
#[derive(Debug)]
pub struct Disk(Mutex<Inner>);

impl Disk {
    pub fn new(content: Vec<u8>, rng: Rng) -> Self {
        Self::with(content.clone(), content, rng)
    }

    fn with(live: Vec<u8>, durable: Vec<u8>, rng: Rng) -> Self {
        Self(Mutex::new(Inner { live, durable, rng, left: None, off: false }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after so many calls, in the middle of the next.
    pub fn cut_after(&self, calls: u64) {
        self.inner().left = Some(calls);
    }

    /// One sector of a write that takes its time lands in the cache.
    pub fn land(&self, offset: u64, sector: usize, content: &[u8]) {
        let inner = &mut *self.inner();
        let bytes = &content[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES];
        let at = place(offset) + sector * SECTOR_BYTES;
        inner.live[at..at + SECTOR_BYTES].copy_from_slice(bytes);
    }

    /// The write is done: what landed there is durable.
    pub fn persist(&self, offset: u64, sectors: usize) {
        let inner = &mut *self.inner();
        let extent = place(offset)..place(offset) + sectors * SECTOR_BYTES;
        inner.durable[extent.clone()].copy_from_slice(&inner.live[extent]);
    }

    /// The disk as the next start finds it. A killed daemon leaves the cache as it is, which is not durable by that.
    /// Without power each sector of the cache is there or not.
    pub fn remains(&self, power_cut: bool, rng: Rng) -> Self {
        let inner = &mut *self.inner();
        if !power_cut {
            return Self::with(inner.live.clone(), inner.durable.clone(), rng);
        }
        for at in (0..inner.live.len()).step_by(SECTOR_BYTES) {
            let sector = at..at + SECTOR_BYTES;
            if inner.live[sector.clone()] != inner.durable[sector.clone()] && inner.rng.chance(1, 2) {
                let old = inner.durable[sector.clone()].to_vec();
                inner.live[sector].copy_from_slice(&old);
            }
        }
        Self::new(inner.live.clone(), rng)
    }

    /// One bit changes.
    pub fn rot(&self, offset: u64, bit: usize) {
        let inner = &mut *self.inner();
        for content in [&mut inner.live, &mut inner.durable] {
            content[place(offset)] ^= 1 << bit;
        }
    }
}

impl Inner {
    /// Counts a call down. None: the power was off before it; else how it ends.
    fn goes_off(&mut self) -> Option<bool> {
        if self.off {
            return None;
        }
        self.off = self.left == Some(0);
        self.left = self.left.map(|left| left.saturating_sub(1));
        Some(self.off)
    }

    fn store(&mut self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let Some(torn) = self.goes_off() else { return Err(off()) };
        for (sector, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if torn && self.rng.chance(1, 2) {
                continue;
            }
            let at = place(offset) + sector * SECTOR_BYTES;
            self.live[at..at + bytes.len()].copy_from_slice(bytes);
            if durable {
                self.durable[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        if torn { Err(off()) } else { Ok(()) }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl Medium for Disk {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.inner();
        buffer.fill(0);
        let at = place(offset).min(inner.live.len());
        let count = buffer.len().min(inner.live.len() - at);
        buffer[..count].copy_from_slice(&inner.live[at..at + count]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner().store(offset, bytes, true)
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner().store(offset, bytes, false)
    }

    fn flush(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        match inner.goes_off() {
            Some(false) => {
                inner.durable.clone_from(&inner.live);
                Ok(())
            }
            _ => Err(off()),
        }
    }
}
