//! libublk writes a file per device into `/run/ublksrvd`. If the directory is missing it makes it writable by everyone,
//! and any local user could then plant a link there that the daemon follows (hazards, section 10). So it is made here
//! first, and refused if it is not safe.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Where libublk keeps its files.
pub const RUN_DIR: &str = "/run/ublksrvd";

/// Makes the directory, or checks the one that is there.
pub fn secure(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display()))),
    }
    let found = fs::symlink_metadata(path)?;
    let own = nix::unistd::geteuid().as_raw();
    let why = if !found.is_dir() {
        "it is not a directory"
    } else if found.uid() != own {
        "it does not belong to the daemon's user"
    } else if found.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    let what = format!("{} is not safe: {why}; remove it and start again", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_that_others_may_write_to_or_a_link_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ublksrvd");
        secure(&path).expect("made");
        secure(&path).expect("found as made");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("chmod");
        assert!(secure(&path).is_err());
        fs::remove_dir(&path).expect("removed");
        symlink("/tmp", &path).expect("a link");
        assert!(secure(&path).is_err());
    }
}
