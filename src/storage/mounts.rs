//! The kernel's list of mounts, `/proc/PID/mountinfo`, as values. Reads only.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::stat::makedev;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount, unique while it exists.
    pub id: u64,
    /// Device number of the file system; of no block device for those on several devices or on none (btrfs, tmpfs).
    pub dev: u64,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What the mount command named as the source; a path only by convention.
    pub source: PathBuf,
}

impl Mount {
    /// The block devices that the file system lies on, as far as they can be told; none for a network file system.
    pub fn block_devices(&self) -> Vec<u64> {
        if nix::sys::stat::major(self.dev) != 0 {
            return vec![self.dev];
        }
        let source = fs::metadata(&self.source).ok().filter(|meta| meta.file_type().is_block_device());
        let Some(source) = source.map(|meta| meta.rdev()) else { return Vec::new() };
        let all = if self.kind == "btrfs" { btrfs_siblings(source) } else { Vec::new() };
        if all.is_empty() { vec![source] } else { all }
    }
}

/// All devices of the btrfs that `member` belongs to.
fn btrfs_siblings(member: u64) -> Vec<u64> {
    for file_system in entries(Path::new("/sys/fs/btrfs")) {
        let devices: Vec<u64> = entries(&file_system.join("devices"))
            .iter()
            .filter_map(|entry| device_number(&entry.join("dev")))
            .collect();
        if devices.contains(&member) {
            return devices;
        }
    }
    Vec::new()
}

/// The paths in a directory; none if it cannot be read.
pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|list| list.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// A device number from a file of sysfs that holds `MAJOR:MINOR`.
pub(super) fn device_number(file: &Path) -> Option<u64> {
    parse_device_number(fs::read_to_string(file).ok()?.trim())
}

fn parse_device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The mounts that `process` (`self` or a number) sees, oldest first.
pub fn mounts(process: &str) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read(format!("/proc/{process}/mountinfo"))?))
}

/// The mounts in the text of a mountinfo file. A line that makes no sense is left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point options [tag...] - type source superoptions`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let dev = parse_device_number(str::from_utf8(words.nth(1)?).ok()?)?;
    let point = unescape(words.nth(1)?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let source = unescape(words.next()?);
    Some(Mount { id, dev, point, kind, source })
}

/// Undoes the kernel's octal escapes of blanks, line feeds and backslashes.
pub(super) fn unescape(word: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        let octal = digits.map(|digits| digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0')));
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(value) if *first == b'\\' => {
                plain.push(value);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_tags_and_escapes_is_read() {
        let text = b"36 35 259:3 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/ublkb0 rw,errors=continue\n\
            37 35 0:44 /sub /back\\134slash rw - btrfs /dev/sd\\011x rw\n\
            nonsense\n\
            38 35 x:1 / /y rw - ext4 /dev/z rw\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].id, 36);
        assert_eq!(found[0].dev, makedev(259, 3));
        assert_eq!(found[0].point, Path::new("/mnt/a b"));
        assert_eq!((found[0].kind.as_str(), found[0].source.as_path()), ("ext4", Path::new("/dev/ublkb0")));
        assert_eq!(found[1].point, Path::new("/back\\slash"));
        assert_eq!(found[1].source, Path::new("/dev/sd\tx"));
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        assert_eq!(unescape(b"a\\09\\777\\"), Path::new("a\\09\\777\\"));
    }

    #[test]
    fn the_mounts_of_this_process_are_read() {
        let all = mounts("self").expect("mountinfo");
        assert!(all.iter().any(|mount| mount.point == Path::new("/")));
    }
}
