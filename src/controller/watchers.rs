//! Those who wait for something and those who follow along. Looked after on every change and on a slow tick, so that no
//! one is forgotten; a reader that does not read is dropped, never waited for.

use super::api::{Event, EventAction, Events, Failure, FailureKind, Response, Until, VolumeReport, VolumeState, Wait};
use super::entry::{Entry, Phase, broken};
use super::{Controller, Reply, answer};
use crate::increment::IncrementNo;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Fields of an object as they were last told.
type Fields = Vec<(String, String)>;

/// Everybody who waits or follows.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    waiting: Vec<Waiting>,
    followers: Vec<Follower>,
}

#[derive(Debug)]
struct Waiting {
    wait: Wait,
    until: Option<Instant>,
    /// The increment of each volume when the wait began.
    increments: Vec<Option<IncrementNo>>,
    reply: Reply,
}

#[derive(Debug)]
struct Follower {
    statistics: bool,
    sink: mpsc::Sender<Event>,
    known: BTreeMap<String, Fields>,
    statistics_at: Instant,
}

/// How often counters are told to those who asked for them.
const STATISTICS: Duration = Duration::from_secs(1);

impl Controller {
    /// `wait`: answered when the condition holds for all volumes named.
    pub(super) fn wait(&mut self, wait: Wait, reply: Reply) {
        let mut increments = Vec::new();
        for name in &wait.volumes {
            let entry = self.entry(name).and_then(|entry| entry.running().map(|_| entry));
            match entry {
                Ok(entry) if wait.until == Until::Drained && entry.increment.is_none() => {
                    let why = format!("{name}: no increment is under way; begin one with start");
                    return answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
                }
                Ok(entry) => increments.push(entry.increment),
                Err(failure) => {
                    return answer(reply, Err(Failure { message: format!("{name}: {failure}"), ..failure }));
                }
            }
        }
        let until = wait.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        self.watchers.waiting.push(Waiting { wait, until, increments, reply });
    }

    /// Answers whoever's condition holds or whose time is up, and tells followers what is new.
    pub(super) fn look_after(&mut self) {
        let now = Instant::now();
        self.give_up_for_the_broken();
        self.try_again();
        for (name, entry) in &mut self.volumes {
            entry.watch_metadata(name);
            let seen = entry.running().map(|volume| (volume.figures().totals.bytes, volume.tracking().in_sync()));
            let Ok((bytes, in_sync)) = seen else { continue };
            entry.rate.update(now, bytes);
            if entry.full_copy && in_sync {
                entry.full_copy = false;
                // Durable, or a crash would tell a full copy that is not needed.
                entry.note_in_media(|superblock| superblock.incomplete = false);
            }
        }
        for waiting in std::mem::take(&mut self.watchers.waiting) {
            match self.verdict(&waiting, now) {
                Some(result) => answer(waiting.reply, result),
                None if waiting.reply.is_closed() => {}
                None => self.watchers.waiting.push(waiting),
            }
        }
        for mut follower in std::mem::take(&mut self.watchers.followers) {
            if self.tell(&mut follower, now) {
                self.watchers.followers.push(follower);
            }
        }
    }

    /// A drain that has ended by itself reports nothing any more, and writes that a queue had under way when it ended
    /// never finish: the volume leaves its increment, and the held and colliding writes go.
    fn give_up_for_the_broken(&mut self) {
        let mut names = Vec::new();
        for (name, entry) in &mut self.volumes {
            let Phase::Up(volume) = &entry.phase else { continue };
            let Some(why) = volume.broken() else { continue };
            if !std::mem::replace(&mut entry.told.broken, true) {
                tracing::error!("{name} has failed: {}", broken(why));
            }
            if entry.increment.is_some() {
                names.push(name.clone());
            }
        }
        for name in names {
            self.abort_for(&name);
            self.gone(&name);
        }
    }

    fn is_aborting(&self, entry: &Entry) -> bool {
        let running = entry.increment.and_then(|number| self.increments.get(&number));
        running.is_some_and(|running| running.aborted)
    }

