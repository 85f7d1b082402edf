//! The rules of opening a primary and a secondary, over real files, and over loop devices where this machine has them
//! (root, `losetup`). What needs device mapper, RAID, mounts or ublk is in `tests/vm/open.sh`, which calls [`probe`].

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farpoint::storage::{
    Device, Direct, ErrorKind, Kind, OpenError, Options, SecondaryOptions, open_primary, open_secondary,
    topology::overlaps,
};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn options() -> Options {
    // Long enough for udev, where there is one, to look at a new loop device and let go.
    Options { wait: Duration::from_millis(500), ..Options::default() }
}

fn secondary_options() -> SecondaryOptions {
    SecondaryOptions { common: options(), ..SecondaryOptions::default() }
}

fn file(directory: &TempDir, name: &str, size: u64) -> PathBuf {
    let path = directory.path().join(name);
    File::create(&path).and_then(|file| file.set_len(size)).expect("a file");
    path
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn primary(path: &Path) -> Result<Device, OpenError> {
    open_primary(path, &options())
}

/// The refusal's kind and text, which must be one line.
fn refusal(result: Result<Device, OpenError>) -> (ErrorKind, String) {
    let error = result.expect_err("a refusal");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(';'), "one line that says what to do: {text}");
    (error.kind(), text)
}

/// What `tests/vm/open.sh` calls for each case: opens `PRIMARY` and then, if given, `SECONDARY`, and prints what came
/// of it in one line.
#[test]
#[ignore = "a tool for tests/vm/open.sh"]
fn probe() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let own_devices = std::env::var("OWN").ok().and_then(|id| id.parse().ok()).into_iter().collect();
    let options = Options { own_devices, ..options() };
    let force = path("FORCE").is_some();
    let first = open_primary(&path("PRIMARY").expect("PRIMARY is set"), &options);
    let result = match (first, path("SECONDARY")) {
        (Ok(primary), Some(secondary)) => {
            let options = SecondaryOptions { common: options, force, ..SecondaryOptions::default() };
            open_secondary(&secondary, &primary, &options)
        }
        (first, _) => first,
    };
    match &result {
        Ok(device) => println!("RESULT Ok {:?} {:?}", device.identity().stable, device.limits()),
        Err(error) => println!("RESULT {:?} {error}", error.kind()),
    }
    if let Some(seconds) = std::env::var("STAY").ok().and_then(|text| text.parse().ok()) {
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

#[test]
fn a_file_is_opened_and_described() {
    let directory = directory();
    let path = file(&directory, "primary", 8 * MIB);
    let device = primary(&path).expect("opened");
    assert_eq!((device.kind(), device.size(), device.path()), (Kind::File, 8 * MIB, path.as_path()));
    let limits = device.limits();
    assert!(limits.logical_block.is_power_of_two() && (512..=4096).contains(&limits.logical_block));
    assert!(limits.physical_block >= limits.logical_block && limits.io_min >= limits.logical_block);
    assert!(limits.direct || limits.buffered_because.is_some(), "buffered I/O has a reason");
    device.flush().expect("flushed");
}

#[test]
fn opening_changes_nothing() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let writer = File::options().write(true).open(&path).expect("open");
    writer.write_all_at(&[7; 4096], MIB - 4096).expect("write");
    writer.sync_all().expect("sync");
    let before = (fs::metadata(&path).expect("there"), fs::read(&path).expect("read"));
    drop(primary(&path).expect("opened"));
    let after = (fs::metadata(&path).expect("there"), fs::read(&path).expect("read"));
    assert_eq!((before.0.len(), before.0.blocks()), (after.0.len(), after.0.blocks()));
    assert!(before.1 == after.1, "the content is the same");
    assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1, "probing leaves no file behind");
}

#[test]
fn what_is_no_file_and_no_block_device_is_refused() {
    let directory = directory();
    let fifo = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    for (path, what) in [
        (directory.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&fifo, "a pipe"),
        (&socket, "a socket"),
    ] {
        let (kind, text) = refusal(primary(path));
        assert_eq!(kind, ErrorKind::Invalid);
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn a_bad_path_is_refused() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    assert_eq!(refusal(primary(Path::new("primary"))).0, ErrorKind::Invalid);
    assert_eq!(refusal(primary(Path::new(""))).0, ErrorKind::Invalid);
    assert_eq!(refusal(primary(&directory.path().join("missing"))).0, ErrorKind::NotFound);
    assert_eq!(refusal(primary(&path.join("below"))).0, ErrorKind::NotFound);
    assert_eq!(refusal(primary(&directory.path().join("two\nlines"))).0, ErrorKind::NotFound);
    let long = directory.path().join("x".repeat(5000));
    assert_eq!(primary(&long).expect_err("too long").kind(), ErrorKind::Invalid);
    let nul = directory.path().join("a\0b");
    assert_eq!(primary(&nul).expect_err("no path").kind(), ErrorKind::Invalid);
}

#[test]
fn a_link_to_a_file_is_not_followed_and_one_on_the_way_is() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let link = directory.path().join("link");
    symlink(&path, &link).expect("link");
    let (kind, text) = refusal(primary(&link));
    assert!(kind == ErrorKind::Invalid && text.contains("symbolic link"), "{text}");
    let way = directory.path().join("way");
    symlink(directory.path(), &way).expect("link");
    drop(primary(&way.join("primary")).expect("a directory may be a link"));
    let circle = directory.path().join("circle");
    symlink(&circle, &circle).expect("link");
    assert_eq!(refusal(primary(&circle)).0, ErrorKind::Invalid);
}

