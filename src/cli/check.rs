//! `farpoint status --check`: one line and one exit code for a monitoring system, in the order of Nagios plug-ins.
//! Whatever cannot be found out is unknown, never healthy.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{unexpected, units};
use crate::controller::api::{Failure, LinkState, StatusReport, VolumeReport, VolumeState};

/// Ordered by what a summary of several volumes shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Healthy,
    Unknown,
    Degraded,
    Critical,
}

impl Verdict {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Healthy => "OK",
            Self::Degraded => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Judges the answer to a status request, or that there is none.
pub(super) fn judge(answer: &Result<Box<RawValue>, Failure>, lag_max: Duration) -> (Verdict, String) {
    let report = answer
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|result| serde_json::from_str::<StatusReport>(result.get()).map_err(|error| unexpected(&error)));
    let (verdict, text) = match report {
        Ok(report) => judge_report(&report, lag_max),
        Err(failure) => (Verdict::Unknown, units::one_line(&failure.message, 500)),
    };
    (verdict, format!("{} - {text}", verdict.word()))
}

fn judge_report(report: &StatusReport, lag_max: Duration) -> (Verdict, String) {
    let lag = report.volumes.iter().map(|volume| volume.lag_s).fold(0.0, f64::max);
    let left_out = report.left_out.iter().map(|volume| {
        let text = format!("{} left out ({})", units::word(&volume.name), units::one_line(&volume.reason, 200));
        (Verdict::Critical, text)
    });
    let judged = report.volumes.iter().map(|volume| judge_volume(volume, lag_max));
    let findings: Vec<_> = judged.chain(left_out).collect();
    let verdict = match findings.iter().map(|(verdict, _)| *verdict).max() {
        None => return (Verdict::Unknown, "there are no volumes".to_owned()),
        Some(Verdict::Healthy) => {
            let count = findings.len();
            let volumes = if count == 1 { "volume" } else { "volumes" };
            return (Verdict::Healthy, format!("{count} {volumes}, lag {}", units::seconds(lag)));
        }
        Some(worst) => worst,
    };
    let bad = findings.into_iter().filter(|(found, _)| *found != Verdict::Healthy).map(|(_, text)| text);
    (verdict, bad.collect::<Vec<_>>().join("; "))
}

