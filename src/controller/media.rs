//! What a volume is made of, opened and checked: its primary, its secondary and its metadata. Everything here blocks.

use super::api::{Failure, FailureKind};
use super::config::{Config, Direct, VolumeConfig};
use super::limits;
use crate::frontend::leftovers::Owner;
use crate::frontend::watchdog::Limit;
use crate::geometry::Geometry;
use crate::metadata::inspect::inspect;
use crate::metadata::layout::Layout;
use crate::metadata::media::{Media, Recovery, Slots, Way};
use crate::metadata::superblock::{Fault, Superblock};
use crate::metadata::{MetadataError, Side, Tracks};
use crate::storage::{self, Device, ErrorKind, OpenError, Options, SecondaryOptions};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How often one who waits for metadata looks whether it hangs.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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
        let kind = match error {
            MetadataError::Io { .. } | MetadataError::Stalled { .. } => FailureKind::Io,
            MetadataError::Occupied { .. } => FailureKind::Unsafe,
            _ => FailureKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl Superblock {
    /// What a device of the volume says of it.
    pub(super) fn owner(&self) -> Owner {
        Owner::new(self.id.first_chunk().copied().map_or(0, u64::from_le_bytes))
    }
}

/// A volume's metadata as it was last seen.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub superblock: Superblock,
    pub way: Way,
    /// Tracks that a start would begin with.
    pub tracks: u64,
    pub hot_regions: u64,
    pub damaged_pages: u64,
}

impl Known {
    pub(super) fn new(superblock: Superblock, recovery: &Recovery) -> Self {
        // With a record of the log lost, no page is gone by.
        let all = recovery.logged.damaged.then_some(superblock.layout.intent_pages);
        Self {
            superblock,
            way: recovery.way,
            tracks: recovery.tracks.count(),
            hot_regions: recovery.hot.count(),
            damaged_pages: all.unwrap_or(recovery.hot.damaged_pages),
        }
    }

    /// Whether every track has to be copied once before the secondary is usable.
    pub(super) fn full_copy(&self) -> bool {
        self.superblock.incomplete || matches!(self.way, Way::New | Way::Everything)
    }

    /// Regions that are copied again because the last stop was not clean.
    pub(super) fn recovered(&self) -> u64 {
        if matches!(self.way, Way::Unclean | Way::SavedDamaged) { self.hot_regions } else { 0 }
    }
}

/// Both devices of a volume, opened and checked; `create`: it is being created, and whether by force.
pub(super) fn open(config: &VolumeConfig, own: Vec<u32>, create: Option<bool>) -> Result<(Device, Device), Failure> {
    let common = options(config, own);
    let primary = storage::open_primary(&config.primary, &common)?;
    let options = SecondaryOptions { common, check_signature: create.is_some(), force: create == Some(true) };
    let secondary = storage::open_secondary(&config.secondary, &primary, &options)?;
    Ok((primary, secondary))
}

fn options(config: &VolumeConfig, own: Vec<u32>) -> Options {
    let direct = if config.direct == Direct::Off { storage::Direct::Off } else { storage::Direct::Auto };
    Options { direct, own_devices: own, ..Options::default() }
}

/// What is to be said of a device that is not used as directly as was wanted.
pub(super) fn buffered(device: &Device) -> Option<String> {
    let why = device.limits().buffered_because.as_ref()?;
    let path = limits::shorten(&device.path().to_string_lossy(), 4096);
    Some(format!(
        "{path} is used through the page cache: {why}; move it to where direct I/O works, or set direct = \"off\" in \
         the volume's file if this is wanted"
    ))
}

