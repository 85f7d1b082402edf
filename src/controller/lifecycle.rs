//! A volume's comings and goings: create, up, down, delete, and the end of the daemon. Everything that opens a device,
//! talks to the kernel's driver or stores a record runs on a thread that may block, and comes back as a [`Note`].

use super::api::{Create, Done, Down, Failure, FailureKind, Response, UpReply};
use super::config::{Direct, VolumeConfig};
use super::entry::{Entry, Phase};
use super::{Controller, Note, Reply, answer, limits, need};
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

/// A volume's description and record.
pub(super) type Described = (Box<VolumeConfig>, Box<State>);

/// A volume that is up, its record, and what is not as it should be.
pub(super) struct IsUp {
    volume: Box<Volume>,
    state: Box<State>,
    warnings: Vec<String>,
}

/// A failed `up`, and the record as it is now.
pub(super) type NotUp = (Failure, Box<State>);

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

/// What is to be said of a device that is not used as directly as was wanted.
fn buffered(device: &Device) -> Option<String> {
    let why = device.limits().buffered_because.as_ref()?;
    let path = limits::shorten(&device.path().to_string_lossy(), 4096);
    Some(format!(
        "{path} is used through the page cache: {why}; move it to where direct I/O works, or set direct = \"off\" in \
         the volume's file if this is wanted"
    ))
}

fn sides(primary: &Device, secondary: &Device, config: &VolumeConfig) -> (Side, Side, u32) {
    (Side::of(primary), Side::of(secondary), u32::try_from(config.track_size).unwrap_or(u32::MAX))
}

