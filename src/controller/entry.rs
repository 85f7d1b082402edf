//! One volume as the controller knows it, up or down.

use super::api::{Failure, FailureKind, Settings};
use super::config::{Checksums, VolumeConfig};
use super::media::Known;
use crate::frontend::leftovers::Leftover;
use crate::group::VolumeId;
use crate::increment::IncrementNo;
use crate::metadata::media::Media;
use crate::metadata::superblock::Superblock;
use crate::uploader::Policy;
use crate::volume::{Spec, Volume};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How soon it is tried again to take a device back whose users wait.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// What is going on with a volume.
pub(super) enum Phase {
    Down,
    /// Something that may block is under way.
    Busy(Doing),
    Up(Box<Volume>),
    /// It could not be taken down or has broken; why.
    Failed(String),
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    ComingUp,
    GoingDown,
    Deleting,
}

impl fmt::Display for Doing {
    /// As it is said of the volume.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ComingUp => "coming up",
            Self::GoingDown => "going down",
            Self::Deleting => "being deleted",
        })
    }
}

/// The volume comes up as soon as it can.
pub(super) struct Waiting {
    /// Has outlived the daemon that served it, and holds its users' I/O until it is taken back or removed. None if the
    /// volume only comes up with the daemon.
    pub device: Option<Leftover>,
    /// Why it could not come up, once that was tried.
    pub why: Option<String>,
    /// When it is tried again, and after how long the next time.
    pub again: Instant,
    pause: Duration,
}

impl Waiting {
    pub fn new(device: Option<Leftover>) -> Self {
        Self { device, why: None, again: Instant::now(), pause: AGAIN_MIN }
    }

    pub fn failed(&mut self, why: &Failure) {
        self.why = Some(why.to_string());
        self.again = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(AGAIN_MAX);
    }
}

/// What is in the log already.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// That the volume has broken.
    pub broken: bool,
    /// That its metadata does not answer.
    stalled: bool,
}

/// A volume.
pub(super) struct Entry {
    pub id: VolumeId,
    pub config: VolumeConfig,
    pub settings: Settings,
    pub phase: Phase,
    /// Only while it is not up.
    pub waiting: Option<Waiting>,
    /// It was found, and nobody has looked yet whether a device waits for it or it comes up with the daemon.
    pub fresh: bool,
    /// Where the metadata is.
    pub media_path: PathBuf,
    /// The metadata as it was found by the last start, or left by the last stop.
    pub known: Known,
    /// The metadata of a volume that is up.
    pub media: Option<Arc<Media>>,
    /// The increment it is part of, or about to be.
    pub increment: Option<IncrementNo>,
    /// Number and cut of the last completed increment, of this run.
    pub last_complete: Option<(IncrementNo, Instant)>,
    pub last_abort: Option<String>,
    /// What was not as it should be when it came up.
    pub warnings: Vec<String>,
    pub opening: Opening,
    pub told: Told,
    /// Its configuration file is being written.
    pub writing: bool,
    /// Every track has to be copied once before the secondary is usable.
    pub full_copy: bool,
    pub completed: u64,
    pub aborted: u64,
    pub hold_us_max: u64,
    pub rate: Rate,
}

