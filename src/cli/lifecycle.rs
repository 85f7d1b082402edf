//! `create`, `delete`, `up` and `down`. The daemon never takes a path from the socket, so `create` writes the volume's
//! file first; it never overwrites one, and takes it back when the daemon refuses the volume.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::context::{Context, Outcome, confirm};
use super::settings::{Changes, size};
use super::{unexpected, units};
use crate::controller::api::{self, Done, Failure, FailureKind, Request, UpReply};
use crate::controller::config::{Checksums, Config, Direct, MetadataErrorPolicy, VolumeConfig};
use crate::controller::limits;

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the volume: letters, digits, '.', '_' and '-'
    name: String,
    /// Device or file with the host's data; without it the volume's file must be there already
    #[arg(long, value_name = "PATH", requires = "secondary")]
    primary: Option<PathBuf>,
    /// Device or file that tracks go to
    #[arg(long, value_name = "PATH", requires = "primary")]
    secondary: Option<PathBuf>,
    /// Device or file for the volume's metadata; a file is made if there is none [default: in the state directory]
    #[arg(long, value_name = "PATH", requires = "primary")]
    metadata: Option<PathBuf>,
    /// What becomes of writes whose intent cannot be made durable [default: fail-io]
    #[arg(long, value_name = "POLICY", requires = "primary")]
    metadata_error: Option<OnMetadataError>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    settings: Changes,
    /// Accept a secondary that carries foreign data, or metadata of an earlier volume, which are overwritten; and that
    /// the device of a volume that is not known waits
    #[arg(long)]
    force: bool,
    /// Believe that the secondary is an exact copy of the primary already, and copy nothing at first; what it holds is
    /// not looked at
    #[arg(long)]
    in_sync: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Shape {
    /// Unit of tracking, a power of two from 4KiB to 1MiB [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    track_size: Option<u64>,
    /// Unit of what is copied again after a crash, a power of two from the track size to 64MiB; smaller ones take more
    /// memory, and more writes wait for the metadata [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    region_size: Option<u64>,
    /// Queues of the device, 1 to 32 [default: 1]
    #[arg(long, value_name = "COUNT")]
    queues: Option<u16>,
    /// Requests in each queue, 1 to 256 [default: 128]
    #[arg(long, value_name = "COUNT")]
    depth: Option<u16>,
    /// Memory for before-images, up to 16GiB [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    image_pool: Option<u64>,
    /// Requests to the secondary at a time, 1 to 256 [default: 16]
    #[arg(long, value_name = "COUNT")]
    drain_window: Option<u16>,
    /// I/O around the page cache [default: auto]
    #[arg(long, value_name = "WHEN")]
    direct: Option<When>,
    /// Contents that get a checksum on their way: those kept in memory for a while, or all [default: kept]
    #[arg(long, value_name = "WHICH")]
    checksums: Option<Which>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnMetadataError {
    /// The host gets an error
    FailIo,
    /// They wait until the volume is taken down
    SuspendIo,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    Kept,
    All,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum When {
    Auto,
    Off,
}

impl Shape {
    fn is_given(&self) -> bool {
        let Self { track_size, region_size, queues, depth, image_pool, drain_window, direct, checksums } = self;
        let sizes = [track_size, region_size, image_pool].into_iter().any(Option::is_some);
        let counts = [queues, depth, drain_window].into_iter().any(Option::is_some);
        sizes || counts || direct.is_some() || checksums.is_some()
    }

    fn apply(&self, volume: &mut VolumeConfig) -> Result<(), Failure> {
        volume.track_size = self.track_size.unwrap_or(volume.track_size);
        volume.region_size = self.region_size.unwrap_or(volume.region_size);
        volume.queues = self.queues.unwrap_or(volume.queues);
        volume.depth = self.depth.unwrap_or(volume.depth);
        volume.image_pool = self.image_pool.unwrap_or(volume.image_pool);
        volume.drain_window = self.drain_window.unwrap_or(volume.drain_window);
        volume.direct = match self.direct {
            Some(When::Off) => Direct::Off,
            _ => Direct::Auto,
        };
        volume.checksums = match self.checksums {
            Some(Which::All) => Checksums::All,
            _ => Checksums::Kept,
        };
        limits::TRACK_SIZE.check("track_size", volume.track_size)?;
        limits::REGION_SIZE.check("region_size", volume.region_size)?;
        limits::check_region_size(volume.region_size, volume.track_size)?;
        limits::QUEUES.check("queues", volume.queues.into())?;
        limits::DEPTH.check("depth", volume.depth.into())?;
        limits::IMAGE_POOL.check("image_pool", volume.image_pool)?;
        limits::DRAIN_WINDOW.check("drain_window", volume.drain_window.into())
    }
}

impl Create {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let volume = self.name.clone();
        let request = Request::Create(api::Create { volume, force: self.force, in_sync: self.in_sync });
        request.check()?;
        let description = self.description()?;
        if self.force {
            let what = "overwrite secondary and metadata even if they carry foreign data";
            confirm(self.yes, what)?;
        }
        if self.in_sync {
            confirm(self.yes, "believe, unchecked, that the secondary is an exact copy of the primary already")?;
        }
        let Some(description) = description else { return context.command(&request, |_| Ok(self.done())) };
        // Whether there is a daemon is asked first, so that a file is only there for a daemon to judge.
        let mut client = context.connect()?;
        let config = context.config()?;
        let file = config.write_volume(&self.name, &description)?;
        match client.ask(&request, context.deadline()) {
            Ok(result) => context.show_result(&result, |_| Ok(self.done())),
            Err(failure) => Err(take_back(&config, &self.name, &file, failure).into()),
        }
    }

    fn done(&self) -> String {
        format!("created {}", self.name)
    }

    /// What the volume's file is to say, or nothing if it is there already.
    fn description(&self) -> Result<Option<VolumeConfig>, Failure> {
        let changes = self.settings.change()?;
        let (Some(primary), Some(secondary)) = (&self.primary, &self.secondary) else {
            if self.shape.is_given() || changes != api::SettingsChange::default() {
                let message =
                    "settings are given but no --primary and --secondary; name both, or edit the volume's file";
                return Err(Failure::new(FailureKind::Usage, message));
            }
            return Ok(None);
        };
        let mut volume = VolumeConfig::new(absolute(primary)?, absolute(secondary)?);
        volume.metadata = self.metadata.as_deref().map(absolute).transpose()?;
        volume.metadata_error = match self.metadata_error {
            Some(OnMetadataError::SuspendIo) => MetadataErrorPolicy::SuspendIo,
            _ => MetadataErrorPolicy::FailIo,
        };
        self.shape.apply(&mut volume)?;
        if changes != api::SettingsChange::default() {
            changes.check()?;
        }
        let mut settings = volume.settings();
        changes.apply(&mut settings);
        Ok(Some(volume.with_settings(&settings)))
    }
}

/// Removes the file again, unless the daemon may have taken the volume although its answer did not arrive.
fn take_back(config: &Config, name: &str, file: &Path, failure: Failure) -> Failure {
    let Failure { kind, message } = failure;
    if matches!(kind, FailureKind::TimedOut) {
        return Failure::new(kind, format!("{message}; {} is left in place", file.display()));
    }
    match config.remove_volume(name) {
        Ok(()) => Failure { kind, message },
        Err(error) => Failure::new(kind, format!("{message}; its file could not be removed: {error}")),
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let wrong = |why: &str| {
        let path = limits::quote(&path.to_string_lossy());
        Failure::new(FailureKind::Usage, format!("\"{path}\" {why}; name a device or a file"))
    };
    if path.to_str().is_none() {
        return Err(wrong("is not UTF-8"));
    }
    std::path::absolute(path).map_err(|error| wrong(&format!("is no path ({error})")))
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Name of the volume
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Delete {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let request = Request::Delete(api::One { volume: self.name.clone() });
        request.check()?;
        confirm(self.yes, &format!("forget the volume {} and remove its configuration file", self.name))?;
        context.command(&request, |_| Ok(format!("deleted {}", self.name)))
    }
}

/// What is not as it should be, on standard error.
fn warn(verb: &str, warnings: &[String]) {
    for warning in warnings {
        eprintln!("farpoint: {verb}: warning: {}", units::one_line(warning, 1000));
    }
}

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Name of the volume
    name: String,
}

impl Up {
    pub(super) fn run(self, context: &Context) -> Outcome {
        context.command(&Request::Up(api::One { volume: self.name }), |result| {
            let reply: UpReply = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
            warn("up", &reply.warnings);
            Ok(limits::shorten(&reply.device, 4096))
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Down {
    /// Name of the volume
    name: String,
    /// Remove the device even if it is in use; its users get I/O errors
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Down {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let Self { name, force, .. } = self;
        let request = Request::Down(api::Down { volume: name.clone(), force });
        request.check()?;
        if force {
            confirm(self.yes, &format!("take {name} away from whoever uses it, whose I/O then fails"))?;
        }
        context.command(&request, |result| {
            let done: Done = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
            warn("down", &done.warnings);
            Ok(format!("{name} is down"))
        })
    }
}
