//! Who has a block device open, so that nobody's device is taken from under him unasked. The kernel offers no safe stop
//! before 7.0, so this looks: at mounts, at devices stacked on it, and at the open files of every process.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Most users that are named.
const NAMED_MAX: usize = 5;

/// Those who use the device, in words; none if it is free or not there.
pub fn of(device: &str) -> Vec<String> {
    let Ok(found) = fs::metadata(device) else { return Vec::new() };
    let mut users = mounts(found.rdev());
    users.extend(holders(device));
    users.extend(processes(found.rdev()));
    users.truncate(NAMED_MAX);
    users
}

fn mounts(device: u64) -> Vec<String> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // Process 1's view: the daemon's own leaves file systems on its devices out.
    let table = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    let mounted = |line: &str| {
        let mut words = line.split(' ');
        (words.nth(2)? == number).then(|| words.nth(1).map(|point| format!("mounted on {point}"))).flatten()
    };
    table.lines().filter_map(mounted).collect()
}

fn holders(device: &str) -> Vec<String> {
    let name = Path::new(device).file_name().unwrap_or_default();
    let holders = fs::read_dir(Path::new("/sys/block").join(name).join("holders"));
    let names = holders.into_iter().flatten().flatten();
    names.map(|holder| format!("used by /dev/{}", holder.file_name().display())).collect()
}

fn processes(device: u64) -> Vec<String> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name != own));
    let has_open = |process: &fs::DirEntry| {
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut opened = files.filter_map(|file| fs::metadata(file.path()).ok());
        opened.any(|file| file.file_type().is_block_device() && file.rdev() == device)
    };
    others
        .filter(|process| process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter(has_open)
        .map(|process| {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("open in process {} ({})", process.file_name().display(), command.trim())
        })
        .collect()
}
