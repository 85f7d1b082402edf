//! One volume as the controller knows it, up or down.

use super::api::{Failure, FailureKind, Settings};
use super::config::{Checksums, VolumeConfig};
use crate::frontend::leftovers::Leftover;
use crate::group::VolumeId;
use crate::increment::IncrementNo;
use crate::metadata::State;
use crate::uploader::Policy;
use crate::volume::{Spec, Volume};
use std::time::Instant;

/// What is going on with a volume.
pub(super) enum Phase {
    Down,
    /// Something that may block is under way: the word for it.
    Busy(&'static str),
    Up(Box<Volume>),
    /// It could not be taken down or has broken; why.
    Failed(String),
}

/// The volume's device has outlived the daemon that served it: its I/O waits until it is taken back or removed.
pub(super) struct Waiting {
    pub device: Leftover,
    /// Why it could not be taken back, once that was tried.
    pub why: Option<String>,
}

/// A volume.
pub(super) struct Entry {
    pub id: VolumeId,
    pub config: VolumeConfig,
    pub settings: Settings,
    pub phase: Phase,
    /// Only while it is not up.
    pub waiting: Option<Waiting>,
    pub state: State,
    /// The increment it is part of, or about to be.
    pub increment: Option<IncrementNo>,
    /// Number and cut of the last completed increment, of this run.
    pub last_complete: Option<(IncrementNo, Instant)>,
    pub last_abort: Option<String>,
    /// What was not as it should be when it came up.
    pub warnings: Vec<String>,
    /// That it has broken is in the log.
    pub told: bool,
    /// Its configuration file is being written.
    pub writing: bool,
    /// Every track has to be copied once before the secondary is usable.
    pub full_copy: bool,
    pub completed: u64,
    pub aborted: u64,
    pub hold_us_max: u64,
    pub rate: Rate,
}

/// Bytes per second, from the totals as they are looked at.
#[derive(Debug, Default)]
pub(super) struct Rate {
    at: Option<(Instant, u64)>,
    pub bytes_per_s: u64,
}

impl Rate {
    /// Takes a new total; the rate is over the last second or so.
    pub fn update(&mut self, now: Instant, bytes: u64) {
        let Some((then, before)) = self.at else {
            self.at = Some((now, bytes));
            return;
        };
        let passed = now.duration_since(then).as_millis();
        if passed >= 1000 {
            let rate = u128::from(bytes.saturating_sub(before)) * 1000 / passed;
            self.bytes_per_s = u64::try_from(rate).unwrap_or(u64::MAX);
            self.at = Some((now, bytes));
        }
    }
}

impl Entry {
    pub fn new(id: VolumeId, config: VolumeConfig, state: State) -> Self {
        Self {
            id,
            settings: config.settings(),
            config,
            phase: Phase::Down,
            waiting: None,
            full_copy: state.full_copy_needed || state.incomplete,
            state,
            increment: None,
            last_complete: None,
            last_abort: None,
            warnings: Vec::new(),
            told: false,
            writing: false,
            completed: 0,
            aborted: 0,
            hold_us_max: 0,
            rate: Rate::default(),
        }
    }

    /// The running volume, or why there is none.
    pub fn running(&self) -> Result<&Volume, Failure> {
        let state = |what: String| Err(Failure::new(FailureKind::WrongState, what));
        match &self.phase {
            Phase::Up(volume) => match volume.broken() {
                None => Ok(volume),
                Some(why) => state(format!("the volume has failed: {}", broken(why))),
            },
            Phase::Down if self.waiting.is_some() => state(
                "the volume's device waits to be taken back; bring the volume up, or remove the device with down"
                    .to_owned(),
            ),
            Phase::Down => state("the volume is down; bring it up first".to_owned()),
            Phase::Busy(what) => state(format!("the volume is {what}; try again when that is done")),
            Phase::Failed(why) => state(format!("the volume has failed: {why}; take it down")),
        }
    }

    /// Whether settings may be changed, which writes the volume's file.
    pub fn may_be_set(&self, name: &str) -> Result<(), Failure> {
        let what = match self.phase {
            Phase::Busy(what) => what,
            _ if self.writing => "being set",
            _ => return Ok(()),
        };
        let why = format!("{name}: the volume is {what}; try again when that is done");
        Err(Failure::new(FailureKind::WrongState, why))
    }

    pub fn spec(&self, name: &str) -> Spec {
        let waiting = self.waiting.as_ref().map(|waiting| &waiting.device);
        Spec {
            name: name.to_owned(),
            track_size: self.config.track_size,
            queues: waiting.map_or(self.config.queues, |device| device.queues),
            depth: waiting.map_or(self.config.depth, |device| device.depth),
            waiting: waiting.map(|device| device.id),
            image_bytes: self.config.image_pool,
            window: usize::from(self.config.drain_window),
            checksum_all: self.config.checksums == Checksums::All,
            policy: policy(&self.settings),
        }
    }
}

/// What to say of a volume that has broken.
pub(super) fn broken(why: &str) -> String {
    format!("{why}; see the log, take the volume down and up again")
}

/// The drain's part of the settings.
pub(super) fn policy(settings: &Settings) -> Policy {
    Policy {
        send_first: settings.collision_policy == super::api::CollisionPolicy::SendFirst,
        collision_wait_ms: settings.collision_wait_ms,
        bandwidth: settings.bandwidth_limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Side;

    #[test]
    fn a_volume_has_one_writer_of_its_file_at_a_time() {
        let side = || Side { identity: String::new(), size: 1 << 20 };
        let config = VolumeConfig::new("/a".into(), "/b".into());
        let mut entry = Entry::new(VolumeId(0), config, State::new(side(), side(), 65536));
        assert!(entry.may_be_set("v").is_ok());
        entry.writing = true;
        assert!(entry.may_be_set("v").is_err());
        (entry.writing, entry.phase) = (false, Phase::Busy("being deleted"));
        let failure = entry.may_be_set("v").expect_err("the file would come back");
        assert_eq!(failure.message, "v: the volume is being deleted; try again when that is done");
    }
}
