//! Writers who say what is safe: each writes some blocks, flushes, and then puts a mark into the log of dm-log-writes
//! beneath, so that a replay knows from which entry on those blocks must be there (P5). What they write follows from
//! the seed alone, so that the replay need not be told.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::disk::{Buffer, Disk};
use crate::sector::{self, SECTOR, SECTOR_BYTES, Stamp, WriteId};
use crate::workload::Random;

const BLOCK_SECTORS: u64 = 8;
const BLOCKS_MAX: u64 = 8;
/// Writes before each flush, at most.
const WRITES_MAX: u64 = 12;
/// A writer stays in an area of this size for so many writes, then goes to the next, so that regions become cold.
const AREA_SECTORS: u64 = 4096;
const AREA_WRITES: u64 = 300;
/// Between two writes of a writer: a fast machine would fill the log.
const PAUSE: Duration = Duration::from_millis(10);

/// What all of the writers do, one after the other.
#[derive(Debug, Args, Clone)]
pub struct Plan {
    #[arg(long, default_value_t = 2)]
    pub writers: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What one of them does: an iterator over its writes.
#[derive(Debug)]
pub struct Steps {
    writer: u32,
    sequence: u64,
    first: u64,
    sectors: u64,
    random: Random,
}

/// One write; `flush`: the next thing is a flush.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub id: WriteId,
    pub lba: u64,
    pub sectors: u64,
    pub flush: bool,
}

impl Plan {
    /// The writer's part of a device of so many bytes.
    pub fn steps(&self, writer: u32, bytes: u64) -> Steps {
        let sectors = bytes / SECTOR_BYTES / u64::from(self.writers);
        let first = sectors * u64::from(writer);
        Steps { writer, sequence: 0, first, sectors, random: Random::new(self.seed << 8 | u64::from(writer)) }
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let id = WriteId { writer: self.writer, sequence: self.sequence };
        let areas = (self.sectors / AREA_SECTORS).max(1);
        let area = self.first + self.sequence / AREA_WRITES % areas * AREA_SECTORS;
        let sectors = (1 + self.random.below(BLOCKS_MAX)) * BLOCK_SECTORS;
        let free = AREA_SECTORS.min(self.sectors) - sectors;
        let lba = area + self.random.below(free / BLOCK_SECTORS + 1) * BLOCK_SECTORS;
        self.sequence += 1;
        Some(Step { id, lba, sectors, flush: self.random.below(WRITES_MAX) == 0 })
    }
}

/// The name of a mark: everything up to this write of this writer has been flushed.
pub fn mark(id: WriteId) -> String {
    format!("flushed:{}:{}", id.writer, id.sequence)
}

/// What [`mark`] said.
pub fn parse_mark(text: &str) -> Option<WriteId> {
    let (writer, sequence) = text.strip_prefix("flushed:")?.split_once(':')?;
    Some(WriteId { writer: writer.parse().ok()?, sequence: sequence.parse().ok()? })
}

#[derive(Debug, Args)]
pub struct Marked {
    device: PathBuf,
    /// Device of dm-log-writes that the marks go to
    #[arg(long, value_name = "NAME")]
    log: String,
    /// Stop when this file is there
    #[arg(long)]
    until: PathBuf,
    /// Or after this many seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    #[command(flatten)]
    plan: Plan,
}

impl Marked {
    pub fn run(&self) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let writer = |number| {
            let disk = Disk::open(&self.device, true).map_err(|error| error.to_string())?;
            let mut buffer = Buffer::new((BLOCKS_MAX * BLOCK_SECTORS) as usize * SECTOR);
            let mut count = 0;
            for step in self.plan.steps(number, disk.size()) {
                if self.until.exists() || Instant::now() > end {
                    break;
                }
                write(&disk, &mut buffer, &step).map_err(|error| format!("writer {number}: {error}"))?;
                count += 1;
                thread::sleep(PAUSE);
                if step.flush {
                    disk.flush().map_err(|error| format!("writer {number}: flush: {error}"))?;
                    self.tell(&mark(step.id))?;
                }
            }
            Ok::<u64, String>(count)
        };
        let counts = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.plan.writers).map(|number| scope.spawn(move || writer(number))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".into())))
                .collect::<Vec<_>>()
        });
        let writes = counts.into_iter().sum::<Result<u64, String>>()?;
        println!("writes={writes}");
        Ok(())
    }

    fn tell(&self, mark: &str) -> Result<(), String> {
        let status = Command::new("dmsetup").args(["message", &self.log, "0", "mark", mark]).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            status => Err(format!("dmsetup message {} 0 mark {mark}: {status:?}", self.log)),
        }
    }
}

fn write(disk: &Disk, buffer: &mut Buffer, step: &Step) -> std::io::Result<()> {
    let length = usize::try_from(step.sectors).unwrap_or(0) * SECTOR;
    for (lba, sector) in (step.lba..).zip(buffer.bytes_mut()[..length].chunks_exact_mut(SECTOR)) {
        sector::fill(sector, &Stamp { write: step.id, volume: 0, lba });
    }
    disk.write(buffer, length, step.lba * SECTOR_BYTES)
}
