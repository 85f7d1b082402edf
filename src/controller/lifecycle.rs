//! A volume's comings and goings: create, up, down, delete. Everything that opens a device, talks to the kernel's
//! driver or writes metadata runs on a thread that may block, and comes back as a [`Note`].

use super::api::{Create, Done, Down, Failure, FailureKind, Response, UpReply};
use super::config::{MetadataErrorPolicy, VolumeConfig};
use super::entry::{Doing, Entry, Opening, Phase, Told};
use super::limits::MIB;
use super::media::{self, Known};
use super::{Controller, Note, Reply, UNANSWERED, answer, need};
use crate::frontend::leftovers::{self, Owner};
use crate::frontend::openers;
use crate::group::VolumeId;
use crate::metadata::media::{Media, Recovery, Way};
use crate::metadata::superblock::Superblock;
use crate::storage::Device;
use crate::tracking::Epoch;
use crate::uploader::Report;
use crate::volume::{Intent, Marks, Spec, Volume, VolumeError};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        Self::new(FailureKind::Failed, error.to_string())
    }
}

/// How long a start waits for metadata that does not answer, an end for volumes that are coming up, and a stop for what
/// the kernel still holds.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A volume's description and what is known of it.
pub(super) type Described = (Box<VolumeConfig>, Box<Known>);

/// A volume that has come up, with its metadata as it is now, and what is not as it should be.
pub(super) struct IsUp {
    volume: Box<Volume>,
    media: Arc<Media>,
    known: Box<Known>,
    warnings: Vec<String>,
    opening: Opening,
}

/// How a volume goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nobody uses its device.
    Unused,
    /// Whoever uses it gets errors.
    Force,
    /// Its device stays for the next daemon; this one ends.
    KeepDevice,
}

/// A failure, and what is known of the metadata now, if it could be seen.
pub(super) type Failed = (Failure, Option<Box<Known>>);

pub(super) fn device_failure(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Failed, error.to_string())
}

/// Refuses a new volume while a device waits whose volume is not known: that may be over the same primary, and what it
/// holds would land on newer data. Blocks.
fn no_stranger(known: &[Owner]) -> Result<(), Failure> {
    let Some(device) = leftovers::stranger(known).map_err(|error| device_failure(&error))? else { return Ok(()) };
    let why = format!(
        "{} waits for a volume that is not known here, and may be over the same primary or secondary; bring back that \
         volume's file and metadata, remove it with farpoint remove-device, or use --force if it is over others",
        device.path()
    );
    Err(Failure::new(FailureKind::Unsafe, why))
}

/// Refuses a device that somebody has open. Blocks.
pub(super) fn unused(device: &str) -> Result<(), Failure> {
    let users = openers::of(device);
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    let why = format!("{device} is in use: {users}; end that first, or use --force to cut them off");
    Err(Failure::new(FailureKind::Unsafe, why))
}

