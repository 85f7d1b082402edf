//! The command line: one file per command or close family of them. It only asks the daemon and shows its answers, and
//! knows nothing of devices. By itself it only writes the file of a new volume and looks at metadata (`check`,
//! `dump`).

mod check;
mod context;
mod daemon;
mod devices;
mod documents;
mod events;
mod increment;
mod lifecycle;
mod metadata;
mod settings;
mod status;
mod units;
mod wait;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::controller::api::{Failure, FailureKind};
use crate::controller::config::{CONFIG_DIR, Config, LogLevel};
use crate::controller::limits;
use context::{Context, Stop};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no such volume, device or file, or the daemon is not running
  4  wrong state, for example run without start
  5  timed out
  6  no permission
  7  I/O error
  8  refused because it is not safe; --force does it all the same
  9  check: the metadata is damaged
'farpoint status --check' uses those of monitoring plug-ins instead: 0 healthy, 1 degraded, 2 critical, 3 unknown.";

/// Mirrors changed tracks of a block device and forms consistency points
///
/// farpoint serves /dev/ublkbN over a primary device or file and mirrors changed tracks to a secondary. Three commands
/// form a consistency point over one or more volumes: start, run and increment-complete.
#[derive(Debug, Parser)]
#[command(name = "farpoint", version, after_help = EXIT_CODES, styles = Styles::plain(), max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// Control socket of the daemon [default: control.sock in its run directory]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of the configuration
    #[arg(long, global = true, value_name = "DIR", default_value = CONFIG_DIR)]
    config_dir: PathBuf,
    /// Print JSON: the daemon's result as it is, and failures as {"error": {...}}
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but what was asked for
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more; twice for even more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Give up after this time, with exit code 5
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    #[arg(help = "Colour the output; NO_COLOR in the environment turns auto off")]
    color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Daemon,
    /// Make a volume: its configuration and its metadata
    Create(lifecycle::Create),
    /// Forget a volume that is down: its state and its configuration file; the data stays
    Delete(lifecycle::Delete),
    /// Make the volume's device appear and start mirroring; prints the device
    Up(lifecycle::Up),
    /// Stop mirroring and remove the volume's device
    Down(lifecycle::Down),
    /// Show the state of volumes, or check it for monitoring
    Status(status::Status),
    /// List the devices of farpoint volumes, those that have outlived their daemon as well
    Devices(devices::List),
    /// Remove a device that has outlived its daemon and whose volume no longer exists
    RemoveDevice(devices::Remove),
    /// Begin an increment: cut all named volumes at once and hold new writes until run
    Start(increment::Start),
    /// Let the held writes go; they are recorded for the next increment
    Run(increment::Volumes),
    /// End the increment once it is drained
    IncrementComplete(increment::Volumes),
    /// Give the increment up; nothing is lost, its tracks are simply out of sync again
    Abort(increment::Volumes),
    /// Wait until volumes are drained, in sync or without an increment
    Wait(wait::Wait),
    /// Stop the drain; writes go on being tracked
    Pause(settings::Volumes),
    /// Let the drain go on
    Resume(settings::Volumes),
    /// Change settings of volumes; they last until changed again
    Set(settings::Set),
    /// Print what exists and then what changes, one line each
    Events(events::Events),
    /// Look for damage in what is on media for a volume; ends with 9 if there is any
    Check(metadata::Place),
    /// Print what is on media for a volume; needs no daemon
    Dump(metadata::Place),
    /// Print completions for a shell
    Completions(documents::Completions),
    /// Write the man pages into a directory
    Man(documents::Man),
}

