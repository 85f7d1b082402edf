//! The program: reads the command line, sets up the log, runs the command, and ends with its exit code. Everything else
//! is in the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use farpoint::cli::{self, Cli};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(cli) => {
            start_log(&cli);
            cli.run()
        }
        Err(code) => code,
    }
}

/// Standard error is the log. The journal writes its own times.
fn start_log(cli: &Cli) {
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    // libublk tells of each queue and command; its warnings are enough.
    let level = cli.log_level();
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{level},libublk={}", level.min(LevelFilter::WARN))))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if in_journal {
        log.without_time().init();
    } else {
        log.init();
    }
}
