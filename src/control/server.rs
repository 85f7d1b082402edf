//! Listens on the control socket and gives each client a task of its own. It holds no state of volumes and never
//! touches one: every request goes through the channel to the controller.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::connection::Connection;
use super::peer::{Access, Right, peer_of};
use super::rpc;
use super::socket::Socket;
use crate::controller::api::{Failure, FailureKind};
use crate::controller::call::{Call, Peer};
use crate::controller::config::DaemonConfig;

/// Pause after an `accept` that failed, for example for want of file descriptors, which only time can mend.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// How often the log says that there are too many clients.
const FULL_WARNING_EVERY: Duration = Duration::from_secs(10);

/// How much clients may ask of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub clients_max: usize,
    /// Of these, how many may be others than root, so that they cannot keep root out.
    pub others_max: usize,
    /// Of these, how many may be without the right to command, so that they cannot keep out those who have it.
    pub askers_max: usize,
    /// How long a line that was begun may take.
    pub line_time_max: Duration,
    /// How long a client may leave an answer unread.
    pub write_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 64,
            others_max: 56,
            askers_max: 32,
            line_time_max: Duration::from_secs(10),
            write_time_max: Duration::from_secs(10),
        }
    }
}

/// The control socket, bound: from here on no second daemon can start, and clients wait to be served.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    access: Access,
    limits: Limits,
}

impl Server {
    /// Makes the socket. Must be called inside a tokio runtime.
    pub fn bind(config: &DaemonConfig) -> Result<Self, Failure> {
        Self::bind_with(config, Limits::default())
    }

    pub fn bind_with(config: &DaemonConfig, limits: Limits) -> Result<Self, Failure> {
        let access = Access::new(config)?;
        Ok(Self { socket: Socket::bind(config, access)?, access, limits })
    }

    /// Serves clients until the controller drops its end of `calls`.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let Self { socket, access, limits } = self;
        let mut places = Places::new(limits);
        let mut clients = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = socket.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!("cannot accept a control connection: {error}");
                        sleep(PAUSE_AFTER_ERROR).await;
                        continue;
                    }
                },
                Some(ended) = clients.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!("a control connection failed: {error}");
                    }
                    continue;
                }
                () = calls.closed() => return,
            };
            // A client that went again at once has no credentials any more.
            let Ok(peer) = peer_of(&stream) else { continue };
            let Some(place) = places.take(&peer) else {
                turn_away(stream);
                continue;
            };
            let (calls, askers) = (calls.clone(), Arc::clone(&places.askers));
            clients.spawn(async move {
                let right = access.right_of(&peer).await;
                let asker = if right < Right::Command { askers.try_acquire_owned().map(Some) } else { Ok(None) };
                match asker {
                    Ok(_asker) => Connection::new(stream, peer, right, calls, limits).run().await,
                    Err(_) => turn_away(stream),
                }
                drop(place);
            });
            // A burst of clients is not all taken in before the first of them could have been served and be gone.
            tokio::task::yield_now().await;
        }
    }
}

/// How many clients there still may be, of each sort.
struct Places {
    all: Arc<Semaphore>,
    others: Arc<Semaphore>,
    askers: Arc<Semaphore>,
    warned: Option<Instant>,
}

/// Given back when the client is gone.
struct Place {
    _all: OwnedSemaphorePermit,
    _other: Option<OwnedSemaphorePermit>,
}

impl Places {
    fn new(limits: Limits) -> Self {
        let of = |count| Arc::new(Semaphore::new(count));
        Self { all: of(limits.clients_max), others: of(limits.others_max), askers: of(limits.askers_max), warned: None }
    }

    fn take(&mut self, peer: &Peer) -> Option<Place> {
        let place = self.try_take(peer);
        let now = Instant::now();
        if place.is_none() && self.warned.is_none_or(|warned| now.duration_since(warned) > FULL_WARNING_EVERY) {
            self.warned = Some(now);
            tracing::warn!("{peer}: turned away, there are too many control clients");
        }
        place
    }

    fn try_take(&self, peer: &Peer) -> Option<Place> {
        let is_root = peer.uid == 0;
        let other = if is_root { None } else { Some(Arc::clone(&self.others).try_acquire_owned().ok()?) };
        Some(Place { _all: Arc::clone(&self.all).try_acquire_owned().ok()?, _other: other })
    }
}

/// Says why and hangs up without waiting: a new connection has room for a line.
fn turn_away(stream: UnixStream) {
    let failure = Failure::new(FailureKind::Failed, "there are too many control clients; close some and try again");
    let said = stream.into_std().and_then(|mut stream| stream.write_all(&rpc::failure_line(&failure)));
    if let Err(error) = said {
        tracing::debug!("a client turned away was not told: {error}");
    }
}
