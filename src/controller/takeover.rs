//! Devices that have outlived the daemon that served them: each is taken back by bringing its volume up again, with its
//! users noticing a pause and no error; what cannot be taken back waits, is tried again, and can be removed. Volumes
//! that come up with the daemon wait in the same way.

use super::api::{Done, Failure, FailureKind, Response};
use super::entry::{Doing, Entry, Phase, Waiting};
use super::lifecycle::unused;
use super::{Controller, Note, Reply, answer};
use crate::frontend::leftovers::{self, Leftover};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// How soon the volume of a device that waits is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How soon the kernel is asked again where it did not answer: who asked may be stuck for good.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Why a device that waited is not removed.
fn served(name: &str, device: &Leftover) -> Failure {
    let why = format!(
        "{name}: {} is served by another daemon, or the kernel has not ended the last one yet; take the volume down \
         there, or try again",
        device.path()
    );
    Failure::new(FailureKind::WrongState, why)
}

impl Controller {
    /// At the start, when every volume has been looked for: takes back every device that waits for one of ours. Others
    /// are left alone, whoever they belong to: a volume may only be unknown because of a slip in its configuration, and
    /// its device in use.
    pub(super) async fn take_back(&mut self) {
        let found = spawn_blocking(leftovers::find).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.claim(found);
    }

    /// Has what [`Self::take_back`] does done for a volume that was found later.
    pub(super) fn find(&mut self) {
        if !std::mem::replace(&mut self.finding, true) {
            let notes = self.notes.clone();
            spawn_blocking(move || drop(notes.send(Note::Found(leftovers::find()))));
        }
    }

    /// Once for every volume: what its own daemon has done with it since is older news in `found`.
    pub(super) fn claim(&mut self, found: io::Result<Vec<Leftover>>) {
        self.finding = false;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!("cannot look for devices that a former daemon left: {error}; tried again every minute");
                self.look_again.get_or_insert(Instant::now() + ASK_AGAIN);
                return;
            }
        };
        let told = std::mem::take(&mut self.stranger);
        for device in found {
            let path = device.path();
            let owner = device.owner;
            match self.volumes.iter_mut().find(|(_, entry)| entry.known.superblock.owner() == owner) {
                Some((name, entry)) if device.waits && entry.fresh => {
                    tracing::info!("{name}: {path} has outlived its daemon; taking it back");
                    entry.waiting = Some(Waiting::new(Some(device)));
                }
                None if device.is_held() => {
                    if !told {
                        tracing::warn!(
                            "{path} is the device of a volume that is not known here or was left out; its I/O waits \
                             until a daemon knows that volume"
                        );
                    }
                    self.stranger = true;
                }
                _ => {}
            }
        }
        if self.stranger {
            self.look_later();
        }
        for entry in self.volumes.values_mut().filter(|entry| entry.fresh) {
            entry.fresh = false;
            if entry.settings.autostart && entry.waiting.is_none() {
                entry.waiting = Some(Waiting::new(None));
            }
        }
        // All of them are known before the first one opens its files, which may be on another.
        self.try_again();
    }

    /// What a volume needs that was left out may be there again, and a device may be waiting for it.
    pub(super) fn look_later(&mut self) {
        self.look_again.get_or_insert(Instant::now() + LOOK_AGAIN);
    }

    /// While a device waits for a volume that is not known, its file may come as well.
    fn look_for_the_rest(&mut self) {
        let (config, notes) = (self.config.clone(), self.notes.clone());
        spawn_blocking(move || drop(notes.send(Note::Named(config.volume_names()))));
        if self.stranger || self.volumes.values().any(|entry| entry.fresh) {
            self.find();
        }
    }

    /// These volumes have a file.
    pub(super) fn named(&mut self, names: Result<Vec<String>, Failure>) {
        // Where they cannot be seen now, they are looked for again.
        let Ok(names) = names else { return self.look_later() };
        self.left_out.retain(|name, _| names.contains(name));
        for name in names {
            if self.stranger || self.left_out.contains_key(&name) {
                self.look(name);
            }
        }
    }

    /// Takes back what waits, when its time has come.
    pub(super) fn try_again(&mut self) {
        if self.ending {
            return;
        }
        let now = Instant::now();
        if self.look_again.is_some_and(|at| at <= now) {
            // Set again by what comes of it.
            self.look_again = None;
            self.look_for_the_rest();
        }
        let due = |entry: &Entry| {
            matches!(entry.phase, Phase::Down) && entry.waiting.as_ref().is_some_and(|waiting| waiting.again <= now)
        };
        // Nobody waits for those without a device: one after the other, so that each sees how much memory is left. One
        // that hangs keeps the others for a while only.
        let is_recent = self.brought_up.is_some_and(|at| now < at + LOOK_AGAIN);
        let mut busy = is_recent && self.volumes.values().any(|entry| matches!(entry.phase, Phase::Busy(_)));
        let mut is_next = |entry: &Entry| {
            let has_device = entry.waiting.as_ref().is_some_and(|waiting| waiting.device.is_some());
            due(entry) && (has_device || !std::mem::replace(&mut busy, true))
        };
        let next = self.volumes.iter().filter(|(_, entry)| is_next(entry));
        let names: Vec<_> = next.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.brought_up = Some(now);
            // Nobody asked; what comes of it is in the log and in the status.
            self.up(name, oneshot::channel().0);
        }
    }

    /// `down` of a volume that waits. Its device, if it has one, cannot be saved any more by then, only removed.
    pub(super) fn give_up_waiting(&mut self, name: String, force: bool, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(&name) else { return };
        let (owner, notes) = (entry.known.superblock.owner(), self.notes.clone());
        entry.phase = Phase::Busy(Doing::GoingDown);
        spawn_blocking(move || {
            let failed = |error: io::Error| Failure::new(FailureKind::Failed, format!("{name}: {error}"));
            // Its number may be another's by now.
            let result = leftovers::of(owner).map_err(failed).and_then(|found| {
                let Some(device) = found else { return Ok(()) };
                // The volume's lock cannot be had where its metadata is away. But while nobody serves it nobody can
                // have taken it back.
                if !device.is_held() {
                    return Err(served(&name, &device));
                }
                if !force {
                    unused(&device.path())?;
                }
                leftovers::remove(device.id).map_err(failed)
            });
            let _ = notes.send(Note::Removed(name, result, reply));
        });
    }

    pub(super) fn removed(&mut self, name: &str, result: Result<(), Failure>, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(name) else { return };
        entry.phase = Phase::Down;
        let result = result.map(|()| {
            entry.waiting = None;
            Response::Done(Done::of(vec![name.to_owned()]))
        });
        answer(reply, result);
    }
}
