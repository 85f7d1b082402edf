//! The status report: one document with everything that can be said of every volume. Fields are only ever added.

use serde::{Deserialize, Serialize};

use super::CollisionPolicy;

/// Schema name printed at the top of the report; only additions are made under one number.
pub const STATUS_SCHEMA: &str = "farpoint.status/1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub schema: String,
    pub version: String,
    pub kernel: KernelReport,
    pub volumes: Vec<VolumeReport>,
    /// Volumes that have a file and are not served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A volume of which only the name is known: its file is wrong, or its metadata is away, damaged or does not answer. It
/// is looked for again every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub name: String,
    pub reason: String,
}

/// What the running kernel's ublk driver offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    pub release: String,
    /// Names of the ublk features found, empty when there is no driver.
    pub ublk_features: Vec<String>,
}

/// The state of a volume's increment (seed 004 FIG 2, box 230), and `down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    Down,
    /// The volume comes up as soon as it can. If it has a device, that has outlived the daemon that served it, and
    /// holds its I/O until `up` takes it back or `down` removes it.
    Waiting,
    Normal,
    IncrementPending,
    IncrementInProgress,
    /// An increment was given up and its tracks are being put back out of sync.
    Aborting,
    /// The device had an error that only `down` and `up` can mend.
    Failed,
}

impl VolumeState {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Waiting => "waiting",
            Self::Normal => "normal",
            Self::IncrementPending => "increment-pending",
            Self::IncrementInProgress => "increment-in-progress",
            Self::Aborting => "aborting",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    Up,
    /// Requests have been unanswered for seconds.
    Stalled,
    /// The last request failed; retried with back-off.
    Failing,
    Paused,
    Down,
}

impl LinkState {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Stalled => "stalled",
            Self::Failing => "failing",
            Self::Paused => "paused",
            Self::Down => "down",
        }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, for people and programs to read")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    pub name: String,
    pub state: VolumeState,
    /// Why the volume is `failed`, or why the last increment was aborted.
    pub reason: Option<String>,
    /// What is not as it should be, though the volume works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub device: Option<String>,
    pub size: u64,
    pub track_size: u64,
    pub primary: String,
    pub secondary: String,
    /// File or device with the volume's metadata.
    pub metadata: String,
    /// A write of the metadata has failed: the volume cannot be stopped cleanly any more.
    pub metadata_failed: bool,
    /// For how long the metadata has owed an answer, if that is longer than 5 s: it may never come.
    pub metadata_stalled_s: Option<f64>,
    /// Regions copied again since the last start because the stop before it was not clean.
    pub recovered_regions: u64,
    /// Regions that media shows hot: what would be copied again if the daemon were killed now.
    pub hot_regions: u64,
    /// Intent pages that were damaged at the last start and read as all ones; all of them if a record of the log was.
    pub damaged_pages: u64,
    pub link: LinkState,
    /// Everything must be copied once before the secondary is usable: a new volume.
    pub full_copy_needed: bool,
    /// Number of the increment under way.
    pub increment: Option<u64>,
    /// The increment's tracks are all at the secondary and flushed.
    pub drained: bool,
    /// The secondary is an exact and durable copy.
    pub in_sync: bool,
    /// Number of the last increment that was completed.
    pub last_complete: Option<u64>,
    /// Seconds since the cut of the last completed increment: the age of the point at the secondary.
    pub last_complete_age_s: Option<f64>,
    /// The lag: seconds of writes that the secondary does not hold, 0 when in sync.
    pub lag_s: f64,
    pub out_of_sync_tracks: u64,
    pub out_of_sync_bytes: u64,
    pub recorded_tracks: u64,
    pub in_transit_bytes: u64,
    pub unreadable_tracks: u64,
    pub rate_bytes_per_s: u64,
    /// Seconds until in sync at the present rate; absent when not draining.
    pub eta_s: Option<f64>,
    pub images_used: u64,
    pub images_max: u64,
    pub settings: Settings,
    pub counters: Counters,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub collision_policy: CollisionPolicy,
    pub bandwidth_limit: u64,
    pub run_timer_ms: u64,
    pub increment_timer_ms: u64,
    pub collision_wait_ms: u64,
    /// Whether the volume comes up whenever the daemon starts.
    pub autostart: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            collision_policy: CollisionPolicy::default(),
            bandwidth_limit: 0,
            run_timer_ms: 1_000,
            increment_timer_ms: 600_000,
            collision_wait_ms: 1_000,
            autostart: false,
        }
    }
}

/// Totals since `up`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub host_reads: u64,
    pub host_writes: u64,
    pub host_flushes: u64,
    pub host_discards: u64,
    pub host_errors: u64,
    pub host_write_bytes: u64,
    pub host_read_bytes: u64,
    pub drained_bytes: u64,
    pub drained_tracks: u64,
    pub zero_tracks: u64,
    pub secondary_flushes: u64,
    pub secondary_errors: u64,
    pub primary_read_errors: u64,
    pub checksum_errors: u64,
    pub collisions: u64,
    /// Collisions answered by keeping a before-image.
    pub collisions_kept: u64,
    /// Collisions in which the write waited for the secondary.
    pub collisions_sent_first: u64,
    /// Writes that had to wait because their track was being read or sent already.
    pub collisions_waited: u64,
    pub increments_completed: u64,
    pub increments_aborted: u64,
    /// Longest hold so far, in microseconds.
    pub hold_us_max: u64,
    /// Intent pages written, and records of the intent log.
    pub intent_page_writes: u64,
    pub intent_records: u64,
    /// Host writes that waited for the intent of their regions to be durable.
    pub intent_waits: u64,
    /// Regions marked ahead of a sequential writer.
    pub intent_marked_ahead: u64,
    /// Regions cleared because nothing in them differs any more.
    pub intent_cleared: u64,
    /// Longest time a host write waited for a hold, a collision or its intent, in microseconds.
    pub write_wait_us_max: u64,
    /// The last `up`, until its device was there, and of that reading the metadata, in microseconds.
    pub open_us: u64,
    pub open_metadata_us: u64,
}
