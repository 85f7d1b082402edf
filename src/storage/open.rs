//! Opening a primary, a secondary or metadata: every check that stands between a typing error and a destroyed file
//! system.
//!
//! The order matters. The name is opened without touching the thing (`O_PATH`) and everything that can be told from
//! outside is; then that very thing, not its path again, is opened for I/O through `/proc/self/fd`, exclusively if it
//! is a block device, and locked; only what is held is then measured and probed. Nothing here writes to it.
//!
//! Symbolic links are followed to block devices (`/dev/disk/by-id`, `/dev/mapper`), never to files in the last part of
//! a path: a file is named by its own name. Locks are flock(2), on the description used for I/O, and for a partition
//! also on the node of its whole disk, as systemd asks (<https://systemd.io/BLOCK_DEVICE_LOCKING>), so that udev does
//! not probe a copy that is being written. Calls may take as long as `wait` and the device do: keep them off threads
//! that must not stop.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::error::OpenError;
use super::limits::{self, Direct, Extra, Limits, LimitsError};
use super::topology::{self, Place};
use super::{Device, Identity, Kind, ReadOnly, holders, signature};

/// udev and the last requests of a killed predecessor let go of a device within moments; this is how often one looks.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
const RELEASE_INTERVAL: Duration = Duration::from_millis(5);

/// What holds for both kinds of opening.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether to pass by the page cache.
    pub direct: Direct,
    /// Numbers of the ublk devices that this daemon serves.
    pub own_devices: Vec<u32>,
    /// How long to wait for someone who holds the device only for a moment.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { direct: Direct::Auto, own_devices: Vec::new(), wait: Duration::from_secs(2) }
    }
}

/// What holds for a secondary only.
#[derive(Debug, Clone)]
pub struct SecondaryOptions {
    /// As for the primary.
    pub common: Options,
    /// Look for data of others on it. Not wanted when it is known to hold our own copy.
    pub check_signature: bool,
    /// Data of others may be destroyed.
    pub force: bool,
}

impl Default for SecondaryOptions {
    fn default() -> Self {
        Self { common: Options::default(), check_signature: true, force: false }
    }
}

/// Opens the primary.
pub fn open_primary(path: &Path, options: &Options) -> Result<Device, OpenError> {
    open(path, options, None)
}

/// Opens the secondary of `primary`.
pub fn open_secondary(path: &Path, primary: &Device, options: &SecondaryOptions) -> Result<Device, OpenError> {
    let device = open(path, &options.common, Some(primary))?;
    let (block, primary_block) = (device.limits.logical_block, primary.limits.logical_block);
    // A file takes the primary's blocks whatever the alignment of direct I/O to it: it is the tracks that are aligned.
    if device.kind == Kind::Block && block > primary_block {
        return Err(OpenError::LargeBlocks { path: path.to_owned(), block, primary: primary_block });
    }
    if options.check_signature && !options.force {
        no_signature(path, &device.file)?;
    }
    Ok(device)
}

/// Opens what is to hold the metadata of a volume made of `others`. `check_signature` as for a secondary.
pub fn open_metadata(
    path: &Path,
    options: &Options,
    check_signature: bool,
    others: &[&Device],
) -> Result<Device, OpenError> {
    let place = find(path)?.place;
    if let Some(why) = others.iter().find_map(|other| topology::overlaps(&place, &other.place)) {
        return Err(OpenError::Shared { path: path.to_owned(), why });
    }
    let device = open(path, options, None)?;
    if check_signature {
        no_signature(path, &device.file)?;
    }
    Ok(device)
}

/// Opens a file or device only to look at it, beside whoever has it. Returned with it: who that is.
pub fn open_read_only(path: &Path) -> Result<(ReadOnly, Option<String>), OpenError> {
    let found = find(path)?;
    let name = format!("/proc/self/fd/{}", found.name.as_raw_fd());
    let file = File::open(name).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            OpenError::Denied { path: found.owned(), why: "permission denied; run as root".to_owned() }
        }
        _ => found.io("opening it")(error),
    })?;
    if found.kind == Kind::Block {
        // What a daemon wrote around the page cache is not in it; where this fails, it was not written around it.
        let _ = limits::set_direct(&file);
    }
    let by = match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(holders::of_lock(&file).unwrap_or_else(|| "another process".to_owned())),
        _ => None,
    };
    Ok((ReadOnly(file), by))
}

