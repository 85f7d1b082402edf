//! The configuration directory: `farpoint.toml` with its drop-ins for the daemon, one file per volume. Every refusal
//! names file, line and key. A daemon that is root believes only files that nobody but root could have written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::api::{CollisionPolicy, Failure, FailureKind, Settings, SettingsChange};
use super::limits;
use super::rewrite;
use super::values::{
    bandwidth_limit_in_limit, collision_wait_in_limit, depth_in_limit, drain_window_in_limit, image_pool_in_limit,
    increment_timer_in_limit, path, queues_in_limit, region_size_in_limit, run_timer_in_limit, some_path,
    track_size_in_limit,
};

/// Where the configuration is unless the command line says otherwise.
pub const CONFIG_DIR: &str = "/etc/farpoint";

const DAEMON_FILE: &str = "farpoint.toml";
const DROP_IN_DIR: &str = "farpoint.toml.d";
const VOLUME_DIR: &str = "volumes.d";
const SUFFIX: &str = ".toml";
/// Most bytes of one file; a configuration file is a few lines.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const OTHERS_MAY_WRITE: u32 = 0o022;

/// The configuration of one daemon. Files of volumes are read when they are asked for, as they come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub directory: PathBuf,
    pub daemon: DaemonConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Holds the control socket.
    pub run_dir: PathBuf,
    /// Holds what must outlive the daemon.
    pub state_dir: PathBuf,
    /// The group whose members may command, by name.
    pub group: Option<String>,
    /// Anybody may ask, though not command.
    pub status_for_everyone: bool,
    pub log: LogLevel,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/farpoint"),
            state_dir: PathBuf::from("/var/lib/farpoint"),
            group: None,
            status_for_everyone: false,
            log: LogLevel::Info,
        }
    }
}

impl DaemonConfig {
    pub fn socket_path(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// One file of the daemon's settings: what it leaves out stays as the files before it have it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DaemonFile {
    #[serde(deserialize_with = "some_path")]
    run_dir: Option<PathBuf>,
    #[serde(deserialize_with = "some_path")]
    state_dir: Option<PathBuf>,
    group: Option<String>,
    status_for_everyone: Option<bool>,
    log: Option<LogLevel>,
}

/// One volume as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    #[serde(deserialize_with = "path")]
    pub primary: PathBuf,
    #[serde(deserialize_with = "path")]
    pub secondary: PathBuf,
    /// File or device for the metadata; without it a file in the state directory.
    #[serde(default, deserialize_with = "some_path", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PathBuf>,
    #[serde(default)]
    pub metadata_error: MetadataErrorPolicy,
    #[serde(default = "track_size", deserialize_with = "track_size_in_limit")]
    pub track_size: u64,
    /// Unit of durable intent, in bytes.
    #[serde(default = "region_size", deserialize_with = "region_size_in_limit")]
    pub region_size: u64,
    #[serde(default = "queues", deserialize_with = "queues_in_limit")]
    pub queues: u16,
    #[serde(default = "depth", deserialize_with = "depth_in_limit")]
    pub depth: u16,
    /// Bytes of memory for before-images.
    #[serde(default = "image_pool", deserialize_with = "image_pool_in_limit")]
    pub image_pool: u64,
    /// Most requests to the secondary at a time.
    #[serde(default = "drain_window", deserialize_with = "drain_window_in_limit")]
    pub drain_window: u16,
    #[serde(default)]
    pub direct: Direct,
    #[serde(default)]
    pub checksums: Checksums,
    #[serde(default)]
    pub collision_policy: CollisionPolicy,
    #[serde(default, deserialize_with = "bandwidth_limit_in_limit")]
    pub bandwidth_limit: u64,
    #[serde(default = "run_timer_ms", deserialize_with = "run_timer_in_limit")]
    pub run_timer_ms: u64,
    #[serde(default = "increment_timer_ms", deserialize_with = "increment_timer_in_limit")]
    pub increment_timer_ms: u64,
    #[serde(default = "collision_wait_ms", deserialize_with = "collision_wait_in_limit")]
    pub collision_wait_ms: u64,
    /// The volume comes up whenever the daemon starts.
    #[serde(default)]
    pub autostart: bool,
}

/// Whether I/O goes around the page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direct {
    /// Where the device or file system allows it.
    #[default]
    Auto,
    Off,
}

