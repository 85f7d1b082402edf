//! A real control server on a thread of its own, in front of a controller that only pretends: it answers by the names
//! of volumes. Must never grow logic of its own; what is tested is all that stands before a controller.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use farpoint::control::server::{Limits, Server};
use farpoint::controller::api::{
    CollisionPolicy, Counters, DeviceReport, DeviceState, Devices, Done, Event, EventAction, Failure, FailureKind,
    IncrementReply, KernelReport, LeftOut, LinkState, Request, Response, STATUS_SCHEMA, Settings, StatusReport,
    UpReply, VolumeReport, VolumeState,
};
use farpoint::controller::call::{CALLS_MAX, Call};
use farpoint::controller::config::DaemonConfig;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// What a volume that is up may have to say.
pub const WARNING: &str = "\"/srv/b\" is used\nthrough the page cache; move it";

/// How long a healthy daemon may take for an answer on a busy test machine.
pub const PROMPT: Duration = Duration::from_secs(5);

/// Waits that were given up because their client went away.
pub type Dropped = Arc<AtomicUsize>;

pub struct Daemon {
    pub directory: TempDir,
    pub dropped_waits: Dropped,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub fn daemon() -> Daemon {
    daemon_with(Limits::default(), |_| {})
}

pub fn daemon_with(limits: Limits, adapt: impl FnOnce(&mut DaemonConfig)) -> Daemon {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut config = DaemonConfig { run_dir: directory.path().join("run"), ..DaemonConfig::default() };
    adapt(&mut config);
    let dropped_waits = Dropped::default();
    let (stop, stopped) = oneshot::channel();
    let (started, is_started) = std::sync::mpsc::channel();
    let dropped = Arc::clone(&dropped_waits);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let server = Server::bind_with(&config, limits).expect("bound");
            let (sender, calls) = mpsc::channel(CALLS_MAX);
            let serving = tokio::spawn(server.serve(sender));
            started.send(()).expect("test waits");
            tokio::select! {
                () = pretend(calls, dropped) => {}
                _ = stopped => {}
            }
            serving.await.expect("the server ends when the controller does");
        });
    });
    is_started.recv().expect("started");
    Daemon { directory, dropped_waits, stop: Some(stop), thread: Some(thread) }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("a thread").expect("the daemon did not panic");
        }
    }
}

impl Daemon {
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/control.sock")
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("connected");
        stream.set_read_timeout(Some(PROMPT)).expect("timeout");
        stream.set_write_timeout(Some(PROMPT)).expect("timeout");
        stream
    }

    /// Sends one line on a new connection and reads one line.
    pub fn ask(&self, line: &[u8]) -> Value {
        let mut stream = self.connect();
        // A daemon that refuses early may hang up while we still write; its answer is there all the same.
        let _ = stream.write_all(line).and_then(|()| stream.write_all(b"\n"));
        answer(&stream)
    }

    /// Whatever else goes on, somebody who behaves is served.
    pub fn assert_serves(&self) {
        let begun = Instant::now();
        let answer = self.ask(br#"{"jsonrpc":"2.0","id":"alive","method":"status"}"#);
        assert_eq!(answer["result"]["schema"], STATUS_SCHEMA, "{answer}");
        assert!(begun.elapsed() < PROMPT, "took {:?}", begun.elapsed());
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farpoint"));
        command.arg("--socket").arg(self.socket()).arg("--config-dir").arg(self.directory.path().join("etc"));
        command.args(arguments).env_remove("COLUMNS").env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }
}

