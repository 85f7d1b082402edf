//! Who has a block device open, so that nobody's device is taken from under him unasked. The kernel offers no safe stop
//! before 7.0, so this looks: at mounts, at devices stacked on it, and at the open files of every process. What cannot
//! be seen from here, such as a mount in another namespace or a swap, the kernel is asked about; it does not say whose
//! it is.

use super::watchdog::Limit;
use crate::storage::{mounts, topology};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Most users that are named.
const NAMED_MAX: usize = 5;
/// udev looks at a device whenever somebody has written to it, for an instant, and loses nothing if that fails.
const LOOKING: [&str; 2] = ["(udev-worker)", "systemd-udevd"];
/// How long looking may take: a file system that somebody else has mounted, or the device itself, may not answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Devices that the kernel is being asked about: one asks at a time, or they would find each other.
static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
const ASKED_AGAIN: Duration = Duration::from_millis(10);

/// Those who use the device or one of its partitions, in words; none if it is free or not there. Blocks up to a limit.
pub fn of(device: &str) -> Vec<String> {
    let path = device.to_owned();
    let users = Limit::new(TIMEOUT).ask(move || look(&path));
    users.unwrap_or_else(|| vec![format!("whether somebody has it open was not found out in {} s", TIMEOUT.as_secs())])
}

fn look(device: &str) -> Vec<String> {
    let Ok(found) = fs::metadata(device) else { return Vec::new() };
    let mut numbers = vec![found.rdev()];
    numbers.extend(topology::directory(found.rdev()).map(|whole| topology::partitions(&whole)).unwrap_or_default());
    let mut users = mounted(&numbers);
    users.extend(holders(&numbers));
    users.extend(processes(&numbers));
    if users.is_empty() {
        users.extend(claimed(device));
    }
    users.truncate(NAMED_MAX);
    users
}

fn mounted(numbers: &[u64]) -> Vec<String> {
    // Process 1's view: the daemon's own leaves file systems on its devices out.
    let all = mounts::mounts("1").unwrap_or_default();
    let on_it = all.iter().filter(|mount| mount.block_devices().iter().any(|number| numbers.contains(number)));
    on_it.map(|mount| format!("mounted on {}", mount.point.to_string_lossy().escape_debug())).collect()
}

fn holders(numbers: &[u64]) -> Vec<String> {
    let directories = numbers.iter().filter_map(|number| topology::directory(*number));
    let holders = directories.flat_map(|directory| fs::read_dir(directory.join("holders")));
    let names = holders.flatten().flatten();
    names.map(|holder| format!("used by /dev/{}", holder.file_name().display())).collect()
}

/// Whether the kernel refuses the device to one who wants it alone.
fn claimed(device: &str) -> Option<String> {
    let asked = || ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    while !asked().insert(device.to_owned()) {
        thread::sleep(ASKED_AGAIN);
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device).map(drop);
    asked().remove(device);
    let error = opened.err().filter(|error| error.kind() == io::ErrorKind::ResourceBusy);
    error.map(|_| "claimed by what cannot be seen from here, as a mount in another namespace, or swap".to_owned())
}

fn processes(numbers: &[u64]) -> Vec<String> {
    let has_open = |process: u32| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut opened = files.filter_map(|file| fs::metadata(file.path()).ok());
        opened.any(|file| file.file_type().is_block_device() && numbers.contains(&file.rdev()))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = all.filter(|process| *process != std::process::id() && has_open(*process));
    others
        .map(|process| (process, fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default()))
        .filter(|(_, command)| !LOOKING.contains(&command.trim()))
        .map(|(process, command)| format!("open in process {process} ({})", command.trim()))
        .collect()
}
