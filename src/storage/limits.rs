//! How a file or device must be read and written: blocks, alignment, direct I/O, discard, zeroing.
//!
//! Probing never changes data and never allocates space in the file itself. What cannot be told for certain is
//! answered with the safe half: larger alignment, no discard, zeroes written out.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::libc;
use nix::sys::statfs::fstatfs;

/// Smallest logical block there is.
pub const BLOCK_MIN: u32 = 512;
/// Largest logical block that ublk takes (a page), and the smallest track.
pub const BLOCK_MAX: u32 = 4096;
/// Largest preferred request of a file system that is believed.
const FILE_REQUEST_MAX: u32 = 1 << 20;

/// Whether the page cache is passed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direct {
    /// Direct where it is possible, else buffered, with the reason in [`Limits::buffered_because`].
    #[default]
    Auto,
    /// Direct, or refuse.
    On,
    /// Buffered.
    Off,
}

/// Modes of fallocate(2) that turn a range into zeroes; `None`: write zeroes. Either may still fail with `EOPNOTSUPP`
/// at run time (a file system remounted, a device reconfigured); then zeroes are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Zeroing {
    /// May give the space back; for discards, for copying zeroes, for write-zeroes without `NOUNMAP`.
    pub unmap: Option<i32>,
    /// Keeps the space allocated; for write-zeroes with `NOUNMAP`.
    pub keep: Option<i32>,
}

/// Punches a hole.
pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Zeroes a range and keeps it allocated; on a block device the kernel writes zeroes itself if it must.
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether an error of fallocate(2) says that the mode is not supported, as opposed to a failure of the device.
pub fn means_unsupported(errno: i32) -> bool {
    [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL].contains(&errno)
}

/// How a device must be read and written. All sizes in bytes, all blocks powers of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Unit of offsets and lengths; 512 to 4096.
    pub logical_block: u32,
    /// What the device writes without reading first; at least `logical_block`.
    pub physical_block: u32,
    /// Preferred smallest request; at least `logical_block`.
    pub io_min: u32,
    /// Preferred request, 0 if there is none.
    pub io_opt: u32,
    /// Whether the page cache is passed by.
    pub direct: bool,
    /// Why not, when it was not asked for.
    pub buffered_because: Option<String>,
    /// Granularity of discard, `None` if discarding does not work or does not read back as zeroes for certain.
    pub discard: Option<u32>,
    /// How to make ranges zero.
    pub zeroing: Zeroing,
}

/// Why there are no [`Limits`].
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    #[error("{0}")]
    NoDirect(String),
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What statx(2) tells beyond `Metadata`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extra {
    /// Birth time, seconds and nanoseconds.
    pub(super) birth: Option<(i64, u32)>,
    /// `chattr +i` or `+a`.
    pub(super) immutable: bool,
    /// Alignment of memory and of offsets for direct I/O; (0, 0): not possible; `None`: the kernel does not say.
    direct: Option<(u32, u32)>,
}

#[expect(unsafe_code, reason = "statx has no safe wrapper")]
pub(super) fn extra(file: &File) -> io::Result<Extra> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_DIOALIGN;
    // SAFETY: the name is an empty C string, the answer is a statx structure that the kernel fills.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, answer.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all of its fields are integers, so the zeroes it began with are valid wherever the kernel wrote nothing.
    let answer = unsafe { answer.assume_init() };
    let has = |bit| answer.stx_mask & bit != 0;
    let flags = u64::from((libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND).cast_unsigned());
    Ok(Extra {
        birth: has(libc::STATX_BTIME).then_some((answer.stx_btime.tv_sec, answer.stx_btime.tv_nsec)),
        immutable: answer.stx_attributes & flags != 0,
        direct: has(libc::STATX_DIOALIGN).then_some((answer.stx_dio_mem_align, answer.stx_dio_offset_align)),
    })
}

/// Limits of a regular file, and switches `file` to direct I/O if that is wanted and possible. `ends` are the offsets
/// at which a last request may end.
pub(super) fn of_file(file: &File, path: &Path, want: Direct, ends: &[u64]) -> Result<Limits, LimitsError> {
    let meta = file.metadata()?;
    let preferred = u32::try_from(meta.blksize()).unwrap_or(BLOCK_MAX).clamp(BLOCK_MIN, FILE_REQUEST_MAX);
    let preferred = if preferred.is_power_of_two() { preferred } else { BLOCK_MAX };
    let alignment = match want {
        Direct::Off => Err(None),
        _ => direct_alignment(file, ends).map_err(Some),
    };
    let (direct, buffered_because, logical_block) = match alignment {
        Ok(alignment) => (true, None, alignment),
        Err(Some(why)) if want == Direct::On => return Err(LimitsError::NoDirect(why)),
        Err(why) => (false, why, BLOCK_MIN),
    };
    let physical_block = preferred.clamp(logical_block, BLOCK_MAX);
    let punch = can_punch(file, meta.size(), preferred);
    let keep = can_zero_range(path, meta.dev());
    Ok(Limits {
        logical_block,
        physical_block,
        io_min: physical_block,
        io_opt: if preferred > physical_block { preferred } else { 0 },
        direct,
        buffered_because,
        discard: punch.then_some(physical_block),
        zeroing: Zeroing {
            unmap: if punch { Some(PUNCH_HOLE) } else { keep.then_some(ZERO_RANGE) },
            keep: keep.then_some(ZERO_RANGE),
        },
    })
}

