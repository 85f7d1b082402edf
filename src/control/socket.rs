//! The place of the control socket in the file system: one daemon per run directory, a directory that nobody else can
//! plant files in, and a socket that has its owner and mode before anybody can find it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use tokio::net::UnixListener;

use super::peer::Access;
use crate::controller::api::{Failure, FailureKind};
use crate::controller::config::DaemonConfig;

/// The longest path the kernel takes for a socket, less the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Takes the place of `sock` in the name of the directory that the socket is made in.
const CLOSED_EXTENSION: &str = "new";

/// A listening socket; its path is removed when it goes, and the lock is given up after that.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held, so what is there is ours.
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    pub(super) fn bind(config: &DaemonConfig, access: Access) -> Result<Self, Failure> {
        let path = config.socket_path();
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let why = format!("{}: is too long a path for a socket; choose a shorter run_dir", path.display());
            return Err(Failure::new(FailureKind::Failed, why));
        }
        make_directory(&config.run_dir)?;
        let lock = lock(&config.run_dir.join("control.lock"))?;
        let listener = listen(&path, access).map_err(|error| io_failure(&path, &error))?;
        Ok(Self { listener, path, _lock: lock })
    }
}

/// Makes the run directory, or refuses one in which somebody else could plant or replace files.
fn make_directory(directory: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o755).create(directory) {
        // The umask may have taken from the mode.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| io_failure(directory, &error))?;
    let metadata = fs::symlink_metadata(directory).map_err(|error| io_failure(directory, &error))?;
    let why = if !metadata.is_dir() {
        "is not a directory"
    } else if metadata.uid() != geteuid().as_raw() {
        "belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "may be written by others"
    } else {
        return Ok(());
    };
    let why = format!("{}: {why}; remove it and start again", directory.display());
    Err(Failure::new(FailureKind::Permission, why))
}

/// One daemon per run directory. The lock goes with the process, however it ends.
fn lock(path: &Path) -> Result<Flock<File>, Failure> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path).map_err(|error| io_failure(path, &error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written =
                lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
            written.map_err(|error| io_failure(path, &error))?;
            Ok(lock)
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // Only for the message: the other daemon may be about to write it.
            let _ = file.take(20).read_to_string(&mut pid);
            let pid = pid.trim().parse().map_or("unknown".to_owned(), |pid: u32| pid.to_string());
            let why = format!("another farpoint daemon is running, pid {pid}; stop it or choose another run_dir");
            Err(Failure::new(FailureKind::WrongState, why))
        }
        Err((_, error)) => Err(io_failure(path, &error.into())),
    }
}

/// Binds in a directory of its own that nobody else may enter, and moves the socket into place when its owner and mode
/// are right. That also replaces the socket of a dead daemon, in one step; the lock says that it is dead.
fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    let closed = path.with_extension(CLOSED_EXTENSION);
    let new = closed.join("s");
    for left_over in [fs::remove_file(&new), fs::remove_dir(&closed)] {
        match left_over {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    DirBuilder::new().mode(0o700).create(&closed)?;
    let listener = UnixListener::bind(&new)?;
    std::os::unix::fs::lchown(&new, None, access.group.map(nix::unistd::Gid::as_raw))?;
    let mode = if access.status_for_everyone { 0o666 } else { 0o660 };
    fs::set_permissions(&new, Permissions::from_mode(mode))?;
    fs::rename(&new, path)?;
    fs::remove_dir(&closed)?;
    Ok(listener)
}

fn io_failure(path: &Path, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::PermissionDenied => FailureKind::Permission,
        _ => FailureKind::Io,
    };
    Failure::new(kind, format!("{}: {error}", path.display()))
}
