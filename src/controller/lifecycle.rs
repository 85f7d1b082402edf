//! A volume's comings and goings: create, up, down, delete, and the end of the daemon. Everything that opens a device,
//! talks to the kernel's driver or stores a record runs on a thread that may block, and comes back as a [`Note`].

use super::api::{Create, Done, Down, Failure, FailureKind, Response, UpReply};
use super::config::{Direct, VolumeConfig};
use super::entry::{Entry, Phase};
use super::{Controller, Note, Reply, answer};
use crate::frontend::openers;
use crate::geometry::Geometry;
use crate::group::VolumeId;
use crate::metadata::{MetadataError, Side, State};
use crate::storage::{self, Device, ErrorKind, OpenError, Options, SecondaryOptions};
use crate::volume::{Marks, Volume, VolumeError};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => FailureKind::NotFound,
            ErrorKind::Permission => FailureKind::Permission,
            ErrorKind::Io => FailureKind::Io,
            ErrorKind::Unsafe => FailureKind::Unsafe,
            ErrorKind::Busy => FailureKind::WrongState,
            ErrorKind::Invalid => FailureKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Self {
        let kind = if matches!(error, MetadataError::Io { .. }) { FailureKind::Io } else { FailureKind::Failed };
        Self::new(kind, error.to_string())
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        Self::new(FailureKind::Failed, error.to_string())
    }
}

/// Both devices of a volume, opened and checked.
fn open(config: &VolumeConfig, own: Vec<u32>, first: Option<bool>) -> Result<(Device, Device), Failure> {
    let direct = if config.direct == Direct::Off { storage::Direct::Off } else { storage::Direct::Auto };
    let common = Options { direct, own_devices: own, ..Options::default() };
    let primary = storage::open_primary(&config.primary, &common)?;
    let options = SecondaryOptions { common, check_signature: first.is_some(), force: first == Some(true) };
    let secondary = storage::open_secondary(&config.secondary, &primary, &options)?;
    Geometry::new(primary.size(), config.track_size)
        .map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
    Ok((primary, secondary))
}

fn sides(primary: &Device, secondary: &Device, config: &VolumeConfig) -> (Side, Side, u32) {
    (Side::of(primary), Side::of(secondary), u32::try_from(config.track_size).unwrap_or(u32::MAX))
}

impl Controller {
    pub(super) fn state_path(&self, name: &str) -> PathBuf {
        State::path(&self.config.daemon.state_dir, name)
    }

