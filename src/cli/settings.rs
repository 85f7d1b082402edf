//! `pause`, `resume` and `set`: how the drain of running volumes behaves.

use clap::{Args, ValueEnum};

use super::context::{Context, Outcome};
use crate::controller::api::{self, CollisionPolicy, Failure, Many, Request, SettingsChange};
use crate::controller::limits;

#[derive(Debug, Args)]
pub(super) struct Volumes {
    /// Names of the volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Volumes {
    pub(super) fn pause(self, context: &Context) -> Outcome {
        let done = format!("paused {}", self.names.join(" "));
        context.command(&Request::Pause(Many { volumes: self.names }), |_| Ok(done))
    }

    pub(super) fn resume(self, context: &Context) -> Outcome {
        let done = format!("resumed {}", self.names.join(" "));
        context.command(&Request::Resume(Many { volumes: self.names }), |_| Ok(done))
    }
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Names of the volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    changes: Changes,
}

impl Set {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let done = format!("set {}", self.names.join(" "));
        let request = Request::Set(api::Set { volumes: self.names, settings: self.changes.change()? });
        context.command(&request, |_| Ok(done))
    }
}

/// The settings that can be changed while a volume runs, as options.
#[derive(Debug, Args)]
pub(super) struct Changes {
    /// What becomes of a write to a track that the cut still needs [keep-before-image unless set]
    #[arg(long, value_name = "POLICY")]
    collision_policy: Option<Policy>,
    /// Most bytes per second the drain sends, 64KiB to 1TiB; 0 for no limit [0 unless set]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bandwidth_limit: Option<u64>,
    /// Longest hold, from start to run, 1 to 60000; then the increment is aborted [1000 unless set]
    #[arg(long, value_name = "MILLISECONDS")]
    run_timer_ms: Option<u64>,
    /// Longest time from run to increment-complete, copying included, 1000 to 86400000; then the increment is aborted
    /// [600000 unless set]
    #[arg(long, value_name = "MILLISECONDS")]
    increment_timer_ms: Option<u64>,
    /// Longest time a colliding write waits for the secondary before the increment is aborted, 1 to 60000 [1000 unless
    /// set]
    #[arg(long, value_name = "MILLISECONDS")]
    collision_wait_ms: Option<u64>,
    /// Bring the volume up whenever the daemon starts [no unless set]
    #[arg(long, value_name = "WHETHER")]
    autostart: Option<Whether>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whether {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    /// Keep the old content aside and let the write go
    KeepBeforeImage,
    /// Send the old content first; the write waits for the secondary
    SendFirst,
}

impl Changes {
    /// Checked when there is any.
    pub(super) fn change(&self) -> Result<SettingsChange, Failure> {
        let change = SettingsChange {
            collision_policy: self.collision_policy.map(|policy| match policy {
                Policy::KeepBeforeImage => CollisionPolicy::KeepBeforeImage,
                Policy::SendFirst => CollisionPolicy::SendFirst,
            }),
            bandwidth_limit: self.bandwidth_limit,
            run_timer_ms: self.run_timer_ms,
            increment_timer_ms: self.increment_timer_ms,
            collision_wait_ms: self.collision_wait_ms,
            autostart: self.autostart.map(|whether| whether == Whether::Yes),
        };
        if change != SettingsChange::default() {
            change.check()?;
        }
        Ok(change)
    }
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    limits::parse_size(text)
}