/// Switches to direct I/O and returns the alignment of offsets, or says why not. Memory is aligned to `BLOCK_MAX`.
fn direct_alignment(file: &File, ends: &[u64]) -> Result<u32, String> {
    let in_memory = [libc::TMPFS_MAGIC, RAMFS_MAGIC];
    if fstatfs(file).is_ok_and(|stat| in_memory.contains(&stat.filesystem_type().0)) {
        return Err("the file system keeps its files in memory".to_owned());
    }
    let (memory, offset) = match extra(file).ok().and_then(|extra| extra.direct) {
        Some((0, _) | (_, 0)) => return Err("the file system cannot do direct I/O on this file".to_owned()),
        Some((memory, offset)) => (memory, offset.max(BLOCK_MIN)),
        None => (BLOCK_MAX, BLOCK_MAX),
    };
    if !offset.is_power_of_two() || !memory.is_power_of_two() || offset > BLOCK_MAX || memory > BLOCK_MAX {
        return Err(format!("direct I/O on this file needs alignment to {} bytes", offset.max(memory)));
    }
    if let Some(end) = ends.iter().find(|end| !end.is_multiple_of(u64::from(offset))) {
        return Err(format!("the size {end} is not a multiple of {offset} bytes, the unit of direct I/O"));
    }
    set_direct(file).map_err(|errno| format!("the file system refuses direct I/O ({})", errno.desc()))?;
    Ok(offset)
}

/// Of linux/magic.h; libc does not have it.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// On the open file description itself, so that lock and I/O stay on one.
pub(super) fn set_direct(file: &File) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).map(drop)
}

/// Whether holes can be punched: asked with one behind the end of the file, where there is nothing to lose.
fn can_punch(file: &File, size: u64, block: u32) -> bool {
    let start = size.checked_next_multiple_of(u64::from(block)).and_then(|start| i64::try_from(start).ok());
    start.is_some_and(|start| {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, start, i64::from(block)).is_ok()
    })
}

/// Whether ranges can be zeroed in place: asked with a nameless file beside it, because behind the end of the file
/// itself this would allocate. No space for that file still means that the file system knows the mode.
fn can_zero_range(path: &Path, dev: u64) -> bool {
    let Some(directory) = path.parent() else { return false };
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(directory);
    let Ok(file) = open else { return false };
    if !file.metadata().is_ok_and(|meta| meta.dev() == dev) {
        return false;
    }
    let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    matches!(fallocate(&file, mode, 0, i64::from(BLOCK_MAX)), Ok(()) | Err(Errno::ENOSPC | Errno::EDQUOT))
}

/// Limits of a block device, from the directory of sysfs that describes it.
pub(super) fn of_block_device(file: &File, directory: &Path, want: Direct) -> Result<Limits, LimitsError> {
    let own = directory.join("queue");
    let queue = if own.exists() { own } else { directory.join("../queue") };
    let value = |name: &str| -> Option<u64> { fs::read_to_string(queue.join(name)).ok()?.trim().parse().ok() };
    let small = |name: &str| value(name).and_then(|value| u32::try_from(value).ok());
    let logical_block = small("logical_block_size")
        .ok_or_else(|| LimitsError::Unusable(format!("{} does not describe it; is /sys mounted?", queue.display())))?;
    if !logical_block.is_power_of_two() || !(BLOCK_MIN..=BLOCK_MAX).contains(&logical_block) {
        return Err(LimitsError::Unusable(format!(
            "logical blocks of {logical_block} bytes, where 512 to 4096 can be served"
        )));
    }
    let block = |name| small(name).filter(|size| size.is_power_of_two()).unwrap_or(logical_block).max(logical_block);
    let direct = want != Direct::Off;
    if direct {
        set_direct(file).map_err(|errno| LimitsError::NoDirect(errno.desc().to_owned()))?;
    }
    let zeroes = value("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0);
    // Only a device that zeroes by command and has discard too: on a disk that can zero but not unmap, every fstrim
    // would write the whole free space. A discard is then carried out as zeroing, so it reads back as zeroes.
    let discard = zeroes && value("discard_max_bytes").is_some_and(|bytes| bytes > 0);
    Ok(Limits {
        logical_block,
        physical_block: block("physical_block_size"),
        io_min: block("minimum_io_size"),
        io_opt: small("optimal_io_size").unwrap_or(0),
        direct,
        buffered_because: None,
        discard: discard.then(|| block("discard_granularity")),
        zeroing: Zeroing { unmap: Some(if zeroes { PUNCH_HOLE } else { ZERO_RANGE }), keep: Some(ZERO_RANGE) },
    })
}
