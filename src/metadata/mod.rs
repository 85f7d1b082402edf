//! What is kept of a volume between runs of the daemon. Today one small record, [`state::State`]; the durable intent,
//! which after a crash spares the full copy, is not here yet.
//!
//! Nothing in this layer guesses: a record that is damaged, of an unknown version or of other devices is refused with
//! a reason, never repaired and never taken for a new one. A failed write is final for the volume that wanted it.

use std::io;
use std::path::{Path, PathBuf};

pub mod layout;
pub mod media;
pub mod medium;
pub mod pages;
mod saved;
pub mod state;
pub mod superblock;
pub mod tracks;

pub use state::{Completed, Side, State};
pub use tracks::Tracks;

use superblock::Fault;

/// Why metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("{path:?}: {doing} failed: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path:?} is not a state record of farpoint; move it away, then create the volume again")]
    Foreign { path: PathBuf },
    #[error("{path:?} has format version {found}, this farpoint knows {known}; use the farpoint that wrote it")]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{path:?} is damaged ({why}); delete the volume and create it again, which copies everything")]
    Damaged { path: PathBuf, why: &'static str },
    #[error("{path:?} holds nothing; create the volume")]
    Empty { path: PathBuf },
    #[error(
        "{path:?} uses features (bits {bits:#x}) that this farpoint does not know; use the farpoint that wrote it"
    )]
    Features { path: PathBuf, bits: u32 },
    #[error("{path:?}: nothing is written any more since an earlier write failed; take the volume down and up again")]
    Final { path: PathBuf },
    #[error("the volume's name and the identities of its devices are too long together; use a shorter name")]
    Names,
    #[error("{path:?} would have {bytes} bytes, more than a state record may; use larger tracks")]
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
