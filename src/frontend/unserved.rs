//! Queues that nobody serves, of a device that waits to be taken back.
//!
//! Linux 6.12 keeps for each queue which thread serves it, and when a device is taken back it lets go of every one of
//! them: also of the one that a queue does not have, because a daemon was killed in the middle of taking the device
//! back, when some queues had been announced and others had not. That crashes the kernel (H22). So each queue that has
//! no thread is announced first, by a thread that ends at once.

use io_uring::{IoUring, opcode, squeue, types};
use libublk::sys;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// Where a request's data would lie, which must be somewhere: none comes as long as the device waits.
const NOWHERE: u64 = 4096;
/// How often it is looked whether the kernel has ended what the killed daemon left.
const LOOK: Duration = Duration::from_millis(10);
/// The kernel ends whatever is under way on the device a moment after a server's end, on a thread of its own: it must
/// not find the next server's first requests.
const SETTLE: Duration = Duration::from_millis(200);

/// Announces each queue of device `id` that nobody ever served, once nobody has the device's file any more. Does
/// nothing to the other queues. Blocks up to `limit`.
pub(super) fn announce(id: i32, queues: u16, depth: u16, limit: Duration) -> io::Result<()> {
    let file = open(id, limit)?;
    // The kernel takes the thread for the server. When the device is taken back that one must have ended.
    let body = || (0..queues).try_fold(0, |taken, queue| Ok(taken + announce_queue(&file, queue, depth)?));
    let announced = thread::scope(|scope| {
        let thread = thread::Builder::new().name("announce".to_owned()).spawn_scoped(scope, body)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))
    });
    drop(file);
    if announced? > 0 {
        open(id, limit)?;
        thread::sleep(SETTLE);
    }
    Ok(())
}

/// Only one may have it open.
fn open(id: i32, limit: Duration) -> io::Result<File> {
    let began = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).open(format!("/dev/ublkc{id}")) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && began.elapsed() < limit => thread::sleep(LOOK),
            result => return result,
        }
    }
}

/// All of it in one step, which a signal does not interrupt. Of a queue that was announced before every request fails;
/// returns how many did not.
#[expect(unsafe_code, reason = "submitting requests to a ring")]
fn announce_queue(file: &File, queue: u16, depth: u16) -> io::Result<usize> {
    let mut ring = IoUring::new(depth.into())?;
    for tag in 0..depth {
        // SAFETY: the request refers to no memory; the file is open until it has been submitted.
        unsafe { ring.submission().push(&fetch(file, queue, tag)) }.map_err(io::Error::other)?;
    }
    let submitted = ring.submit()?;
    Ok(submitted.saturating_sub(ring.completion().len()))
}

/// The request by which a server takes the first request of the host for this tag.
#[expect(clippy::host_endian_bytes, reason = "what the kernel reads")]
fn fetch(file: &File, queue: u16, tag: u16) -> squeue::Entry {
    let mut command = [0; 16];
    command[..2].copy_from_slice(&queue.to_ne_bytes());
    command[2..4].copy_from_slice(&tag.to_ne_bytes());
    command[8..].copy_from_slice(&NOWHERE.to_ne_bytes());
    opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), sys::UBLK_U_IO_FETCH_REQ).cmd(command).build()
}