impl Command {
    fn verb(&self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Create(_) => "create",
            Self::Delete(_) => "delete",
            Self::Up(_) => "up",
            Self::Down(_) => "down",
            Self::Status(_) => "status",
            Self::Devices(_) => "devices",
            Self::RemoveDevice(_) => "remove-device",
            Self::Start(_) => "start",
            Self::Run(_) => "run",
            Self::IncrementComplete(_) => "increment-complete",
            Self::Abort(_) => "abort",
            Self::Wait(_) => "wait",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Set(_) => "set",
            Self::Events(_) => "events",
            Self::Check(_) => "check",
            Self::Dump(_) => "dump",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }
}

/// Reads the command line. What is wrong with it is one line, and help is help; both end the program with this code.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody reads it: nothing can be done about that.
            let _ = write!(std::io::stdout(), "{error}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("farpoint: {}", usage_error(&error));
            ExitCode::from(FailureKind::Usage.exit_code())
        }
    })
}

/// What clap says over several lines, in one.
fn usage_error(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.split("\n\n").next().unwrap_or_default();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = limits::shorten(&words, 300);
    if matches!(error.kind(), ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) {
        return "no command is given; see 'farpoint --help'".to_owned();
    }
    format!("{text}; see 'farpoint --help'")
}

impl Cli {
    /// How much of the log is wanted on standard error.
    pub fn log_level(&self) -> LevelFilter {
        if self.globals.quiet {
            return LevelFilter::ERROR;
        }
        let configured = match self.command {
            // What is wrong with the configuration is reported when the daemon starts.
            Command::Daemon => {
                Config::load(&self.globals.config_dir).map_or(LogLevel::Info, |config| config.daemon.log)
            }
            _ => LogLevel::Warn,
        };
        let levels = [LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
        let at = configured as usize + usize::from(self.globals.verbose);
        levels.get(at).copied().unwrap_or(LevelFilter::TRACE)
    }

    /// Runs the command and says what failed in one line.
    pub fn run(self) -> ExitCode {
        let verb = self.command.verb();
        let context = Context::new(self.globals);
        let outcome = match self.command {
            Command::Daemon => daemon::run(&context),
            Command::Create(create) => create.run(&context),
            Command::Delete(delete) => delete.run(&context),
            Command::Up(up) => up.run(&context),
            Command::Down(down) => down.run(&context),
            Command::Status(status) => status.run(&context),
            Command::Devices(command) => command.run(&context),
            Command::RemoveDevice(remove) => remove.run(&context),
            Command::Start(start) => start.run(&context),
            Command::Run(volumes) => volumes.run(&context),
            Command::IncrementComplete(volumes) => volumes.complete(&context),
            Command::Abort(volumes) => volumes.abort(&context),
            Command::Wait(wait) => wait.run(&context),
            Command::Pause(volumes) => volumes.pause(&context),
            Command::Resume(volumes) => volumes.resume(&context),
            Command::Set(set) => set.run(&context),
            Command::Events(events) => events.run(&context),
            Command::Check(place) => place.check(&context),
            Command::Dump(place) => place.dump(&context),
            Command::Completions(completions) => completions.run(&context),
            Command::Man(man) => man.run(&context),
        };
        match outcome {
            Ok(code) => ExitCode::from(code),
            Err(Stop::ReaderGone) => ExitCode::SUCCESS,
            Err(Stop::Failure(failure)) => {
                context.report(verb, &failure);
                ExitCode::from(failure.kind.exit_code())
            }
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "write seconds, from 0.001 to 31536000".to_owned();
    let number: f64 = text.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from_secs_f64(number).map_err(|_| wrong())?;
    u64::try_from(duration.as_millis()).ok().filter(|ms| limits::TIMEOUT_MS.allows(*ms)).ok_or_else(wrong)?;
    Ok(duration)
}

/// The answer was not of the kind that was asked for.
fn unexpected(error: &serde_json::Error) -> Failure {
    let why = format!("the daemon's answer cannot be read: {error}; are client and daemon of one version?");
    Failure::new(FailureKind::Failed, why)
}

/// The whole command line, for completions and man pages.
fn command() -> clap::Command {
    Cli::command()
}
