//! What can be asked of a controller and what it answers: the typed form of every verb, of the status report and of
//! events. `control` turns these into JSON-RPC and back; nothing here knows of sockets, and nothing below knows of it.

mod device;
mod event;
mod status;

pub use device::{DeviceReport, DeviceState, Devices, RemoveDevice};
pub use event::{Event, EventAction};
pub use status::{
    Counters, KernelReport, LeftOut, LinkState, STATUS_SCHEMA, Settings, StatusReport, VolumeReport, VolumeState,
};

use serde::{Deserialize, Serialize};

use super::limits;

/// One command to a controller. Volumes are always named, never given by path: paths come from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Request {
    /// Takes a volume into service that the configuration describes: opens and checks primary and secondary.
    Create(Create),
    /// Forgets a volume that is down: its state and its configuration file. The data of both devices stays.
    Delete(One),
    /// Makes `/dev/ublkbN` appear and starts mirroring.
    Up(One),
    /// Stops mirroring and removes the device.
    Down(Down),
    Status(Selection),
    /// Lists the devices of farpoint volumes, known or not, whoever serves them.
    Devices(Nothing),
    /// Removes a device that nobody serves and whose volume is not known.
    RemoveDevice(RemoveDevice),
    /// Makes the cut over all named volumes at once and holds new writes until `run` (seed 004 \[0039\]).
    Start(Start),
    /// Lets the held writes go; they are recorded for the next increment (seed 004 \[0041\]).
    Run(Many),
    /// Ends the increment once its tracks are all at the secondary (seed 004 \[0048\]).
    IncrementComplete(Many),
    /// Gives the increment up; nothing is lost, its tracks are simply out of sync again.
    Abort(Many),
    Wait(Wait),
    /// Stops the drain; writes go on being tracked.
    Pause(Many),
    Resume(Many),
    /// Changes settings of running volumes; they last until changed again and are kept over restarts.
    Set(Set),
    /// A stream, not a question: it reaches the controller as `Call::Subscribe`, never as `Call::Request`.
    Events(Events),
}

