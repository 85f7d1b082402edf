//! Why a device is not opened. Every message is one line that says what, why, and what to do about it.
//!
//! Paths are printed quoted and escaped: a name with a line feed in it may not break the line.

use std::io;
use std::path::{Path, PathBuf};

/// What kind of refusal, for exit codes and for the control protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such thing.
    NotFound,
    /// Not allowed, or cannot be written.
    Permission,
    /// The device failed.
    Io,
    /// Would destroy something; `--force` says that this is wanted.
    Unsafe,
    /// Someone else has it.
    Busy,
    /// Cannot work like this; only a change helps.
    Invalid,
}

/// Why a device is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path:?} is not an absolute path; give the full path, from / on")]
    NotAbsolute { path: PathBuf },
    #[error("{path:?} leads nowhere: {why}; correct it")]
    BadPath { path: PathBuf, why: &'static str },
    #[error(
        "{path:?} does not exist, or the daemon does not see it (it never sees what is mounted from a ublk device); \
         create it, correct the path, or restart the daemon if it was mounted after that began"
    )]
    NotFound { path: PathBuf },
    #[error("{path:?} may not be opened for writing: {why}")]
    Denied { path: PathBuf, why: String },
    #[error("{path:?} is {what}; only a regular file or a block device can be used")]
    WrongType { path: PathBuf, what: &'static str },
    #[error("{path:?} is a symbolic link to a file; links are followed only to devices, so name the file itself")]
    LinkToFile { path: PathBuf },
    #[error("{path:?} is empty; give it a size first (for a file: truncate -s SIZE FILE)")]
    Empty { path: PathBuf },
    #[error("{path:?} has {size} bytes, not a multiple of its block of {block} bytes; resize it")]
    OddSize { path: PathBuf, size: u64, block: u32 },
    #[error("{path:?} has {size} bytes, the primary {needed}; use a secondary at least as large as the primary")]
    TooSmall { path: PathBuf, size: u64, needed: u64 },
    #[error(
        "{path:?} has logical blocks of {block} bytes, the primary of {primary} bytes, so the copy could not be used \
         in its place; use a secondary with blocks no larger than the primary's"
    )]
    LargeBlocks { path: PathBuf, block: u32, primary: u32 },
    #[error("{path:?} cannot be used with direct I/O: {why}; allow buffered I/O or use another device")]
    NoDirect { path: PathBuf, why: String },
    #[error("{path:?} has properties that cannot be handled: {why}; use another device")]
    Unusable { path: PathBuf, why: String },
    #[error("{path:?} is in use: {by}; release it first")]
    InUse { path: PathBuf, by: String },
    #[error("{path:?} is locked by {by}; stop that first")]
    Locked { path: PathBuf, by: String },
    #[error("{path:?} cannot be the secondary: {why}; use a separate device or file")]
    Overlap { path: PathBuf, why: String },
    #[error("{path:?} cannot hold the metadata: {why}; use a separate device or file")]
    Shared { path: PathBuf, why: String },
    #[error("{path:?} lies on /dev/ublkb{id}, a device that this daemon itself serves; use another device or file")]
    OwnDevice { path: PathBuf, id: u32 },
    #[error("{path:?} holds data ({found}) that mirroring would destroy; use another, or --force if it may be lost")]
    Signature { path: PathBuf, found: String },
    #[error(
        "{path:?} could not be checked for data that mirroring would destroy: {why}; use --force to skip the check"
    )]
    Unchecked { path: PathBuf, why: String },
    #[error("{path:?}: {doing} failed: {source}; see the kernel's log (dmesg)")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

impl OpenError {
    /// What kind of refusal it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Denied { .. } => ErrorKind::Permission,
            Self::Io { .. } => ErrorKind::Io,
            Self::Signature { .. } | Self::Unchecked { .. } => ErrorKind::Unsafe,
            Self::InUse { .. } | Self::Locked { .. } => ErrorKind::Busy,
            Self::NotAbsolute { .. }
            | Self::BadPath { .. }
            | Self::WrongType { .. }
            | Self::LinkToFile { .. }
            | Self::Empty { .. }
            | Self::OddSize { .. }
            | Self::TooSmall { .. }
            | Self::LargeBlocks { .. }
            | Self::NoDirect { .. }
            | Self::Unusable { .. }
            | Self::Overlap { .. }
            | Self::Shared { .. }
            | Self::OwnDevice { .. } => ErrorKind::Invalid,
        }
    }
}

/// A path for a message: quoted, and with nothing in it that could break the line.
pub(super) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().escape_debug())
}