#[test]
fn sizes_are_checked() {
    let directory = directory();
    let (kind, text) = refusal(primary(&file(&directory, "empty", 0)));
    assert!(kind == ErrorKind::Invalid && text.contains("empty"), "{text}");
    let (kind, text) = refusal(primary(&file(&directory, "odd", MIB + 100)));
    assert!(kind == ErrorKind::Invalid && text.contains("1048676"), "{text}");
    let first = primary(&file(&directory, "primary", MIB)).expect("opened");
    let small = file(&directory, "small", MIB - 4096);
    let (kind, text) = refusal(open_secondary(&small, &first, &secondary_options()));
    assert!(kind == ErrorKind::Invalid && text.contains("1044480") && text.contains("1048576"), "{text}");
    let large = file(&directory, "large", 2 * MIB);
    drop(open_secondary(&large, &first, &secondary_options()).expect("a larger one is fine"));
}

#[test]
fn a_size_that_direct_io_cannot_take_falls_back_and_says_so() {
    let directory = directory();
    let path = file(&directory, "primary", MIB + 512);
    let device = primary(&path).expect("opened");
    assert_eq!(device.limits().logical_block, 512);
    assert!(device.limits().direct || device.limits().buffered_because.is_some());
    drop(device);
    let buffered = open_primary(&path, &Options { direct: Direct::Off, ..options() }).expect("opened");
    assert!(!buffered.limits().direct && buffered.limits().buffered_because.is_none());
}

#[test]
fn a_file_in_memory_is_buffered_and_says_so() {
    let shared = Path::new("/dev/shm");
    let Ok(directory) = tempfile::tempdir_in(shared) else { return eprintln!("skipped: no /dev/shm") };
    let path = file(&directory, "primary", MIB);
    let device = primary(&path).expect("opened");
    assert!(!device.limits().direct);
    assert!(device.limits().buffered_because.as_deref().is_some_and(|why| why.contains("memory")));
    drop(device);
    let (kind, _) = refusal(open_primary(&path, &Options { direct: Direct::On, ..options() }));
    assert_eq!(kind, ErrorKind::Invalid);
}

#[test]
fn a_device_has_one_user() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let first = primary(&path).expect("opened");
    let (kind, text) = refusal(primary(&path));
    assert!(kind == ErrorKind::Busy && text.contains("another volume of this daemon"), "{text}");
    drop(first);
    drop(primary(&path).expect("free again"));
}

#[test]
fn one_who_lets_go_soon_is_waited_for() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let holder = File::open(&path).expect("open");
    holder.try_lock().expect("locked");
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(holder);
    });
    let options = Options { wait: Duration::from_secs(10), ..Options::default() };
    drop(open_primary(&path, &options).expect("opened after the other has closed"));
    release.join().expect("the holder");
}

#[test]
fn the_secondary_is_not_the_primary_by_any_name() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let first = primary(&path).expect("opened");
    let other_name = directory.path().join("hard");
    fs::hard_link(&path, &other_name).expect("link");
    for name in [&path, &other_name] {
        let (kind, text) = refusal(open_secondary(name, &first, &secondary_options()));
        assert!(kind == ErrorKind::Invalid && text.contains("the same"), "{text}");
    }
    let second = file(&directory, "secondary", MIB);
    let second = open_secondary(&second, &first, &secondary_options()).expect("opened");
    assert_eq!(overlaps(first.place(), second.place()), None);
    assert_ne!(first.identity(), second.identity());
}