/// The next line that a server says.
pub fn answer(stream: &UnixStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer in time");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

async fn pretend(mut calls: mpsc::Receiver<Call>, dropped: Dropped) {
    while let Some(call) = calls.recv().await {
        match call {
            Call::Request { request, reply, .. } => {
                let dropped = Arc::clone(&dropped);
                tokio::spawn(async move { pretend_answer(request, reply, &dropped).await });
            }
            Call::Subscribe { events, sink } => {
                tokio::spawn(async move {
                    let _ = sink.send(event("volume", "vol0", &[("state", "normal"), ("lag", "0s")])).await;
                    let _ = sink.send(event("-", "", &[])).await;
                    // A flood: an event stream that nobody reads must end, not grow.
                    while events.statistics
                        && sink.try_send(event("volume", "flood", &[("n", &"x".repeat(200))])).is_ok()
                    {
                        tokio::task::yield_now().await;
                    }
                    if !events.now && !events.statistics {
                        sink.closed().await;
                    }
                });
            }
        }
    }
}

async fn pretend_answer(request: Request, mut reply: oneshot::Sender<Result<Response, Failure>>, dropped: &Dropped) {
    let first = request.volumes().first().cloned().unwrap_or_default();
    let kind = match first.as_str() {
        "missing" => Some(FailureKind::NotFound),
        "busy" => Some(FailureKind::WrongState),
        "broken" => Some(FailureKind::Io),
        "precious" => Some(FailureKind::Unsafe),
        "odd" => Some(FailureKind::Failed),
        "forever" => {
            reply.closed().await;
            dropped.fetch_add(1, Ordering::SeqCst);
            return;
        }
        "mute" => return,
        _ => None,
    };
    let answer = match kind {
        Some(kind) => Err(Failure::new(kind, format!("{first} is {}; do\nsomething", kind.word()))),
        None => Ok(response(&request)),
    };
    let _ = reply.send(answer);
}

fn response(request: &Request) -> Response {
    let volumes = request.volumes().to_vec();
    match request {
        Request::Status(_) => Response::Status(Box::new(report())),
        Request::Devices(_) => {
            let device = |number: u32, state, volume: Option<&str>| DeviceReport {
                device: format!("/dev/ublkb{number}"),
                state,
                volume: volume.map(str::to_owned),
            };
            let served = device(0, DeviceState::Served, Some("vol0"));
            Response::Devices(Devices { devices: vec![served, device(3, DeviceState::Waiting, None)] })
        }
        Request::Up(one) => Response::Up(UpReply {
            volume: one.volume.clone(),
            device: "/dev/ublkb7".into(),
            warnings: vec![WARNING.into()],
        }),
        Request::Down(_) if volumes == ["vol1"] => {
            Response::Done(Done { volumes, warnings: vec!["vol1 did not stop cleanly".into()] })
        }
        Request::Start(_) | Request::Run(_) | Request::IncrementComplete(_) | Request::Abort(_) => {
            Response::Increment(IncrementReply { increment: 1842, volumes, hold_us: 1_250 })
        }
        _ => Response::Done(Done::of(volumes)),
    }
}

fn event(object: &str, name: &str, fields: &[(&str, &str)]) -> Event {
    let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Event { action: EventAction::Exists, object: object.into(), name: name.into(), fields }
}

/// One volume in the middle of an increment, and one that is new and in trouble.
pub fn report() -> StatusReport {
    let running = VolumeReport {
        name: "vol0".into(),
        state: VolumeState::IncrementInProgress,
        reason: None,
        warnings: vec![WARNING.into()],
        device: Some("/dev/ublkb0".into()),
        size: 100 << 30,
        track_size: 65_536,
        primary: "/dev/mapper/a0".into(),
        secondary: "/dev/mapper/b0".into(),
        metadata: "/var/lib/farpoint/vol0.meta".into(),
        metadata_failed: false,
        metadata_stalled_s: None,
        recovered_regions: 12,
        hot_regions: 40,
        damaged_pages: 0,
        link: LinkState::Up,
        full_copy_needed: false,
        increment: Some(1842),
        drained: false,
        in_sync: false,
        last_complete: Some(1841),
        last_complete_age_s: Some(31.4),
        lag_s: 38.2,
        out_of_sync_tracks: 20_871,
        out_of_sync_bytes: 1_367_801_856,
        recorded_tracks: 192,
        in_transit_bytes: 4 << 20,
        unreadable_tracks: 0,
        rate_bytes_per_s: 212 << 20,
        eta_s: Some(6.1),
        images_used: 3,
        images_max: 1024,
        settings: Settings::default(),
        counters: Counters { host_writes: 123_456, collisions: 3, hold_us_max: 1_250, ..Counters::default() },
    };
    let settings =
        Settings { collision_policy: CollisionPolicy::SendFirst, bandwidth_limit: 10 << 20, ..Settings::default() };
    let troubled = VolumeReport {
        name: "vol1".into(),
        state: VolumeState::Failed,
        reason: Some("the secondary is \"gone\":\n\u{1b}[31mno such device".into()),
        device: None,
        primary: "/srv/my disk".into(),
        secondary: "/dev/b1".into(),
        metadata: "/srv/my metadata".into(),
        metadata_failed: true,
        metadata_stalled_s: Some(7.5),
        recovered_regions: 0,
        hot_regions: 7,
        damaged_pages: 1,
        link: LinkState::Failing,
        full_copy_needed: true,
        increment: None,
        last_complete: None,
        last_complete_age_s: None,
        eta_s: None,
        unreadable_tracks: 2,
        settings,
        counters: Counters::default(),
        ..running.clone()
    };
    let kernel =
        KernelReport { release: "6.12.48".into(), ublk_features: vec!["user-recovery".into(), "zoned".into()] };
    let left_out = vec![LeftOut { name: "vol2".into(), reason: "there is no metadata at /mnt/away/vol2.meta".into() }];
    let volumes = vec![running, troubled];
    StatusReport { schema: STATUS_SCHEMA.into(), version: "0.1.0".into(), kernel, volumes, left_out }
}
