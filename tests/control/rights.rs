//! Who may command: the socket's place, owner and mode, the peer's credentials, and one daemon at a time. What needs
//! another user is only tested by root.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use farpoint::control::server::{Limits, Server};
use farpoint::controller::api::{Failure, FailureKind};
use farpoint::controller::config::DaemonConfig;
use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::fake::{self, Daemon};

/// Runs the program as somebody else, from a place that everybody may read.
fn command_as(daemon: &Daemon, uid: Uid, gid: Gid, arguments: &[&str]) -> Command {
    let program = daemon.directory.path().join("farpoint");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_farpoint"), &program).expect("copied");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    }
    let mut command = Command::new(program);
    command.arg("--socket").arg(daemon.socket()).args(arguments).uid(uid.as_raw()).gid(gid.as_raw());
    command
}

fn run_as(daemon: &Daemon, uid: Uid, gid: Gid, arguments: &[&str]) -> Output {
    started(|| command_as(daemon, uid, gid, arguments).output())
}

fn started<T>(start: impl Fn() -> std::io::Result<T>) -> T {
    let mut tries = 0;
    loop {
        match start() {
            // A process that another test is just starting may still have the copy open for writing.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < 100 => tries += 1,
            begun => return begun.expect("the program runs"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn nobody() -> User {
    User::from_name("nobody").expect("a user database").expect("nobody")
}

fn error(output: &Output) -> (i32, String) {
    (output.status.code().expect("a code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn bind(config: &DaemonConfig) -> Result<Server, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { Server::bind(config) })
}

#[test]
fn others_may_not_even_connect_by_default() {
    let daemon = fake::daemon();
    let metadata = fs::symlink_metadata(daemon.socket()).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o660);
    let directory = fs::symlink_metadata(daemon.directory.path().join("run")).expect("a directory");
    assert_eq!(directory.mode() & 0o777, 0o755);
    if geteuid().is_root() {
        let user = nobody();
        let (code, message) = error(&run_as(&daemon, user.uid, user.gid, &["status"]));
        assert_eq!(code, 6, "{message}");
        assert!(message.contains("you may not use"), "{message}");
    }
}

#[test]
fn everybody_may_ask_if_so_configured_but_not_command() {
    if !geteuid().is_root() {
        return;
    }
    let daemon = fake::daemon_with(Limits::default(), |config| config.status_for_everyone = true);
    assert_eq!(fs::metadata(daemon.socket()).expect("a socket").mode() & 0o777, 0o666);
    let user = nobody();
    let run = |arguments: &[&str]| run_as(&daemon, user.uid, user.gid, arguments);
    for allowed in [&["status"][..], &["devices"], &["events", "--now"], &["wait", "vol0"]] {
        assert_eq!(run(allowed).status.code(), Some(0), "{allowed:?}");
    }
    let refused: [&[&str]; 12] = [
        &["create", "v"],
        &["delete", "v", "--yes"],
        &["up", "v"],
        &["down", "v"],
        &["remove-device", "/dev/ublkb0", "--yes"],
        &["start", "v"],
        &["run", "v"],
        &["increment-complete", "v"],
        &["abort", "v"],
        &["pause", "v"],
        &["resume", "v"],
        &["set", "v", "--run-timer-ms", "5"],
    ];
    for arguments in refused {
        let (code, message) = error(&run(arguments));
        assert_eq!(code, 6, "{arguments:?}: {message}");
        assert!(message.contains("you may not command this daemon"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn members_of_the_group_may_command() {
    if !geteuid().is_root() {
        return;
    }
    let user = nobody();
    let group = Group::from_gid(user.gid).expect("a group database").expect("the group of nobody");
    let other = Group::from_name("daemon").expect("a group database").expect("a group of the system");
    let daemon = fake::daemon_with(Limits::default(), |config| {
        config.group = Some(group.name.clone());
        config.status_for_everyone = true;
    });
    assert_eq!(fs::metadata(daemon.socket()).expect("a socket").gid(), group.gid.as_raw());
    // As the group of the process, and as the user database has it, whatever group the process runs with.
    for gid in [group.gid, other.gid] {
        assert_eq!(run_as(&daemon, user.uid, gid, &["pause", "v"]).status.code(), Some(0));
    }
    let stranger = Uid::from_raw(54_321);
    assert_eq!(run_as(&daemon, stranger, other.gid, &["pause", "v"]).status.code(), Some(6));
    assert_eq!(run_as(&daemon, stranger, group.gid, &["pause", "v"]).status.code(), Some(0));
}

#[test]
fn supplementary_groups_of_the_user_database_count() {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let member = groups.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let name = fields.get(3)?.split(',').find(|name| !name.is_empty() && *name != "root")?;
        let user = User::from_name(name).ok()??;
        (user.uid != Uid::from_raw(0)).then(|| (user, (*fields.first()?).to_owned()).into())?
    });
    let Some((user, group)): Option<(User, String)> = member else { return };
    if !geteuid().is_root() {
        return;
    }
    let daemon = fake::daemon_with(Limits::default(), |config| {
        config.group = Some(group);
        config.status_for_everyone = true;
    });
    assert_eq!(run_as(&daemon, user.uid, user.gid, &["pause", "v"]).status.code(), Some(0));
}

#[test]
fn those_who_may_only_ask_cannot_keep_out_those_who_may_command() {
    if !geteuid().is_root() {
        return;
    }
    let limits = Limits { askers_max: 1, ..Limits::default() };
    let daemon = fake::daemon_with(limits, |config| config.status_for_everyone = true);
    let user = nobody();
    let events = || command_as(&daemon, user.uid, user.gid, &["events"]).stdout(Stdio::piped()).spawn();
    let mut first = started(events);
    // It is served, so it has the only place.
    first.stdout.take().expect("a pipe").read_exact(&mut [0; 6]).expect("an event");
    let (code, message) = error(&run_as(&daemon, user.uid, user.gid, &["status"]));
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("too many control clients"), "{message}");
    daemon.assert_serves();
    first.kill().expect("still there");
    first.wait().expect("ended");
}

#[test]
fn a_second_daemon_is_refused_and_names_the_first() {
    let daemon = fake::daemon();
    let config = DaemonConfig { run_dir: daemon.directory.path().join("run"), ..DaemonConfig::default() };
    let failure = bind(&config).expect_err("a second daemon");
    assert_eq!(failure.kind, FailureKind::WrongState);
    let expected = format!("another farpoint daemon is running, pid {}", std::process::id());
    assert!(failure.message.starts_with(&expected), "{failure}");
    daemon.assert_serves();
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = DaemonConfig { run_dir: directory.path().join("run"), ..DaemonConfig::default() };
    fs::create_dir(&config.run_dir).expect("mkdir");
    // What a daemon that was killed at any moment leaves behind.
    fs::create_dir(config.run_dir.join("control.new")).expect("mkdir");
    fs::write(config.run_dir.join("control.new/s"), "").expect("write");
    fs::write(config.run_dir.join("control.lock"), "1234567890\n").expect("write");
    drop(std::os::unix::net::UnixListener::bind(config.socket_path()).expect("bound"));
    let server = bind(&config).expect("replaced");
    std::os::unix::net::UnixStream::connect(config.socket_path()).expect("a live socket");
    drop(server);
    assert!(!config.socket_path().exists());
    let names: Vec<_> = fs::read_dir(&config.run_dir).expect("a directory").collect();
    assert_eq!(names.len(), 1, "only the lock stays: {names:?}");
    drop(bind(&config).expect("again"));
}

#[test]
fn a_run_directory_that_others_could_have_planted_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = DaemonConfig { run_dir: directory.path().join("run"), ..DaemonConfig::default() };
    let refused = |what: &str| {
        let failure = bind(&config).expect_err(what);
        assert_eq!(failure.kind, FailureKind::Permission, "{failure}");
        assert!(failure.message.contains(what), "{failure}");
    };
    std::os::unix::fs::symlink("/tmp", &config.run_dir).expect("symlink");
    refused("is not a directory");
    fs::remove_file(&config.run_dir).expect("removed");
    fs::create_dir(&config.run_dir).expect("mkdir");
    fs::set_permissions(&config.run_dir, Permissions::from_mode(0o777)).expect("chmod");
    refused("may be written by others");
    fs::set_permissions(&config.run_dir, Permissions::from_mode(0o755)).expect("chmod");
    std::os::unix::fs::symlink("/etc/passwd", config.run_dir.join("control.lock")).expect("symlink");
    assert!(bind(&config).is_err(), "a lock file that is a link");
    fs::remove_file(config.run_dir.join("control.lock")).expect("removed");
    if geteuid().is_root() {
        std::os::unix::fs::chown(&config.run_dir, Some(nobody().uid.as_raw()), None).expect("chown");
        refused("belongs to another user");
    }
}

#[test]
fn a_group_that_does_not_exist_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let run_dir = directory.path().join("run");
    let config = DaemonConfig { run_dir, group: Some("no-such-group".into()), ..DaemonConfig::default() };
    let failure = bind(&config).expect_err("no such group");
    assert!(failure.message.contains("\"no-such-group\" does not exist"), "{failure}");
}
