//! `farpoint daemon`: joins the control socket and the controller on one thread, and tells the service manager when
//! volumes are served. It stays in the foreground; detaching is the service manager's work.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::sync::mpsc;

use super::context::{Context, Outcome};
use crate::control::server::Server;
use crate::controller::api::{Failure, FailureKind};
use crate::controller::call::CALLS_MAX;
use crate::controller::{self, Controller};

/// How long what nobody waits for may take once everything else has ended: notes in the metadata that spare copying.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context) -> Outcome {
    let config = context.config()?;
    let _mounts = controller::prepare_process();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FailureKind::Failed, format!("cannot start the control thread: {error}")))?;
    let served = runtime.block_on(async {
        // First the socket: its lock keeps a second daemon from touching the volumes of the first.
        let server = Server::bind(&config.daemon)?;
        let (sender, calls) = mpsc::channel(CALLS_MAX);
        let serving = tokio::spawn(server.serve(sender));
        if let Some(pause) = heartbeat() {
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(pause);
                loop {
                    tick.tick().await;
                    let _ = notify("WATCHDOG=1");
                }
            });
        }
        let result = Controller::new(config).run(calls, ready).await;
        serving.abort();
        // Only when it is dropped are the socket and its lock given back.
        let _ = serving.await;
        result
    });
    // What still waits for a disk that hangs is not waited for.
    runtime.shutdown_timeout(LAST_WORDS);
    served?;
    Ok(0)
}

/// How often the service manager wants to hear that the control thread still runs, if it does.
fn heartbeat() -> Option<Duration> {
    let limit: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    // Half of the limit, as sd_watchdog_enabled(3) advises.
    Some(Duration::from_micros(limit / 2)).filter(|pause| !pause.is_zero())
}

/// Tells systemd, if it is there, that volumes are served.
fn ready() {
    tracing::info!("ready");
    if let Err(error) = notify("READY=1") {
        tracing::warn!("the service manager could not be told that the daemon is ready: {error}");
    }
}

fn notify(state: &str) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}
