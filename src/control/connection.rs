//! One client: takes its lines one at a time, asks the controller, writes the answers. Whatever the client does or
//! leaves undone, it costs a bounded amount of memory and time, and nobody waits for it but this task.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::lines::{LineError, Lines};
use super::peer::Right;
use super::rpc::{self, Command, Id, LINE_BYTES_MAX, Refusal};
use super::server::Limits;
use crate::controller::api::{Done, Events, Failure, FailureKind, Request, Response};
use crate::controller::call::{Call, EVENTS_MAX, Peer};

/// How often a client that waits for an answer is looked at, whether it is still there.
const HANG_UP_CHECK_EVERY: Duration = Duration::from_millis(250);
/// Pause after a line that is refused, so that a flood of them costs little. The first few are mistakes.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(20);
const REFUSALS_WITHOUT_PAUSE: u32 = 8;
/// How long a connection that ends with an error goes on taking what was sent, so that the client reads the error.
const LINGER_TIME_MAX: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// The connection is over; there is nobody left to tell.
struct Over;

pub(super) struct Connection {
    stream: UnixStream,
    peer: Peer,
    right: Right,
    calls: mpsc::Sender<Call>,
    limits: Limits,
    /// Lines refused so far.
    refusals: u32,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, peer: Peer, right: Right, calls: mpsc::Sender<Call>, limits: Limits) -> Self {
        Self { stream, peer, right, calls, limits, refusals: 0 }
    }

    /// Serves the client until it is gone, misbehaves, or the daemon stops.
    pub(super) async fn run(mut self) {
        let mut lines = Lines::new(LINE_BYTES_MAX, self.limits.line_time_max);
        loop {
            let served = match lines.next(&mut self.stream).await {
                Ok(Some(line)) if line.iter().all(u8::is_ascii_whitespace) => Ok(()),
                Ok(Some(line)) => self.serve(&line).await,
                Ok(None) | Err(LineError::Io(_)) => return,
                Err(error @ (LineError::TooLong(_) | LineError::TooSlow(_))) => {
                    tracing::info!("{}: closing the connection: {error}", self.peer);
                    self.turn_away(&rpc::refusal_line(&Refusal::of_line(error.to_string()))).await;
                    return;
                }
            };
            if served.is_err() {
                return;
            }
            // Lines that are there already would be served without a pause; others have work to do too.
            tokio::task::yield_now().await;
        }
    }

    async fn serve(&mut self, line: &[u8]) -> Result<(), Over> {
        let Command { id, request } = match rpc::parse(line) {
            Ok(command) => command,
            Err(refusal) => {
                tracing::debug!("{}: refused: {}", self.peer, refusal.message);
                return self.refuse(&rpc::refusal_line(&refusal)).await;
            }
        };
        let (verb, volumes) = (request.verb(), request.volumes().join(" "));
        if !self.right.covers(&request) {
            tracing::warn!("{}: refused for want of permission: {verb} {volumes}", self.peer);
            let message = "you may not command this daemon; ask as root or as a member of its group";
            let failure = Failure::new(FailureKind::Permission, message);
            return self.refuse(&rpc::reply_line(&id, Err(&failure))).await;
        }
        if request.is_read_only() {
            tracing::debug!("{}: {verb} {volumes}", self.peer);
        } else {
            tracing::info!("{}: {verb} {volumes}", self.peer);
        }
        match request {
            Request::Events(events) => self.stream_events(&id, events).await,
            request => self.answer(&id, request).await,
        }
    }

    async fn refuse(&mut self, line: &[u8]) -> Result<(), Over> {
        self.write(line).await?;
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals > REFUSALS_WITHOUT_PAUSE {
            sleep(PAUSE_AFTER_REFUSAL).await;
        }
        Ok(())
    }

    /// Asks the controller and writes its answer. If the client goes first, the call goes with it.
    async fn answer(&mut self, id: &Id, request: Request) -> Result<(), Over> {
        let (reply, answer) = oneshot::channel();
        let call = Call::Request { request, peer: self.peer, reply };
        let asked = async {
            self.calls.send(call).await.map_err(|_| stopping())?;
            answer.await.unwrap_or_else(|_| Err(stopping()))
        };
        let answer = tokio::select! {
            answer = asked => answer,
            () = hung_up(&self.stream) => return Err(Over),
        };
        self.write(&rpc::reply_line(id, answer.as_ref())).await
    }

    /// Streams events until the controller ends it; the reply to the request comes after the last event.
    async fn stream_events(&mut self, id: &Id, events: Events) -> Result<(), Over> {
        let (sink, mut source) = mpsc::channel(EVENTS_MAX);
        let subscribed = tokio::select! {
            sent = self.calls.send(Call::Subscribe { events, sink }) => sent.is_ok(),
            () = hung_up(&self.stream) => return Err(Over),
        };
        if !subscribed {
            return self.write(&rpc::reply_line(id, Err(&stopping()))).await;
        }
        let mut dumped = false;
        loop {
            let event = tokio::select! {
                event = source.recv() => event,
                () = hung_up(&self.stream) => return Err(Over),
            };
            let Some(event) = event else { break };
            dumped |= event.object == "-";
            self.write(&rpc::event_line(&event)).await?;
        }
        if events.now && dumped {
            return self.write(&rpc::reply_line(id, Ok(&Response::Done(Done::default())))).await;
        }
        let message = "the event stream broke off: the daemon stops, or you read too slowly; subscribe again";
        self.write(&rpc::reply_line(id, Err(&Failure::new(FailureKind::Failed, message)))).await
    }

    async fn write(&mut self, line: &[u8]) -> Result<(), Over> {
        match timeout(self.limits.write_time_max, self.stream.write_all(line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Over),
            Err(_) => {
                tracing::info!("{}: closing the connection: the client does not read", self.peer);
                Err(Over)
            }
        }
    }

    /// Says a last line. A socket closed with unread input would take that line away from the client.
    async fn turn_away(&mut self, line: &[u8]) {
        let last_words = async {
            self.stream.write_all(line).await?;
            self.stream.shutdown().await?;
            let mut ignored = [0; 4096];
            let mut taken = 0;
            while taken < LINGER_BYTES_MAX {
                match self.stream.read(&mut ignored).await? {
                    0 => break,
                    count => taken += count,
                }
            }
            Ok::<_, io::Error>(())
        };
        let _ = timeout(LINGER_TIME_MAX, last_words).await;
    }
}

fn stopping() -> Failure {
    Failure::new(FailureKind::NotFound, "the daemon is stopping and gave no answer; ask again once it runs")
}

/// Returns when the client has closed its end. That it has only said its last word, as `socat` does after its input
/// ended, is no reason to drop what it waits for; therefore the end of input is not what is looked for.
async fn hung_up(stream: &UnixStream) {
    loop {
        sleep(HANG_UP_CHECK_EVERY).await;
        let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        if poll(&mut descriptors, PollTimeout::ZERO).is_err() {
            continue;
        }
        let events = descriptors.iter().filter_map(PollFd::revents).fold(PollFlags::empty(), |all, some| all | some);
        if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
    }
}