/// What becomes of writes whose intent cannot be made durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetadataErrorPolicy {
    /// The host gets an error.
    #[default]
    FailIo,
    /// They wait until the volume is taken down.
    SuspendIo,
}

/// Which contents get a checksum between the primary and the secondary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksums {
    /// Those kept in memory: before-images, and runs whose sending has to be repeated.
    #[default]
    Kept,
    /// Also those that are written as soon as they are read.
    All,
}

impl VolumeConfig {
    pub fn new(primary: PathBuf, secondary: PathBuf) -> Self {
        let Settings {
            collision_policy,
            bandwidth_limit,
            run_timer_ms,
            increment_timer_ms,
            collision_wait_ms,
            autostart,
        } = Settings::default();
        Self {
            primary,
            secondary,
            metadata: None,
            metadata_error: MetadataErrorPolicy::FailIo,
            track_size: track_size(),
            region_size: region_size(),
            queues: queues(),
            depth: depth(),
            image_pool: image_pool(),
            drain_window: drain_window(),
            direct: Direct::Auto,
            checksums: Checksums::Kept,
            collision_policy,
            bandwidth_limit,
            run_timer_ms,
            increment_timer_ms,
            collision_wait_ms,
            autostart,
        }
    }

    /// The settings a volume starts with, until `set` changes them.
    pub fn settings(&self) -> Settings {
        Settings {
            collision_policy: self.collision_policy,
            bandwidth_limit: self.bandwidth_limit,
            run_timer_ms: self.run_timer_ms,
            increment_timer_ms: self.increment_timer_ms,
            collision_wait_ms: self.collision_wait_ms,
            autostart: self.autostart,
        }
    }

    /// The same volume with other settings to start with.
    #[must_use]
    pub fn with_settings(self, settings: &Settings) -> Self {
        Self {
            collision_policy: settings.collision_policy,
            bandwidth_limit: settings.bandwidth_limit,
            run_timer_ms: settings.run_timer_ms,
            increment_timer_ms: settings.increment_timer_ms,
            collision_wait_ms: settings.collision_wait_ms,
            autostart: settings.autostart,
            ..self
        }
    }

    /// Parses the text of `file`, which is only named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Failure> {
        let volume: Self = parse(text, file)?;
        if volume.primary == volume.secondary {
            let why = format!("{}: primary and secondary are the same; name two devices or files", file.display());
            return Err(failed(why));
        }
        if volume.metadata.as_ref().is_some_and(|path| [&volume.primary, &volume.secondary].contains(&path)) {
            let why = format!("{}: metadata is the primary or the secondary; name a separate file", file.display());
            return Err(failed(why));
        }
        Ok(volume)
    }
}

impl Config {
    /// Reads `farpoint.toml` and then its drop-ins in the order of their names; none of them has to be there.
    pub fn load(directory: &Path) -> Result<Self, Failure> {
        let mut daemon = DaemonConfig::default();
        let mut files = vec![directory.join(DAEMON_FILE)];
        files.extend(names_in(&directory.join(DROP_IN_DIR))?.iter().map(|name| directory.join(DROP_IN_DIR).join(name)));
        for file in files {
            let Some(text) = read(&file)? else { continue };
            let DaemonFile { run_dir, state_dir, group, status_for_everyone, log } = parse(&text, &file)?;
            daemon.run_dir = run_dir.unwrap_or(daemon.run_dir);
            daemon.state_dir = state_dir.unwrap_or(daemon.state_dir);
            daemon.group = group.or(daemon.group);
            daemon.status_for_everyone = status_for_everyone.unwrap_or(daemon.status_for_everyone);
            daemon.log = log.unwrap_or(daemon.log);
        }
        Ok(Self { directory: directory.to_owned(), daemon })
    }

    /// The file of the volume `name`, which need not exist.
    pub fn volume_file(&self, name: &str) -> Result<PathBuf, Failure> {
        limits::check_name(name)?;
        Ok(self.directory.join(VOLUME_DIR).join(format!("{name}{SUFFIX}")))
    }

    /// Reads the description of one volume, as it is now.
    pub fn volume(&self, name: &str) -> Result<VolumeConfig, Failure> {
        let file = self.volume_file(name)?;
        VolumeConfig::parse(&existing(&file)?, &file)
    }

    /// Where the metadata of a volume is. The name has been checked before: it holds no `/`.
    pub fn metadata_path(&self, name: &str, volume: &VolumeConfig) -> PathBuf {
        volume.metadata.clone().unwrap_or_else(|| self.daemon.state_dir.join(format!("{name}.meta")))
    }

