//! The program as a person or a script meets it: help, output, one-line errors, exit codes, confirmation. Golden files
//! are compared word for word; `UPDATE_GOLDEN=1` writes them anew.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fake::{self, Daemon, report};

const COMMANDS: [&str; 21] = [
    "daemon",
    "create",
    "delete",
    "up",
    "down",
    "status",
    "devices",
    "remove-device",
    "start",
    "run",
    "increment-complete",
    "abort",
    "wait",
    "pause",
    "resume",
    "set",
    "events",
    "check",
    "dump",
    "completions",
    "man",
];

fn out(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/control/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("written");
    }
    let golden = fs::read_to_string(&path).expect("a golden file; UPDATE_GOLDEN=1 writes it");
    assert!(golden == text, "{name} differs; the new text:\n{text}");
}

/// One line on standard error, nothing on standard output, and the code.
fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("farpoint: ") && message.ends_with('\n'), "{message:?}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.len() < 1_200 && !message.trim_end().chars().any(char::is_control), "{message:?}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn help_is_as_documented() {
    let daemon = fake::daemon();
    assert_golden("help.txt", &out(&daemon.run(&["--help"])));
    let mut all = String::new();
    for command in COMMANDS {
        let help = out(&daemon.run(&[command, "-h"]));
        let own = help.split("\nGlobal options:").next().unwrap_or_default();
        writeln!(all, "$ farpoint {command} -h\n{own}").expect("a string takes everything");
    }
    assert_golden("help-commands.txt", &all);
}

#[test]
fn status_is_as_documented() {
    let daemon = fake::daemon();
    assert_golden("status.txt", &out(&daemon.run(&["status"])));
    assert_golden("status-verbose.txt", &out(&daemon.run(&["-v", "status"])));
    let colored = out(&daemon.run(&["--color", "always", "status"]));
    assert!(colored.contains("state:\u{1b}[31mfailed\u{1b}[0m"), "{colored}");
    let json: Value = serde_json::from_str(&out(&daemon.run(&["--json", "status"]))).expect("JSON");
    assert_eq!(json, serde_json::to_value(report()).expect("serializable"));
}

#[test]
fn what_is_not_as_it_should_be_is_said_on_standard_error() {
    let daemon = fake::daemon();
    let said = |arguments: &[&str]| String::from_utf8(daemon.run(arguments).stderr).expect("text");
    let expected = "farpoint: up: warning: \"/srv/b\" is used through the page cache; move it\n";
    assert_eq!(said(&["up", "v"]), expected);
    assert_eq!(said(&["down", "vol1"]), "farpoint: down: warning: vol1 did not stop cleanly\n");
    assert_eq!(said(&["down", "v"]), "");
}

#[test]
fn every_command_says_what_it_did() {
    let daemon = fake::daemon();
    let table: [(&[&str], &str); 14] = [
        (&["create", "v"], "created v\n"),
        (&["create", "v", "--force", "--yes"], "created v\n"),
        (&["delete", "v", "--yes"], "deleted v\n"),
        (&["up", "v"], "/dev/ublkb7\n"),
        (&["down", "v"], "v is down\n"),
        (&["remove-device", "/dev/ublkb3", "--yes"], "removed /dev/ublkb3\n"),
        (&["start", "a", "b"], "started increment:1842 volumes:a,b held:1.2ms\n"),
        (&["run", "a", "b"], "running increment:1842 volumes:a,b held:1.2ms\n"),
        (&["increment-complete", "a"], "completed increment:1842 volumes:a\n"),
        (&["abort", "a"], "aborted increment:1842 volumes:a\n"),
        (&["wait", "a", "b", "--until", "drained"], "drained: a b\n"),
        (&["pause", "a", "b"], "paused a b\n"),
        (&["resume", "a"], "resumed a\n"),
        (&["set", "a", "--bandwidth-limit", "10MiB", "--collision-policy", "send-first"], "set a\n"),
    ];
    for (arguments, expected) in table {
        assert_eq!(out(&daemon.run(arguments)), expected, "{arguments:?}");
        let json = out(&daemon.run(&[&["--json"], arguments].concat()));
        assert!(serde_json::from_str::<Value>(&json).is_ok_and(|json| json.is_object()), "{json}");
        assert_eq!(out(&daemon.run(&[&["-q"], arguments].concat())), "", "{arguments:?}");
    }
}