    /// Volumes that were created before: those with a record.
    pub(super) fn load_known(&mut self) -> Result<(), Failure> {
        let directory = &self.config.daemon.state_dir;
        std::fs::create_dir_all(directory)
            .map_err(|error| Failure::new(FailureKind::Io, format!("cannot make {}: {error}", directory.display())))?;
        for name in self.config.volume_names()? {
            match self.config.volume(&name).and_then(|config| Ok((config, State::load(&self.state_path(&name))?))) {
                Ok((config, Some(state))) => self.add(name, config, state),
                Ok((_, None)) => tracing::info!("{name}: has a configuration but was never created"),
                Err(failure) => tracing::error!("{name}: left out: {failure}"),
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, config: VolumeConfig, state: State) {
        let id = VolumeId(self.next_id);
        self.next_id += 1;
        self.volumes.insert(name, Entry::new(id, config, state));
    }

    fn own_devices(&self) -> Vec<u32> {
        self.volumes.values().filter_map(|entry| entry.running().ok()).map(Volume::device_id).collect()
    }

    /// `create`: checks the devices that the configuration names and stores the volume's record.
    pub(super) fn create(&mut self, create: Create, reply: Reply) {
        let Create { volume: name, force } = create;
        if self.volumes.contains_key(&name) {
            let why = format!("{name} exists already; delete it first to make it anew");
            return answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
        }
        let (config, own, path, notes) =
            (self.config.clone(), self.own_devices(), self.state_path(&name), self.notes.clone());
        spawn_blocking(move || {
            let result = config.volume(&name).and_then(|config| {
                let (primary, secondary) = open(&config, own, Some(force))?;
                let (one, other, track_size) = sides(&primary, &secondary, &config);
                let state = State::new(one, other, track_size);
                state.store(&path)?;
                Ok(Box::new(state))
            });
            let _ = notes.send(Note::Created(name, result, reply));
        });
    }

    pub(super) fn created(&mut self, name: &str, result: Result<Box<State>, Failure>, reply: Reply) {
        let result = result.and_then(|state| {
            let config = self.config.volume(name)?;
            self.add(name.to_owned(), config, *state);
            Ok(Response::Done(Done { volumes: vec![name.to_owned()] }))
        });
        answer(reply, result.map_err(|failure| Failure { message: format!("{name}: {failure}"), ..failure }));
    }

    /// `up`: opens the devices, says in the record that the volume is in use, makes the device.
    pub(super) fn up(&mut self, name: String, reply: Reply) {
        let (path, own, epoch, began, notes) =
            (self.state_path(&name), self.own_devices(), self.epoch.clone(), self.began, self.notes.clone());
        let prepared = self.entry_mut(&name).and_then(|entry| {
            if !matches!(entry.phase, Phase::Down) {
                entry.running()?;
                return Err(Failure::new(FailureKind::WrongState, format!("{name} is up already")));
            }
            entry.phase = Phase::Busy("coming up");
            Ok((entry.id, entry.spec(&name), entry.config.clone(), entry.state.clone()))
        });
        let (id, spec, config, mut state) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return answer(reply, Err(failure)),
        };
        spawn_blocking(move || {
            let to_note = notes.clone();
            let result = open(&config, own, None).and_then(|(primary, secondary)| {
                let (one, other, track_size) = sides(&primary, &secondary, &config);
                state.check(&one, &other, track_size)?;
                let marks = state.begin().map_or(Marks::All, |tracks| Marks::These(tracks.into()));
                // Before the first write is accepted: from here until a clean stop the record says nothing of tracks.
                state.store(&path)?;
                let report = move |report| drop(to_note.send(Note::Report(id, report)));
                let volume = Volume::up(&spec, Arc::new(primary), Arc::new(secondary), &marks, epoch, began, report)?;
                state.device_id = Some(volume.device_id());
                state.full_copy_needed = matches!(marks, Marks::All);
                Ok((Box::new(volume), Box::new(state)))
            });
            let _ = notes.send(Note::Up(name, result, reply));
        });
    }

    pub(super) fn is_up(&mut self, name: &str, result: Result<(Box<Volume>, Box<State>), Failure>, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(name) else { return };
        match result {
            Ok((volume, state)) => {
                let device = volume.device_path();
                tracing::info!("{name} is up as {device}");
                entry.full_copy |= state.full_copy_needed;
                entry.state = *state;
                // What the record says while the volume is up.
                entry.state.full_copy_needed = true;
                entry.phase = Phase::Up(volume);
                answer(reply, Ok(Response::Up(UpReply { volume: name.to_owned(), device })));
            }
            Err(failure) => {
                entry.phase = Phase::Down;
                tracing::error!("{name} could not come up: {failure}");
                answer(reply, Err(Failure { message: format!("{name}: {failure}"), ..failure }));
            }
        }
    }

    /// `down`: refuses while somebody has the device open, unless forced.
    pub(super) fn down(&mut self, down: &Down, reply: Reply) {
        let result = self.entry(&down.volume).and_then(|entry| {
            let volume = match &entry.phase {
                Phase::Failed(_) => return Ok(None),
                _ => entry.running()?,
            };
            let users = openers::of(&volume.device_path());
            if !down.force && !users.is_empty() {
                let why = format!(
                    "{}: {} is in use: {}; end that first, or use --force to cut them off",
                    down.volume,
                    volume.device_path(),
                    users.join(", ")
                );
                return Err(Failure::new(FailureKind::Unsafe, why));
            }
            Ok(Some(()))
        });
        match result {
            Ok(Some(())) => self.take_down(&down.volume, Some(reply)),
            Ok(None) => {
                if let Some(entry) = self.volumes.get_mut(&down.volume) {
                    entry.phase = Phase::Down;
                }
                answer(reply, Ok(Response::Done(Done { volumes: vec![down.volume.clone()] })));
            }
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    fn take_down(&mut self, name: &str, reply: Option<Reply>) {
        self.abort_for(name);
        let (path, notes) = (self.state_path(name), self.notes.clone());
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let Phase::Up(volume) = std::mem::replace(&mut entry.phase, Phase::Busy("going down")) else { return };
        // Held writes go before anything waits for the device; there is nothing to cut any more.
        volume.retire(true);
        let (name, mut state) = (name.to_owned(), entry.state.clone());
        if let Some((number, cut)) = entry.last_complete {
            state.completed = Some(completed(number.0, cut));
        }
        spawn_blocking(move || {
            let result = volume.down().map_err(Failure::from).and_then(|tracks| {
                state.end(tracks.into());
                state.store(&path)?;
                Ok(Box::new(state))
            });
            let _ = notes.send(Note::Down(name, result, reply));
        });
    }

    pub(super) fn is_down(&mut self, name: &str, result: Result<Box<State>, Failure>, reply: Option<Reply>) {
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let result = match result {
            Ok(state) => {
                tracing::info!("{name} is down, {} tracks out of sync", state.out_of_sync.len());
                // A full copy that was cut short goes on where it was; the secondary is not usable before.
                entry.full_copy &= !state.out_of_sync.is_empty();
                entry.state = *state;
                entry.phase = Phase::Down;
                Ok(Response::Done(Done { volumes: vec![name.to_owned()] }))
            }
            Err(failure) => {
                tracing::error!("{name} was not taken down cleanly: {failure}; its next start copies everything");
                entry.full_copy = true;
                entry.phase = Phase::Failed(failure.to_string());
                Err(Failure { message: format!("{name}: {failure}"), ..failure })
            }
        };
        if let Some(reply) = reply {
            answer(reply, result);
        }
    }

    /// `delete`: forgets a volume that is down. Its data stays where it is.
    pub(super) fn delete(&mut self, name: String, reply: Reply) {
        let down = self.entry_mut(&name).and_then(|entry| match entry.phase {
            Phase::Down => Ok(()),
            _ => Err(Failure::new(FailureKind::WrongState, format!("{name} is not down; take it down first"))),
        });
        if let Err(failure) = down {
            return answer(reply, Err(failure));
        }
        if let Some(entry) = self.volumes.get_mut(&name) {
            entry.phase = Phase::Busy("being deleted");
        }
        let (config, path, notes) = (self.config.clone(), self.state_path(&name), self.notes.clone());
        spawn_blocking(move || {
            // The record first: a configuration without one is only a volume that was never created.
            let removed = std::fs::remove_file(&path).map_err(|error| {
                Failure::new(FailureKind::Io, format!("{name}: cannot remove {}: {error}", path.display()))
            });
            let result = removed.and_then(|()| config.remove_volume(&name));
            let _ = notes.send(Note::Deleted(name, result, reply));
        });
    }

    pub(super) fn deleted(&mut self, name: &str, result: Result<(), Failure>, reply: Reply) {
        match result {
            Ok(()) => {
                self.volumes.remove(name);
                answer(reply, Ok(Response::Done(Done { volumes: vec![name.to_owned()] })));
            }
            Err(failure) => {
                if let Some(entry) = self.volumes.get_mut(name) {
                    entry.phase = Phase::Down;
                }
                answer(reply, Err(failure));
            }
        }
    }

    /// The daemon ends: takes down what is up, and waits for what is under way.
    pub(super) async fn end(mut self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Result<(), Failure> {
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        tracing::info!("ending: taking {} volumes down", names.len());
        let mut asked = false;
        loop {
            for name in &names {
                if self.volumes.get(name).is_some_and(|entry| matches!(entry.phase, Phase::Up(_))) {
                    self.take_down(name, None);
                }
            }
            let busy = self.volumes.values().any(|entry| matches!(entry.phase, Phase::Busy(_)));
            if !busy {
                break;
            }
            if !asked {
                asked = true;
                tracing::info!("waiting for volumes to stop");
            }
            match notes.recv().await {
                Some(note) => self.note(note),
                None => break,
            }
        }
        let failed: Vec<_> = self.volumes.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Failed(_))).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let names = failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
        Err(Failure::new(
            FailureKind::Failed,
            format!("not taken down cleanly: {names}; their next start copies everything"),
        ))
    }
}

fn completed(increment: u64, cut: std::time::Instant) -> crate::metadata::Completed {
    let at = std::time::SystemTime::now().checked_sub(cut.elapsed()).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    crate::metadata::Completed { increment, time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}
