//! The status of every volume, put together from what its parts last said. Looks only; nothing waits for it.

use super::api::{
    Counters, Failure, KernelReport, LeftOut, LinkState, Response, STATUS_SCHEMA, StatusReport, VolumeReport,
    VolumeState,
};
use super::entry::{self, Entry, Phase};
use super::{Controller, UNANSWERED};
use crate::frontend::features;
use crate::geometry::Geometry;
use crate::increment::State;
use crate::uploader::Figures;
use crate::volume::Volume;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

impl Controller {
    /// The status of the volumes named, of all if none is.
    pub(super) fn status(&mut self, names: &[String]) -> Result<Response, Failure> {
        let is_wanted = |name: &String| names.is_empty() || names.contains(name);
        let left_out: Vec<LeftOut> = self.left_out().filter(|volume| is_wanted(&volume.name)).collect();
        for name in names.iter().filter(|name| left_out.iter().all(|volume| volume.name != **name)) {
            self.entry(name)?;
        }
        let all: Vec<String> = self.volumes.keys().cloned().collect();
        let volumes = all.iter().filter(|name| is_wanted(name)).filter_map(|name| self.volume_report(name)).collect();
        Ok(Response::Status(Box::new(StatusReport {
            schema: STATUS_SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: KernelReport {
                release: nix::sys::utsname::uname()
                    .map(|name| name.release().to_string_lossy().into_owned())
                    .unwrap_or_default(),
                ublk_features: self.features.map(features::names).unwrap_or_default(),
            },
            volumes,
            left_out,
        })))
    }

    /// Those that were left out, and those whose metadata has not answered yet.
    fn left_out(&self) -> impl Iterator<Item = LeftOut> {
        let report = |(name, reason): (&String, String)| LeftOut { name: name.clone(), reason };
        let is_known = |name: &String| self.left_out.contains_key(name) || self.volumes.contains_key(name);
        let silent = self.looking.iter().filter(move |name| !is_known(name));
        let silent = silent.map(|name| (name, UNANSWERED.to_owned()));
        self.left_out.iter().map(|(name, why)| (name, why.clone())).chain(silent).map(report)
    }

    /// The report of one volume.
    pub(super) fn volume_report(&self, name: &str) -> Option<VolumeReport> {
        let entry = self.volumes.get(name)?;
        let state = self.volume_state(entry);
        let mut report = blank(name, entry, state);
        let increment = entry.increment.and_then(|number| self.increments.get(&number));
        report.increment = entry.increment.map(|number| number.0);
        report.drained = increment.is_some_and(|running| running.group.is_drained());
        if let Phase::Up(volume) = &entry.phase {
            fill(&mut report, volume, entry, self.began);
        }
        Some(report)
    }

    pub(super) fn volume_state(&self, entry: &Entry) -> VolumeState {
        match &entry.phase {
            Phase::Down | Phase::Busy(_) if entry.waiting.is_some() => VolumeState::Waiting,
            Phase::Down | Phase::Busy(_) => VolumeState::Down,
            Phase::Failed(_) => VolumeState::Failed,
            Phase::Up(volume) if volume.broken().is_some() => VolumeState::Failed,
            Phase::Up(_) => {
                let running = entry.increment.and_then(|number| self.increments.get(&number));
                match running.and_then(|running| running.group.state(entry.id)) {
                    None | Some(State::Normal) => VolumeState::Normal,
                    Some(State::Pending { .. }) => VolumeState::IncrementPending,
                    Some(State::InProgress { .. }) => VolumeState::IncrementInProgress,
                    Some(State::Aborting { .. }) => VolumeState::Aborting,
                }
            }
        }
    }
}

/// What can be said of a volume that is not running.
fn blank(name: &str, entry: &Entry, state: VolumeState) -> VolumeReport {
    let reason = match &entry.phase {
        Phase::Failed(why) => Some(why.clone()),
        Phase::Up(volume) => volume.broken().map(entry::broken).or_else(|| entry.last_abort.clone()),
        Phase::Busy(doing) => Some(doing.to_string()),
        Phase::Down => match &entry.waiting {
            Some(waiting) => waiting.why.clone(),
            None => entry.last_abort.clone(),
        },
    };
    let (known, superblock) = (&entry.known, &entry.known.superblock);
    let tracks = known.tracks;
    VolumeReport {
        name: name.to_owned(),
        state,
        reason,
        warnings: Vec::new(),
        device: entry.waiting.as_ref().and_then(|waiting| Some(waiting.device.as_ref()?.path())),
        size: superblock.primary.size,
        track_size: entry.config.track_size,
        primary: entry.config.primary.display().to_string(),
        secondary: entry.config.secondary.display().to_string(),
        metadata: entry.media_path.display().to_string(),
        metadata_failed: false,
        metadata_stalled_s: None,
        recovered_regions: known.recovered(),
        hot_regions: known.hot_regions,
        damaged_pages: known.damaged_pages,
        link: LinkState::Down,
        full_copy_needed: entry.full_copy,
        increment: None,
        drained: false,
        in_sync: false,
        last_complete: entry
            .last_complete
            .map(|(number, _)| number.0)
            .or(superblock.completed.map(|completed| completed.increment)),
        last_complete_age_s: entry.last_complete.map(|(_, cut)| cut.elapsed().as_secs_f64()),
        lag_s: 0.0,
        out_of_sync_tracks: tracks,
        out_of_sync_bytes: (tracks * entry.config.track_size).min(superblock.primary.size),
        recorded_tracks: 0,
        in_transit_bytes: 0,
        unreadable_tracks: 0,
        rate_bytes_per_s: 0,
        eta_s: None,
        images_used: 0,
        images_max: 0,
        settings: entry.settings.clone(),
        counters: Counters::default(),
    }
}

