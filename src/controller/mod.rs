//! The daemon: volumes, increments over them, timers and answers. One task owns all of it and never blocks: what may
//! block (opening devices, control commands of the kernel, writing metadata) runs elsewhere and comes back as a
//! [`Note`].

pub mod api;
pub mod call;
pub mod config;
mod devices;
mod ending;
mod entry;
mod increments;
mod lifecycle;
pub mod limits;
mod media;
mod need;
mod report;
mod rewrite;
mod takeover;
mod values;
mod watchers;

use crate::frontend::{features, leftovers};
use crate::group::VolumeId;
use crate::increment::{Event as IncrementEvent, IncrementNo};
use crate::storage::process;
use crate::tracking::Epoch;
use crate::uploader::Report;
use api::{Failure, FailureKind, Request, Response};
use call::Call;
use config::Config;
use entry::{Entry, Phase};
use increments::Running;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use watchers::Watchers;

/// How often waiting clients and subscribers are looked after when nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Where the answer to a call goes.
type Reply = oneshot::Sender<Result<Response, Failure>>;

/// What comes back from elsewhere.
enum Note {
    Report(VolumeId, Report),
    Timer(IncrementNo, IncrementEvent),
    Created(String, Result<lifecycle::Described, Failure>, Reply),
    Up(String, Result<lifecycle::IsUp, lifecycle::Failed>, Reply),
    Free(String, Result<(), Failure>, Reply),
    /// What is known of a volume, or why it is left out.
    Looked(String, Result<lifecycle::Described, Failure>),
    /// The volumes that have a file, and the devices there are.
    Named(Result<Vec<String>, Failure>),
    Found(std::io::Result<Vec<leftovers::Leftover>>),
    /// A device that waited was removed, or could not be.
    Removed(String, Result<(), Failure>, Reply),
    /// The devices there are, to be listed, or to remove one of them.
    Devices(std::io::Result<Vec<leftovers::Leftover>>, Reply),
    ToRemove(api::RemoveDevice, std::io::Result<Vec<leftovers::Leftover>>, Reply),
    Down(String, Result<Box<media::Known>, Failure>, Option<Reply>),
    Deleted(String, Result<(), Failure>, Reply),
    /// The numbers of an increment about to be cut are stored, or could not be.
    Reserved(increments::Reservation, Result<(), Failure>),
    Set(Vec<String>, Result<(), Failure>, Reply),
}

/// The controller: one running farpoint daemon.
pub struct Controller {
    config: Arc<Config>,
    epoch: Arc<Epoch>,
    /// Time 0 of every monotonic figure.
    began: Instant,
    features: Option<u64>,
    volumes: BTreeMap<String, Entry>,
    /// Volumes that are being created.
    creating: BTreeSet<String>,
    /// Volumes whose metadata is being looked for, and those that were left out, and why.
    looking: BTreeSet<String>,
    left_out: BTreeMap<String, String>,
    /// A device waits for a volume that is not known.
    stranger: bool,
    /// When such volumes, and those left out, are looked for again.
    look_again: Option<Instant>,
    /// The kernel is being asked for devices, or will be when all volumes have been looked for.
    finding: bool,
    increments: BTreeMap<IncrementNo, Running>,
    watchers: Watchers,
    /// When a volume was last brought up that nobody had asked for.
    brought_up: Option<Instant>,
    /// Nothing is taken back any more.
    ending: bool,
    notes: mpsc::UnboundedSender<Note>,
    next_id: usize,
    /// The highest number of an increment so far, of whatever volume.
    last_increment: u64,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("volumes", &self.volumes.keys()).finish_non_exhaustive()
    }
}