/// What the last `up` took: until the device was there, and of that reading the metadata.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Opening {
    pub took: Duration,
    pub metadata: Duration,
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
    pub fn new(id: VolumeId, config: VolumeConfig, media_path: PathBuf, known: Known) -> Self {
        Self {
            id,
            settings: config.settings(),
            config,
            phase: Phase::Down,
            waiting: None,
            fresh: false,
            full_copy: known.full_copy(),
            media_path,
            known,
            media: None,
            increment: None,
            last_complete: None,
            last_abort: None,
            warnings: Vec::new(),
            opening: Opening::default(),
            told: Told::default(),
            writing: false,
            completed: 0,
            aborted: 0,
            hold_us_max: 0,
            rate: Rate::default(),
        }
    }

    /// The volume is down, and this is what its metadata says; `None` if that could not be seen.
    pub fn learn(&mut self, known: Option<Box<Known>>) {
        if let Some(known) = known {
            // A full copy that was cut short goes on where it was; the secondary is not usable before.
            self.full_copy = known.full_copy();
            self.known = *known;
        }
    }

    /// Stores a change of the superblock of a volume that is up, without anybody waiting for it: the change only spares
    /// copying or tells history. A failure shows in the volume's status, and a later start does without the change.
    pub fn note_in_media(&mut self, change: impl Fn(&mut Superblock) + Send + 'static) {
        change(&mut self.known.superblock);
        if let Some(media) = self.media.clone() {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = media.update(change) {
                    tracing::error!("{error}");
                }
            });
        }
    }

    /// Logs that the metadata does not answer, and that it does again.
    pub fn watch_metadata(&mut self, name: &str) {
        let silence = self.media.as_ref().and_then(|media| media.answers().err());
        match (&silence, std::mem::replace(&mut self.told.stalled, silence.is_some())) {
            (Some(silence), false) => tracing::warn!("{name}: writes to regions that are not hot wait: {silence}"),
            (None, true) if self.media.is_some() => tracing::info!("{name}: the metadata answers again"),
            _ => {}
        }
    }

    /// Nobody wants it to come up by itself any more. One whose device waits is taken back all the same.
    pub fn start_no_more(&mut self) {
        self.waiting.take_if(|waiting| waiting.device.is_none());
    }

    /// The running volume, or why there is none.
    pub fn running(&self) -> Result<&Volume, Failure> {
        let state = |what: String| Err(Failure::new(FailureKind::WrongState, what));
        match &self.phase {
            Phase::Up(volume) => match volume.broken() {
                None => Ok(volume),
                Some(why) => state(format!("the volume has failed: {}", broken(why))),
            },
            Phase::Down => match &self.waiting {
                Some(Waiting { device: Some(_), .. }) => state(
                    "the volume's device waits to be taken back; bring the volume up, or remove the device with down"
                        .to_owned(),
                ),
                Some(_) => state(
                    "the volume waits until it can come up; see farpoint status, or give it up with down".to_owned(),
                ),
                None => state("the volume is down; bring it up first".to_owned()),
            },
            Phase::Busy(doing) => state(format!("the volume is {doing}; try again when that is done")),
            Phase::Failed(why) => state(format!("the volume has failed: {why}; take it down")),
        }
    }

    /// Whether settings may be changed, which writes the volume's file.
    pub fn may_be_set(&self, name: &str) -> Result<(), Failure> {
        let what = match self.phase {
            Phase::Busy(doing) => doing.to_string(),
            _ if self.writing => "being set".to_owned(),
            _ => return Ok(()),
        };
        let why = format!("{name}: the volume is {what}; try again when that is done");
        Err(Failure::new(FailureKind::WrongState, why))
    }

    pub fn spec(&self, name: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            track_size: self.config.track_size,
            queues: self.config.queues,
            depth: self.config.depth,
            owner: self.known.superblock.owner(),
            waiting: None,
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
    use crate::geometry::Geometry;
    use crate::metadata::Side;
    use crate::metadata::media::Way;

    #[test]
    fn a_volume_has_one_writer_of_its_file_at_a_time() {
        let side = || Side { identity: String::new(), size: 1 << 20 };
        let config = VolumeConfig::new("/a".into(), "/b".into());
        let geometry = Geometry::new(1 << 20, 65536).expect("valid");
        let superblock = Superblock::new([0; 16], "v", [side(), side(), side()], &geometry, 4 << 20);
        let known = Known { superblock, way: Way::New, tracks: 0, hot_regions: 0, damaged_pages: 0 };
        let mut entry = Entry::new(VolumeId(0), config, "/m".into(), known);
        assert!(entry.may_be_set("v").is_ok());
        entry.writing = true;
        assert!(entry.may_be_set("v").is_err());
        (entry.writing, entry.phase) = (false, Phase::Busy(Doing::Deleting));
        let failure = entry.may_be_set("v").expect_err("the file would come back");
        assert_eq!(failure.message, "v: the volume is being deleted; try again when that is done");
    }
}