#[test]
fn devices_are_a_line_each() {
    let lines = "/dev/ublkb0 state:served volume:vol0\n/dev/ublkb3 state:waiting volume:unknown\n";
    let daemon = fake::daemon();
    assert_eq!(out(&daemon.run(&["devices"])), lines);
    let json: Value = serde_json::from_str(&out(&daemon.run(&["devices", "--json"]))).expect("JSON");
    assert_eq!(json["devices"][1], serde_json::json!({"device": "/dev/ublkb3", "state": "waiting", "volume": null}));
    assert_eq!(out(&daemon.run(&["devices", "/dev/ublkb0"])), "vol0\n");
    for unknown in ["/dev/ublkb3", "/dev/ublkb4", "ublkb0", "vol0"] {
        let refused = daemon.run(&["devices", unknown]);
        let message = format!("farpoint: devices: \"{unknown}\" is not the device of a volume that is known here\n");
        assert_eq!((refused.status.code(), String::from_utf8_lossy(&refused.stderr)), (Some(3), message.into()));
    }
}

#[test]
fn wrong_usage_is_one_line_and_code_2() {
    let daemon = fake::daemon();
    let long = "x".repeat(100_000);
    let table: [(&[&str], &str); 39] = [
        (&[], "no command is given"),
        (&["wibble"], "unrecognized subcommand 'wibble'"),
        (&["st\u{1b}[31m"], "unrecognized subcommand"),
        (&[long.as_str()], "unrecognized subcommand"),
        (&["status", "--wibble"], "unexpected argument '--wibble'"),
        (&["status", "--check", "--json"], "cannot be used with"),
        (&["status", "../x"], "starts with '.'"),
        (&["create"], "required arguments were not provided: <NAME>"),
        (&["create", "a/b"], "characters other than"),
        (&["create", ""], "is empty"),
        (&["create", "v", "--primary", "/a"], "--secondary"),
        (&["create", "v", "--queues", "2"], "no --primary and --secondary"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--queues", "33"], "queues: 33 is not allowed"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--queues", "70000"], "70000"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--track-size", "3K"], "track_size: 3072"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--region-size", "128MiB"], "region_size: 134217728"),
        (
            &["create", "v", "--primary", "/a", "--secondary", "/b", "--region-size", "32K"],
            "at least the track size, 65536",
        ),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--track-size", "x"], "is not a size"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--depth", "0"], "depth: 0"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--image-pool", "1T"], "image_pool: 1099511627776"),
        (&["create", "v", "--primary", "/a", "--secondary", "/b", "--drain-window", "0"], "drain_window: 0"),
        (&["create", "v", "--primary", "", "--secondary", "/b"], "a value is required for '--primary <PATH>'"),
        (&["delete", "v"], "say --yes"),
        (&["down", "v", "--force"], "say --yes"),
        (&["remove-device"], "<DEVICE>"),
        (&["remove-device", "/dev/sda"], "\"/dev/sda\" is no ublk device; name one such as /dev/ublkb0"),
        (&["remove-device", "/dev/ublkb0"], "say --yes"),
        (&["create", "v", "--force"], "say --yes"),
        (&["up"], "<NAME>"),
        (&["up", "a", "b"], "unexpected argument 'b'"),
        (&["start"], "<NAME>..."),
        (&["start", "v", "--run-timer-ms", "0"], "run_timer_ms: 0 is not allowed"),
        (&["start", "v", "v"], "named twice"),
        (&["set", "v"], "no setting is named"),
        (&["set", "v", "--bandwidth-limit", "1"], "bandwidth_limit: 1 is not allowed"),
        (&["set", "v", "--collision-policy", "x"], "possible values: keep-before-image, send-first"),
        (&["wait", "v", "--until", "x"], "possible values: drained, in-sync, normal"),
        (&["wait", "v", "--timeout", "0"], "write seconds, from 0.001 to 31536000"),
        (&["wait", "v", "--timeout", "nan"], "write seconds, from 0.001 to 31536000"),
    ];
    for (arguments, part) in table {
        assert_fails(&daemon.run(arguments), 2, &[part]);
    }
    let many: Vec<_> = (0..65).map(|n| format!("v{n}")).collect();
    let arguments: Vec<_> = ["pause"].into_iter().chain(many.iter().map(String::as_str)).collect();
    assert_fails(&daemon.run(&arguments), 2, &["at most 64"]);
}

