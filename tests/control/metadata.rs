//! Metadata as an administrator meets it: made by `create`, looked at by `check` and `dump`, never overwritten by
//! mistake. The daemon is real; the volumes lie on files and never come up, which needs no kernel driver.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::daemon::{directory, end, farpoint, start};

const SIZE: u64 = 300 << 20;
/// The intent pages begin here.
const INTENT: u64 = 16384;

fn files(at: &Path) {
    for name in ["a", "b"] {
        File::create(at.join(name)).expect("created").set_len(SIZE).expect("sized");
    }
}

fn run(at: &Path, arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = farpoint(at, arguments).output().expect("runs");
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().expect("ended"), text)
}

fn create(at: &Path, more: &[&str]) -> (i32, String) {
    let (primary, secondary) = (at.join("a").display().to_string(), at.join("b").display().to_string());
    let mut arguments = vec!["create", "v", "--primary", &primary, "--secondary", &secondary];
    arguments.extend(more);
    run(at, &arguments)
}

fn dump(at: &Path, place: &str) -> Value {
    let (code, text) = run(at, &["--json", "dump", place]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn prepared() -> TempDir {
    let directory = directory();
    files(directory.path());
    directory
}

#[test]
fn a_new_volume_has_sound_metadata_until_it_is_deleted() {
    let directory = prepared();
    let at = directory.path();
    let daemon = start(at);
    assert_eq!(create(at, &[]), (0, "created v\n".to_owned()));
    let path = at.join("state/v.meta");
    assert!(path.exists());
    let said = dump(at, "v");
    assert_eq!((&said["volume"], &said["start"], &said["clean"]), (&"v".into(), &"new".into(), &true.into()));
    assert_eq!((&said["regions"], &said["hot_regions"], &said["damaged_pages"]), (&75.into(), &75.into(), &0.into()));
    assert_eq!(said, dump(at, path.to_str().expect("UTF-8")));
    let (code, text) = run(at, &["check", "v"]);
    assert!(code == 0 && text.contains("is sound") && text.contains("copies everything"), "{text}");
    let (_, status) = run(at, &["status"]);
    assert!(status.contains("full-copy-needed:yes") && status.contains("v.meta"), "{status}");

    assert_eq!(run(at, &["delete", "v", "--yes"]).0, 0);
    assert!(!path.exists(), "its metadata is forgotten with it");
    assert_eq!(run(at, &["check", "v"]).0, 3);
    end(daemon, Signal::SIGTERM);
}

#[test]
fn a_secondary_that_is_said_to_be_a_copy_already_is_believed() {
    let directory = prepared();
    let at = directory.path();
    // A copy of a file system looks like one.
    let copy = File::options().write(true).open(at.join("b")).expect("there");
    copy.write_all_at(&[0x53, 0xef], 1024 + 0x38).expect("written");
    let daemon = start(at);
    assert_eq!(create(at, &[]).0, 8);
    assert_ne!(create(at, &["--in-sync"]).0, 0, "not without --yes");
    assert_eq!(create(at, &["--in-sync", "--yes"]), (0, "created v\n".to_owned()));
    let said = dump(at, "v");
    assert_eq!((&said["start"], &said["incomplete"]), (&"exact".into(), &false.into()));
    assert_eq!((&said["hot_regions"], &said["start_tracks"]), (&0.into(), &0.into()));
    let (_, status) = run(at, &["status"]);
    assert!(!status.contains("full-copy-needed"), "{status}");
    end(daemon, Signal::SIGTERM);
}

#[test]
fn metadata_is_found_again_by_the_next_daemon_and_damage_is_told() {
    let directory = prepared();
    let at = directory.path();
    let daemon = start(at);
    let place = at.join("meta").display().to_string();
    assert_eq!(create(at, &["--metadata", &place]).0, 0);
    assert!(!at.join("state/v.meta").exists());
    end(daemon, Signal::SIGKILL);
    let daemon = start(at);
    assert!(run(at, &["status"]).1.starts_with("v state:down"));
    end(daemon, Signal::SIGTERM);

    let file = File::options().write(true).open(at.join("meta")).expect("there");
    file.write_all_at(b"rot", INTENT + 1000).expect("written");
    file.write_all_at(b"rot", 1000).expect("written");
    let (code, text) = run(at, &["check", "v"]);
    assert!(code == 9 && text.contains("superblock A") && text.contains("1 of 1 intent pages"), "{code}: {text}");
    let (code, text) = run(at, &["--json", "check", "v"]);
    let said: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &said["sound"], said["damages"].as_array().map(Vec::len)), (9, &false.into(), Some(2)));
    file.write_all_at(b"rot", 4096 + 1000).expect("written");
    let (code, text) = run(at, &["check", "v"]);
    assert!(code == 9 && text.contains("--force"), "{code}: {text}");

    // Left out by the daemon, with a reason; made anew only by force.
    let daemon = start(at);
    let status = run(at, &["status"]).1;
    assert!(status.starts_with("v state:left-out\n  reason:") && status.contains("is damaged"), "{status}");
    let (code, text) = run(at, &["status", "--check", "v"]);
    assert!(code == 2 && text.starts_with("CRITICAL - v left out ("), "{code}: {text}");
    let (code, text) = run(at, &["up", "v"]);
    assert!(code == 3 && text.contains("v: it was left out: ") && text.contains("is damaged"), "{code}: {text}");
    let (code, text) = run(at, &["create", "v"]);
    assert!(code == 8 && text.contains("cannot be read"), "{code}: {text}");
    assert_eq!(run(at, &["create", "v", "--force", "--yes"]).0, 0);
    assert!(run(at, &["status"]).1.starts_with("v state:down"));
    assert_eq!(run(at, &["check", "v"]).0, 0);
    let ended = end(daemon, Signal::SIGTERM);
    assert!(String::from_utf8_lossy(&ended.stderr).contains("left out"));
}