impl Controller {
    /// Volumes that were created before: those with metadata. One whose metadata does not answer keeps nobody: it
    /// becomes known when it does.
    pub(super) async fn load_known(&mut self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Result<(), Failure> {
        let directory = &self.config.daemon.state_dir;
        std::fs::create_dir_all(directory)
            .map_err(|error| Failure::new(FailureKind::Io, format!("cannot make {}: {error}", directory.display())))?;
        for name in self.config.volume_names()? {
            self.look(name);
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        while !self.looking.is_empty() {
            let Ok(Some(note)) = timeout_at(until, notes.recv()).await else { break };
            self.note(note);
        }
        for name in &self.looking {
            tracing::warn!("{name}: {UNANSWERED}");
        }
        Ok(())
    }

    /// Looks for a volume's metadata.
    pub(super) fn look(&mut self, name: String) {
        if self.volumes.contains_key(&name) || !self.looking.insert(name.clone()) {
            return;
        }
        let (config, notes) = (self.config.clone(), self.notes.clone());
        spawn_blocking(move || {
            let found = config.volume(&name).and_then(|volume| {
                let path = config.metadata_path(&name, &volume);
                let missing = || {
                    let path = path.display();
                    let why = format!(
                        "there is no metadata at {path}; attach what it is on, or create the volume if it never was"
                    );
                    Failure::new(FailureKind::NotFound, why)
                };
                Ok((media::look(&path)?.ok_or_else(missing)?, volume))
            });
            let _ = notes.send(Note::Looked(name, found.map(|(known, volume)| (Box::new(volume), Box::new(known)))));
        });
    }

    pub(super) fn looked(&mut self, name: &str, found: Result<Described, Failure>) {
        self.looking.remove(name);
        match found {
            _ if self.volumes.contains_key(name) => {}
            // It may fail.
            _ if self.creating.contains(name) => {
                self.left_out.entry(name.to_owned()).or_insert_with(|| "it is being created".to_owned());
                self.look_later();
            }
            Ok((volume, known)) => {
                if self.left_out.remove(name).is_some() {
                    tracing::info!("{name}: it is known again");
                }
                self.add(name.to_owned(), *volume, *known);
                if let Some(entry) = self.volumes.get_mut(name) {
                    entry.fresh = true;
                }
                self.find();
            }
            Err(failure) => {
                let why = failure.to_string();
                if self.left_out.insert(name.to_owned(), why.clone()).as_ref() != Some(&why) {
                    tracing::warn!("{name}: left out: {failure}; it is looked for again every few seconds");
                }
                self.look_later();
            }
        }
    }

    pub(super) fn add(&mut self, name: String, config: VolumeConfig, known: Known) {
        let id = VolumeId(self.next_id);
        self.next_id += 1;
        let path = self.config.metadata_path(&name, &config);
        self.volumes.insert(name, Entry::new(id, config, path, known));
    }

    fn own_devices(&self) -> Vec<u32> {
        let own = |entry: &Entry| match &entry.phase {
            Phase::Up(volume) => Some(volume.device_id()),
            _ => entry.waiting.as_ref().and_then(|waiting| Some(waiting.device.as_ref()?.id)),
        };
        self.volumes.values().filter_map(own).collect()
    }

    /// `create`: checks the devices that the configuration names and stores the volume's record.
    pub(super) fn create(&mut self, create: Create, reply: Reply) {
        let Create { volume: name, force, in_sync } = create;
        if self.volumes.contains_key(&name) || !self.creating.insert(name.clone()) {
            let why = format!("{name} exists already; delete it first to make it anew");
            return answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
        }
        let (config, own, notes) = (self.config.clone(), self.own_devices(), self.notes.clone());
        let owners: Vec<_> = self.volumes.values().map(|entry| entry.known.superblock.owner()).collect();
        spawn_blocking(move || {
            let result = config.volume(&name).and_then(|volume| {
                if !force {
                    no_stranger(&owners)?;
                }
                let path = config.metadata_path(&name, &volume);
                let (primary, secondary) = media::open(&volume, own.clone(), Some(force || in_sync))?;
                need::check(&volume, primary.size())?;
                let made = media::Made { force, in_sync };
                let known = media::create_media(&path, &name, &volume, own, [&primary, &secondary], made)?;
                Ok((Box::new(volume), Box::new(known)))
            });
            let _ = notes.send(Note::Created(name, result, reply));
        });
    }

    pub(super) fn created(&mut self, name: &str, result: Result<Described, Failure>, reply: Reply) {
        self.creating.remove(name);
        let result = result.map(|(config, known)| {
            self.left_out.remove(name);
            self.add(name.to_owned(), *config, *known);
            Response::Done(Done::of(vec![name.to_owned()]))
        });
        answer(reply, result.map_err(|failure| Failure { message: format!("{name}: {failure}"), ..failure }));
    }

    /// `up`: opens the devices, says in the metadata that the volume is in use, makes the device, or takes back the one
    /// that has outlived its daemon.
    pub(super) fn up(&mut self, name: String, reply: Reply) {
        let (own, epoch, began, notes) = (self.own_devices(), self.epoch.clone(), self.began, self.notes.clone());
        let daemon = self.config.clone();
        let prepared = self.entry_mut(&name).and_then(|entry| {
            if !matches!(entry.phase, Phase::Down) {
                entry.running()?;
                return Err(Failure::new(FailureKind::WrongState, format!("{name} is up already")));
            }
            entry.phase = Phase::Busy(Doing::ComingUp);
            entry.fresh = false;
            Ok((entry.id, entry.spec(&name), entry.config.clone()))
        });
        let (id, mut spec, config) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return answer(reply, Err(failure)),
        };
        spawn_blocking(move || {
            let asked = Instant::now();
            let mut opening = Opening::default();
            let to_note = notes.clone();
            let report = move |report| drop(to_note.send(Note::Report(id, report)));
            let path = daemon.metadata_path(&name, &config);
            let suspend = config.metadata_error == MetadataErrorPolicy::SuspendIo;
            let opened = media::open(&config, own.clone(), None).and_then(|(primary, secondary)| {
                let media = media::open_media(&path, &name, &config, own, [&primary, &secondary])?;
                // Only now, when it is certain that no other daemon serves the volume. A second device over the same
                // primary would let the first one's old writes land on newer data, once it is taken back.
                match leftovers::of(spec.owner).map_err(|error| device_failure(&error))? {
                    Some(device) => spec.take_back(&device),
                    None => need::check(&config, primary.size())?,
                }
                let reading = Instant::now();
                let recovery = media.recovery()?;
                opening.metadata = reading.elapsed();
                Ok((primary, secondary, Arc::new(media), recovery))
            });
            let result = opened.map_err(|failure| (failure, None)).and_then(|(primary, secondary, media, recovery)| {
                let mut warnings: Vec<_> = [&primary, &secondary].into_iter().filter_map(media::buffered).collect();
                let devices = (Arc::new(primary), Arc::new(secondary));
                let up = serve(&spec, devices, &media, &recovery, (epoch, began, suspend), report);
                match up {
                    Ok((volume, superblock)) => {
                        warnings.extend(volume.lock_warning().map(str::to_owned));
                        let known = Box::new(Known::new(superblock, &recovery));
                        opening.took = asked.elapsed();
                        Ok(IsUp { volume, media, known, warnings, opening })
                    }
                    Err(failure) => Err((failure, known(&media))),
                }
            });
            let _ = notes.send(Note::Up(name, result, reply));
        });
    }

    pub(super) fn is_up(&mut self, name: &str, result: Result<IsUp, Failed>, reply: Reply) {
        let Some(entry) = self.volumes.get_mut(name) else { return };
        match result {
            Ok(IsUp { volume, media, known, warnings, opening }) => {
                let device = volume.device_path();
                tracing::info!("{name} is up as {device}");
                for warning in &warnings {
                    tracing::warn!("{name}: {warning}");
                }
                entry.warnings.clone_from(&warnings);
                say_what_was_found(name, &known);
                entry.opening = opening;
                entry.full_copy = known.full_copy();
                entry.known = *known;
                entry.media = Some(media);
                entry.phase = Phase::Up(volume);
                entry.waiting = None;
                entry.told = Told::default();
                answer(reply, Ok(Response::Up(UpReply { volume: name.to_owned(), device, warnings })));
            }
            Err((failure, known)) => {
                entry.phase = Phase::Down;
                if let Some(waiting) = &mut entry.waiting {
                    waiting.failed(&failure);
                }
                entry.learn(known);
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
                return self.give_up_waiting(name, down.force, reply);
            }
            Ok(_) => {
                let failure = self.entry(&name).and_then(|entry| entry.running().map(drop)).err();
                return answer(reply, Err(failure.unwrap_or_else(|| super::not_found(&name))));
            }
            Err(failure) => return answer(reply, Err(failure)),
        };
        if down.force {
            return self.take_down(&name, Ending::Force, Some(reply));
        }
        let notes = self.notes.clone();
        spawn_blocking(move || {
            let free = unused(&device);
            let _ = notes.send(Note::Free(name, free, reply));
        });
    }

    /// Whether somebody has the device open is known.
    pub(super) fn free(&mut self, name: &str, free: Result<(), Failure>, reply: Reply) {
        match free {
            Ok(()) => self.take_down(name, Ending::Unused, Some(reply)),
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    /// Unless nobody uses it, even if an increment's number is being stored, which takes for ever where metadata hangs.
    pub(super) fn take_down(&mut self, name: &str, ending: Ending, reply: Option<Reply>) {
        if self.is_being_cut(name) {
            if ending == Ending::Unused {
                let why = format!("{name}: a start is under way; try again when it is answered");
                if let Some(reply) = reply {
                    answer(reply, Err(Failure::new(FailureKind::WrongState, why)));
                }
                return;
            }
            if let Some(entry) = self.volumes.get_mut(name) {
                entry.increment = None;
            }
        }
        self.abort_for(name);
        let notes = self.notes.clone();
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let volume = match std::mem::replace(&mut entry.phase, Phase::Busy(Doing::GoingDown)) {
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
        let (name, media, incomplete) = (name.to_owned(), entry.media.take(), entry.full_copy);
        let parts = [entry.config.primary.clone(), entry.config.secondary.clone(), entry.media_path.clone()];
        spawn_blocking(move || {
            // After a failure nothing is read again: the metadata may hang.
            let result = volume.down(ending == Ending::KeepDevice).map_err(Failure::from).and_then(|tracks| {
                let media = media.ok_or_else(|| Failure::new(FailureKind::Failed, "its metadata is not open"))?;
                Ok(Box::new(media::end(&media, tracks, incomplete)?))
            });
            // Whoever hears of it may mount the primary or take its device apart. A daemon that leaves its device ends.
            if result.is_ok() && ending != Ending::KeepDevice {
                media::await_release(parts, PATIENCE);
            }
            let _ = notes.send(Note::Down(name, result, reply));
        });
    }

    pub(super) fn is_down(&mut self, name: &str, result: Result<Box<Known>, Failure>, reply: Option<Reply>) {
        // Its drain may have ended before it could say that the rest of an aborted increment is back.
        self.gone(name);
        let Some(entry) = self.volumes.get_mut(name) else { return };
        let result = match result {
            Ok(known) => {
                tracing::info!("{name} is down, {} tracks out of sync", known.tracks);
                entry.learn(Some(known));
                entry.phase = Phase::Down;
                let left = entry.known.tracks;
                let warning = format!("{name}: tracks not at the secondary yet: {left}; the next up copies them");
                let warnings = if left > 0 { vec![warning] } else { Vec::new() };
                Ok(Response::Done(Done { volumes: vec![name.to_owned()], warnings }))
            }
            Err(failure) => {
                entry.known.way = Way::Unclean;
                tracing::error!("{name} was not taken down cleanly: {failure}; its next start copies all hot regions");
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
            _ => {
                let why = format!("{name} is not down, or waits to come up; take it down first");
                Err(Failure::new(FailureKind::WrongState, why))
            }
        });
        if let Err(failure) = down {
            return answer(reply, Err(failure));
        }
        if let Some(entry) = self.volumes.get_mut(&name) {
            entry.phase = Phase::Busy(Doing::Deleting);
        }
        let (config, own, notes) = (self.config.clone(), self.own_devices(), self.notes.clone());
        let volume = self.volumes.get(&name).map(|entry| entry.config.clone());
        spawn_blocking(move || {
            // The metadata first: a configuration without it is only a volume that was never created.
            let removed = volume.map_or(Ok(()), |volume| media::remove(&config, &name, &volume, own));
            let removed = removed.map_err(|failure| Failure { message: format!("{name}: {failure}"), ..failure });
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

    /// The number of an increment over the volume is being stored.
    fn is_being_cut(&self, name: &str) -> bool {
        let number = self.volumes.get(name).and_then(|entry| entry.increment);
        number.is_some_and(|number| !self.increments.contains_key(&number))
    }
}

/// Says in the metadata that the volume is in use, then serves it. Blocks.
fn serve(
    spec: &Spec,
    (primary, secondary): (Arc<Device>, Arc<Device>),
    media: &Media,
    recovery: &Recovery,
    (epoch, began, suspend): (Arc<Epoch>, Instant, bool),
    report: impl Fn(Report) + Send + 'static,
) -> Result<(Box<Volume>, Superblock), Failure> {
    let before = media.superblock();
    let all = before.geometry().map(|geometry| geometry.tracks());
    let marks = if Some(recovery.tracks.count()) == all { Marks::All } else { Marks::These(recovery.tracks.clone()) };
    // Before the first write is accepted: from here until a clean stop only the intent tells what may differ.
    let superblock = media.begin(recovery, true)?;
    let name = spec.name.clone();
    let intent = Intent {
        area: media.intent_area(),
        region_size: superblock.region_size.into(),
        hot: &recovery.hot,
        log: recovery.log(),
        suspend,
        failed: Box::new(move |error| {
            tracing::error!(
                "{name}: the metadata could not be written: {error}; it cannot be stopped cleanly any more"
            );
        }),
    };
    match Volume::up(spec, primary, secondary, &marks, Some(intent), epoch, began, report) {
        Ok(volume) => Ok((Box::new(volume), superblock)),
        Err(error) => {
            // Unless a device may have been there for an instant, nothing has changed: the superblock says so again.
            if !error.may_have_served()
                && let Err(error) = media.undo(&before, recovery)
            {
                tracing::warn!("{}: its clean stop is forgotten: {error}", spec.name);
            }
            Err(error.into())
        }
    }
}

fn known(media: &Media) -> Option<Box<Known>> {
    let recovery = media.recovery().inspect_err(|error| tracing::warn!("{error}")).ok()?;
    Some(Box::new(Known::new(media.superblock(), &recovery)))
}

/// What a start found that an administrator wants to know.
fn say_what_was_found(name: &str, known: &Known) {
    let mib = |regions: u64| regions * u64::from(known.superblock.region_size) / MIB;
    match known.way {
        Way::Exact | Way::New => {}
        Way::Unclean => tracing::warn!(
            "{name} was not stopped cleanly; recovered: {} regions, {} MiB are copied again",
            known.hot_regions,
            mib(known.hot_regions)
        ),
        Way::SavedDamaged => {
            let regions = known.hot_regions;
            tracing::warn!("{name}: the tracks of its clean stop are damaged; {regions} regions are copied again");
        }
        Way::Everything => tracing::warn!("{name} was not stopped cleanly; everything is copied again"),
    }
    if known.damaged_pages > 0 {
        let regions = known.damaged_pages * crate::metadata::media::REGIONS_PER_PAGE;
        let regions = regions.min(known.superblock.regions());
        let pages = known.damaged_pages;
        tracing::warn!(
            "{name}: {pages} pages of the intent, or its log, are damaged: {} MiB are copied again",
            mib(regions)
        );
    }
}

pub(super) fn completed(increment: u64, cut: std::time::Instant) -> crate::metadata::Completed {
    let at = std::time::SystemTime::now().checked_sub(cut.elapsed()).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    crate::metadata::Completed { increment, time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}
