//! `farpoint status`: the report as people and `grep` read it, one fact per `key:value`. The report itself is the
//! daemon's; `--json` passes it on untouched.

use std::fmt::Write;

use clap::Args;

use super::check;
use super::context::{Context, Outcome};
use super::{unexpected, units};
use crate::controller::api::{
    CollisionPolicy, Counters, LinkState, Request, Selection, Settings, StatusReport, VolumeReport, VolumeState,
};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Names of the volumes; all, if none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Print one line and end with 0 healthy, 1 degraded, 2 critical or 3 unknown
    #[arg(long, conflicts_with = "json")]
    check: bool,
    /// With --check: the lag above which a volume is degraded
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = super::seconds, requires = "check")]
    lag_max: std::time::Duration,
}

impl Status {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let request = Request::Status(Selection { volumes: self.names });
        if self.check {
            let (verdict, line) = check::judge(&context.ask(&request), self.lag_max);
            context.print(&line)?;
            return Ok(verdict.exit_code());
        }
        let result = context.ask(&request)?;
        if context.globals.json {
            context.print(result.get())?;
            return Ok(0);
        }
        let report = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
        context.print(render(&report, context.globals.verbose > 0, context.colored()).trim_end())?;
        Ok(0)
    }
}

/// The report as text. `verbose` adds settings, counters and the kernel.
pub(super) fn render(report: &StatusReport, verbose: bool, colored: bool) -> String {
    let mut lines = Lines { text: String::new() };
    if verbose {
        let features = report.kernel.ublk_features.join(",");
        let features = if features.is_empty() { "none".to_owned() } else { features };
        lines.line("").word("version", &report.version).word("kernel", &report.kernel.release).word("ublk", &features);
    }
    for volume in &report.volumes {
        render_volume(&mut lines, volume, colored);
        if verbose {
            render_settings(&mut lines, &volume.settings);
            render_counters(&mut lines, &volume.counters);
        }
    }
    for volume in &report.left_out {
        lines.line(&units::word(&volume.name)).raw("state", &paint("left-out", RED, colored));
        lines.line(INDENT).word("reason", &volume.reason);
    }
    if report.volumes.is_empty() && report.left_out.is_empty() {
        lines.line("no volumes");
    }
    lines.finish()
}

fn render_volume(lines: &mut Lines, volume: &VolumeReport, colored: bool) {
    let state = paint(volume.state.word(), state_color(volume.state), colored);
    lines.line(&units::word(&volume.name)).raw("state", &state);
    if let Some(increment) = volume.increment {
        lines.raw("increment", &increment.to_string()).raw("drained", units::yes(volume.drained));
    }
    if volume.full_copy_needed {
        lines.raw("full-copy-needed", &paint("yes", YELLOW, colored));
    }
    lines.line(INDENT).raw("device", &volume.device.as_deref().map_or("none".to_owned(), units::word));
    lines.raw("size", &units::bytes(volume.size)).raw("track", &units::bytes(volume.track_size));
    lines.line(INDENT).word("primary", &volume.primary).raw("unreadable-tracks", &volume.unreadable_tracks.to_string());
    lines.line(INDENT).word("secondary", &volume.secondary);
    lines.raw("link", &paint(volume.link.word(), link_color(volume.link), colored));
    lines.raw("rate", &format!("{}/s", units::bytes(volume.rate_bytes_per_s)));
    lines.raw("eta", &volume.eta_s.map_or("none".to_owned(), units::seconds));
    lines.line(INDENT).word("metadata", &volume.metadata);
    lines.raw("hot-regions", &volume.hot_regions.to_string());
    if volume.metadata_failed {
        lines.raw("metadata-state", &paint("failed", RED, colored));
    }
    if let Some(silent) = volume.metadata_stalled_s {
        lines.raw("metadata-stalled", &paint(&units::seconds(silent), RED, colored));
    }
    if volume.recovered_regions > 0 {
        lines.raw("recovered-regions", &volume.recovered_regions.to_string());
    }
    if volume.damaged_pages > 0 {
        lines.raw("damaged-pages", &paint(&volume.damaged_pages.to_string(), YELLOW, colored));
    }
    lines.line(INDENT).raw("out-of-sync", &units::bytes(volume.out_of_sync_bytes));
    lines.raw("out-of-sync-tracks", &volume.out_of_sync_tracks.to_string());
    lines.raw("recorded-tracks", &volume.recorded_tracks.to_string());
    lines.raw("in-transit", &units::bytes(volume.in_transit_bytes));
    lines.raw("images", &format!("{}/{}", volume.images_used, volume.images_max));
    lines.line(INDENT).raw("last-complete", &volume.last_complete.map_or("none".to_owned(), |last| last.to_string()));
    lines.raw("age", &volume.last_complete_age_s.map_or("none".to_owned(), units::seconds));
    lines.raw("lag", &units::seconds(volume.lag_s));
    if let Some(reason) = &volume.reason {
        lines.line(INDENT).word("reason", reason);
    }
    for warning in &volume.warnings {
        lines.line(INDENT).word("warning", warning);
    }
}

fn render_settings(lines: &mut Lines, settings: &Settings) {
    let Settings { collision_policy, bandwidth_limit, run_timer_ms, increment_timer_ms, collision_wait_ms, autostart } =
        settings;
    lines.line(INDENT).raw(
        "collision-policy",
        match collision_policy {
            CollisionPolicy::KeepBeforeImage => "keep-before-image",
            CollisionPolicy::SendFirst => "send-first",
        },
    );
    let limit = if *bandwidth_limit == 0 { "none".to_owned() } else { format!("{}/s", units::bytes(*bandwidth_limit)) };
    lines.raw("bandwidth-limit", &limit).raw("run-timer", &format!("{run_timer_ms}ms"));
    lines.raw("increment-timer", &format!("{increment_timer_ms}ms"));
    lines.raw("collision-wait", &format!("{collision_wait_ms}ms"));
    lines.raw("autostart", units::yes(*autostart));
}

/// Under the names of the report, so that a new counter is shown without a change here.
fn render_counters(lines: &mut Lines, counters: &Counters) {
    let Ok(serde_json::Value::Object(counters)) = serde_json::to_value(counters) else { return };
    for (at, (key, value)) in counters.iter().enumerate() {
        if at % 4 == 0 {
            lines.line(INDENT);
        }
        lines.raw(&key.replace('_', "-"), &value.to_string());
    }
}

const INDENT: &str = " ";

/// Lines of words, one space between them.
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, start: &str) -> &mut Self {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(start);
        self
    }

    fn raw(&mut self, key: &str, value: &str) -> &mut Self {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push(' ');
        }
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{key}:{value}");
        self
    }

    fn word(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, &units::word(value))
    }

    fn finish(mut self) -> String {
        self.text.push('\n');
        self.text
    }
}

const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const RED: u8 = 31;
const PLAIN: u8 = 0;

fn paint(text: &str, color: u8, colored: bool) -> String {
    if colored && color != PLAIN { format!("\u{1b}[{color}m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn state_color(state: VolumeState) -> u8 {
    match state {
        VolumeState::Normal | VolumeState::IncrementPending | VolumeState::IncrementInProgress => GREEN,
        VolumeState::Aborting => YELLOW,
        VolumeState::Failed | VolumeState::Waiting => RED,
        VolumeState::Down => PLAIN,
    }
}

fn link_color(link: LinkState) -> u8 {
    match link {
        LinkState::Up => GREEN,
        LinkState::Stalled | LinkState::Paused => YELLOW,
        LinkState::Failing => RED,
        LinkState::Down => PLAIN,
    }
}