/// Makes the process fit to serve a block device; to be called before it has a second thread. What is returned is to be
/// kept as long as volumes are served.
///
/// Without the right to (not root) it goes on with a warning: devices of others cannot be served then anyway.
pub fn prepare_process() -> Option<process::MountWatch> {
    // Every thread inherits it. A device that waits to be taken back may hold dirty pages of the whole machine: to wait
    // for memory on the way there could be to wait for oneself (H26).
    let _ = process::become_io_flusher();
    if let Err(error) = process::lock_memory() {
        tracing::warn!("memory cannot be locked: {error}; the device may stall when memory is short");
    }
    let watch = process::private_mounts().and_then(|()| process::MountWatch::start());
    watch.inspect_err(|error| tracing::warn!("no mount namespace of its own: {error}; run the daemon as root")).ok()
}

impl Controller {
    pub fn new(config: Config) -> Self {
        Self {
            config: Arc::new(config),
            epoch: Arc::new(Epoch::new()),
            began: Instant::now(),
            features: None,
            volumes: BTreeMap::new(),
            creating: BTreeSet::new(),
            looking: BTreeSet::new(),
            left_out: BTreeMap::new(),
            stranger: false,
            look_again: None,
            finding: true,
            increments: BTreeMap::new(),
            watchers: Watchers::default(),
            brought_up: None,
            ending: false,
            // Replaced by `run`, which has the other end.
            notes: mpsc::unbounded_channel().0,
            next_id: 0,
            last_increment: 0,
        }
    }

