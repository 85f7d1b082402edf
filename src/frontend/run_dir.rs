//! libublk writes a file per device into `/run/ublksrvd`. If the directory is missing it makes it writable by everyone,
//! and any local user could then plant a link there that the daemon follows. So it is made here
//! first, and refused if it is not safe.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Where libublk keeps its files.
pub const RUN_DIR: &str = "/run/ublksrvd";

/// Makes the directory, or makes the one that is there safe: another ublk server may have left it writable by everyone.
pub fn secure(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display()))),
    }
    let own = nix::unistd::geteuid().as_raw();
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(unsafe_because(path, "it is not a directory"));
    }
    if found.uid() != own {
        return Err(unsafe_because(path, "it does not belong to the daemon's user"));
    }
    if found.mode() & 0o022 != 0 {
        // First nobody else may write to it, then whatever somebody planted before is looked for.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let found = match fs::symlink_metadata(entry.path()) {
            // libublk removes a device's file when it removes the device.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        // Of one with a second name the other may be anything of the same owner's, and would be overwritten.
        if !found.is_file() || found.uid() != own || found.nlink() > 1 {
            return Err(unsafe_because(&entry.path(), "somebody else has put it there"));
        }
    }
    Ok(())
}

fn unsafe_because(path: &Path, why: &str) -> io::Error {
    let what = format!("{} is not safe: {why}; remove it and try again", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_left_open_is_closed_and_what_was_planted_in_it_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ublksrvd");
        secure(&path).expect("made");
        fs::write(path.join("0000.json"), "{}").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("chmod");
        secure(&path).expect("made safe");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o755);
        symlink("/tmp", path.join("0001.json")).expect("a link");
        assert!(secure(&path).is_err());
        fs::remove_file(path.join("0001.json")).expect("removed");
        secure(&path).expect("safe again");
        let precious = dir.path().join("precious");
        fs::write(&precious, "").expect("a file");
        fs::hard_link(&precious, path.join("0001.json")).expect("a second name");
        assert!(secure(&path).is_err());
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ublksrvd");
        symlink("/tmp", &path).expect("a link");
        assert!(secure(&path).is_err());
    }
}