#[test]
fn failures_of_the_daemon_have_their_exit_codes() {
    let daemon = fake::daemon();
    for (volume, code) in [("missing", 3), ("busy", 4), ("broken", 7), ("precious", 8), ("odd", 1), ("mute", 3)] {
        for verb in ["create", "up", "down", "start", "run", "increment-complete", "abort", "wait", "pause", "resume"] {
            let output = daemon.run(&[verb, volume]);
            assert_fails(&output, code, &[&format!("farpoint: {verb}: ")]);
        }
    }
    let output = daemon.run(&["--json", "up", "busy"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["error"]["kind"], "wrong-state");
    assert_eq!(json["error"]["exit_code"], 4);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_daemon_that_is_not_there_is_code_3() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("none.sock").display().to_string();
    for arguments in [&["status"][..], &["up", "v"], &["events"], &["wait", "v"]] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_farpoint"))
            .args(["--socket", &socket])
            .args(arguments)
            .output()
            .expect("the program runs");
        assert_fails(&output, 3, &["no daemon listens at", "start it with: farpoint daemon"]);
    }
}

#[test]
fn check_speaks_the_language_of_monitoring() {
    let daemon = fake::daemon();
    let output = daemon.run(&["status", "--check"]);
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8_lossy(&output.stdout);
    assert!(line.starts_with("CRITICAL - vol1 failed (the secondary is"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let mut nowhere = std::process::Command::new(env!("CARGO_BIN_EXE_farpoint"));
    let output = nowhere.args(["--socket", "/nowhere/x", "status", "--check"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.starts_with(b"UNKNOWN - no daemon listens at /nowhere/x"));
}

#[test]
fn the_timeout_ends_everything_with_code_5() {
    let daemon = fake::daemon();
    let timed = |arguments: &[&str], part: &str| {
        let begun = Instant::now();
        assert_fails(&daemon.run(&[&["--timeout", "0.3"], arguments].concat()), 5, &[part]);
        assert!(begun.elapsed() < Duration::from_secs(4), "{arguments:?} took {:?}", begun.elapsed());
    };
    timed(&["wait", "forever", "--until", "drained"], "forever did not become drained in the time given");
    timed(&["run", "forever"], "no answer to run in the time given");
    let events = daemon.run(&["events", "--timeout", "0.3"]);
    assert_eq!(events.status.code(), Some(5), "{}", String::from_utf8_lossy(&events.stderr));
}

#[test]
fn events_dump_what_exists_and_follow() {
    let daemon = fake::daemon();
    assert_eq!(out(&daemon.run(&["events", "--now"])), "exists volume vol0 state:normal lag:0s\nexists -\n");
    let json = out(&daemon.run(&["events", "--now", "--json"]));
    let first: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["fields"], serde_json::json!({"state": "normal", "lag": "0s"}));
    let timed = out(&daemon.run(&["events", "--now", "--timestamps"]));
    assert!(timed.starts_with("20") && timed.contains("Z exists volume vol0"), "{timed}");

    let mut following = daemon.command(&["events"]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.nth(1).expect("a line").expect("UTF-8"), "exists -");
    following.kill().expect("still there");
    following.wait().expect("ended");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let daemon = fake::daemon();
    let mut child = daemon
        .command(&["events", "--statistics"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut first = [0; 10];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("a line");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn create_writes_the_volumes_file_and_takes_it_back_when_refused() {
    let daemon = fake::daemon();
    let file = |name: &str| daemon.directory.path().join(format!("etc/volumes.d/{name}.toml"));
    let create = |name: &str, more: &[&str]| {
        let arguments = ["create", name, "--primary", "/dev/a", "--secondary", "b c", "--track-size", "128K"];
        daemon.run(&[&arguments, more].concat())
    };
    out(&create("v", &["--direct", "off", "--run-timer-ms", "7"]));
    let text = fs::read_to_string(file("v")).expect("written");
    let secondary = std::env::current_dir().expect("a directory").join("b c").display().to_string();
    for line in ["primary = \"/dev/a\"", "track_size = 131072", "direct = \"off\"", "run_timer_ms = 7"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains(&format!("secondary = \"{secondary}\"")), "{text}");
    assert_fails(&create("v", &[]), 4, &["exists already"]);
    assert_eq!(fs::read_to_string(file("v")).expect("untouched"), text);
    assert_fails(&create("precious", &[]), 8, &["precious is unsafe"]);
    assert!(!file("precious").exists(), "a refused volume keeps no file");
    let mute = daemon.command(&["create", "forever", "--primary", "/a", "--secondary", "/b", "--timeout", "0.3"]);
    assert_fails(&{ mute }.output().expect("runs"), 5, &["is left in place"]);
    assert!(file("forever").exists(), "the daemon may have taken it");
    let same = daemon.run(&["create", "same", "--primary", "/a", "--secondary", "/a"]);
    assert_fails(&same, 1, &["primary and secondary are the same"]);
    assert!(!file("same").exists());
}

#[test]
fn wrong_configuration_is_named_by_file_line_and_key() {
    let daemon = fake::daemon();
    let directory = daemon.directory.path().join("etc");
    fs::create_dir(&directory).expect("mkdir");
    fs::write(directory.join("farpoint.toml"), "# a comment\nlog = \"loud\"\n").expect("written");
    let run = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_farpoint"))
            .arg("--config-dir")
            .arg(&directory)
            .args(arguments)
            .output()
            .expect("the program runs")
    };
    for arguments in [&["status"], &["daemon"]] {
        assert_fails(&run(arguments), 1, &["farpoint.toml:2: log: unknown variant `loud`"]);
    }
}

#[test]
fn completions_and_man_pages_are_made() {
    let daemon = fake::daemon();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = out(&daemon.run(&["completions", shell]));
        assert!(script.contains("increment-complete"), "{shell}");
    }
    let directory = daemon.directory.path().display().to_string();
    out(&daemon.run(&["man", &directory]));
    for page in ["farpoint".to_owned()].into_iter().chain(COMMANDS.map(|command| format!("farpoint-{command}"))) {
        let text = fs::read_to_string(daemon.directory.path().join(format!("{page}.8"))).expect(&page);
        assert!(text.contains(".TH") && text.contains("8 "), "{text}");
        assert!(text.contains("Exit codes"), "{page}");
    }
    assert_fails(&daemon.run(&["man", "/nowhere"]), 7, &["cannot write /nowhere"]);
}

/// Keeps the table above honest: every command has its help tested.
#[test]
fn no_command_is_left_out() {
    let daemon: Daemon = fake::daemon();
    let help = out(&daemon.run(&["-h"]));
    let listed = help.split("Commands:").nth(1).and_then(|text| text.split("Options:").next()).expect("a list");
    let names: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert_eq!(names, COMMANDS);
}
