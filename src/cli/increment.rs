//! `start`, `run`, `increment-complete` and `abort`: the commands of an increment, over one or more volumes at once.

use clap::Args;

use super::context::{Context, Outcome};
use super::{unexpected, units};
use crate::controller::api::{self, IncrementReply, Many, Request};

#[derive(Debug, Args)]
pub(super) struct Start {
    /// Names of the volumes that are cut together
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Longest time writes may be held before the increment is aborted, 1 to 60000 [default: each volume's setting]
    #[arg(long, value_name = "MILLISECONDS")]
    run_timer_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Volumes {
    /// Names of the volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Start {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let request = api::Start { volumes: self.names, run_timer_ms: self.run_timer_ms };
        ask(context, &Request::Start(request), "started", true)
    }
}

impl Volumes {
    pub(super) fn run(self, context: &Context) -> Outcome {
        ask(context, &Request::Run(Many { volumes: self.names }), "running", true)
    }

    pub(super) fn complete(self, context: &Context) -> Outcome {
        ask(context, &Request::IncrementComplete(Many { volumes: self.names }), "completed", false)
    }

    pub(super) fn abort(self, context: &Context) -> Outcome {
        ask(context, &Request::Abort(Many { volumes: self.names }), "aborted", false)
    }
}

fn ask(context: &Context, request: &Request, done: &str, with_hold: bool) -> Outcome {
    context.command(request, |result| {
        let reply: IncrementReply = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
        let volumes = units::one_line(&reply.volumes.join(","), 8192);
        let held = if with_hold { format!(" held:{}", units::microseconds(reply.hold_us)) } else { String::new() };
        Ok(format!("{done} increment:{} volumes:{volumes}{held}", reply.increment))
    })
}
