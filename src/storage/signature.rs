//! Whether a device holds something that others would recognise: a file system, RAID, LUKS, LVM, a partition table.
//!
//! The knowledge is util-linux's; `blkid` is called by absolute path, without our environment, without a shell. It
//! only reads. What it prints is made of its own words; even so nothing of it reaches a message unchecked.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where distributions keep it.
const PROGRAMS: [&str; 4] = ["/usr/sbin/blkid", "/sbin/blkid", "/usr/bin/blkid", "/bin/blkid"];

/// Status with which blkid says that there is nothing, and that there is more than one thing.
const NOTHING: i32 = 2;
const SEVERAL: i32 = 8;

/// What lies on an open file or device in a few words, `None` if nothing known, or why it cannot be told.
pub(super) fn find(file: &File) -> Result<Option<String>, String> {
    let program = PROGRAMS.iter().find(|path| Path::new(path).exists());
    let program = program.ok_or("there is no blkid; install util-linux")?;
    // Named by descriptor: the very thing that was opened, whatever its path means by now.
    let name = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let output = Command::new(program)
        .args(["--probe", "--output", "export", &name])
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.code() {
        Some(0) => Ok(describe(&output.stdout)),
        Some(NOTHING) if output.stderr.is_empty() => Ok(None),
        Some(SEVERAL) => Ok(Some("signatures of several kinds".to_owned())),
        _ => Err(format!("{program} failed with {}", output.status)),
    }
}

/// The kinds in a list of `NAME=value` lines. Of a partition the list tells its place in the table even if the
/// partition itself is empty; that is no kind.
fn describe(list: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(list);
    let value = |key: &str| -> Option<String> {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(found.chars().filter(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c)).take(32).collect())
    };
    let table = value("PTTYPE").map(|table| format!("{table} partition table"));
    match (value("TYPE"), table) {
        (Some(kind), Some(table)) => Some(format!("{kind}, {table}")),
        (kind, table) => kind.or(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kind_is_taken_from_the_list() {
        let kind = |list| describe(list).unwrap_or_default();
        assert_eq!(kind(b"DEVNAME=/x\nLABEL=evil\nTYPE=ext4\n"), "ext4");
        assert_eq!(kind(b"PTTYPE=gpt\n"), "gpt partition table");
        assert_eq!(kind(b"TYPE=a\x1b[31mb\nPTTYPE=dos\n"), "a31mb, dos partition table");
        assert_eq!(describe(b"DEVNAME=/x\nPART_ENTRY_TYPE=0x83\nPART_ENTRY_SCHEME=dos\n"), None);
        assert_eq!(describe(b"\xff\n"), None);
    }

    #[test]
    fn an_empty_file_system_is_found_and_zeroes_are_not() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("file");
        file.set_len(1 << 20).expect("size");
        if PROGRAMS.iter().all(|path| !Path::new(path).exists()) {
            assert!(find(&file).is_err());
            return;
        }
        assert_eq!(find(&file), Ok(None));
        // The least that makes a swap area: its magic at the end of the first page, version 1, a size.
        file.write_all_at(b"SWAPSPACE2", 4086).expect("write");
        file.write_all_at(&[1, 0, 0, 0, 255, 0, 0, 0], 1024).expect("write");
        assert_eq!(find(&file), Ok(Some("swap".to_owned())));
    }
}
