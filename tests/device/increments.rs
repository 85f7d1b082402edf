//! The cutter: forms one increment after the other over all volumes while the writers write, and has every point
//! checked at the moment a virtual copy would be made of it (P2, P3), and once more just before increment-complete,
//! when not a byte of it may have moved (P4).

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::checker::{Checker, Cut, Verdict};
use crate::control::Control;
use crate::disk::{self, Disk};
use crate::history::{History, UNACKNOWLEDGED, Write};
use crate::self_test;
use crate::workload::{Random, Shape, Workload};

/// Longest drain that is waited for.
const DRAIN_MS: u64 = 240_000;
/// So many failed increments for one that is wanted are too many.
const ABORTED_PER_COMPLETED_MAX: u64 = 2;
/// How many collisions an increment meets is the machine's affair; that so many increments meet too few is not.
const TIMES_COUNT_MAX: u64 = 20;

#[derive(Debug, Args)]
pub struct Increments {
    /// Control socket of the daemon
    #[arg(long)]
    socket: PathBuf,
    /// Volume, device and secondary; once for each volume
    #[arg(long, value_name = "NAME,DEVICE,PRIMARY,SECONDARY", required = true)]
    volume: Vec<String>,
    /// Increments to complete with each collision policy, at least
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Collisions of each kind that are to happen: increments go on until they have
    #[arg(long, default_value_t = 1)]
    collisions_min: u64,
    #[arg(long, default_value_t = 8)]
    writers: u32,
    /// Smallest and largest write, in bytes
    #[arg(long, default_value_t = 512)]
    block: u64,
    #[arg(long, default_value_t = 196_608)]
    largest: u64,
    /// Bytes of each volume that most writes go to
    #[arg(long, default_value_t = 1 << 20)]
    hot: u64,
    /// Longest time between two increments, in milliseconds
    #[arg(long, default_value_t = 30)]
    gap_ms: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Volume {
    name: String,
    device: PathBuf,
    primary: Disk,
    secondary: Disk,
}

impl Volume {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(',').collect();
        let [name, device, primary, secondary] = parts.as_slice() else {
            return Err(format!("{text}: not NAME,DEVICE,PRIMARY,SECONDARY"));
        };
        let open = |path: &str| Disk::open(path.as_ref(), false).map_err(|error| format!("{path}: {error}"));
        let (name, device) = ((*name).to_owned(), PathBuf::from(device));
        Ok(Self { name, device, primary: open(primary)?, secondary: open(secondary)? })
    }
}

/// Figures of one collision policy.
#[derive(Debug, Default)]
struct Figures {
    completed: u64,
    aborted: u64,
    longest_hold_us: u64,
    longest_drain: Duration,
    in_flight_sectors: u64,
    changed_meanwhile: u64,
}

struct Run {
    volumes: Vec<Volume>,
    names: Vec<String>,
    control: Control,
    checker: Checker,
    log: Vec<Vec<Write>>,
    random: Random,
    gap_ms: u64,
    last_point: Option<(Cut, Vec<Vec<u8>>)>,
    checker_before: Checker,
    figures: Figures,
}

impl Increments {
    pub fn run(&self) -> Result<(), String> {
        let volumes = self.volume.iter().map(|text| Volume::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let shape = Shape {
            devices: volumes.iter().map(|volume| volume.device.clone()).collect(),
            writers: self.writers,
            block: self.block,
            largest: self.largest,
            hot: self.hot,
            pause: Duration::ZERO,
            seed: self.seed,
            errors_allowed: false,
        };
        let sectors: Vec<_> = volumes.iter().map(|volume| sectors(&volume.primary)).collect();
        let checker = Checker::new(&sectors, self.writers as usize);
        let mut run = Run {
            names: volumes.iter().map(|volume| volume.name.clone()).collect(),
            volumes,
            control: Control::connect(&self.socket)?,
            checker_before: checker.clone(),
            checker,
            log: Vec::new(),
            random: Random::new(self.seed),
            gap_ms: self.gap_ms,
            last_point: None,
            figures: Figures::default(),
        };
        let began = Instant::now();
        let workload = Workload::start(&shape).map_err(|error| format!("cannot open a device: {error}"))?;
        let result = self.cut(&mut run, &workload);
        let history = workload.history.clone();
        // A writer that failed is the better reason.
        let totals = workload.end()?;
        result?;
        println!(
            "writes {} bytes {} longest-write-ms {} seconds {}",
            totals.writes,
            totals.bytes,
            totals.longest.as_millis(),
            began.elapsed().as_secs()
        );
        run.must_bite()?;
        run.must_end_equal(&history)
    }

    fn cut(&self, run: &mut Run, workload: &Workload) -> Result<(), String> {
        for policy in ["keep-before-image", "send-first"] {
            run.figures = Figures::default();
            let before = run.collisions(policy)?;
            let mut met = 0;
            run.control.ask("set", json!({"volumes": run.names, "settings": {"collision_policy": policy}}))?;
            while run.figures.completed < self.count || met < self.collisions_min {
                if workload.has_ended() {
                    return Err("a writer has ended".to_owned());
                }
                run.increment(&workload.history)?;
                if run.figures.aborted > ABORTED_PER_COMPLETED_MAX * run.figures.completed + 10 {
                    return Err(format!("{policy}: too many increments were aborted: {:?}", run.figures));
                }
                met = run.collisions(policy)? - before;
                if met < self.collisions_min && run.figures.completed >= self.count * TIMES_COUNT_MAX {
                    return Err(format!(
                        "{policy}: {met} collisions; expected {}: {:?}",
                        self.collisions_min, run.figures
                    ));
                }
            }
            println!("{policy}: collisions {met} {:?}", run.figures);
            if run.figures.in_flight_sectors == 0 {
                return Err(format!("{policy}: no cut met a write under way: there was no load"));
            }
        }
        Ok(())
    }
}

impl Run {
    /// One increment over all volumes, checked twice.
    fn increment(&mut self, history: &History) -> Result<(), String> {
        thread::sleep(Duration::from_millis(self.random.below(self.gap_ms + 1)));
        let names = json!({"volumes": self.names});
        let start_sent = history.clock.tick();
        let started = match self.control.ask("start", names.clone()) {
            Ok(started) => started,
            Err(why) => return self.aborted(&why),
        };
        let cut = Cut { start_sent, start_answered: history.clock.tick() };
        if self.random.below(4) == 0 {
            thread::sleep(Duration::from_millis(self.random.below(20)));
        }
        let released = match self.control.ask("run", names.clone()) {
            Ok(released) => released,
            Err(why) => return self.aborted(&why),
        };
        let began = Instant::now();
        let wait = json!({"volumes": self.names, "until": "drained", "timeout_ms": DRAIN_MS});
        if let Err(why) = self.control.ask("wait", wait) {
            return self.aborted(&why);
        }
        self.figures.longest_drain = self.figures.longest_drain.max(began.elapsed());
        let hold = released["hold_us"].as_u64().unwrap_or(0).max(started["hold_us"].as_u64().unwrap_or(0));
        self.figures.longest_hold_us = self.figures.longest_hold_us.max(hold);
        let images = self.images()?;
        let written_before = history.clock.tick();
        history.follow(&mut self.log);
        self.checker_before = self.checker.clone();
        let increment = &started["increment"];
        let verdict = self.checker.check(&self.log, cut, &images).into_result();
        let Verdict { in_flight_sectors, .. } = verdict.map_err(|why| format!("increment {increment}: {why}"))?;
        self.figures.in_flight_sectors += in_flight_sectors;
        self.must_not_have_moved(increment, &images)?;
        self.figures.changed_meanwhile += history.clock.tick() - written_before;
        self.last_point = Some((cut, images));
        let completed = self.control.ask("increment-complete", names)?;
        if completed["increment"] != *increment {
            return Err(format!("increment {increment} was completed as {}", completed["increment"]));
        }
        self.figures.completed += 1;
        Ok(())
    }

