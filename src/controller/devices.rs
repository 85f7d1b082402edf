//! The devices of farpoint volumes that the kernel has, and the removal of those that no volume here can take back: of
//! a volume whose metadata is lost for good, for example. The kernel's driver is asked on a thread that may block.

use super::api::{DeviceReport, DeviceState, Devices, Done, Failure, FailureKind, RemoveDevice, Response};
use super::lifecycle::{device_failure, unused};
use super::{Controller, Note, Reply, answer};
use crate::frontend::leftovers::{self, Leftover};
use std::io;
use tokio::task::spawn_blocking;

impl Controller {
    /// `devices`.
    pub(super) fn devices(&self, reply: Reply) {
        let notes = self.notes.clone();
        spawn_blocking(move || drop(notes.send(Note::Devices(leftovers::find(), reply))));
    }

    pub(super) fn listed(&self, found: io::Result<Vec<Leftover>>, reply: Reply) {
        let report = |device: Leftover| DeviceReport {
            device: device.path(),
            state: state(&device),
            volume: self.volume_of(&device).map(str::to_owned),
        };
        let devices = found.map(|found| found.into_iter().map(report).collect());
        let devices = devices.map_err(|error| device_failure(&error));
        answer(reply, devices.map(|devices| Response::Devices(Devices { devices })));
    }

    fn volume_of(&self, device: &Leftover) -> Option<&str> {
        let mut volumes = self.volumes.iter();
        let of = volumes.find(|(_, entry)| entry.known.superblock.owner() == device.owner);
        of.map(|(name, _)| name.as_str())
    }

    /// `remove-device`: looks for the device first, for only what is nobody's may go.
    pub(super) fn remove_device(&self, remove: RemoveDevice, reply: Reply) {
        let notes = self.notes.clone();
        spawn_blocking(move || drop(notes.send(Note::ToRemove(remove, leftovers::find(), reply))));
    }

    pub(super) fn to_remove(&self, remove: &RemoveDevice, found: io::Result<Vec<Leftover>>, reply: Reply) {
        let force = remove.force;
        let device = match self.removable(remove, found) {
            Ok(device) => device,
            Err(failure) => return answer(reply, Err(failure)),
        };
        spawn_blocking(move || {
            let free = if force { Ok(()) } else { unused(&device.path()) };
            let removed = free.and_then(|()| {
                // Looking for its users takes time.
                let found = leftovers::find().map_err(|error| device_failure(&error))?;
                if !found.contains(&device) {
                    let why = format!("{} has changed meanwhile; look at farpoint devices again", device.path());
                    return Err(Failure::new(FailureKind::WrongState, why));
                }
                leftovers::remove(device.id).map_err(|error| device_failure(&error))
            });
            answer(reply, removed.map(|()| Response::Done(Done::default())));
        });
    }

    fn removable(&self, remove: &RemoveDevice, found: io::Result<Vec<Leftover>>) -> Result<Leftover, Failure> {
        let (id, path) = (remove.id()?, &remove.device);
        let found = found.map_err(|error| device_failure(&error))?.into_iter().find(|device| device.id == id);
        let Some(device) = found else {
            let why = format!("{path} is no device of a farpoint volume; farpoint devices lists those there are");
            return Err(Failure::new(FailureKind::NotFound, why));
        };
        let refused = |why: String| Err(Failure::new(FailureKind::WrongState, why));
        match (self.volume_of(&device), state(&device)) {
            (Some(name), _) => refused(format!("{path} is the device of {name}; bring that up, or take it down")),
            (None, DeviceState::Served) => refused(format!("{path} is served by another daemon; end that first")),
            (None, DeviceState::Waiting | DeviceState::Dead) => Ok(device),
        }
    }
}

fn state(device: &Leftover) -> DeviceState {
    if device.is_held() {
        DeviceState::Waiting
    } else if device.waits {
        DeviceState::Served
    } else {
        DeviceState::Dead
    }
}
