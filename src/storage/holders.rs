//! Who has a file or device, in words for the administrator. Best effort: it explains a refusal that the kernel has
//! made, and finds two uses that the kernel would allow (a loop device over a file, an active swap file). Reads only.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::error::quoted;
use super::mounts::{Mount, entries, mounts, unescape};
use super::topology::{self, Place, backing_file, kernel_name};

/// A use that makes writing to `place` wrong although opening it would work.
pub fn hidden_use(place: &Place) -> Option<String> {
    loop_over(place).or_else(|| swap_on(place))
}

/// Who holds a block device, its disk or one of its partitions, as an exclusive open has failed.
pub fn of_block_device(dev: u64) -> Option<String> {
    let directory = topology::directory(dev)?;
    let mut related = vec![dev];
    related.extend(topology::parent_disk(&directory));
    related.extend(topology::partitions(&directory));
    let all = all_mounts();
    related
        .iter()
        .find_map(|dev| mounted(*dev, &all).or_else(|| stacked(*dev)).or_else(|| swap_on(&Place::Block(*dev))))
}

/// Who holds the lock on an open file or device node.
pub fn of_lock(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    let inode = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let process: i32 = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // "7: FLOCK ADVISORY WRITE 1234 00:1c:5 0 EOF"; one that waits has "->" in the second place.
        match words[..] {
            [_, "FLOCK", _, _, process, at, ..] if at == inode => process.parse().ok(),
            _ => None,
        }
    })?;
    if u32::try_from(process).ok() == Some(std::process::id()) {
        // One whose requests hang counts as well, though it is down.
        return Some("another volume of this daemon, or one of its volumes that did not stop cleanly".to_owned());
    }
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => Some(format!("process {process} ({})", name.trim().escape_debug())),
        // The lock lives on in a child that inherited the descriptor, or in requests that are still under way.
        Err(_) => Some(format!("process {process}, which has ended but whose requests or children have not")),
    }
}

/// The mounts of the host (of process 1) where they may be read, else our own.
fn all_mounts() -> Vec<Mount> {
    mounts("1").or_else(|_| mounts("self")).unwrap_or_default()
}

fn mounted(dev: u64, all: &[Mount]) -> Option<String> {
    let found = all.iter().find(|mount| mount.block_devices().contains(&dev))?;
    Some(format!("/dev/{} is mounted on {}", kernel_name(dev)?, quoted(&found.point)))
}

/// Device mapper, RAID and other devices built on `dev`.
fn stacked(dev: u64) -> Option<String> {
    let holder = entries(&topology::directory(dev)?.join("holders")).into_iter().next()?;
    let name = holder.file_name()?.to_string_lossy().into_owned();
    let mapped = fs::read_to_string(holder.join("dm/name")).ok();
    let shown = mapped.map_or_else(|| format!("/dev/{name}"), |mapped| format!("/dev/mapper/{}", mapped.trim()));
    Some(format!("{shown} is built on /dev/{}", kernel_name(dev)?))
}

fn loop_over(place: &Place) -> Option<String> {
    let found = entries(Path::new("/sys/block")).into_iter().find(|directory| {
        let backing = backing_file(directory).and_then(|path| Place::at(&path).ok().flatten());
        backing.as_ref() == Some(place)
    })?;
    Some(format!("the loop device /dev/{} shows it", found.file_name()?.to_string_lossy()))
}

fn swap_on(place: &Place) -> Option<String> {
    let list = fs::read("/proc/swaps").ok()?;
    let paths = list.split(|byte| *byte == b'\n').skip(1).filter_map(|line| line.split(|byte| *byte == b' ').next());
    let mut paths = paths.filter(|path| path.first() == Some(&b'/')).map(swap_path);
    paths
        .find(|path| Place::at(path).ok().flatten().as_ref() == Some(place))
        .map(|path| format!("swap on {}", quoted(&path)))
}

fn swap_path(word: &[u8]) -> PathBuf {
    // Names are padded with blanks, and with a tab when long; the kernel escapes those that belong to the name.
    unescape(word.split(|byte| *byte == b'\t').next().unwrap_or(word))
}

/// The path of a device's node, if the kernel's name of it is there and is that device.
pub(super) fn node(dev: u64) -> Option<PathBuf> {
    let path = Path::new("/dev").join(kernel_name(dev)?);
    (Place::at(&path).ok().flatten() == Some(Place::Block(dev)) && path.as_os_str().as_bytes().len() < 4096)
        .then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named() {
        let path = tempfile::NamedTempFile::new().expect("file");
        let first = File::open(path.path()).expect("open");
        first.try_lock().expect("free");
        let second = File::open(path.path()).expect("open");
        assert!(second.try_lock().is_err());
        assert!(of_lock(&second).is_some_and(|by| by.starts_with("another volume of this daemon")));
    }

    #[test]
    fn a_plain_file_has_no_hidden_use() {
        let file = tempfile::tempfile().expect("file");
        assert_eq!(hidden_use(&Place::of(&file).expect("there").expect("a file")), None);
    }

    #[test]
    fn the_names_in_the_list_of_swaps_are_unescaped() {
        assert_eq!(swap_path(b"/a\\040b\tfile"), Path::new("/a b"));
    }
}