impl Request {
    /// Whether the request changes nothing, so that a peer without the right to command may make it.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Devices(_) | Self::Wait(_) | Self::Events(_))
    }

    /// The word for it on the socket and on the command line.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Delete(_) => "delete",
            Self::Up(_) => "up",
            Self::Down(_) => "down",
            Self::Status(_) => "status",
            Self::Devices(_) => "devices",
            Self::RemoveDevice(_) => "remove-device",
            Self::Start(_) => "start",
            Self::Run(_) => "run",
            Self::IncrementComplete(_) => "increment-complete",
            Self::Abort(_) => "abort",
            Self::Wait(_) => "wait",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Set(_) => "set",
            Self::Events(_) => "events",
        }
    }

    /// The volumes it names, for the log and for error messages.
    pub fn volumes(&self) -> &[String] {
        match self {
            Self::Create(Create { volume, .. })
            | Self::Delete(One { volume })
            | Self::Up(One { volume })
            | Self::Down(Down { volume, .. }) => std::slice::from_ref(volume),
            Self::Status(Selection { volumes })
            | Self::Start(Start { volumes, .. })
            | Self::Run(Many { volumes })
            | Self::IncrementComplete(Many { volumes })
            | Self::Abort(Many { volumes })
            | Self::Wait(Wait { volumes, .. })
            | Self::Pause(Many { volumes })
            | Self::Resume(Many { volumes })
            | Self::Set(Set { volumes, .. }) => volumes,
            Self::Devices(_) | Self::RemoveDevice(_) | Self::Events(_) => &[],
        }
    }

    /// Names and numbers are inside their limits. Every request is checked before a controller sees it.
    pub fn check(&self) -> Result<(), Failure> {
        limits::check_names(self.volumes())?;
        match self {
            Self::Status(_) | Self::Devices(_) | Self::Events(_) => {}
            Self::RemoveDevice(remove) => drop(remove.id()?),
            _ if self.volumes().is_empty() => {
                return Err(Failure::new(FailureKind::Usage, "no volume is named; name at least one"));
            }
            Self::Start(Start { run_timer_ms: Some(ms), .. }) => limits::RUN_TIMER_MS.check("run_timer_ms", *ms)?,
            Self::Wait(Wait { timeout_ms: Some(ms), .. }) => limits::TIMEOUT_MS.check("timeout_ms", *ms)?,
            Self::Set(Set { settings, .. }) => settings.check()?,
            _ => {}
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct One {
    pub volume: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Many {
    pub volumes: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Empty means all.
    pub volumes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    pub volume: String,
    /// Accept a secondary that carries a foreign signature (a file system, a RAID member, ...).
    #[serde(default)]
    pub force: bool,
    /// The secondary is an exact copy already: nothing is copied at first, and nothing is checked.
    #[serde(default)]
    pub in_sync: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Down {
    pub volume: String,
    /// Remove the device even if it is in use; its users get I/O errors.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub volumes: Vec<String>,
    /// How long writes may be held before the increment is aborted, 1 to 60000 milliseconds; the volumes' setting if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_timer_ms: Option<u64>,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// The increment's tracks are all at the secondary and flushed.
    Drained,
    /// Nothing is out of sync. Under constant writes this may never be.
    InSync,
    /// No increment is under way.
    Normal,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    pub volumes: Vec<String>,
    pub until: Until,
    /// Milliseconds to wait at most, up to a year; forever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    pub volumes: Vec<String>,
    pub settings: SettingsChange,
}

/// Settings to change; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_policy: Option<CollisionPolicy>,
    /// Bytes per second the drain may send, 64 KiB to 1 TiB; 0 lifts the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<u64>,
    /// Milliseconds a hold may last, 1 to 60000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_timer_ms: Option<u64>,
    /// Milliseconds an increment may last, 1000 to 86400000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub increment_timer_ms: Option<u64>,
    /// Milliseconds a colliding write may wait for the secondary before the increment is aborted, 1 to 60000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_wait_ms: Option<u64>,
    /// Whether the volume comes up whenever the daemon starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
}

impl SettingsChange {
    /// Something is to be changed, and to a value inside its limits.
    pub fn check(&self) -> Result<(), Failure> {
        if *self == Self::default() {
            return Err(Failure::new(FailureKind::Usage, "no setting is named; name at least one to change"));
        }
        let numbers = [
            ("bandwidth_limit", self.bandwidth_limit, limits::BANDWIDTH_LIMIT),
            ("run_timer_ms", self.run_timer_ms, limits::RUN_TIMER_MS),
            ("increment_timer_ms", self.increment_timer_ms, limits::INCREMENT_TIMER_MS),
            ("collision_wait_ms", self.collision_wait_ms, limits::COLLISION_WAIT_MS),
        ];
        for (key, value, limit) in numbers {
            if let Some(value) = value {
                limit.check(key, value)?;
            }
        }
        Ok(())
    }

    /// Puts what is to be changed into `settings`.
    pub fn apply(&self, settings: &mut Settings) {
        settings.collision_policy = self.collision_policy.unwrap_or(settings.collision_policy);
        settings.bandwidth_limit = self.bandwidth_limit.unwrap_or(settings.bandwidth_limit);
        settings.run_timer_ms = self.run_timer_ms.unwrap_or(settings.run_timer_ms);
        settings.increment_timer_ms = self.increment_timer_ms.unwrap_or(settings.increment_timer_ms);
        settings.collision_wait_ms = self.collision_wait_ms.unwrap_or(settings.collision_wait_ms);
        settings.autostart = self.autostart.unwrap_or(settings.autostart);
    }
}

/// What becomes of a write after the cut to a track that the cut still needs (seed 004 FIG 6 and FIG 7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollisionPolicy {
    /// Keep the old content aside and let the write go (FIG 7).
    #[default]
    KeepBeforeImage,
    /// Send the old content first; the write waits for the secondary (FIG 6).
    SendFirst,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Only the dump of what exists, then end.
    pub now: bool,
    /// Also report counters as they change.
    pub statistics: bool,
}

/// Why a request failed; each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    Failed,
    Usage,
    NotFound,
    WrongState,
    TimedOut,
    Permission,
    Io,
    Unsafe,
}

impl FailureKind {
    /// The word for it in an error object.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::WrongState => "wrong-state",
            Self::TimedOut => "timed-out",
            Self::Permission => "permission",
            Self::Io => "io",
            Self::Unsafe => "unsafe",
        }
    }

    /// The exit code of the command line, as documented in farpoint(8).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::WrongState => 4,
            Self::TimedOut => 5,
            Self::Permission => 6,
            Self::Io => 7,
            Self::Unsafe => 8,
        }
    }
}

/// A refusal or failure: one line that says what, why and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    Status(Box<StatusReport>),
    Devices(Devices),
    Increment(IncrementReply),
    Up(UpReply),
    Done(Done),
}

/// `start`, `run`, `increment-complete` and `abort`: which increment it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncrementReply {
    pub increment: u64,
    pub volumes: Vec<String>,
    /// `start` and `run`: how long writes have been held so far, in microseconds.
    pub hold_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpReply {
    pub volume: String,
    /// The block device, for example `/dev/ublkb0`.
    pub device: String,
    /// What is not as it should be, though the volume is up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub volumes: Vec<String>,
    /// What is not as it should be, though it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Done {
    pub fn of(volumes: Vec<String>) -> Self {
        Self { volumes, warnings: Vec::new() }
    }
}
