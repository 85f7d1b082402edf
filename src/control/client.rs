//! The other end of the control socket, for the command line: asks, and waits no longer than it was told to. It blocks,
//! so it must never be used inside the daemon.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::value::RawValue;

use super::rpc::{self, Id, Message};
use crate::controller::api::{Failure, FailureKind, Request};

/// Longest answer the client takes; a status report of very many volumes is far below.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pause before the next try when the daemon's queue of connections is full.
const CONNECT_AGAIN_AFTER: Duration = Duration::from_millis(20);
const READ_BYTES: usize = 16 * 1024;

/// When to give up; never, if absent.
pub type Deadline = Option<Instant>;

#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    /// How much of it is known to have no end of line in it.
    searched: usize,
    last_id: i64,
}

impl Client {
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self, Failure> {
        let stream = connect_until(path, deadline).map_err(|error| unreachable(path, &error))?;
        Ok(Self { stream, received: Vec::new(), searched: 0, last_id: 0 })
    }

    /// Asks one question and takes its answer, which is the result as the daemon wrote it.
    pub fn ask(&mut self, request: &Request, deadline: Deadline) -> Result<Box<RawValue>, Failure> {
        self.send(request, deadline)?;
        loop {
            match self.receive(deadline)? {
                Some(Message::Reply(_, answer)) => return answer,
                Some(Message::Event(_)) => {}
                None => {
                    let message =
                        format!("no answer to {} in the time given; the daemon may still do it", request.verb());
                    return Err(Failure::new(FailureKind::TimedOut, message));
                }
            }
        }
    }

    pub fn send(&mut self, request: &Request, deadline: Deadline) -> Result<(), Failure> {
        request.check()?;
        self.last_id += 1;
        let line = rpc::request_line(&Id::Number(self.last_id), request);
        let time = time_left(deadline).unwrap_or(Some(Duration::from_millis(1)));
        let sent = self.stream.set_write_timeout(time).and_then(|()| self.stream.write_all(&line));
        match sent {
            // The daemon may have said why it hung up; then that is the answer.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(lost(&error)),
            Ok(()) => Ok(()),
        }
    }

    /// The next message, or nothing when the time is over.
    pub fn receive(&mut self, deadline: Deadline) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(line) = self.take_line()? {
                return match rpc::parse_message(&line)? {
                    Message::Reply(Some(id), _) if id != Id::Number(self.last_id) => continue,
                    message => Ok(Some(message)),
                };
            }
            let Some(time) = time_left(deadline) else { return Ok(None) };
            let mut chunk = [0; READ_BYTES];
            match self.stream.set_read_timeout(time).and_then(|()| self.stream.read(&mut chunk)) {
                Ok(0) => {
                    let message = "the daemon closed the connection without an answer; see its log";
                    return Err(Failure::new(FailureKind::NotFound, message));
                }
                Ok(count) => self.received.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let unsearched = self.received.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n').map(|at| at + self.searched) else {
            self.searched = self.received.len();
            if self.searched > ANSWER_BYTES_MAX {
                let message = "the daemon's answer is too long; is it a farpoint daemon that listens there?";
                return Err(Failure::new(FailureKind::Failed, message));
            }
            return Ok(None);
        };
        self.searched = 0;
        let rest = self.received.split_off(end + 1);
        Ok(Some(std::mem::replace(&mut self.received, rest)))
    }
}

/// The time until the deadline, for a socket's timeout: no limit, or not zero. Nothing when the time is over.
#[expect(clippy::option_option, reason = "the outer one is the end of the time, the inner one what sockets take")]
fn time_left(deadline: Deadline) -> Option<Option<Duration>> {
    let Some(deadline) = deadline else { return Some(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(Some(left))
}

/// A full queue of connections blocks a blocking connect without bound, so this one does not block.
fn connect_until(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let stream = UnixStream::from(descriptor);
    loop {
        match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) if time_left(deadline).is_some() => sleep(CONNECT_AGAIN_AFTER),
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let message = format!("no daemon listens at {path}; start it with: farpoint daemon");
            Failure::new(FailureKind::NotFound, message)
        }
        ErrorKind::PermissionDenied => {
            let message = format!("you may not use {path}; ask as root or as a member of the daemon's group");
            Failure::new(FailureKind::Permission, message)
        }
        ErrorKind::WouldBlock => {
            let message = format!("the daemon at {path} took no connection in the time given; see its log");
            Failure::new(FailureKind::TimedOut, message)
        }
        _ => Failure::new(FailureKind::Io, format!("cannot connect to {path}: {error}")),
    }
}

fn lost(error: &io::Error) -> Failure {
    if is_pause(error) {
        return Failure::new(
            FailureKind::TimedOut,
            "the daemon did not take the request in the time given; see its log",
        );
    }
    Failure::new(FailureKind::Io, format!("the connection to the daemon is lost: {error}; see its log"))
}