    /// An increment may be given up, never silently and never for good.
    fn aborted(&mut self, why: &str) -> Result<(), String> {
        let wait = json!({"volumes": self.names, "until": "normal", "timeout_ms": DRAIN_MS});
        self.control.ask("wait", wait).map_err(|error| format!("{error}, after: {why}"))?;
        let name = self.names.first().cloned().unwrap_or_default();
        let reason = self.control.status(&name)?["reason"].take();
        if reason == Value::Null {
            return Err(format!("no reason is given for: {why}"));
        }
        self.figures.aborted += 1;
        if self.figures.aborted <= 3 {
            println!("aborted: {why}: {reason}");
        }
        Ok(())
    }

    fn images(&self) -> Result<Vec<Vec<u8>>, String> {
        let image = |volume: &Volume| {
            let size = volume.primary.size();
            volume.secondary.image(size).map_err(|error| format!("{}: {error}", volume.name))
        };
        self.volumes.iter().map(image).collect()
    }

    fn must_not_have_moved(&self, increment: &Value, images: &[Vec<u8>]) -> Result<(), String> {
        let again = self.images()?;
        let moved = images.iter().zip(&again).position(|(before, after)| before != after);
        match moved {
            Some(volume) => Err(format!("increment {increment}: volume {volume} changed after it was drained")),
            None => Ok(()),
        }
    }

    /// Collisions of all volumes that were met as the policy says.
    fn collisions(&mut self, policy: &str) -> Result<u64, String> {
        let counter = if policy == "send-first" { "collisions_sent_first" } else { "collisions_kept" };
        let mut sum = 0;
        for name in self.names.clone() {
            sum += self.control.status(&name)?["counters"][counter].as_u64().unwrap_or(0);
        }
        Ok(sum)
    }

    /// The checker would have noticed: the last good point, spoiled in several ways, must not pass.
    fn must_bite(&self) -> Result<(), String> {
        let (cut, images) = self.last_point.as_ref().ok_or("no point was formed")?;
        self_test::spoil(&self.checker_before, &self.log, *cut, images)
    }

    /// The host has stopped: primary and secondary become equal, and hold all that was acknowledged.
    fn must_end_equal(&mut self, history: &History) -> Result<(), String> {
        let wait = json!({"volumes": self.names, "until": "in-sync", "timeout_ms": DRAIN_MS});
        self.control.ask("wait", wait)?;
        for volume in &self.volumes {
            let difference = disk::first_difference(&volume.primary, &volume.secondary, volume.primary.size());
            if let Some(at) = difference.map_err(|error| format!("{}: {error}", volume.name))? {
                return Err(format!("{}: primary and secondary differ at byte {at}", volume.name));
            }
        }
        history.follow(&mut self.log);
        let cut = Cut { start_sent: history.clock.tick(), start_answered: UNACKNOWLEDGED };
        let images = self.images()?;
        let verdict = self.checker.check(&self.log, cut, &images).into_result();
        let verdict = verdict.map_err(|why| format!("at the end: {why}"))?;
        println!("at the end: equal, written-sectors {}", verdict.written_sectors);
        Ok(())
    }
}

fn sectors(disk: &Disk) -> usize {
    usize::try_from(disk.size()).unwrap_or(0) / crate::sector::SECTOR
}
