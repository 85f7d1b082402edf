//! The device from outside: a dependent-write workload over several volumes with an independent checker of every
//! consistency point (P2, P3, P4), and the small tools that the shell tests of `tests/vm` use on a device.
//!
//! Without a command it only shows that the checker finds what it is there to find, which needs neither root nor ublk;
//! the rest is run by `tests/vm/run.sh` in the guest.

#![allow(
    clippy::big_endian_bytes,
    clippy::cast_possible_truncation,
    clippy::match_bool,
    clippy::similar_names,
    clippy::type_complexity,
    reason = "a test program, where brevity counts for more"
)]

mod checker;
mod control;
mod disk;
mod disks;
mod half_taken;
mod history;
mod increments;
mod marked;
mod replay;
mod sector;
mod self_test;
mod tree;
mod workload;
mod write_log;
mod writing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use disk::Disk;

#[derive(Debug, Parser)]
struct Device {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show that the checker can fail
    SelfTest,
    /// Form increments under load and check every one
    Increments(increments::Increments),
    /// Write, and tell the longest time that a write took
    Write(writing::Writing),
    /// Write, flush, and put into the log of dm-log-writes beneath what was flushed
    Marked(marked::Marked),
    /// Replay the log of dm-log-writes and check what every power cut would have left
    Replay(replay::Replay),
    /// Make, change and remove files at random
    Churn(tree::Churn),
    /// Print a digest of a tree
    Digest(tree::Digest),
    /// Serve files as disks that lose what was not flushed when the power is cut
    Disks(disks::Disks),
    /// Take a device back by halves, and be killed
    HalfTaken(half_taken::HalfTaken),
    /// Compare two devices or files, as far as the first one goes
    Compare(Compare),
}

#[derive(Debug, Args)]
struct Compare {
    one: PathBuf,
    other: PathBuf,
}

impl Compare {
    fn run(&self) -> Result<(), String> {
        let open = |path: &Path| Disk::open(path, false).map_err(|error| format!("{}: {error}", path.display()));
        let (one, other) = (open(&self.one)?, open(&self.other)?);
        match disk::first_difference(&one, &other, one.size()).map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(at) => Err(format!("{} and {} differ at byte {at}", self.one.display(), self.other.display())),
        }
    }
}

fn self_test() -> Result<(), String> {
    let cases = self_test::by_hand()?;
    println!("the checker is right about {cases} cases");
    Ok(())
}

fn main() -> ExitCode {
    // The test runner passes options and filters of its own, which are no commands.
    let command = std::env::args().nth(1).filter(|word| Device::command().find_subcommand(word).is_some());
    let result = match command {
        None => {
            println!("the device itself is tested by tests/vm/run.sh");
            self_test()
        }
        Some(_) => match Device::parse().command {
            Command::SelfTest => self_test(),
            Command::Increments(increments) => increments.run(),
            Command::Write(writing) => writing.run(),
            Command::Marked(marked) => marked.run(),
            Command::Replay(replay) => replay.run(),
            Command::Churn(churn) => churn.run(),
            Command::Digest(digest) => digest.run(),
            Command::Disks(disks) => disks.run(),
            Command::HalfTaken(half_taken) => half_taken.run(),
            Command::Compare(compare) => compare.run(),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}
