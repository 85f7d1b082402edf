//! What lies on what: partitions on disks, device mapper and RAID devices on their members, loop devices on files,
//! files on file systems on block devices.
//!
//! Two places overlap when one is reached from the other on the way down. Having something in common further down is
//! no overlap: two partitions of a disk, two logical volumes, two files of a file system may be mirrored to one
//! another. This module reads sysfs and procfs and opens nothing but paths (`O_PATH`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::{major, minor};

use super::mounts::{device_number, entries, mounts};

/// How many places are looked at on the way down; beyond that the machine is not one that anyone has built.
const PLACES_MAX: usize = 512;

/// Where data is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A block device, by its number.
    Block(u64),
    /// A file: its numbers, and the block devices of its file system.
    File { dev: u64, ino: u64, on: Vec<u64> },
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Block(one), Self::Block(two)) => one == two,
            (Self::File { dev, ino, .. }, Self::File { dev: other_dev, ino: other_ino, .. }) => {
                (dev, ino) == (other_dev, other_ino)
            }
            _ => false,
        }
    }
}

impl Eq for Place {}

/// Opens the name of a thing without touching the thing: no driver is called, no FIFO waits.
pub(super) fn name(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

impl Place {
    /// The place that an open file (`O_PATH` will do) refers to; `None` if it is neither file nor block device.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let meta = file.metadata()?;
        if meta.file_type().is_block_device() {
            return Ok(Some(Self::Block(meta.rdev())));
        }
        if !meta.is_file() {
            return Ok(None);
        }
        Ok(Some(Self::File { dev: meta.dev(), ino: meta.ino(), on: file_system_devices(file, meta.dev()) }))
    }

    /// As [`Place::of`], by path.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        Self::of(&name(path)?)
    }

    /// What lies directly beneath.
    fn beneath(&self) -> Vec<Self> {
        let dev = match self {
            Self::File { on, .. } => return on.iter().copied().map(Self::Block).collect(),
            Self::Block(dev) => *dev,
        };
        let Some(directory) = directory(dev) else { return Vec::new() };
        let mut found: Vec<Self> = entries(&directory.join("slaves"))
            .iter()
            .filter_map(|slave| device_number(&slave.join("dev")))
            .map(Self::Block)
            .collect();
        found.extend(parent_disk(&directory).map(Self::Block));
        found.extend(backing_file(&directory).and_then(|path| Self::at(&path).ok().flatten()));
        found
    }

    /// Itself and everything that it lies on.
    fn all_beneath(&self) -> Vec<Self> {
        let mut all = vec![self.clone()];
        let mut next = 0;
        while next < all.len() && all.len() < PLACES_MAX {
            for place in all[next].beneath() {
                if !all.contains(&place) {
                    all.push(place);
                }
            }
            next += 1;
        }
        all
    }

    /// For messages.
    fn describe(&self) -> String {
        match self {
            Self::Block(dev) => kernel_name(*dev)
                .map_or_else(|| format!("the device {}:{}", major(*dev), minor(*dev)), |name| format!("/dev/{name}")),
            Self::File { ino, .. } => format!("the file with inode {ino}"),
        }
    }
}

/// The block devices of the file system that `file` is on. Asked of the mount, not of `st_dev` alone, which for btrfs
/// is a number of no device.
fn file_system_devices(file: &File, dev: u64) -> Vec<u64> {
    if major(dev) != 0 {
        return vec![dev];
    }
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default();
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    let all = mounts("self").unwrap_or_default();
    all.iter().find(|mount| Some(mount.id) == id).map(super::mounts::Mount::block_devices).unwrap_or_default()
}

/// Where sysfs describes a block device.
pub fn directory(dev: u64) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{}:{}", major(dev), minor(dev))).ok()
}

/// The kernel's name of a block device, the name of its node below /dev.
pub fn kernel_name(dev: u64) -> Option<String> {
    // sysfs writes ! for the / in names such as cciss/c0d0.
    Some(directory(dev)?.file_name()?.to_str()?.replace('!', "/"))
}

