//! The daemon as a process: when it says it is ready, that there is one of it, and how it ends. Its volumes are
//! never up here, so no kernel driver is needed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::fake::PROMPT;

pub fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    let at = directory.path();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::create_dir(at.join("etc")).expect("mkdir");
    let text = format!("run_dir = '{0}/run'\nstate_dir = '{0}/state'\n", at.display());
    fs::write(at.join("etc/farpoint.toml"), text).expect("written");
    directory
}

pub fn farpoint(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farpoint"));
    command.arg("--config-dir").arg(directory.join("etc")).args(arguments).stdin(Stdio::null());
    command
}

/// A daemon, which does not outlive a test that fails.
pub struct Daemon(Option<Child>);

impl Daemon {
    fn id(&self) -> u32 {
        self.0.as_ref().expect("running").id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.0.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

/// Starts a daemon and returns when it says that it is ready, as a service manager would see it.
pub fn start(directory: &Path) -> Daemon {
    let notified = directory.join("notify");
    let _ = fs::remove_file(&notified);
    let socket = UnixDatagram::bind(&notified).expect("bound");
    socket.set_read_timeout(Some(PROMPT)).expect("timeout");
    let mut command = farpoint(directory, &["daemon"]);
    let daemon = command.env("NOTIFY_SOCKET", &notified).stderr(Stdio::piped()).spawn().expect("runs");
    let daemon = Daemon(Some(daemon));
    let mut message = [0; 100];
    let count = loop {
        match socket.recv(&mut message) {
            // A wait with a limit is not taken up again after a signal.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.expect("ready in time"),
        }
    };
    assert_eq!(message.get(..count), Some(&b"READY=1"[..]));
    daemon
}

pub fn end(mut daemon: Daemon, signal: Signal) -> Output {
    let pid = Pid::from_raw(daemon.id().try_into().expect("a pid"));
    kill(pid, signal).expect("signalled");
    daemon.0.take().expect("running").wait_with_output().expect("ended")
}

#[test]
fn a_daemon_is_ready_answers_and_ends_tidily() {
    let directory = directory();
    let at = directory.path();
    let daemon = start(at);
    let status = farpoint(at, &["--timeout", "5", "status"]).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&status.stdout), "no volumes\n");

    let second = farpoint(at, &["daemon"]).output().expect("runs");
    assert_eq!(second.status.code(), Some(4));
    let message = String::from_utf8_lossy(&second.stderr);
    let expected = format!("farpoint: daemon: another farpoint daemon is running, pid {};", daemon.id());
    assert!(message.lines().any(|line| line.starts_with(&expected)), "{message}");

    let ended = end(daemon, Signal::SIGTERM);
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(!at.join("run/control.sock").exists());
}

#[test]
fn a_daemon_that_was_killed_is_simply_started_again() {
    let directory = directory();
    let at = directory.path();
    assert_eq!(end(start(at), Signal::SIGKILL).status.code(), None);
    assert!(at.join("run/control.sock").exists());
    let gone = farpoint(at, &["status"]).output().expect("runs");
    assert_eq!(gone.status.code(), Some(3), "{}", String::from_utf8_lossy(&gone.stderr));
    assert_eq!(end(start(at), Signal::SIGTERM).status.code(), Some(0));
}

#[test]
fn settings_change_nothing_else_in_a_volumes_file_however_many_set_them_at_once() {
    let directory = directory();
    let at = directory.path();
    let (primary, secondary) = (at.join("primary"), at.join("secondary"));
    for path in [&primary, &secondary] {
        File::create(path).and_then(|file| file.set_len(1 << 20)).expect("a file");
    }
    fs::create_dir(at.join("etc/volumes.d")).expect("mkdir");
    let file = at.join("etc/volumes.d/v.toml");
    let text = format!(
        "# the database\nprimary = '{}'\nsecondary = '{}'\nrun_timer_ms = 7 # short\n",
        primary.display(),
        secondary.display()
    );
    fs::write(&file, &text).expect("written");
    let daemon = start(at);
    let run = |arguments: &[&str]| farpoint(at, arguments).output().expect("runs");
    let created = run(&["create", "v", "--force", "--yes"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));

    let set = |timer: &str| farpoint(at, &["set", "v", "--run-timer-ms", timer]).stderr(Stdio::null()).spawn();
    let all: Vec<Child> = ["11", "12", "13", "14", "15", "16"].map(|timer| set(timer).expect("runs")).into();
    let codes: Vec<_> = all.into_iter().map(|child| child.wait_with_output().expect("ended").status.code()).collect();
    assert!(codes.contains(&Some(0)) && codes.iter().all(|code| matches!(code, Some(0 | 4))), "{codes:?}");
    assert!(run(&["set", "v", "--run-timer-ms", "99"]).status.success());
    assert_eq!(fs::read_to_string(&file).expect("there"), text.replace("= 7 #", "= 99 #"));
    assert_eq!(fs::read_dir(at.join("etc/volumes.d")).expect("listed").count(), 1);

    assert!(run(&["delete", "v", "--yes"]).status.success());
    assert!(!file.exists());
    assert_eq!(end(daemon, Signal::SIGTERM).status.code(), Some(0));
}