#[test]
fn metadata_never_overwrites_what_it_does_not_know() {
    let directory = prepared();
    let at = directory.path();
    let daemon = start(at);
    let taken = at.join("meta").display().to_string();
    fs::write(at.join("meta"), vec![b'x'; 1 << 20]).expect("written");
    let (code, text) = create(at, &["--metadata", &taken]);
    assert!(code == 8 && text.contains("something else") && text.contains("--force"), "{code}: {text}");
    assert_eq!(fs::read(at.join("meta")).expect("there"), vec![b'x'; 1 << 20]);
    fs::write(at.join("meta"), vec![0; 8192]).expect("written");
    let (code, text) = create(at, &["--metadata", &taken]);
    assert!(code == 1 && text.contains("8192 bytes") && text.contains("needs"), "{code}: {text}");
    let primary = at.join("a").display().to_string();
    let (code, text) = create(at, &["--metadata", &primary]);
    assert!(code == 1 && text.contains("metadata is the primary"), "{code}: {text}");
    std::fs::hard_link(at.join("a"), at.join("other-name")).expect("linked");
    let (code, text) = create(at, &["--metadata", &at.join("other-name").display().to_string()]);
    assert!(code == 1 && text.contains("cannot hold the metadata"), "{code}: {text}");

    // Another volume's metadata, by a slip of the pen.
    fs::remove_file(at.join("meta")).expect("removed");
    assert_eq!(create(at, &["--metadata", &taken]).0, 0);
    for name in ["c", "d"] {
        File::create(at.join(name)).expect("created").set_len(SIZE).expect("sized");
    }
    let (primary, secondary) = (at.join("c").display().to_string(), at.join("d").display().to_string());
    let other = ["create", "w", "--primary", &primary, "--secondary", &secondary, "--metadata", &taken];
    let (code, text) = run(at, &other);
    assert!(code == 8 && text.contains("another volume, v"), "{code}: {text}");
    assert!(run(at, &["dump", "v"]).1.starts_with("v metadata:"));
    end(daemon, Signal::SIGTERM);
}