    /// Names of the volumes that have a file, in order. Files with other names are none of ours.
    pub fn volume_names(&self) -> Result<Vec<String>, Failure> {
        let files = names_in(&self.directory.join(VOLUME_DIR))?;
        let names = files.iter().filter_map(|file| file.strip_suffix(SUFFIX));
        Ok(names.filter(|name| limits::check_name(name).is_ok()).map(str::to_owned).collect())
    }

    /// Writes the file of a new volume, durably. A file that is there is never touched.
    pub fn write_volume(&self, name: &str, volume: &VolumeConfig) -> Result<PathBuf, Failure> {
        let file = self.volume_file(name)?;
        let text = toml::to_string(volume).map_err(|error| failed(format!("{}: {error}", file.display())))?;
        VolumeConfig::parse(&text, &file)?;
        let directory = self.directory.join(VOLUME_DIR);
        for directory in [&self.directory, &directory] {
            match DirBuilder::new().mode(0o755).create(directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io_failure(directory, &error)),
                _ => {}
            }
        }
        write_new(&file, &directory, text.as_bytes()).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                let why = format!("{} exists already; create {name} without --primary to use it", file.display());
                Failure::new(FailureKind::WrongState, why)
            }
            _ => io_failure(&file, &error),
        })?;
        Ok(file)
    }

    /// Changes settings in the file of a volume that has one, durably: the old or the new text is there whenever it is
    /// looked at. For one caller at a time.
    pub fn update_volume(&self, name: &str, change: &SettingsChange) -> Result<(), Failure> {
        let file = self.volume_file(name)?;
        let old = existing(&file)?;
        VolumeConfig::parse(&old, &file)?;
        let text = rewrite::changed(&old, change)
            .map_err(|failure| Failure { message: format!("{}: {failure}", file.display()), ..failure })?;
        VolumeConfig::parse(&text, &file)?;
        let (directory, new) = (self.directory.join(VOLUME_DIR), file.with_extension("toml.new"));
        let _ = fs::remove_file(&new);
        let replaced = write_new(&new, &directory, text.as_bytes())
            .and_then(|()| fs::set_permissions(&new, fs::metadata(&file)?.permissions()))
            .and_then(|()| fs::rename(&new, &file))
            .and_then(|()| File::open(&directory)?.sync_all());
        replaced.map_err(|error| io_failure(&file, &error))
    }

    /// Removes the file of a volume; that it is gone already is fine.
    pub fn remove_volume(&self, name: &str) -> Result<(), Failure> {
        let file = self.volume_file(name)?;
        let removed = fs::remove_file(&file).and_then(|()| File::open(self.directory.join(VOLUME_DIR))?.sync_all());
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_failure(&file, &error)),
            _ => Ok(()),
        }
    }
}

/// The text of a volume's file, which has to be there.
fn existing(file: &Path) -> Result<String, Failure> {
    let missing = || format!("there is no {}; write it or name --primary and --secondary", file.display());
    read(file)?.ok_or_else(|| Failure::new(FailureKind::NotFound, missing()))
}

/// Leaves no half-written file behind: it is removed again if anything fails after it was made.
fn write_new(file: &Path, directory: &Path, text: &[u8]) -> io::Result<()> {
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let written = opened.write_all(text).and_then(|()| opened.sync_all());
    let written = written.and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(file);
    }
    written
}

/// The names of the `*.toml` in a directory, in order; none if there is no directory.
fn names_in(directory: &Path) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| io_failure(directory, &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| io_failure(directory, &error))?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.')));
    }
    names.sort_unstable();
    Ok(names)
}

/// The text of a file, or nothing if there is none.
fn read(file: &Path) -> Result<Option<String>, Failure> {
    // Not blocking, or a FIFO in the place of a file would hang the daemon.
    let opened = OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(file);
    let opened = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| io_failure(file, &error))?,
    };
    let metadata = opened.metadata().map_err(|error| io_failure(file, &error))?;
    if !metadata.is_file() {
        return Err(failed(format!("{}: is not a regular file; replace it", file.display())));
    }
    if nix::unistd::geteuid().is_root() {
        believe(file, &metadata)?;
        if let Some(directory) = file.parent() {
            believe(directory, &fs::metadata(directory).map_err(|error| io_failure(directory, &error))?)?;
        }
    }
    let mut text = String::new();
    let taken = opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    taken.map_err(|error| io_failure(file, &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("{}: is larger than {FILE_BYTES_MAX} bytes; shorten it", file.display())));
    }
    Ok(Some(text))
}

