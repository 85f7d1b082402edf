//! Devices that have outlived the daemon that served them: each is taken back by bringing its volume up again, with its
//! users noticing a pause and no error; what cannot be taken back waits, and can be removed. A daemon that is told to end
//! leaves those that are in use to the next one: a restart, for a new version say, takes nothing from anybody.

use super::api::{Done, Failure, FailureKind, Response};
use super::entry::{Entry, Phase, Waiting};
use super::lifecycle::unused;
use super::{Controller, Note, Reply, answer};
use crate::frontend::leftovers::{self, Leftover};
use crate::frontend::openers;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

impl Controller {
    /// At the start: takes back every device that waits for a volume of ours, and removes the others.
    pub(super) async fn take_back(&mut self) {
        let (found, silent) = spawn_blocking(leftovers::find).await.unwrap_or_default();
        for id in silent {
            tracing::error!(
                "the kernel does not answer about /dev/ublkb{id}, which a former daemon left; see its log, and restart \
                 the machine if the device can be neither used nor removed"
            );
        }
        for device in found {
            let entry = self.volumes.get_mut(&device.volume);
            match entry.filter(|entry| device.waits && entry.waiting.is_none()) {
                Some(entry) => {
                    let name = device.volume.clone();
                    tracing::info!("{name}: {} has outlived its daemon; taking it back", device.path());
                    entry.waiting = Some(Waiting { device, why: None });
                    // Nobody asked; what comes of it is in the log and in the status.
                    self.up(name, oneshot::channel().0);
                }
                None => remove(&device).await,
            }
        }
    }

    /// At the end: whoever uses a device keeps it. To the kernel it is as if the daemon had been killed.
    pub(super) async fn leave_used(&mut self) {
        let up = |(name, entry): (&String, &Entry)| match &entry.phase {
            Phase::Up(volume) if volume.broken().is_none() => Some((name.clone(), volume.device_path())),
            _ => None,
        };
        let devices: Vec<_> = self.volumes.iter().filter_map(up).collect();
        let look = move || devices.into_iter().map(|(name, device)| (name, openers::of(&device), device));
        let found = spawn_blocking(move || look().filter(|(_, users, _)| !users.is_empty()).collect::<Vec<_>>());
        for (name, users, device) in found.await.unwrap_or_default() {
            self.abort_for(&name);
            let Some(entry) = self.volumes.get_mut(&name) else { continue };
            if let Phase::Up(volume) = std::mem::replace(&mut entry.phase, Phase::Down) {
                let users = users.join(", ");
                tracing::warn!("{name}: {device} is in use: {users}; its I/O waits until a daemon runs again");
                // Dropped, it would be stopped.
                std::mem::forget(volume);
            }
        }
    }

    /// `down` of a volume whose device waits: it cannot be saved any more by then, only removed.
    pub(super) fn remove_waiting(&mut self, name: String, force: bool, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(&name) else { return };
        let Some(Waiting { device, .. }) = &entry.waiting else { return };
        let (device, notes) = (device.clone(), self.notes.clone());
        entry.phase = Phase::Busy("going down");
        spawn_blocking(move || {
            let free = if force { Ok(()) } else { unused(&name, &device.path()) };
            let result = free.and_then(|()| {
                let why = || format!("{name}: the kernel did not remove {}; see its log", device.path());
                leftovers::remove(device.id).then_some(()).ok_or_else(|| Failure::new(FailureKind::Failed, why()))
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

/// Removes a device that no volume of ours wants.
async fn remove(device: &Leftover) {
    let id = device.id;
    let of = if device.volume.is_empty() { "an unknown volume" } else { &device.volume };
    if spawn_blocking(move || leftovers::remove(id)).await.unwrap_or(false) {
        tracing::info!("removed {}, which a former daemon had left for {of}", device.path());
    } else {
        tracing::warn!("{}, which a former daemon had left for {of}, could not be removed", device.path());
    }
}
