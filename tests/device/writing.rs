//! The writers alone, for as long as a test needs them: how long did a write take at most, did any fail, and does the
//! device hold what it acknowledged (P5).

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::checker::{Checker, Cut};
use crate::disk::Disk;
use crate::history::{History, UNACKNOWLEDGED};
use crate::sector::SECTOR;
use crate::workload::{Shape, Workload};

/// How often it is looked whether to end.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct Writing {
    /// Devices to write to
    #[arg(required = true)]
    devices: Vec<PathBuf>,
    /// Stop after this many seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Stop when this file is there
    #[arg(long)]
    until: Option<PathBuf>,
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Smallest and largest write, in bytes
    #[arg(long, default_value_t = 4096)]
    block: u64,
    #[arg(long, default_value_t = 65_536)]
    largest: u64,
    /// Bytes of each device that most writes go to
    #[arg(long, default_value_t = 1 << 20)]
    hot: u64,
    /// Milliseconds between two writes of a writer
    #[arg(long, default_value_t = 2)]
    pause_ms: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on after errors and only count them
    #[arg(long)]
    errors_allowed: bool,
    /// At the end read the devices, zero before, and check that they hold what was acknowledged
    #[arg(long)]
    verify: bool,
    /// Read these in place of the devices, which may be gone by then
    #[arg(long, value_name = "PATH", requires = "verify")]
    verify_at: Vec<PathBuf>,
}

impl Writing {
    pub fn run(&self) -> Result<(), String> {
        let shape = Shape {
            devices: self.devices.clone(),
            writers: self.writers,
            block: self.block,
            largest: self.largest.max(self.block),
            hot: self.hot,
            pause: Duration::from_millis(self.pause_ms),
            seed: self.seed,
            errors_allowed: self.errors_allowed,
        };
        let began = Instant::now();
        let workload = Workload::start(&shape).map_err(|error| format!("cannot open a device: {error}"))?;
        let end = began + Duration::from_secs(self.seconds);
        let asked = || self.until.as_ref().is_some_and(|file| file.exists());
        while Instant::now() < end && !asked() && !workload.has_ended() {
            thread::sleep(LOOK);
        }
        let history = workload.history.clone();
        let totals = workload.end()?;
        println!(
            "writes={} bytes={} errors={} errno={} longest_ms={} seconds={}",
            totals.writes,
            totals.bytes,
            totals.errors,
            totals.error,
            totals.longest.as_millis(),
            began.elapsed().as_secs()
        );
        if self.verify { self.must_hold(&history) } else { Ok(()) }
    }

    fn must_hold(&self, history: &History) -> Result<(), String> {
        let image = |path: &PathBuf| {
            let disk = Disk::open(path, false)?;
            disk.image(disk.size())
        };
        let paths = if self.verify_at.is_empty() { &self.devices } else { &self.verify_at };
        let images = paths.iter().map(image).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let sectors: Vec<_> = images.iter().map(|image| image.len() / SECTOR).collect();
        let mut log = Vec::new();
        history.follow(&mut log);
        let cut = Cut { start_sent: history.clock.tick(), start_answered: UNACKNOWLEDGED };
        let verdict = Checker::new(&sectors, log.len()).check(&log, cut, &images).into_result()?;
        println!("verified_sectors={}", verdict.written_sectors);
        Ok(())
    }
}
