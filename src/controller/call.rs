//! What the control socket hands to the controller: one checked request with a place for its answer, or a
//! subscription with a place for its events. Both ends are bounded; nothing here may make the controller wait.

use tokio::sync::{mpsc, oneshot};

use super::api::{Event, Events, Failure, Request, Response};

/// Most calls that wait for the controller; further clients wait their turn.
pub const CALLS_MAX: usize = 64;
/// Most events that wait for one slow reader. The controller drops a sink that is full, it never waits for it.
pub const EVENTS_MAX: usize = 1024;

/// Who asks, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    /// Absent when the peer is in another process namespace.
    pub pid: Option<i32>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "uid {} pid {pid}", self.uid),
            None => write!(f, "uid {} pid unknown", self.uid),
        }
    }
}

#[derive(Debug)]
pub enum Call {
    /// Never `Request::Events`. `reply` is closed as soon as the client is gone, which ends a `wait`.
    Request { request: Request, peer: Peer, reply: oneshot::Sender<Result<Response, Failure>> },
    /// First what exists, ended by the object `-`; then what changes, unless `events.now`. Dropping the sink ends it.
    Subscribe { events: Events, sink: mpsc::Sender<Event> },
}
