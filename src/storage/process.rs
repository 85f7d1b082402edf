//! What a process must do to serve a block device that its own machine writes to: not wait for itself for memory, and
//! not hold file systems that lie on its own device.
//!
//! **Memory.** When memory is short the kernel makes whoever allocates write out dirty pages, perhaps to our device.
//! [`become_io_flusher`] on every thread that serves I/O and [`lock_memory`] once keep us out of that circle.
//!
//! **Mounts.** A mount namespace holds its mounts until its last process is gone. If that last process is the server
//! of the device beneath, its exit has to write the file system out to a device that no one serves any more, and
//! waits for ever in the kernel, `kill -9` or not. So the daemon takes a mount namespace of its own
//! ([`private_mounts`]) and never keeps a file system on a ublk device mounted in it ([`MountWatch`]). Propagation is
//! *slave*, not *private*: with private propagation a file system that the host has unmounted would stay mounted
//! here, and one on a disk that the host wants back would be pinned by us; as a slave we see every later mount and
//! unmount of the host, and nothing that is done here is seen there. A mount of the host appears here by that
//! propagation, the watch detaches it, and the host keeps its own.
//!
//! The watch detaches mounts of every ublk device, not only ours: of two daemons on one machine neither may pin what
//! the other serves. So a primary or secondary *file* on a file system on someone else's ublk device cannot be opened
//! once the daemon runs. What it must never do: detach anything else, or run in the host's mount namespace (it
//! refuses).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MlockAllFlags, mlockall};

use super::mounts::{Mount, mounts};
use super::topology;

/// Tells the kernel that the calling thread is needed for writing out memory, so that its own allocations never wait
/// for that. A property of the thread: every thread that serves I/O calls it first. Needs `CAP_SYS_RESOURCE`.
#[expect(unsafe_code, reason = "prctl has no safe wrapper for this")]
pub fn become_io_flusher() -> io::Result<()> {
    /// Of linux/prctl.h.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes numbers only and changes a flag of the calling thread.
    Errno::result(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) })?;
    Ok(())
}

/// Keeps every page that the process has or will have in memory once touched. Not populated at once: a thread's stack
/// of 8 MiB would cost 8 MiB. Only for a process with `CAP_IPC_LOCK`: without it a later allocation beyond the limit
/// would fail instead of being pageable, so then this refuses.
pub fn lock_memory() -> io::Result<()> {
    /// Bit of linux/capability.h.
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    if effective.is_none_or(|all| all & CAP_IPC_LOCK == 0) {
        return Err(Errno::EPERM.into());
    }
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    Ok(mlockall(flags | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT))?)
}

/// Moves the process to a mount namespace of its own that follows the host's. Only while there is one thread: a thread
/// that exists already would stay behind in the old namespace.
pub fn private_mounts() -> io::Result<()> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "{threads} threads run already; the mount namespace is taken before any"
        )));
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// Detaches mounts of ublk devices in our own namespace as they appear, until dropped.
#[derive(Debug)]
pub struct MountWatch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl MountWatch {
    /// Detaches what is there already, then starts the thread. Refused in the namespace of process 1, where detaching
    /// would be seen by everyone.
    pub fn start() -> io::Result<Self> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
        if namespace("self")? == namespace("1")? {
            return Err(io::Error::other("still in the host's mount namespace; take a private one first"));
        }
        let list = File::open("/proc/self/mountinfo")?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        detach_ublk_mounts();
        let thread = thread::Builder::new().name("mount-watch".to_owned()).spawn(move || watch(&list, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for MountWatch {
    /// Stops the thread without waiting for it: it may be in the middle of writing out a file system to a device that
    /// this very thread is about to stop serving.
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        drop(self.thread.take());
    }
}

/// Waits for the list of mounts to change, which poll reports as an exceptional condition.
fn watch(list: &File, stop: &EventFd) {
    loop {
        let mut both = [
            PollFd::new(list.as_fd(), PollFlags::POLLPRI | PollFlags::POLLERR),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut both, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if both[1].any() == Some(true) {
            return;
        }
        detach_ublk_mounts();
    }
}

/// Detaches every mount of a ublk device in our namespace, latest first, as a later one may cover an earlier one. One
/// pass over a fresh list for each: a mount that cannot be detached is left alone instead of being tried for ever.
fn detach_ublk_mounts() {
    let mut tried = Vec::new();
    while let Some(next) = last_ublk_mount(&mounts("self").unwrap_or_default(), &tried) {
        tried.push(next.id);
        // MNT_DETACH: whatever still uses it (our own working directory, at worst) does not keep it here.
        let _ = umount2(&next.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// The latest mount that lies on a ublk device, is not in `tried`, and is what its mount point shows (nothing else is
/// mounted over it, which would be detached in its place).
fn last_ublk_mount(all: &[Mount], tried: &[u64]) -> Option<Mount> {
    let on_ublk = |mount: &&Mount| mount.block_devices().into_iter().any(topology::lies_on_any_ublk);
    let visible = |mount: &Mount| {
        all.iter().rfind(|other| other.point == mount.point).is_some_and(|top| top.id == mount.id)
            && mount.point != Path::new("/")
    };
    all.iter().rev().filter(|mount| !tried.contains(&mount.id) && visible(mount)).find(on_ublk).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_thread_forbids_a_new_mount_namespace() {
        // The test runner itself has several threads.
        thread::scope(|scope| {
            scope.spawn(|| assert!(private_mounts().is_err()));
        });
    }

    #[test]
    fn mounts_of_other_devices_are_left_alone() {
        let all = mounts("self").expect("mountinfo");
        assert_eq!(last_ublk_mount(&all, &[]).filter(|mount| !mount.source.starts_with("/dev/ublkb")), None);
    }

    #[test]
    fn the_flag_of_an_io_flusher_is_set_or_refused() {
        thread::spawn(|| match become_io_flusher() {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        })
        .join()
        .expect("the thread");
    }
}
