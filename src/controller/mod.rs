//! The daemon: volumes, increments over them, timers and answers. One task owns all of it and never blocks: what may
//! block (opening devices, control commands of the kernel, writing metadata) runs elsewhere and comes back as a
//! [`Note`].

pub mod api;
pub mod call;
pub mod config;
mod entry;
mod increments;
mod lifecycle;
pub mod limits;
mod media;
mod report;
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
    Down(String, Result<Box<media::Known>, Failure>, Option<Reply>),
    Deleted(String, Result<(), Failure>, Reply),
    /// The numbers of an increment about to be cut are stored, or could not be.
    Reserved(increments::Reservation, Result<(), Failure>),
    Set(String, Result<(), Failure>),
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
    increments: BTreeMap<IncrementNo, Running>,
    watchers: Watchers,
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
            increments: BTreeMap::new(),
            watchers: Watchers::default(),
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
        self.features = spawn_blocking(features::probe).await.unwrap_or(None);
        if self.features.is_some() {
            let (removed, stuck) = spawn_blocking(leftovers::remove).await.unwrap_or_default();
            for id in removed {
                tracing::info!("removed /dev/ublkb{id}, which a killed daemon had left");
            }
            for id in stuck {
                tracing::warn!(
                    "/dev/ublkb{id}, which a killed daemon had left, could not be removed: it is still in use"
                );
            }
        }
        self.load_known()?;
        let signal = |kind| {
            tokio::signal::unix::signal(kind).map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))
        };
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
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
            Request::Pause(many) => answer(reply, self.pause(many.volumes, true)),
            Request::Resume(many) => answer(reply, self.pause(many.volumes, false)),
            Request::Set(set) => answer(reply, self.set(set.volumes, &set.settings)),
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
            Note::Free(name, free, reply) => self.free(&name, free, reply),
            Note::Down(name, result, reply) => self.is_down(&name, result, reply),
            Note::Deleted(name, result, reply) => self.deleted(&name, result, reply),
            Note::Reserved(reservation, result) => self.reserved(reservation, result),
            Note::Set(name, result) => {
                if let Err(failure) = result {
                    tracing::warn!("{name}: the new settings hold but could not be kept: {failure}");
                }
            }
        }
        self.look_after();
    }

    fn entry(&self, name: &str) -> Result<&Entry, Failure> {
        self.volumes.get(name).ok_or_else(|| not_found(name))
    }

    fn entry_mut(&mut self, name: &str) -> Result<&mut Entry, Failure> {
        self.volumes.get_mut(name).ok_or_else(|| not_found(name))
    }

    fn pause(&mut self, volumes: Vec<String>, paused: bool) -> Result<Response, Failure> {
        for name in &volumes {
            self.entry(name)?.running()?;
        }
        for name in &volumes {
            self.entry(name)?.running()?.pause(paused);
        }
        Ok(Response::Done(api::Done { volumes }))
    }

    fn set(&mut self, volumes: Vec<String>, change: &api::SettingsChange) -> Result<Response, Failure> {
        for name in &volumes {
            if let Phase::Busy(what) = self.entry(name)?.phase {
                let why = format!("{name}: the volume is {what}; try again when that is done");
                return Err(Failure::new(FailureKind::WrongState, why));
            }
        }
        for name in &volumes {
            let (config, notes) = (self.config.clone(), self.notes.clone());
            let entry = self.entry_mut(name)?;
            change.apply(&mut entry.settings);
            if let Phase::Up(volume) = &entry.phase {
                volume.set_policy(entry::policy(&entry.settings));
            }
            let (name, volume) = (name.clone(), entry.config.clone().with_settings(&entry.settings));
            entry.config = volume.clone();
            spawn_blocking(move || {
                let result = config.update_volume(&name, &volume);
                let _ = notes.send(Note::Set(name, result));
            });
        }
        Ok(Response::Done(api::Done { volumes }))
    }
}

fn answer(reply: Reply, result: Result<Response, Failure>) {
    // A client that has gone does not want to know.
    let _ = reply.send(result);
}

fn not_found(name: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{name}: no such volume; farpoint status lists those there are"))
}