/// The worst thing to say about one volume.
fn judge_volume(volume: &VolumeReport, lag_max: Duration) -> (Verdict, String) {
    let name = units::word(&volume.name);
    let reason = volume.reason.as_deref().map_or(String::new(), |why| format!(" ({})", units::one_line(why, 200)));
    let said = |verdict, text: String| (verdict, format!("{name} {text}"));
    match (volume.state, volume.link) {
        (VolumeState::Failed, _) => said(Verdict::Critical, format!("failed{reason}")),
        (VolumeState::Waiting, _) if volume.device.is_some() => {
            said(Verdict::Critical, format!("waits to be taken back{reason}"))
        }
        (VolumeState::Waiting, _) => said(Verdict::Critical, format!("waits to come up{reason}")),
        (VolumeState::Down, _) => said(Verdict::Degraded, "is down".to_owned()),
        (_, LinkState::Failing | LinkState::Down) => {
            said(Verdict::Critical, format!("secondary {}{reason}", volume.link.word()))
        }
        _ if volume.metadata_failed => {
            said(Verdict::Critical, "metadata failed; it cannot be stopped cleanly".to_owned())
        }
        _ if volume.metadata_stalled_s.is_some() => {
            let silent = volume.metadata_stalled_s.unwrap_or_default();
            said(Verdict::Critical, format!("metadata has not answered for {}", units::seconds(silent)))
        }
        _ if volume.unreadable_tracks > 0 => {
            said(Verdict::Critical, format!("has {} unreadable tracks", volume.unreadable_tracks))
        }
        (_, LinkState::Stalled | LinkState::Paused) => {
            said(Verdict::Degraded, format!("secondary {}", volume.link.word()))
        }
        _ if volume.full_copy_needed => said(Verdict::Degraded, "has no full copy yet".to_owned()),
        // A lag that is no number is no good lag.
        _ if !Duration::try_from_secs_f64(volume.lag_s).is_ok_and(|lag| lag <= lag_max) => {
            said(Verdict::Degraded, format!("lags {}", units::seconds(volume.lag_s)))
        }
        (VolumeState::Aborting, _) => said(Verdict::Degraded, format!("aborting an increment{reason}")),
        _ => said(Verdict::Healthy, volume.state.word().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::controller::api::{Counters, FailureKind, KernelReport, LeftOut, Settings};

    fn healthy() -> VolumeReport {
        VolumeReport {
            name: "v".into(),
            state: VolumeState::Normal,
            reason: None,
            warnings: Vec::new(),
            device: None,
            size: 1 << 30,
            track_size: 65536,
            primary: "/dev/a".into(),
            secondary: "/dev/b".into(),
            metadata: "/m".into(),
            metadata_failed: false,
            metadata_stalled_s: None,
            recovered_regions: 0,
            hot_regions: 0,
            damaged_pages: 0,
            link: LinkState::Up,
            full_copy_needed: false,
            increment: None,
            drained: false,
            in_sync: false,
            last_complete: None,
            last_complete_age_s: None,
            lag_s: 0.5,
            out_of_sync_tracks: 0,
            out_of_sync_bytes: 0,
            recorded_tracks: 0,
            in_transit_bytes: 0,
            unreadable_tracks: 0,
            rate_bytes_per_s: 0,
            eta_s: None,
            images_used: 0,
            images_max: 0,
            settings: Settings::default(),
            counters: Counters::default(),
        }
    }

    fn judged(volumes: Vec<VolumeReport>) -> (Verdict, String) {
        judged_with(volumes, Vec::new())
    }

    fn judged_with(volumes: Vec<VolumeReport>, left_out: Vec<LeftOut>) -> (Verdict, String) {
        let kernel = KernelReport::default();
        let report = StatusReport { schema: String::new(), version: String::new(), kernel, volumes, left_out };
        judge(&Ok(to_raw_value(&report).expect("serializable")), Duration::from_secs(60))
    }

    #[test]
    fn each_trouble_has_its_verdict() {
        type Trouble = fn(&mut VolumeReport);
        let table: [(Trouble, Verdict, &str); 15] = [
            (|_| {}, Verdict::Healthy, "OK - 1 volume, lag 0.5s"),
            (|v| v.state = VolumeState::Failed, Verdict::Critical, "CRITICAL - v failed"),
            (|v| v.state = VolumeState::Waiting, Verdict::Critical, "CRITICAL - v waits to come up"),
            (
                |v| (v.state, v.device) = (VolumeState::Waiting, Some("/dev/ublkb0".to_owned())),
                Verdict::Critical,
                "CRITICAL - v waits to be taken back",
            ),
            (|v| v.state = VolumeState::Down, Verdict::Degraded, "WARNING - v is down"),
            (|v| v.state = VolumeState::Aborting, Verdict::Degraded, "WARNING - v aborting an increment"),
            (|v| v.link = LinkState::Failing, Verdict::Critical, "CRITICAL - v secondary failing"),
            (|v| v.link = LinkState::Paused, Verdict::Degraded, "WARNING - v secondary paused"),
            (|v| v.link = LinkState::Stalled, Verdict::Degraded, "WARNING - v secondary stalled"),
            (
                |v| v.metadata_failed = true,
                Verdict::Critical,
                "CRITICAL - v metadata failed; it cannot be stopped cleanly",
            ),
            (
                |v| v.metadata_stalled_s = Some(7.5),
                Verdict::Critical,
                "CRITICAL - v metadata has not answered for 7.5s",
            ),
            (|v| v.unreadable_tracks = 2, Verdict::Critical, "CRITICAL - v has 2 unreadable tracks"),
            (|v| v.full_copy_needed = true, Verdict::Degraded, "WARNING - v has no full copy yet"),
            (|v| v.lag_s = 61.0, Verdict::Degraded, "WARNING - v lags 1m01s"),
            (|v| v.lag_s = -1.0, Verdict::Degraded, "WARNING - v lags unknown"),
        ];
        for (trouble, verdict, line) in table {
            let mut volume = healthy();
            trouble(&mut volume);
            assert_eq!(judged(vec![volume]), (verdict, line.to_owned()));
        }
    }

    #[test]
    fn the_worst_volume_decides_and_every_bad_one_is_named() {
        let mut paused = healthy();
        paused.link = LinkState::Paused;
        let mut failed = healthy();
        failed.state = VolumeState::Failed;
        failed.reason = Some("lost\nit".into());
        let (verdict, line) = judged(vec![healthy(), paused, failed]);
        assert_eq!((verdict, line.as_str()), (Verdict::Critical, "CRITICAL - v secondary paused; v failed (lost it)"));
    }

    #[test]
    fn a_volume_that_was_left_out_is_not_passed_over() {
        let left_out = || vec![LeftOut { name: "w".to_owned(), reason: "no metadata".to_owned() }];
        let expected = (Verdict::Critical, "CRITICAL - w left out (no metadata)".to_owned());
        assert_eq!(judged_with(vec![healthy()], left_out()), expected);
        assert_eq!(judged_with(Vec::new(), left_out()), expected);
    }

    #[test]
    fn what_cannot_be_found_out_is_unknown() {
        assert_eq!(judged(Vec::new()).0.exit_code(), 3);
        let lag_max = Duration::from_secs(60);
        assert_eq!(judge(&Err(Failure::new(FailureKind::Failed, "x\ny")), lag_max).1, "UNKNOWN - x y");
        let nonsense = RawValue::from_string("[]".to_owned()).expect("JSON");
        assert_eq!(judge(&Ok(nonsense), lag_max).0, Verdict::Unknown);
    }
}