/// Refuses what somebody other than root could have written.
fn believe(path: &Path, metadata: &fs::Metadata) -> Result<(), Failure> {
    let (path, uid) = (path.display(), metadata.uid());
    if uid != 0 {
        let why = format!("{path}: belongs to uid {uid}; it must belong to root: chown root '{path}'");
        return Err(Failure::new(FailureKind::Permission, why));
    }
    if metadata.mode() & OTHERS_MAY_WRITE != 0 {
        let why = format!("{path}: others than root may write it; forbid it: chmod go-w '{path}'");
        return Err(Failure::new(FailureKind::Permission, why));
    }
    Ok(())
}

/// Parses one file, all of whose keys are at the top; an error is one line with file, line and key.
fn parse<T: for<'de> Deserialize<'de>>(text: &str, file: &Path) -> Result<T, Failure> {
    toml::from_str(text).map_err(|error| {
        let file = file.display();
        let reason = limits::shorten(error.message(), 300);
        // What is missing has no place.
        let span = error.span().filter(|_| !reason.starts_with("missing field"));
        let Some(place) = span.and_then(|span| text.get(..span.start)) else {
            return failed(format!("{file}: {reason}"));
        };
        let number = place.matches('\n').count();
        let line = text.lines().nth(number).unwrap_or_default();
        let key = line.split_once('=').map_or(String::new(), |(key, _)| format!("{}: ", limits::quote(key.trim())));
        failed(format!("{file}:{}: {key}{reason}", number + 1))
    })
}

fn failed(message: String) -> Failure {
    Failure::new(FailureKind::Failed, message)
}

fn io_failure(path: &Path, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::PermissionDenied => FailureKind::Permission,
        ErrorKind::NotFound => FailureKind::NotFound,
        _ => FailureKind::Io,
    };
    Failure::new(kind, format!("{}: {error}", path.display()))
}

fn track_size() -> u64 {
    64 * limits::KIB
}

fn region_size() -> u64 {
    crate::metadata::media::REGION_BYTES
}

fn queues() -> u16 {
    1
}

fn depth() -> u16 {
    128
}

fn image_pool() -> u64 {
    64 * limits::MIB
}

fn drain_window() -> u16 {
    16
}

fn run_timer_ms() -> u64 {
    Settings::default().run_timer_ms
}

fn increment_timer_ms() -> u64 {
    Settings::default().increment_timer_ms
}