    fn verdict(&self, waiting: &Waiting, now: Instant) -> Option<Result<Response, Failure>> {
        let mut all = true;
        for (name, began) in waiting.wait.volumes.iter().zip(&waiting.increments) {
            let entry = match self.entry(name).and_then(|entry| entry.running().map(|_| entry)) {
                Ok(entry) => entry,
                Err(failure) => return Some(Err(Failure { message: format!("{name}: {failure}"), ..failure })),
            };
            // It waits for the increment that it found, not for one that came after.
            let completed = began.is_some() && entry.last_complete.map(|(number, _)| number) == *began;
            let given_up = !completed && (entry.increment != *began || self.is_aborting(entry));
            if waiting.wait.until == Until::Drained && given_up {
                let why = entry.last_abort.clone().unwrap_or_default();
                return Some(Err(Failure::new(FailureKind::Failed, format!("{name}: aborted: {why}"))));
            }
            let report = self.volume_report(name);
            all &= report.is_some_and(|report| holds(waiting.wait.until, &report))
                || waiting.wait.until == Until::Drained && completed;
        }
        if all {
            let volumes = waiting.wait.volumes.clone();
            return Some(Ok(Response::Done(super::api::Done::of(volumes))));
        }
        if waiting.until.is_some_and(|until| now >= until) {
            let what = match waiting.wait.until {
                Until::Drained => "drained",
                Until::InSync => "in sync",
                Until::Normal => "normal",
            };
            let why = format!("{}: not {what} in time; see farpoint status", waiting.wait.volumes.join(" "));
            return Some(Err(Failure::new(FailureKind::TimedOut, why)));
        }
        None
    }

    /// A new follower: first everything that exists.
    pub(super) fn subscribe(&mut self, events: Events, sink: mpsc::Sender<Event>) {
        let now = Instant::now();
        let mut follower = Follower { statistics: events.statistics, sink, known: BTreeMap::new(), statistics_at: now };
        let mut there = true;
        for name in self.volumes.keys() {
            let Some(report) = self.volume_report(name) else { continue };
            let fields = fields(&report, follower.statistics);
            there &= send(&follower.sink, EventAction::Exists, name, fields.clone());
            follower.known.insert(name.clone(), fields);
        }
        let end =
            Event { action: EventAction::Exists, object: "-".to_owned(), name: String::new(), fields: Vec::new() };
        there &= follower.sink.try_send(end).is_ok();
        if there && !events.now {
            self.watchers.followers.push(follower);
        }
    }

    /// Tells what has changed; `false` when the follower is gone or does not read.
    fn tell(&self, follower: &mut Follower, now: Instant) -> bool {
        let counters = follower.statistics && now >= follower.statistics_at + STATISTICS;
        if counters {
            follower.statistics_at = now;
        }
        let gone: Vec<String> =
            follower.known.keys().filter(|name| !self.volumes.contains_key(*name)).cloned().collect();
        for name in gone {
            follower.known.remove(&name);
            if !send(&follower.sink, EventAction::Destroy, &name, Vec::new()) {
                return false;
            }
        }
        for name in self.volumes.keys() {
            let Some(report) = self.volume_report(name) else { continue };
            let new = fields(&report, counters);
            let (action, changed) = match follower.known.get(name) {
                None => (EventAction::Create, new.clone()),
                Some(old) => (EventAction::Change, new.iter().filter(|field| !old.contains(field)).cloned().collect()),
            };
            if action == EventAction::Change && changed.is_empty() {
                continue;
            }
            let known = follower.known.entry(name.clone()).or_default();
            known.retain(|(key, _)| !new.iter().any(|(other, _)| other == key));
            known.extend(new);
            if !send(&follower.sink, action, name, changed) {
                return false;
            }
        }
        !follower.sink.is_closed()
    }
}

fn send(sink: &mpsc::Sender<Event>, action: EventAction, name: &str, fields: Fields) -> bool {
    sink.try_send(Event { action, object: "volume".to_owned(), name: name.to_owned(), fields }).is_ok()
}

fn holds(until: Until, report: &VolumeReport) -> bool {
    match until {
        Until::Drained => report.drained,
        Until::InSync => report.in_sync,
        Until::Normal => report.state == VolumeState::Normal,
    }
}

/// What an event says of a volume; with counters if asked.
fn fields(report: &VolumeReport, counters: bool) -> Fields {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let metadata = match report.metadata_stalled_s {
        _ if report.metadata_failed => "failed",
        Some(_) => "stalled",
        None => "ok",
    };
    let mut fields = vec![
        ("state", report.state.word().to_owned()),
        ("device", report.device.clone().unwrap_or_else(|| "-".to_owned())),
        ("link", report.link.word().to_owned()),
        ("increment", number(report.increment)),
        ("drained", yes(report.drained)),
        ("last-complete", number(report.last_complete)),
        ("aborted", report.counters.increments_aborted.to_string()),
        ("full-copy-needed", yes(report.full_copy_needed)),
        ("recovered-regions", report.recovered_regions.to_string()),
        ("metadata", metadata.to_owned()),
    ];
    if counters {
        fields.extend([
            ("out-of-sync", report.out_of_sync_bytes.to_string()),
            ("recorded", report.recorded_tracks.to_string()),
            ("in-transit", report.in_transit_bytes.to_string()),
            ("rate", report.rate_bytes_per_s.to_string()),
            ("hot-regions", report.hot_regions.to_string()),
            ("lag", format!("{:.1}", report.lag_s)),
            ("images", report.images_used.to_string()),
            ("collisions", report.counters.collisions.to_string()),
        ]);
    }
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