    /// Serves calls until it is told to end by SIGTERM or SIGINT; then takes every volume down.
    pub async fn run(mut self, mut calls: mpsc::Receiver<Call>, ready: impl FnOnce()) -> Result<(), Failure> {
        let (sender, mut notes) = mpsc::unbounded_channel();
        self.notes = sender;
        // First of all: whoever ends the daemon while it begins ends it in order.
        let signal = |kind| {
            tokio::signal::unix::signal(kind).map_err(|error| {
                let why = format!("cannot take signals: {error}; see whether files or memory have run out");
                Failure::new(FailureKind::Failed, why)
            })
        };
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
        self.features = spawn_blocking(features::probe).await.unwrap_or(None);
        self.load_known(&mut notes).await?;
        self.take_back().await;
        let mut tick = tokio::time::interval(TICK);
        ready();
        loop {
            tokio::select! {
                Some(call) = calls.recv() => self.call(call),
                Some(note) = notes.recv() => self.note(note),
                _ = tick.tick() => self.look_after(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.end(&mut notes).await
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Subscribe { events, sink } => self.subscribe(events, sink),
            Call::Request { request, reply, .. } => self.request(request, reply),
        }
        self.look_after();
    }

    fn request(&mut self, request: Request, reply: Reply) {
        match request {
            Request::Create(create) => self.create(create, reply),
            Request::Delete(one) => self.delete(one.volume, reply),
            Request::Up(one) => self.up(one.volume, reply),
            Request::Down(down) => self.down(&down, reply),
            Request::Start(start) => self.start(&start, reply),
            Request::Run(many) => self.run_increment(&many.volumes, reply),
            Request::IncrementComplete(many) => self.complete(&many.volumes, reply),
            Request::Abort(many) => self.abort(&many.volumes, reply),
            Request::Wait(wait) => self.wait(wait, reply),
            Request::Status(selection) => answer(reply, self.status(&selection.volumes)),
            Request::Devices(_) => self.devices(reply),
            Request::RemoveDevice(remove) => self.remove_device(remove, reply),
            Request::Pause(many) => answer(reply, self.pause(many.volumes, true)),
            Request::Resume(many) => answer(reply, self.pause(many.volumes, false)),
            Request::Set(set) => self.set(set.volumes, set.settings, reply),
            Request::Events(_) => {
                answer(reply, Err(Failure::new(FailureKind::Usage, "events are a subscription, not a request")));
            }
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Report(volume, report) => self.report(volume, report),
            Note::Timer(number, event) => self.timer(number, event),
            Note::Created(name, result, reply) => self.created(&name, result, reply),
            Note::Up(name, result, reply) => self.is_up(&name, result, reply),
            Note::Looked(name, found) => self.looked(&name, found),
            Note::Named(names) => self.named(names),
            Note::Found(devices) => self.claim(devices),
            Note::Removed(name, result, reply) => self.removed(&name, result, reply),
            Note::Devices(found, reply) => self.listed(found, reply),
            Note::ToRemove(remove, found, reply) => self.to_remove(&remove, found, reply),
            Note::Free(name, free, reply) => self.free(&name, free, reply),
            Note::Down(name, result, reply) => self.is_down(&name, result, reply),
            Note::Deleted(name, result, reply) => self.deleted(&name, result, reply),
            Note::Reserved(reservation, result) => self.reserved(reservation, result),
            Note::Set(volumes, result, reply) => self.is_set(volumes, result, reply),
        }
        self.look_after();
    }

    fn entry(&self, name: &str) -> Result<&Entry, Failure> {
        self.volumes.get(name).ok_or_else(|| self.unknown(name))
    }

    fn entry_mut(&mut self, name: &str) -> Result<&mut Entry, Failure> {
        self.entry(name)?;
        self.volumes.get_mut(name).ok_or_else(|| not_found(name))
    }

    /// Why there is no such volume.
    fn unknown(&self, name: &str) -> Failure {
        if let Some(why) = self.left_out.get(name) {
            return Failure::new(FailureKind::NotFound, format!("{name}: it was left out: {why}"));
        }
        if self.looking.contains(name) {
            return Failure::new(FailureKind::WrongState, format!("{name}: {UNANSWERED}"));
        }
        not_found(name)
    }

    fn pause(&mut self, volumes: Vec<String>, paused: bool) -> Result<Response, Failure> {
        for name in &volumes {
            self.entry(name)?.running()?;
        }
        for name in &volumes {
            self.entry(name)?.running()?.pause(paused);
        }
        Ok(Response::Done(api::Done::of(volumes)))
    }

    /// `set`: the settings hold at once; answered when they are in the volumes' files. A file has one writer at a time.
    fn set(&mut self, volumes: Vec<String>, change: api::SettingsChange, reply: Reply) {
        if let Err(failure) = volumes.iter().try_for_each(|name| self.entry(name)?.may_be_set(name)) {
            return answer(reply, Err(failure));
        }
        for name in &volumes {
            let Some(entry) = self.volumes.get_mut(name) else { continue };
            change.apply(&mut entry.settings);
            if let Phase::Up(volume) = &entry.phase {
                volume.set_policy(entry::policy(&entry.settings));
            }
            if !entry.settings.autostart {
                entry.start_no_more();
            }
            entry.config = entry.config.clone().with_settings(&entry.settings);
            entry.writing = true;
        }
        let (config, notes) = (self.config.clone(), self.notes.clone());
        spawn_blocking(move || {
            let result = volumes.iter().try_for_each(|name| config.update_volume(name, &change));
            let _ = notes.send(Note::Set(volumes, result, reply));
        });
    }

    fn is_set(&mut self, volumes: Vec<String>, result: Result<(), Failure>, reply: Reply) {
        for name in &volumes {
            if let Some(entry) = self.volumes.get_mut(name) {
                entry.writing = false;
            }
        }
        let result = result.map_err(|failure| {
            let why = format!("the new settings hold but are not kept over a restart of the daemon: {failure}");
            tracing::warn!("{}: {why}", volumes.join(" "));
            Failure { message: why, ..failure }
        });
        answer(reply, result.map(|()| Response::Done(api::Done::of(volumes))));
    }
}

fn answer(reply: Reply, result: Result<Response, Failure>) {
    // A client that has gone does not want to know.
    let _ = reply.send(result);
}

const UNANSWERED: &str = "its metadata does not answer; see to its disk and the kernel's log (dmesg)";

fn not_found(name: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{name}: no such volume; farpoint status lists those there are"))
}