/// Refuses a device that somebody has open. Blocks.
pub(super) fn unused(name: &str, device: &str) -> Result<(), Failure> {
    let users = openers::of(device);
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    let why = format!("{name}: {device} is in use: {users}; end that first, or use --force to cut them off");
    Err(Failure::new(FailureKind::Unsafe, why))
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
                Err(failure) => tracing::error!("{name}: left out: {failure}; then restart the daemon"),
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
        let own = |entry: &Entry| match &entry.phase {
            Phase::Up(volume) => Some(volume.device_id()),
            _ => entry.waiting.as_ref().map(|waiting| waiting.device.id),
        };
        self.volumes.values().filter_map(own).collect()
    }

    /// `create`: checks the devices that the configuration names and stores the volume's record.
    pub(super) fn create(&mut self, create: Create, reply: Reply) {
        let Create { volume: name, force } = create;
        if self.volumes.contains_key(&name) || !self.creating.insert(name.clone()) {
            let why = format!("{name} exists already; delete it first to make it anew");
            return answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
        }
        let (config, own, path, notes) =
            (self.config.clone(), self.own_devices(), self.state_path(&name), self.notes.clone());
        spawn_blocking(move || {
            let result = config.volume(&name).and_then(|config| {
                if State::load(&path).map_or(true, |found| found.is_some()) {
                    // Of a volume that was left out at start: its numbers must not begin again.
                    let why = format!(
                        "there is a state record already, {}; restart the daemon and see its log",
                        path.display()
                    );
                    return Err(Failure::new(FailureKind::WrongState, why));
                }
                let (primary, secondary) = open(&config, own, Some(force))?;
                need::check(&config, primary.size())?;
                let (one, other, track_size) = sides(&primary, &secondary, &config);
                let state = State::new(one, other, track_size);
                state.store(&path)?;
                Ok((Box::new(config), Box::new(state)))
            });
            let _ = notes.send(Note::Created(name, result, reply));
        });
    }

    pub(super) fn created(&mut self, name: &str, result: Result<Described, Failure>, reply: Reply) {
        self.creating.remove(name);
        let result = result.map(|(config, state)| {
            self.add(name.to_owned(), *config, *state);
            Response::Done(Done::of(vec![name.to_owned()]))
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
        let before = state.clone();
        spawn_blocking(move || {
            let to_note = notes.clone();
            let result: Result<_, Failure> = open(&config, own, None).and_then(|(primary, secondary)| {
                let (one, other, track_size) = sides(&primary, &secondary, &config);
                state.check(&one, &other, track_size)?;
                need::check(&config, primary.size())?;
                let marks = state.begin().map_or(Marks::All, |tracks| Marks::These(tracks.into()));
                let mut warnings: Vec<String> = [&primary, &secondary].into_iter().filter_map(buffered).collect();
                // Before the first write is accepted: from here until a clean stop the record says nothing of tracks.
                state.store(&path)?;
                let report = move |report| drop(to_note.send(Note::Report(id, report)));
                let volume = Volume::up(&spec, Arc::new(primary), Arc::new(secondary), &marks, epoch, began, report);
                let volume = volume.inspect_err(|error| {
                    // Unless a device may have been there for an instant, nothing has changed: the record says so
                    // again.
                    if !error.may_have_served() && before.store(&path).is_ok() {
                        state = before.clone();
                    }
                })?;
                state.incomplete |= matches!(marks, Marks::All);
                warnings.extend(volume.lock_warning().map(str::to_owned));
                Ok((Box::new(volume), warnings))
            });
            let result = match result {
                Ok((volume, warnings)) => Ok(IsUp { volume, state: Box::new(state), warnings }),
                Err(failure) => Err((failure, Box::new(state))),
            };
            let _ = notes.send(Note::Up(name, result, reply));
        });
    }

    pub(super) fn is_up(&mut self, name: &str, result: Result<IsUp, NotUp>, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(name) else { return };
        match result {
            Ok(IsUp { volume, state, warnings }) => {
                let device = volume.device_path();
                tracing::info!("{name} is up as {device}");
                for warning in &warnings {
                    tracing::warn!("{name}: {warning}");
                }
                entry.warnings.clone_from(&warnings);
                entry.full_copy = state.incomplete;
                entry.state = *state;
                entry.phase = Phase::Up(volume);
                entry.waiting = None;
                entry.told = false;
                answer(reply, Ok(Response::Up(UpReply { volume: name.to_owned(), device, warnings })));
            }
            Err((failure, state)) => {
                entry.phase = Phase::Down;
                if let Some(waiting) = &mut entry.waiting {
                    waiting.why = Some(failure.to_string());
                }
                entry.full_copy = state.full_copy_needed || state.incomplete;
                entry.state = *state;
                tracing::error!("{name} could not come up: {failure}");
                answer(reply, Err(Failure { message: format!("{name}: {failure}"), ..failure }));
            }
        }
    }

    /// `down`: refuses while somebody has the device open, unless forced. Who has is found out elsewhere: looking into
    /// every process may take time.
    pub(super) fn down(&mut self, down: &Down, reply: Reply) {
        let name = down.volume.clone();
        let device = match self.entry(&name).map(|entry| &entry.phase) {
            Ok(Phase::Up(volume)) => volume.device_path(),
            Ok(Phase::Failed(why)) => {
                let warning = format!(
                    "{name} did not stop cleanly: {why}; its device may still be there and its files locked: if up is \
                     refused, restart the daemon, or the machine if that does not end"
                );
                if let Some(entry) = self.volumes.get_mut(&name) {
                    entry.phase = Phase::Down;
                }
                return answer(reply, Ok(Response::Done(Done { volumes: vec![name], warnings: vec![warning] })));
            }
            Ok(Phase::Down) if self.entry(&name).is_ok_and(|entry| entry.waiting.is_some()) => {
                return self.remove_waiting(name, down.force, reply);
            }
            Ok(_) => {
                let failure = self.entry(&name).and_then(|entry| entry.running().map(drop)).err();
                return answer(reply, Err(failure.unwrap_or_else(|| super::not_found(&name))));
            }
            Err(failure) => return answer(reply, Err(failure)),
        };
        if down.force {
            return self.take_down(&name, Some(reply));
        }
        let notes = self.notes.clone();
        spawn_blocking(move || {
            let free = unused(&name, &device);
            let _ = notes.send(Note::Free(name, free, reply));
        });
    }

    /// Whether somebody has the device open is known.
    pub(super) fn free(&mut self, name: &str, free: Result<(), Failure>, reply: Reply) {
        match free {
            Ok(()) => self.take_down(name, Some(reply)),
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    fn take_down(&mut self, name: &str, reply: Option<Reply>) {
        if self.is_being_cut(name) {
            let why = format!("{name}: a start is under way; try again when it is answered");
            if let Some(reply) = reply {
                answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
            }
            return;
        }
        self.abort_for(name);
        let (path, notes) = (self.state_path(name), self.notes.clone());
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let volume = match std::mem::replace(&mut entry.phase, Phase::Busy("going down")) {
            Phase::Up(volume) => volume,
            other => {
                entry.phase = other;
                let why = format!("{name}: it is no longer up");
                if let Some(reply) = reply {
                    answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
                }
                return;
            }
        };
        // Held writes go before anything waits for the device; there is nothing to cut any more.
        volume.retire(true);
        let (name, mut state) = (name.to_owned(), entry.state.clone());
        let incomplete = entry.full_copy;
        spawn_blocking(move || {
            let result = volume.down().map_err(Failure::from).and_then(|tracks| {
                state.end(tracks.into());
                state.incomplete = incomplete && !state.out_of_sync.is_empty();
                state.store(&path)?;
                Ok(Box::new(state))
            });
            let _ = notes.send(Note::Down(name, result, reply));
        });
    }

    pub(super) fn is_down(&mut self, name: &str, result: Result<Box<State>, Failure>, reply: Option<Reply>) {
        // Its drain may have ended before it could say that the rest of an aborted increment is back.
        self.gone(name);
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let result = match result {
            Ok(state) => {
                tracing::info!("{name} is down, {} tracks out of sync", state.out_of_sync.len());
                // A full copy that was cut short goes on where it was; the secondary is not usable before.
                entry.full_copy = state.incomplete;
                entry.state = *state;
                entry.phase = Phase::Down;
                Ok(Response::Done(Done::of(vec![name.to_owned()])))
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
            // While its file is being written it would come back.
            Phase::Down if entry.waiting.is_none() => entry.may_be_set(&name),
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
            let removed = match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
            let removed = removed.map_err(|error| {
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
                answer(reply, Ok(Response::Done(Done::of(vec![name.to_owned()]))));
            }
            Err(failure) => {
                if let Some(entry) = self.volumes.get_mut(name) {
                    entry.phase = Phase::Down;
                }
                answer(reply, Err(failure));
            }
        }
    }

    /// The number of an increment over the volume is being stored: its record has another writer.
    fn is_being_cut(&self, name: &str) -> bool {
        let number = self.volumes.get(name).and_then(|entry| entry.increment);
        number.is_some_and(|number| !self.increments.contains_key(&number))
    }

    /// The daemon ends: takes down what is up and not in use, and waits for what is under way.
    pub(super) async fn end(mut self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Result<(), Failure> {
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        tracing::info!("ending: taking {} volumes down", names.len());
        self.leave_used().await;
        let mut asked = false;
        loop {
            for name in &names {
                if self.volumes.get(name).is_some_and(|entry| matches!(entry.phase, Phase::Up(_))) {
                    self.take_down(name, None);
                }
            }
            let busy = self.volumes.values().any(|entry| matches!(entry.phase, Phase::Busy(_) | Phase::Up(_)));
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

pub(super) fn completed(increment: u64, cut: std::time::Instant) -> crate::metadata::Completed {
    let at = std::time::SystemTime::now().checked_sub(cut.elapsed()).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    crate::metadata::Completed { increment, time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}
