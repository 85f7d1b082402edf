//! `farpoint wait`: the daemon answers when the condition holds. On a terminal a bar shows how far the drain is, fed by
//! asking for the status meanwhile; elsewhere nothing is printed but the result.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::context::{Context, Outcome};
use super::units;
use crate::control::client::Client;
use crate::control::rpc::Message;
use crate::controller::api::{self, Failure, FailureKind, Request, Selection, StatusReport};

const BAR_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Names of the volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What to wait for
    #[arg(long, value_name = "CONDITION", default_value = "in-sync")]
    until: Until,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Until {
    /// The increment's tracks are all at the secondary
    Drained,
    /// Nothing is out of sync
    InSync,
    /// No increment is under way
    Normal,
}

impl Until {
    fn in_words(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::InSync => "in-sync",
            Self::Normal => "normal",
        }
    }
}

impl Wait {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let until = match self.until {
            Until::Drained => api::Until::Drained,
            Until::InSync => api::Until::InSync,
            Until::Normal => api::Until::Normal,
        };
        let timeout_ms = context.globals.timeout.and_then(|timeout| u64::try_from(timeout.as_millis()).ok());
        let request = Request::Wait(api::Wait { volumes: self.names.clone(), until, timeout_ms });
        request.check()?;
        let mut client = context.connect()?;
        client.send(&request, context.deadline())?;
        let mut progress = Progress::of(context, &self.names);
        let result = loop {
            let deadline = context.deadline_with_grace();
            let look = progress.as_ref().map(|_| Instant::now() + BAR_EVERY);
            match client.receive(look.into_iter().chain(deadline).min())? {
                Some(Message::Reply(_, result)) => break result,
                Some(Message::Event(_)) => {}
                None if deadline.is_some_and(|deadline| deadline <= Instant::now()) => break Err(self.timed_out()),
                None => {
                    if let Some(progress) = &mut progress {
                        progress.show(context);
                    }
                }
            }
        };
        drop(progress);
        let names = self.names.join(" ");
        context.show_result(&result?, |_| Ok(format!("{}: {names}", self.until.in_words())))
    }

    fn timed_out(&self) -> Failure {
        let message = format!("{} did not become {} in the time given", self.names.join(" "), self.until.in_words());
        Failure::new(FailureKind::TimedOut, message)
    }
}

/// A bar of the bytes still to send, on a connection of its own, as the other one waits.
struct Progress {
    bar: ProgressBar,
    client: Client,
    request: Request,
    /// The most that was ever to be sent: the whole of the bar.
    most: u64,
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress {
    /// Only where a person can see it, and only if the daemon takes the second connection.
    fn of(context: &Context, names: &[String]) -> Option<Self> {
        let globals = &context.globals;
        if globals.json || globals.quiet || !std::io::stderr().is_terminal() {
            return None;
        }
        let client = context.connect().ok()?;
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let template = if context.colored() { "[{wide_bar:.green}] {msg}" } else { "[{wide_bar}] {msg}" };
        bar.set_style(ProgressStyle::with_template(template).ok()?.progress_chars("=> "));
        Some(Self { bar, client, request: Request::Status(Selection { volumes: names.to_vec() }), most: 0 })
    }

    /// A status that does not come is left out: the bar is only something to look at.
    fn show(&mut self, context: &Context) {
        let deadline = context.deadline_with_grace().or(Some(Instant::now() + Duration::from_secs(5)));
        let Ok(result) = self.client.ask(&self.request, deadline) else { return };
        let Ok(report) = serde_json::from_str::<StatusReport>(result.get()) else { return };
        let (left, rate) = left_and_rate(&report);
        self.most = self.most.max(left);
        self.bar.set_length(self.most.max(1));
        self.bar.set_position(self.most - left);
        self.bar.set_message(in_words(left, rate));
    }
}

fn left_and_rate(report: &StatusReport) -> (u64, u64) {
    report.volumes.iter().fold((0, 0), |(left, rate): (u64, u64), volume| {
        let to_send = volume.out_of_sync_bytes.saturating_add(volume.in_transit_bytes);
        (left.saturating_add(to_send), rate.saturating_add(volume.rate_bytes_per_s))
    })
}

fn in_words(left: u64, rate: u64) -> String {
    let time = match left.checked_div(rate) {
        Some(seconds) => units::seconds(Duration::from_secs(seconds).as_secs_f64()),
        None => "unknown".to_owned(),
    };
    format!("{} left at {}/s, {time} to go", units::bytes(left), units::bytes(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_rate_and_time_left() {
        assert_eq!(in_words(600 << 20, 100 << 20), "600MiB left at 100MiB/s, 6s to go");
        assert_eq!(in_words(1, 0), "1B left at 0B/s, unknown to go");
    }
}