fn collision_wait_ms() -> u64 {
    Settings::default().collision_wait_ms
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn volume_error(text: &str) -> String {
        VolumeConfig::parse(text, Path::new("v.toml")).expect_err(text).message
    }

    #[test]
    fn a_volume_needs_only_its_two_paths() {
        let text = "primary = '/dev/a'\nsecondary = '/dev/b'\n";
        let volume = VolumeConfig::parse(text, Path::new("v.toml")).expect("valid");
        assert_eq!(volume, VolumeConfig::new("/dev/a".into(), "/dev/b".into()));
        assert_eq!(volume.settings(), Settings::default());
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut volume = VolumeConfig::new("/dev/a".into(), "/a b/\"c'".into());
        volume.bandwidth_limit = limits::MIB;
        volume.direct = Direct::Off;
        let text = toml::to_string(&volume).expect("serializable");
        assert_eq!(VolumeConfig::parse(&text, Path::new("v.toml")), Ok(volume));
    }

    #[test]
    fn refusals_name_file_line_and_key() {
        let head = "primary = '/a'\nsecondary = '/b'\n";
        let table = [
            ("queues = 33", "v.toml:3: queues: 33 is not allowed; it must be 1 to 32"),
            ("autostart = 'yes'", "v.toml:3: autostart: invalid type: string \"yes\", expected a boolean"),
            ("depth = 0", "v.toml:3: depth: 0 is not allowed; it must be 1 to 256"),
            ("track_size = \"3KiB\"", "v.toml:3: track_size: 3072 is not allowed; it must be a power of two from"),
            ("image_pool = \"17G\"", "v.toml:3: image_pool: 18253611008 is not allowed; it must be 0 to 17179869184"),
            ("image_pool = -1", "v.toml:3: image_pool: expected a whole number that is not negative, or a size"),
            ("direct = \"on\"", "v.toml:3: direct: unknown variant `on`, expected `auto` or `off`"),
            ("bandwidth_limit = 5", "v.toml:3: bandwidth_limit: 5 is not allowed; it must be 0 or 65536 to"),
            ("collision_policy = 'x'", "v.toml:3: collision_policy: unknown variant `x`"),
            ("wibble = 1", "v.toml:3: wibble: unknown field `wibble`"),
            ("queues = 1\nqueues = 2", "v.toml:4: queues: duplicate key"),
            ("queues", "v.toml:3:"),
            ("[table]", "v.toml:3: unknown field `table`"),
        ];
        for (line, expected) in table {
            let message = volume_error(&format!("{head}{line}\n"));
            assert!(message.starts_with(expected), "{line}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
        let message = volume_error("primary = 'a'\nsecondary = '/b'");
        assert_eq!(message, "v.toml:1: primary: \"a\" is not an absolute path");
        assert_eq!(volume_error("primary = '/a'"), "v.toml: missing field `secondary`");
        assert!(volume_error("primary = '/a'\nsecondary = '/a'").contains("are the same"));
    }

    #[test]
    fn later_files_have_the_last_word() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(Config::load(directory.path()).expect("empty").daemon, DaemonConfig::default());
        fs::create_dir(at(DROP_IN_DIR)).expect("mkdir");
        fs::write(at(DAEMON_FILE), "group = 'disk'\nlog = 'debug'\n").expect("write");
        fs::write(at("farpoint.toml.d/20.toml"), "log = 'warn'\n").expect("write");
        fs::write(at("farpoint.toml.d/10.toml"), "log = 'error'\nrun_dir = '/run/x'\n").expect("write");
        fs::write(at("farpoint.toml.d/30.toml.bak"), "nonsense").expect("write");
        let daemon = Config::load(directory.path()).expect("valid").daemon;
        assert_eq!((daemon.group.as_deref(), daemon.log), (Some("disk"), LogLevel::Warn));
        assert_eq!(daemon.socket_path(), Path::new("/run/x/control.sock"));
        fs::write(at("farpoint.toml.d/40.toml"), "\n\nwibble = 1\n").expect("write");
        let failure = Config::load(directory.path()).expect_err("unknown key");
        assert!(failure.message.contains("40.toml:3: wibble: unknown field"), "{failure}");
    }

    #[test]
    fn a_new_volume_never_overwrites_a_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let config = Config { directory: directory.path().join("new"), daemon: DaemonConfig::default() };
        let volume = VolumeConfig::new("/dev/a".into(), "/dev/b".into());
        assert_eq!(config.volume("v").expect_err("missing").kind, FailureKind::NotFound);
        let file = config.write_volume("v", &volume).expect("written");
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
        assert_eq!(config.volume("v"), Ok(volume.clone()));
        assert_eq!(config.volume_names(), Ok(vec!["v".to_owned()]));
        assert_eq!(config.write_volume("v", &volume).expect_err("exists").kind, FailureKind::WrongState);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
        let change = SettingsChange { bandwidth_limit: Some(limits::MIB), ..SettingsChange::default() };
        config.update_volume("v", &change).expect("updated");
        assert_eq!(config.volume("v").expect("read").bandwidth_limit, limits::MIB);
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o640);
        config.remove_volume("v").expect("removed");
        let gone = config.update_volume("v", &change).expect_err("there is nothing to update");
        assert_eq!((gone.kind, file.exists()), (FailureKind::NotFound, false));
        config.remove_volume("v").expect("gone already");
        assert!(config.write_volume("../v", &volume).is_err());
        assert!(config.write_volume("w", &VolumeConfig::new("a".into(), "/b".into())).is_err());
        assert_eq!(config.volume_names(), Ok(Vec::new()));
    }

    #[test]
    fn root_believes_only_files_of_root() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join(DAEMON_FILE);
        fs::write(&file, "group = 'disk'\n").expect("write");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o646)).expect("chmod");
        assert_eq!(Config::load(directory.path()).expect_err("writable").kind, FailureKind::Permission);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        Config::load(directory.path()).expect("safe");
        std::os::unix::fs::chown(&file, Some(65534), None).expect("chown");
        assert_eq!(Config::load(directory.path()).expect_err("foreign").kind, FailureKind::Permission);
    }
}