/// What is known of a volume that is down; `None` if it was never created.
pub(super) fn look(path: &Path) -> Result<Option<Known>, Failure> {
    let medium = match storage::open_read_only(path) {
        Ok((medium, _)) => medium,
        Err(OpenError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match inspect(path, &medium) {
        Ok(found) => Ok(Some(Known::new(found.superblock, &found.recovery))),
        Err(MetadataError::Empty { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens the metadata of a volume that is to come up.
pub(super) fn open_media(
    path: &Path,
    name: &str,
    config: &VolumeConfig,
    own: Vec<u32>,
    [primary, secondary]: [&Device; 2],
) -> Result<Media, Failure> {
    let device = storage::open_metadata(path, &options(config, own), false, &[primary, secondary])?;
    let sides = [primary, secondary, &device].map(Side::of);
    let media = Media::open(path, Arc::new(device))?;
    let [primary, secondary, metadata] = &sides;
    media.check(name, [primary, secondary, metadata], config.track_size, config.region_size)?;
    Ok(media)
}

/// How a volume is made: over whatever there was, and with a secondary that is an exact copy already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub force: bool,
    pub in_sync: bool,
}

/// Makes the metadata of a new volume, which is then down.
pub(super) fn create_media(
    path: &Path,
    name: &str,
    config: &VolumeConfig,
    own: Vec<u32>,
    [primary, secondary]: [&Device; 2],
    Made { force, in_sync }: Made,
) -> Result<Known, Failure> {
    let geometry = Geometry::new(primary.size(), config.track_size)
        .map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
    limits::check_region_size(config.region_size, config.track_size)?;
    let region_bytes = u32::try_from(config.region_size).unwrap_or(u32::MAX);
    let needed = Layout::new(&geometry, config.region_size).bytes();
    let made = make_file(path, needed).map_err(|error| io_failure("making", path, &error))?;
    let created = || {
        let device = storage::open_metadata(path, &options(config, own), !force, &[primary, secondary])?;
        if device.size() < needed {
            return Err(MetadataError::TooSmall { path: path.to_owned(), size: device.size(), needed }.into());
        }
        let last_increment = room(path, name, &device, force)?;
        let sides = [primary, secondary, &device].map(Side::of);
        let id = random_id().map_err(|error| io_failure("reading", Path::new(RANDOM), &error))?;
        let superblock = Superblock { last_increment, ..Superblock::new(id, name, sides, &geometry, region_bytes) };
        let media = Media::format(path, Arc::new(device), superblock)?;
        if in_sync {
            media.assume_in_sync()?;
        }
        Ok(Known::new(media.superblock(), &media.recovery()?))
    };
    let created: Result<Known, Failure> = created();
    if created.is_err() && made {
        let _ = fs::remove_file(path);
    }
    created
}

/// Makes the file, durably, if nothing is there; says whether it did. Never a file among devices, where a slip of the
/// pen would leave one in the place of a disk that is not there.
fn make_file(path: &Path, bytes: u64) -> io::Result<bool> {
    if path.starts_with("/dev") {
        return Ok(false);
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            let made = file.set_len(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_directory(path));
            made.inspect_err(|_| drop(fs::remove_file(path)))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Whether a volume may be made here: the number of the last increment to go on from.
fn room(path: &Path, name: &str, device: &Device, force: bool) -> Result<u64, Failure> {
    let slots = Slots::read(device).map_err(|error| io_failure("reading", path, &error))?;
    let (what, last) = match slots.newest() {
        Err(Fault::Empty) => return Ok(0),
        // The numbers of a volume that is made anew go on.
        Ok((_, found)) if found.name == name => (format!("the metadata of {name}"), found.last_increment),
        Ok((_, found)) => (format!("the metadata of another volume, {}", found.name.escape_debug()), 0),
        Err(Fault::Foreign) => ("something else".to_owned(), 0),
        Err(fault) => (format!("metadata that cannot be read ({fault})"), 0),
    };
    if force { Ok(last) } else { Err(MetadataError::Occupied { path: path.to_owned(), what }.into()) }
}

/// Stores the clean stop of a volume, and says what is known of it then. Where the metadata hangs that goes on on a
/// thread of its own, which keeps it locked (H23), and nobody waits for it.
pub(super) fn end(media: &Arc<Media>, tracks: Tracks, incomplete: bool) -> Result<Known, Failure> {
    let (done, ended) = mpsc::channel();
    let ending = media.clone();
    let end = move || {
        let superblock = ending.end(&tracks, incomplete && !tracks.is_empty());
        let known = superblock.and_then(|superblock| Ok(Known::new(superblock, &ending.recovery()?)));
        // Who hears of it may open it.
        drop(ending);
        let _ = done.send(known);
    };
    let failed =
        |why: &dyn ToString| Failure::new(FailureKind::Failed, format!("its stop was not stored: {}", why.to_string()));
    thread::Builder::new().name("metadata-end".to_owned()).spawn(end).map_err(|error| failed(&error))?;
    loop {
        match ended.recv_timeout(LOOK_AGAIN) {
            Ok(known) => return Ok(known?),
            Err(RecvTimeoutError::Timeout) => media.answers()?,
            Err(RecvTimeoutError::Disconnected) => return Err(failed(&"its thread has panicked")),
        }
    }
}

/// Waits until nobody has these things any more, at most for `wait`. Looking at one that hangs may take for ever.
pub(super) fn await_release(parts: [PathBuf; 3], wait: Duration) {
    let look = move || {
        for path in &parts {
            storage::wait_until_free(path, wait);
        }
    };
    let _ = Limit::new(wait).ask(look);
}

/// Forgets the metadata of a volume: a file of our own is removed, of any other place only the superblock.
pub(super) fn remove(config: &Config, name: &str, volume: &VolumeConfig, own: Vec<u32>) -> Result<(), Failure> {
    let path = config.metadata_path(name, volume);
    let device = match storage::open_metadata(&path, &options(volume, own), false, &[]) {
        Ok(device) => device,
        Err(OpenError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // What is not the volume's own is left alone.
    if let Ok(media) = Media::open(&path, Arc::new(device))
        && media.superblock().name == name
    {
        media.wipe()?;
    }
    if volume.metadata.is_none() {
        let removed = fs::remove_file(&path).and_then(|()| sync_directory(&path));
        removed.map_err(|error| io_failure("removing", &path, &error))?;
    }
    Ok(())
}

const RANDOM: &str = "/dev/urandom";

fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open(RANDOM)?.read_exact(&mut id)?;
    Ok(id)
}

fn io_failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => FailureKind::Permission,
        io::ErrorKind::NotFound => FailureKind::NotFound,
        _ => FailureKind::Io,
    };
    Failure::new(kind, format!("{}: {doing} it failed: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::STALL;
    use crate::metadata::media::REGION_BYTES;
    use crate::metadata::medium::Medium;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::time::Instant;

    /// A disk in memory that answers nothing while it hangs.
    #[derive(Debug)]
    struct Disk {
        content: Mutex<Vec<u8>>,
        hangs: AtomicBool,
    }

    impl Disk {
        fn at<T>(&self, offset: u64, length: usize, what: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
            while self.hangs.load(SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            Ok(what(&mut self.content.lock().expect("no panic")[start..start + length]))
        }
    }

    impl Medium for Disk {
        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.at(offset, buffer.len(), |content| buffer.copy_from_slice(content))
        }

        fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.at(offset, bytes.len(), |content| content.copy_from_slice(bytes))
        }

        fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.write(offset, bytes)
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stop_is_not_waited_for_where_metadata_hangs_and_is_stored_once_it_answers() {
        let geometry = Geometry::new(64 << 20, 65536).expect("valid");
        let bytes = usize::try_from(Layout::new(&geometry, REGION_BYTES).bytes()).expect("small");
        let disk = Arc::new(Disk { content: Mutex::new(vec![0; bytes]), hangs: AtomicBool::new(false) });
        let side = || Side { identity: String::new(), size: 64 << 20 };
        let superblock = Superblock::new([7; 16], "v", [side(), side(), side()], &geometry, 4 << 20);
        let media = Arc::new(Media::format(Path::new("/m"), disk.clone(), superblock).expect("made"));
        media.begin(&media.recovery().expect("read"), true).expect("begun");
        assert_eq!(media.stalled(), None);

        disk.hangs.store(true, SeqCst);
        let (done, ended) = mpsc::channel();
        let ending = media.clone();
        thread::spawn(move || drop(done.send(end(&ending, [5].into_iter().collect(), false))));
        let failure = ended.recv_timeout(6 * STALL).expect("nobody waits for ever").expect_err("it hangs");
        let expected = "\"/m\" has not answered for ";
        assert!(failure.kind == FailureKind::Io && failure.message.starts_with(expected), "{failure}");
        assert!(failure.message.contains(" s; see to its disk"), "{failure}");
        assert!(media.stalled().is_some_and(|silence| silence > STALL));

        disk.hangs.store(false, SeqCst);
        let began = Instant::now();
        while !media.superblock().clean {
            assert!(began.elapsed() < 6 * STALL, "it was stored after all");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!((media.recovery().expect("read").tracks.count(), media.stalled()), (1, None));
    }
}
