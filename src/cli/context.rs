//! What every command needs: where the daemon is, how long to wait, and how to print. Nothing panics because a reader
//! went away, and nothing from outside reaches the terminal with control characters in it.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::{Color, Globals, units};
use crate::control::client::{Client, Deadline};
use crate::controller::api::{Failure, FailureKind, Request};
use crate::controller::config::{Config, DaemonConfig};

/// Longest message of an error, in characters.
const MESSAGE_CHARS_MAX: usize = 1000;

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Stop {
    Failure(Failure),
    /// Whoever read the output, for example `head`, has enough.
    ReaderGone,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The exit code, or why there is none.
pub(super) type Outcome = Result<u8, Stop>;

#[derive(Debug)]
pub(super) struct Context {
    pub(super) globals: Globals,
    deadline: Deadline,
}

impl Context {
    pub(super) fn new(globals: Globals) -> Self {
        let deadline = globals.timeout.map(|timeout| Instant::now() + timeout);
        Self { globals, deadline }
    }

    pub(super) fn config(&self) -> Result<Config, Failure> {
        Config::load(&self.globals.config_dir)
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Later than the daemon's own, whose message says more.
    pub(super) fn deadline_with_grace(&self) -> Deadline {
        self.deadline.map(|deadline| deadline + Duration::from_secs(1))
    }

    fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.globals.socket {
            return Ok(socket.clone());
        }
        match self.config() {
            Ok(config) => Ok(config.daemon.socket_path()),
            // Who may not read the configuration may still ask the daemon where it usually is.
            Err(failure) if failure.kind == FailureKind::Permission => Ok(DaemonConfig::default().socket_path()),
            Err(failure) => Err(failure),
        }
    }

    pub(super) fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.socket()?, self.deadline)
    }

    /// Asks the daemon one question. What is wrong with it is found even when there is no daemon.
    pub(super) fn ask(&self, request: &Request) -> Result<Box<RawValue>, Failure> {
        request.check()?;
        self.connect()?.ask(request, self.deadline)
    }

    /// Asks, and shows the result: as it came with `--json`, else as a line that `-q` leaves out.
    pub(super) fn command(
        &self,
        request: &Request,
        done: impl FnOnce(&RawValue) -> Result<String, Failure>,
    ) -> Outcome {
        let result = self.ask(request)?;
        self.show_result(&result, done)
    }

    pub(super) fn show_result(
        &self,
        result: &RawValue,
        done: impl FnOnce(&RawValue) -> Result<String, Failure>,
    ) -> Outcome {
        if self.globals.json {
            self.print(result.get())?;
        } else if !self.globals.quiet {
            self.print(&done(result)?)?;
        }
        Ok(0)
    }

    /// Prints what was asked for, and a line end.
    #[expect(clippy::unused_self, reason = "all printing goes through the context")]
    pub(super) fn print(&self, text: &str) -> Result<(), Stop> {
        let mut output = io::stdout().lock();
        match writeln!(output, "{text}").and_then(|()| output.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::ReaderGone),
            Err(error) => Err(Failure::new(FailureKind::Io, format!("cannot write the output: {error}")).into()),
        }
    }

    /// Says what failed: one line on standard error, and an object for who asked for JSON.
    pub(super) fn report(&self, verb: &str, failure: &Failure) {
        let message = units::one_line(&failure.message, MESSAGE_CHARS_MAX);
        eprintln!("farpoint: {verb}: {message}");
        if self.globals.json {
            let (kind, exit_code) = (failure.kind.word(), failure.kind.exit_code());
            let error = serde_json::json!({"error": {"kind": kind, "exit_code": exit_code, "message": message}});
            // The failure has been said on standard error already.
            let _ = self.print(&error.to_string());
        }
    }

    pub(super) fn colored(&self) -> bool {
        match self.globals.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !refused && io::stdout().is_terminal()
            }
        }
    }
}

/// Asks a person whether `what` is really wanted. A program that asks must say so with `--yes`.
pub(super) fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let message = format!("would {what}, and there is no terminal to ask at; say --yes if that is wanted");
        return Err(Failure::new(FailureKind::Usage, message));
    }
    eprint!("This will {what}. Go on? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(FailureKind::Failed, "not confirmed; nothing was done")),
    }
}