/// What the running parts say.
fn fill(report: &mut VolumeReport, volume: &Volume, entry: &Entry, began: Instant) {
    let (figures, tracking) = (volume.figures(), volume.tracking());
    let geometry: &Geometry = tracking.geometry();
    report.device = Some(volume.device_path());
    report.warnings.clone_from(&entry.warnings);
    report.link = link(&figures);
    report.hot_regions = volume.intent().hot;
    report.metadata_failed = entry.media.as_ref().is_some_and(|media| media.has_failed());
    report.metadata_stalled_s = entry.media.as_ref().and_then(|media| media.stalled()).map(|time| time.as_secs_f64());
    report.out_of_sync_tracks = tracking.out_of_sync().count();
    report.out_of_sync_bytes = geometry.bytes_of(report.out_of_sync_tracks);
    report.recorded_tracks = tracking.change_recording().count();
    report.in_transit_bytes = geometry.bytes_of(figures.in_transit_tracks);
    report.unreadable_tracks = figures.unreadable_tracks;
    report.rate_bytes_per_s = entry.rate.bytes_per_s;
    let behind = report.out_of_sync_bytes + report.in_transit_bytes;
    if behind > 0 && report.rate_bytes_per_s > 0 {
        report.eta_s = Some(seconds(behind) / seconds(report.rate_bytes_per_s));
    }
    report.in_sync = tracking.in_sync();
    if !report.in_sync {
        let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.lag_s = seconds(now_ms.saturating_sub(figures.synced_ms)) / 1000.0;
    }
    let (used, max) = volume.images();
    (report.images_used, report.images_max) = (used as u64, max as u64);
    report.counters = counters(volume, entry, &figures);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Figures this large need no more digits than a float has.
#[expect(clippy::cast_precision_loss, reason = "for display only")]
pub(super) fn seconds(value: u64) -> f64 {
    value as f64
}

fn link(figures: &Figures) -> LinkState {
    if figures.paused {
        LinkState::Paused
    } else if !figures.link_is_up {
        LinkState::Failing
    } else if figures.stalled {
        LinkState::Stalled
    } else {
        LinkState::Up
    }
}

fn counters(volume: &Volume, entry: &Entry, figures: &Figures) -> Counters {
    let (totals, intent) = (figures.totals, volume.intent());
    let mut counters = Counters {
        drained_bytes: totals.bytes,
        drained_tracks: totals.tracks,
        zero_tracks: totals.zero_tracks,
        secondary_flushes: totals.flushes,
        secondary_errors: totals.secondary_errors,
        primary_read_errors: totals.primary_errors,
        checksum_errors: totals.checksum_errors,
        increments_completed: entry.completed,
        increments_aborted: entry.aborted,
        hold_us_max: entry.hold_us_max,
        intent_page_writes: intent.page_writes,
        intent_records: intent.records,
        intent_waits: intent.waited,
        intent_marked_ahead: intent.marked_ahead,
        intent_cleared: intent.cleared,
        open_us: micros(entry.opening.took),
        open_metadata_us: micros(entry.opening.metadata),
        ..Counters::default()
    };
    for queue in volume.counters() {
        counters.host_reads += queue.reads.load(Relaxed);
        counters.host_writes += queue.writes.load(Relaxed);
        counters.host_flushes += queue.flushes.load(Relaxed);
        counters.host_discards += queue.discards.load(Relaxed);
        counters.host_errors += queue.errors.load(Relaxed);
        counters.host_read_bytes += queue.read_bytes.load(Relaxed);
        counters.host_write_bytes += queue.write_bytes.load(Relaxed);
        counters.collisions += queue.collisions.load(Relaxed);
        counters.collisions_kept += queue.collisions_kept.load(Relaxed);
        counters.collisions_sent_first += queue.collisions_sent_first.load(Relaxed);
        counters.collisions_waited += queue.collisions_waited.load(Relaxed);
        counters.write_wait_us_max = counters.write_wait_us_max.max(queue.wait_us_max.load(Relaxed));
    }
    counters
}