/// Waits until nobody has it exclusively or locked any more, at most for `wait`: what this process has let go of is
/// still held until the kernel has dismantled the rings that knew it. What cannot be looked at is not waited for.
pub fn wait_until_free(path: &Path, wait: Duration) {
    let Ok(found) = find(path) else { return };
    let name = format!("/proc/self/fd/{}", found.name.as_raw_fd());
    let exclusive = if found.kind == Kind::Block { libc::O_EXCL } else { 0 };
    let is_held = || match OpenOptions::new().read(true).custom_flags(exclusive).open(&name) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) => error.raw_os_error() == Some(libc::EBUSY),
    };
    let deadline = Instant::now() + wait;
    while is_held() && Instant::now() < deadline {
        thread::sleep(RELEASE_INTERVAL);
    }
}

fn no_signature(path: &Path, file: &File) -> Result<(), OpenError> {
    match signature::find(file) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => Err(OpenError::Signature { path: path.to_owned(), found }),
        Err(why) => Err(OpenError::Unchecked { path: path.to_owned(), why }),
    }
}

/// A thing found by its path and not yet opened for I/O.
struct Found<'a> {
    path: &'a Path,
    name: File,
    place: Place,
    kind: Kind,
    extra: Extra,
}

impl Found<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(io::Error) -> OpenError + use<> {
        let path = self.path.to_owned();
        move |source| OpenError::Io { path: path.clone(), doing, source }
    }

    fn owned(&self) -> PathBuf {
        self.path.to_owned()
    }
}

fn open(path: &Path, options: &Options, primary: Option<&Device>) -> Result<Device, OpenError> {
    let found = find(path)?;
    check_from_outside(&found, options, primary)?;
    let deadline = Instant::now() + options.wait;
    let mut file = open_for_io(&found, deadline)?;
    lock(&found, &file, deadline)?;
    let whole_disk = lock_whole_disk(&found, deadline)?;
    let size = file.seek(SeekFrom::End(0)).map_err(found.io("measuring it"))?;
    let needed = primary.map_or(0, |primary| primary.size);
    if size == 0 {
        return Err(OpenError::Empty { path: found.owned() });
    }
    if size < needed {
        return Err(OpenError::TooSmall { path: found.owned(), size, needed });
    }
    let limits = probe(&found, &file, options.direct, &[size, needed])?;
    if !size.is_multiple_of(u64::from(limits.logical_block)) {
        return Err(OpenError::OddSize { path: found.owned(), size, block: limits.logical_block });
    }
    let identity = identity(&found);
    let Found { kind, place, .. } = found;
    Ok(Device { path: path.to_owned(), kind, size, limits, identity, place, file, _whole_disk: whole_disk })
}

/// Opens the name and looks at what it names.
fn find(path: &Path) -> Result<Found<'_>, OpenError> {
    let owned = || path.to_owned();
    if !path.is_absolute() {
        return Err(OpenError::NotAbsolute { path: owned() });
    }
    let io = |source| OpenError::Io { path: owned(), doing: "looking at it", source };
    let name = topology::name(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::NotFound { path: owned() },
        Some(libc::ELOOP) => OpenError::BadPath { path: owned(), why: "too many symbolic links" },
        Some(libc::ENAMETOOLONG) => OpenError::BadPath { path: owned(), why: "a name in it is too long" },
        None => OpenError::BadPath { path: owned(), why: "it holds a zero byte" },
        Some(libc::EACCES | libc::EPERM) => denied(path, "permission denied on the way to it; run as root"),
        _ => io(error),
    })?;
    let kind = name.metadata().map_err(io)?.file_type();
    let place = Place::of(&name).map_err(io)?;
    let Some(place) = place else {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_char_device() => "a character device",
            () if kind.is_fifo() => "a pipe",
            () if kind.is_socket() => "a socket",
            () => "something else",
        };
        return Err(OpenError::WrongType { path: owned(), what });
    };
    let kind = if matches!(place, Place::Block(_)) { Kind::Block } else { Kind::File };
    if kind == Kind::File && fs::symlink_metadata(path).map_err(io)?.is_symlink() {
        return Err(OpenError::LinkToFile { path: owned() });
    }
    let extra = limits::extra(&name).map_err(io)?;
    Ok(Found { path, name, place, kind, extra })
}

