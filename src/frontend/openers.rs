//! Who has a block device open, so that nobody's device is taken from under him unasked. The kernel offers no safe stop
//! before 7.0, so this looks: at mounts, at devices stacked on it, and at the open files of every process. What cannot
//! be seen from here, such as a mount in another namespace or a swap, the kernel is asked about; it does not say whose
//! it is.

use super::watchdog::Limit;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most users that are named.
const NAMED_MAX: usize = 5;
/// udev looks at a device whenever somebody has written to it, for an instant, and loses nothing if that fails.
const LOOKING: [&str; 2] = ["(udev-worker)", "systemd-udevd"];
/// How long the kernel may take to open a device.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Those who use the device or one of its partitions, in words; none if it is free or not there.
pub fn of(device: &str) -> Vec<String> {
    let Ok(found) = fs::metadata(device) else { return Vec::new() };
    let directories = directories(device);
    let partitions = directories.iter().skip(1).filter_map(|directory| fs::read_to_string(directory.join("dev")).ok());
    let partitions = partitions.map(|number| number.trim().to_owned());
    let numbers: Vec<_> = std::iter::once(number(found.rdev())).chain(partitions).collect();
    let mut users = mounts(device, &numbers);
    users.extend(holders(&directories));
    users.extend(processes(&numbers));
    if users.is_empty() {
        users.extend(claimed(device));
    }
    users.truncate(NAMED_MAX);
    users
}

/// As the kernel writes it.
fn number(device: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

/// Of the device and then of its partitions, in sysfs.
fn directories(device: &str) -> Vec<PathBuf> {
    let whole = Path::new("/sys/block").join(Path::new(device).file_name().unwrap_or_default());
    let inside = fs::read_dir(&whole).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions: Vec<_> = inside.filter(|path| path.join("partition").exists()).collect();
    std::iter::once(whole).chain(partitions).collect()
}

fn mounts(device: &str, numbers: &[String]) -> Vec<String> {
    // Process 1's view: the daemon's own leaves file systems on its devices out.
    let table = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    let mounted = |line: &str| {
        let mut words = line.split(' ');
        let (number, point) = (words.nth(2)?, words.nth(1)?);
        // Some file systems, btrfs for one, have a number of their own.
        let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
        (source == device || numbers.iter().any(|one| one == number)).then(|| format!("mounted on {point}"))
    };
    table.lines().filter_map(mounted).collect()
}

fn holders(directories: &[PathBuf]) -> Vec<String> {
    let holders = directories.iter().flat_map(|directory| fs::read_dir(directory.join("holders")));
    let names = holders.flatten().flatten();
    names.map(|holder| format!("used by /dev/{}", holder.file_name().display())).collect()
}

/// Whether the kernel refuses the device to one who wants it alone.
fn claimed(device: &str) -> Option<String> {
    let path = PathBuf::from(device);
    let open = move || OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path).map(drop);
    match Limit::new(OPEN_TIMEOUT).ask(open) {
        Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
            Some("claimed by what cannot be seen from here, as a mount in another namespace, or swap".to_owned())
        }
        Some(_) => None,
        None => Some("the kernel does not say whether somebody has it open".to_owned()),
    }
}

fn processes(numbers: &[String]) -> Vec<String> {
    let has_open = |process: u32| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut opened = files.filter_map(|file| fs::metadata(file.path()).ok());
        opened.any(|file| file.file_type().is_block_device() && numbers.contains(&number(file.rdev())))
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