#[test]
fn data_of_others_on_the_secondary_needs_force() {
    if !["/usr/sbin/blkid", "/sbin/blkid", "/usr/bin/blkid"].iter().any(|path| Path::new(path).exists()) {
        return eprintln!("skipped: no blkid");
    }
    let directory = directory();
    let first = primary(&file(&directory, "primary", MIB)).expect("opened");
    let path = file(&directory, "secondary", MIB);
    let writer = File::options().write(true).open(&path).expect("open");
    writer.write_all_at(b"LUKS\xba\xbe\0\x01aes", 0).expect("write");
    let (kind, text) = refusal(open_secondary(&path, &first, &secondary_options()));
    assert!(kind == ErrorKind::Unsafe && text.contains("crypto_LUKS") && text.contains("--force"), "{text}");
    let forced = SecondaryOptions { force: true, ..secondary_options() };
    drop(open_secondary(&path, &first, &forced).expect("forced"));
    let known = SecondaryOptions { check_signature: false, ..secondary_options() };
    drop(open_secondary(&path, &first, &known).expect("known to be ours"));
    assert!(primary(&path).is_ok(), "a primary may hold what it likes");
}

#[test]
fn the_identity_of_a_file_is_its_own() {
    let directory = directory();
    let path = file(&directory, "primary", MIB);
    let first = primary(&path).expect("opened").identity().clone();
    assert_eq!(primary(&path).expect("opened").identity(), &first);
    let kept = directory.path().join("kept");
    fs::rename(&path, &kept).expect("rename");
    file(&directory, "primary", MIB);
    assert_ne!(primary(&path).expect("opened").identity().stable, first.stable, "another file, the same path");
    assert_eq!(primary(&kept).expect("opened").identity().stable, first.stable, "the same file, another path");
}

/// A loop device that goes away with it.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path, more: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).args(more).arg(path).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        let made = output.status.success().then(|| Self(PathBuf::from(name.trim())));
        if made.is_none() {
            eprintln!("skipped: no loop devices here");
        }
        made
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_loop_device_is_opened_and_described() {
    let directory = directory();
    let backing = file(&directory, "backing", 8 * MIB);
    let Some(device) = Loop::over(&backing, &[]) else { return };
    let opened = primary(&device.0).expect("opened");
    assert_eq!((opened.kind(), opened.size()), (Kind::Block, 8 * MIB));
    assert!(opened.limits().direct);
    assert!(opened.identity().stable.starts_with("loop:file:"), "{}", opened.identity().stable);
    let (kind, text) = refusal(primary(&device.0));
    assert!(kind == ErrorKind::Busy, "{text}");
    let link = directory.path().join("by-id");
    symlink(&device.0, &link).expect("link");
    drop(opened);
    drop(primary(&link).expect("a link to a device is followed"));
}

#[test]
fn a_file_behind_a_loop_device_is_in_use() {
    let directory = directory();
    let backing = file(&directory, "backing", MIB);
    let Some(device) = Loop::over(&backing, &[]) else { return };
    let (kind, text) = refusal(primary(&backing));
    let name = device.0.to_str().expect("a name").to_owned();
    assert!(kind == ErrorKind::Busy && text.contains(&name), "{text}");
}

#[test]
fn loop_devices_over_the_same_file_overlap() {
    let directory = directory();
    let backing = file(&directory, "backing", MIB);
    let other = file(&directory, "other", MIB);
    let made = (Loop::over(&backing, &[]), Loop::over(&backing, &[]), Loop::over(&other, &[]));
    let (Some(one), Some(two), Some(other)) = made else { return };
    let first = primary(&one.0).expect("opened");
    let (kind, text) = refusal(open_secondary(&two.0, &first, &secondary_options()));
    assert!(kind == ErrorKind::Invalid && text.contains("both are loop devices"), "{text}");
    let (kind, text) = refusal(open_secondary(&backing, &first, &secondary_options()));
    assert!(kind == ErrorKind::Invalid && text.contains("lies on"), "{text}");
    drop(open_secondary(&other.0, &first, &secondary_options()).expect("a separate one"));
}

#[test]
fn a_secondary_with_larger_blocks_is_refused() {
    let directory = directory();
    let (small, large) = (file(&directory, "small", MIB), file(&directory, "large", MIB));
    let made = (Loop::over(&small, &[]), Loop::over(&large, &["--sector-size", "4096"]));
    let (Some(small), Some(large)) = made else { return };
    let first = primary(&small.0).expect("opened");
    assert_eq!(first.limits().logical_block, 512);
    let (kind, text) = refusal(open_secondary(&large.0, &first, &secondary_options()));
    assert!(kind == ErrorKind::Invalid && text.contains("4096"), "{text}");
    drop(first);
    let first = primary(&large.0).expect("opened");
    drop(open_secondary(&small.0, &first, &secondary_options()).expect("smaller blocks are fine"));
}

#[test]
fn a_read_only_device_is_refused() {
    let directory = directory();
    let backing = file(&directory, "backing", MIB);
    let Some(device) = Loop::over(&backing, &["--read-only"]) else { return };
    let (kind, text) = refusal(primary(&device.0));
    assert!(kind == ErrorKind::Permission && text.contains("read-only"), "{text}");
}