/// All that can be refused before the thing is touched.
fn check_from_outside(found: &Found, options: &Options, primary: Option<&Device>) -> Result<(), OpenError> {
    if let Some(id) = topology::lies_on_ublk(&found.place, &options.own_devices) {
        return Err(OpenError::OwnDevice { path: found.owned(), id });
    }
    if let Some(why) = primary.and_then(|primary| topology::overlaps(&found.place, &primary.place)) {
        return Err(OpenError::Overlap { path: found.owned(), why });
    }
    if let Some(by) = holders::hidden_use(&found.place) {
        return Err(OpenError::InUse { path: found.owned(), by });
    }
    if found.extra.immutable {
        return Err(denied(found.path, "it is marked immutable or append-only; remove that with chattr -ia"));
    }
    if let Place::Block(dev) = found.place {
        let read_only = topology::directory(dev).and_then(|path| fs::read_to_string(path.join("ro")).ok());
        if read_only.is_some_and(|text| text.trim() == "1") {
            return Err(denied(found.path, "the device is read-only; blockdev --setrw makes it writable"));
        }
    }
    Ok(())
}

fn denied(path: &Path, why: &str) -> OpenError {
    OpenError::Denied { path: path.to_owned(), why: why.to_owned() }
}

/// Opens what was found for reading and writing; a block device exclusively, which the kernel grants to one holder
/// (mount, device mapper, RAID, swap, us) at a time.
fn open_for_io(found: &Found, deadline: Instant) -> Result<File, OpenError> {
    let exclusive = if found.kind == Kind::Block { libc::O_EXCL } else { 0 };
    let path = format!("/proc/self/fd/{}", found.name.as_raw_fd());
    loop {
        // The standard library adds O_CLOEXEC.
        let error = match OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(&path) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let holder = match (errno, &found.place) {
            (Errno::EBUSY, Place::Block(dev)) => holders::of_block_device(*dev),
            _ => None,
        };
        return Err(match errno {
            Errno::EBUSY if holder.is_none() && Instant::now() < deadline => {
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
            Errno::EBUSY => {
                let by = holder.unwrap_or_else(|| "another process has it exclusively (see fuser, lsblk)".to_owned());
                OpenError::InUse { path: found.owned(), by }
            }
            Errno::ETXTBSY => {
                OpenError::InUse { path: found.owned(), by: "it is swap or a running program".to_owned() }
            }
            Errno::EROFS => denied(found.path, "its file system is mounted read-only"),
            Errno::EACCES | Errno::EPERM => denied(found.path, "permission denied; run as root or correct its mode"),
            _ => found.io("opening it")(error),
        });
    }
}

/// Locks the description that I/O goes through. Nobody unlocks: its last close does, after the last request in flight.
fn lock(found: &Found, file: &File, deadline: Instant) -> Result<(), OpenError> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY_INTERVAL),
            Err(TryLockError::WouldBlock) => {
                let by = holders::of_lock(file).unwrap_or_else(|| "another process".to_owned());
                return Err(OpenError::Locked { path: found.owned(), by });
            }
            Err(TryLockError::Error(source)) => return Err(found.io("locking it")(source)),
        }
    }
}

/// Whole disks locked by this process for partitions of theirs: two volumes may be on partitions of one disk.
static WHOLE_DISKS: Mutex<BTreeMap<u64, Weak<File>>> = Mutex::new(BTreeMap::new());

