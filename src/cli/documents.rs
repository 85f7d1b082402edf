//! `completions` and `man`: made from the command line's own description, so that they cannot say anything else.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::context::{Context, Outcome};
use crate::controller::api::{Failure, FailureKind};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell the completions are for
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "farpoint", &mut script);
        context.print(String::from_utf8_lossy(&script).trim_end())?;
        Ok(0)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Directory the pages are written to; it must exist
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let mut command = super::command();
        command.build();
        write(&self.directory, "farpoint", command.clone())?;
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            let name = format!("farpoint-{}", subcommand.get_name());
            write(&self.directory, &name, subcommand.clone())?;
        }
        if !context.globals.quiet {
            context.print(&format!("man pages written to {}", self.directory.display()))?;
        }
        Ok(0)
    }
}

fn write(directory: &Path, name: &str, command: clap::Command) -> Result<(), Failure> {
    let mut page = Vec::new();
    let path = directory.join(format!("{name}.8"));
    let command = command.after_help(super::EXIT_CODES);
    let manual = "farpoint manual";
    let rendered = Page::new(command).section("8").manual(manual).render(&mut page);
    rendered.and_then(|()| fs::write(&path, page)).map_err(|error| {
        let message = format!("cannot write {}: {error}; name a directory that may be written", path.display());
        Failure::new(FailureKind::Io, message)
    })
}
