//! A file or block device, opened safely: what it is, how big, how it must be read and written, and who else may not.
//!
//! Everything above this layer works on a [`Device`], which only [`open`] makes: it is exclusive, locked, checked, and
//! described by its [`Limits`]. This layer writes only what it is given, never decides what is copied where, and knows
//! nothing of tracks. I/O is done by the owners of the rings through [`Device::raw_fd`]; only what lies on a metadata
//! device goes through [`Device::read_at`] and [`Device::write_at`].

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod durable;
pub mod error;
pub mod holders;
pub mod limits;
pub mod mounts;
pub mod open;
pub mod process;
mod signature;
pub mod topology;

pub use error::{ErrorKind, OpenError};
pub use limits::{Direct, Limits, Zeroing};
pub use open::{
    Options, SecondaryOptions, open_metadata, open_primary, open_read_only, open_secondary, wait_until_free,
};
pub use topology::Place;

/// The two kinds of things a volume can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device: a disk, a partition, a loop, device mapper or RAID device.
    Block,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Block => "block device",
        })
    }
}

/// Which thing it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Survives a restart of the machine and is what the state record keeps: world-wide name, serial number or UUID of
    /// a block device; inode and birth time of a file. Device numbers may not be kept: they move between restarts.
    pub stable: String,
}

/// An opened, locked and checked file or block device. The lock lives on the very open file description that I/O goes
/// through: it falls only at its last close, which requests in flight hold off, so a successor cannot start while
/// writes of a killed daemon may still land (`kill -9` included). For the same reason nothing here ever unlocks.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    kind: Kind,
    size: u64,
    limits: Limits,
    identity: Identity,
    place: Place,
    file: File,
    /// The node of the whole disk, locked beside a partition so that udev leaves the disk alone; shared by all
    /// partitions of it that this process has open.
    _whole_disk: Option<Arc<File>>,
}

impl Device {
    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File or block device.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Size in bytes, a multiple of the logical block; fixed at open.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How it must be read and written.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Which thing it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it lies, for [`topology::overlaps`].
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// For ring entries. Stays valid as long as `self`.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Fills `buffer`; what lies behind the end reads as zeroes. Blocks; offset, length and buffer aligned to 4 KiB.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        durable::read(&self.file, offset, buffer)
    }

    /// Writes, and makes what was written durable if asked to. Blocks; offset, length and buffer aligned to 4 KiB.
    pub fn write_at(&self, offset: u64, bytes: &[u8], durably: bool) -> io::Result<()> {
        if durably { durable::write(&self.file, offset, bytes) } else { self.file.write_all_at(bytes, offset) }
    }

    /// Makes everything written so far durable. Blocks; for threads without a ring.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A file or block device opened only to be looked at.
#[derive(Debug)]
pub struct ReadOnly(File);

impl ReadOnly {
    /// As [`Device::read_at`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        durable::read(&self.0, offset, buffer)
    }
}