/// Locks the whole disk that a partition is on. Not possible where its node is not in /dev (a container); the lock on
/// the partition itself holds all the same.
fn lock_whole_disk(found: &Found, deadline: Instant) -> Result<Option<Arc<File>>, OpenError> {
    let Place::Block(dev) = found.place else { return Ok(None) };
    let disk = topology::directory(dev).and_then(|directory| topology::parent_disk(&directory));
    let Some((disk, node)) = disk.and_then(|disk| Some((disk, holders::node(disk)?))) else { return Ok(None) };
    let mut held = WHOLE_DISKS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = held.get(&disk).and_then(Weak::upgrade) {
        return Ok(Some(file));
    }
    // Read-only: closing a disk that was open for writing makes udev look at it.
    let file = File::open(node).map_err(found.io("opening its whole disk"))?;
    lock(found, &file, deadline)?;
    let file = Arc::new(file);
    held.retain(|_, file| file.strong_count() > 0);
    held.insert(disk, Arc::downgrade(&file));
    Ok(Some(file))
}

fn probe(found: &Found, file: &File, direct: Direct, ends: &[u64]) -> Result<Limits, OpenError> {
    let limits = match found.place {
        Place::File { .. } => limits::of_file(file, found.path, direct, ends),
        Place::Block(dev) => match topology::directory(dev) {
            Some(directory) => limits::of_block_device(file, &directory, direct),
            None => Err(LimitsError::Unusable("/sys/dev/block does not know it; is /sys mounted?".to_owned())),
        },
    };
    limits.map_err(|error| match error {
        LimitsError::NoDirect(why) => OpenError::NoDirect { path: found.owned(), why },
        LimitsError::Unusable(why) => OpenError::Unusable { path: found.owned(), why },
        LimitsError::Io(source) => found.io("probing it")(source),
    })
}

fn identity(found: &Found) -> Identity {
    match found.place {
        Place::Block(dev) => Identity { stable: stable_name(dev, 0) },
        Place::File { ino, .. } => Identity { stable: file_name(ino, found.extra) },
    }
}

/// Inode and birth time: a copy, a restored or a newly made file under the same path is another one.
fn file_name(ino: u64, extra: Extra) -> String {
    match extra.birth {
        Some((seconds, nanoseconds)) => format!("file:{ino}@{seconds}.{nanoseconds:09}"),
        None => format!("file:{ino}"),
    }
}

/// What the device says of itself that does not depend on the order in which it was found.
fn stable_name(dev: u64, depth: u32) -> String {
    let Some(directory) = topology::directory(dev) else { return format!("number:{dev}") };
    if let Some(disk) = topology::parent_disk(&directory).filter(|_| depth < 4) {
        let start = text_of(&directory.join("start")).unwrap_or_default();
        return format!("{}+{start}", stable_name(disk, depth + 1));
    }
    for (kind, file) in [
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("uuid", "uuid"),
        ("serial", "device/serial"),
        ("serial", "serial"),
        ("dm-name", "dm/name"),
    ] {
        if let Some(text) = text_of(&directory.join(file)) {
            return format!("{kind}:{text}");
        }
    }
    if let Some(path) = topology::backing_file(&directory) {
        let name = topology::name(&path).ok();
        let known = name.and_then(|name| Some((name.metadata().ok()?.ino(), limits::extra(&name).ok()?)));
        if let Some((ino, extra)) = known {
            return format!("loop:{}", file_name(ino, extra));
        }
    }
    format!("name:{}", topology::kernel_name(dev).unwrap_or_default())
}

/// The one line that a file of sysfs holds, without what could disturb a message; `None` if there is nothing.
fn text_of(file: &Path) -> Option<String> {
    let text = fs::read(file).ok()?;
    let text: String = String::from_utf8_lossy(&text).trim().chars().filter(char::is_ascii_graphic).take(128).collect();
    (!text.is_empty()).then_some(text)
}
