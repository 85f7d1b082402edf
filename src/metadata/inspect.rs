//! Looking at metadata without having it: for `farpoint check` and `farpoint dump`, and for volumes that are down.
//! Nothing is locked and nothing is written; of a volume that is up, what is seen may be in the middle of a change.

use std::io;
use std::path::Path;

use super::MetadataError;
use super::media::{Recovery, Slots, recover};
use super::medium::Medium;
use super::superblock::Superblock;
use crate::storage::ReadOnly;

impl Medium for ReadOnly {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What is on media.
#[derive(Debug)]
pub struct Findings {
    pub slots: Slots,
    /// The slot that counts.
    pub slot: usize,
    pub superblock: Superblock,
    pub recovery: Recovery,
}

/// Reads all of it, or says why there is nothing to go by.
pub fn inspect(path: &Path, medium: &dyn Medium) -> Result<Findings, MetadataError> {
    let failed = |doing| move |source| MetadataError::Io { path: path.to_owned(), doing, source };
    let slots = Slots::read(medium).map_err(failed("reading the superblock"))?;
    let newest = slots.newest().map(|(slot, superblock)| (slot, superblock.clone()));
    let (slot, superblock) = newest.map_err(|fault| fault.at(path))?;
    let recovery = recover(medium, &superblock).map_err(failed("reading the intent pages"))?;
    Ok(Findings { slots, slot, superblock, recovery })
}

impl Findings {
    /// What is wrong with what is on media, a line each; a start goes on in spite of all of it.
    pub fn damages(&self) -> Vec<String> {
        let mut damages = Vec::new();
        for (name, slot) in ["A", "B"].iter().zip(&self.slots.0) {
            if let Err(fault) = slot {
                damages.push(format!("superblock {name} is not valid: {fault}"));
            }
        }
        let hot = &self.recovery.hot;
        if hot.damaged_pages > 0 {
            let pages = self.superblock.layout.intent_pages;
            damages.push(format!("{} of {pages} intent pages are damaged and read as all ones", hot.damaged_pages));
        }
        if self.recovery.logged.damaged {
            damages.push("a record of the intent log cannot be read, so that every region is taken for hot".to_owned());
        }
        if self.recovery.way == super::media::Way::SavedDamaged {
            damages.push("the saved tracks are damaged; hot regions are copied instead".to_owned());
        }
        damages
    }
}