/// The whole disk of a partition, by the partition's directory.
pub(super) fn parent_disk(directory: &Path) -> Option<u64> {
    directory.join("partition").exists().then(|| device_number(&directory.parent()?.join("dev")))?
}

/// The partitions of a whole disk, by its directory.
pub fn partitions(directory: &Path) -> Vec<u64> {
    let parts = entries(directory).into_iter().filter(|entry| entry.join("partition").exists());
    parts.filter_map(|entry| device_number(&entry.join("dev"))).collect()
}

/// The file or device that a loop device shows, by the loop device's directory.
pub(super) fn backing_file(directory: &Path) -> Option<PathBuf> {
    let text = fs::read(directory.join("loop/backing_file")).ok()?;
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(text)))
}

/// Why data in `one` and `other` is, or may be, the same data; `None` if they are separate.
pub fn overlaps(one: &Place, other: &Place) -> Option<String> {
    if one == other {
        return Some("primary and secondary are the same".to_owned());
    }
    let (below_one, below_other) = (one.all_beneath(), other.all_beneath());
    if below_one.contains(other) {
        return Some(format!("{} lies on {}", one.describe(), other.describe()));
    }
    if below_other.contains(one) {
        return Some(format!("{} lies on {}", other.describe(), one.describe()));
    }
    // Two loop devices over one file: neither lies on the other, yet they show the same bytes.
    let loops = |all: &[Place]| -> Vec<(u64, Place)> {
        let files = all.iter().filter_map(|place| match place {
            Place::Block(dev) => Some((*dev, Place::at(&backing_file(&directory(*dev)?)?).ok()??)),
            Place::File { .. } => None,
        });
        files.collect()
    };
    let (one, other) = (loops(&below_one), loops(&below_other));
    let shared = one.iter().find(|(dev, file)| other.iter().any(|(twin, same)| same == file && twin != dev))?;
    Some(format!("both are loop devices over {}", shared.1.describe()))
}

/// The first of the ublk devices `ids` that `place` is or lies on. What lies on a device that this daemon serves must
/// not be used by this daemon: it would wait for itself.
pub fn lies_on_ublk(place: &Place, ids: &[u32]) -> Option<u32> {
    let below = place.all_beneath();
    let names: Vec<String> = below
        .iter()
        .filter_map(|place| match place {
            Place::Block(dev) => kernel_name(*dev),
            Place::File { .. } => None,
        })
        .collect();
    ids.iter().copied().find(|id| names.iter().any(|name| *name == format!("ublkb{id}")))
}

/// Whether a block device is served by any ublk server, or lies on one that is.
pub fn lies_on_any_ublk(dev: u64) -> bool {
    Place::Block(dev).all_beneath().iter().any(|place| match place {
        Place::Block(dev) => kernel_name(*dev).is_some_and(|name| name.starts_with("ublkb")),
        Place::File { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_overlaps_itself_by_any_name_and_no_other_file() {
        let directory = tempfile::tempdir().expect("directory");
        let (one, link, other) = (directory.path().join("a"), directory.path().join("b"), directory.path().join("c"));
        fs::write(&one, "x").expect("write");
        fs::write(&other, "x").expect("write");
        fs::hard_link(&one, &link).expect("link");
        let place = |path: &Path| Place::at(path).expect("there").expect("a file");
        assert!(overlaps(&place(&one), &place(&link)).is_some());
        assert_eq!(overlaps(&place(&one), &place(&other)), None);
    }

    #[test]
    fn a_file_overlaps_the_device_of_its_file_system() {
        let file = tempfile::tempfile().expect("file");
        let place = Place::of(&file).expect("there").expect("a file");
        if let Place::File { on, .. } = &place {
            for dev in on {
                let device = Place::Block(*dev);
                assert!(overlaps(&place, &device).is_some());
                assert!(overlaps(&device, &place).is_some());
            }
        }
        assert_eq!(lies_on_ublk(&place, &[0, 1]), None);
    }

    #[test]
    fn a_directory_is_no_place() {
        assert!(Place::at(Path::new("/")).expect("root").is_none());
        assert!(Place::at(Path::new("/dev/null")).expect("null").is_none());
    }
}
