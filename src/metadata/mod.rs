//! What is on media for one volume, and outlives the daemon: who its devices are, which increments it has had, which
//! regions may differ ([`pages`]), and after a clean stop which tracks do (`saved`). [`media::Media`] is all of it.
//!
//! Nothing in this layer guesses: a superblock that is damaged, of an unknown version or of other devices is refused
//! with a reason, never repaired and never taken for a new one; a damaged page reads as all ones. A failed write is
//! final for the volume that wanted it.

use std::io;
use std::path::{Path, PathBuf};

pub mod area;
pub mod inspect;
pub mod layout;
pub mod log;
pub mod media;
pub mod medium;
pub mod pages;
mod saved;
pub mod superblock;
pub mod tracks;
mod watch;

pub use tracks::Tracks;
pub use watch::STALL;

use superblock::Fault;

use crate::storage::Device;

/// One device of the volume, as it must be found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// [`crate::storage::Identity::stable`].
    pub identity: String,
    /// In bytes.
    pub size: u64,
}

impl Side {
    /// What `device` is recorded as.
    pub fn of(device: &Device) -> Self {
        Self { identity: device.identity().stable.clone(), size: device.size() }
    }
}

/// The last completed increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    pub increment: u64,
    /// Wall clock, milliseconds since 1970; for display only, never compared.
    pub time_ms: u64,
}

/// Why metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("{path:?}: {doing} failed: {source}; see to its file system and try again")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path:?} holds no metadata of farpoint but something else; name the right file or device")]
    Foreign { path: PathBuf },
    #[error("{path:?} holds {what}; use another file or device, or --force if that may be lost")]
    Occupied { path: PathBuf, what: String },
    #[error("{path:?} has {size} bytes, but the metadata needs {needed}; enlarge it or use another file or device")]
    TooSmall { path: PathBuf, size: u64, needed: u64 },
    #[error("{path:?} has format version {found}, this farpoint knows {known}; use the farpoint that wrote it")]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{path:?} is damaged ({why}); farpoint create NAME --force makes the volume anew, which copies everything")]
    Damaged { path: PathBuf, why: &'static str },
    #[error("{path:?} holds nothing; create the volume")]
    Empty { path: PathBuf },
    #[error("{path:?} uses features (bits {bits:#x}) that this farpoint does not know; use the farpoint that wrote it")]
    Features { path: PathBuf, bits: u32 },
    #[error(
        "{path:?} has not answered for {waited_s} s; see to its disk and the kernel's log (dmesg); it stays locked \
         until it answers"
    )]
    Stalled { path: PathBuf, waited_s: u64 },
    #[error("{path:?}: nothing is written any more since an earlier write failed; take the volume down and up again")]
    Final { path: PathBuf },
    #[error("the volume's name and the identities of its devices are too long together; use a shorter name")]
    Names,
    #[error("{path:?}: the tracks take {bytes} bytes, more than there is room for; the next start copies hot regions")]
    TooLarge { path: PathBuf, bytes: usize },
    #[error(
        "the {what} is {found}, but the volume was made with {recorded}; bring back the right one, or delete the \
         volume and create it again, which copies everything"
    )]
    Mismatch { what: &'static str, recorded: String, found: String },
}

impl Fault {
    fn at(self, path: &Path) -> MetadataError {
        let path = path.to_owned();
        match self {
            Self::Empty => MetadataError::Empty { path },
            Self::Foreign => MetadataError::Foreign { path },
            Self::Version(found) => MetadataError::Version { path, found, known: superblock::VERSION },
            Self::Features(bits) => MetadataError::Features { path, bits },
            Self::Damaged(why) => MetadataError::Damaged { path, why },
        }
    }
}
