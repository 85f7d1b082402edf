//! The metadata of one volume as a whole: formatting, opening, what a start begins with, and the order of writes.
//!
//! Rules that hold at every instant, so that a crash anywhere, or damage to any one page, loses no track (H5, H9, H22):
//!
//! 1. A superblock is stored in both slots, one after the other, never first in the newest. A crash leaves the old or
//!    the new one; when a store has returned, damage to either slot leaves the other, which says the same.
//! 2. `clean` is off, durably, before the first write is accepted, and intent pages show every region hot that has a
//!    mark before it is, and every one that the log named before it begins anew.
//! 3. The number of an increment is stored before its cut: none is ever used twice.
//! 4. At a clean stop the tracks are saved first and `clean` is set last.
//! 5. A failed write is final: nothing is written any more, and the next start takes media as it finds it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bugs::{Bug, present};
use crate::intent::{LogStart, PageNo, Record, RegionNo};

use super::layout::{PAGE_BYTES, SLOTS};
use super::log::{self, Logged};
use super::medium::{CHUNK_BYTES, Chunk, Medium, Page};
use super::superblock::{Fault, Superblock};
use super::tracks::Tracks;
use super::watch::Watched;
use super::{MetadataError, Side, pages, saved};

pub use super::area::IntentArea;
pub use super::layout::{REGION_BYTES, REGIONS_PER_PAGE, WORDS_PER_PAGE};
pub use super::pages::Hot;

/// What both slots hold.
#[derive(Debug)]
pub struct Slots(pub [Result<Superblock, Fault>; 2]);

impl Slots {
    pub fn read(medium: &dyn Medium) -> io::Result<Self> {
        let mut page = Page::ZERO;
        let mut slot = |offset| {
            medium.read(offset, &mut page.0)?;
            Ok::<_, io::Error>(Superblock::decode(&page))
        };
        Ok(Self([slot(SLOTS[0])?, slot(SLOTS[1])?]))
    }

    /// The superblock that counts, and its slot. One that a newer farpoint has written is never passed over for an
    /// older one.
    pub fn newest(&self) -> Result<(usize, &Superblock), Fault> {
        for slot in &self.0 {
            if let Err(fault @ (Fault::Version(_) | Fault::Features(_))) = slot {
                return Err(*fault);
            }
        }
        match &self.0 {
            [Ok(one), Ok(two)] if one.sequence > two.sequence => Ok((0, one)),
            [Ok(one), Err(_)] => Ok((0, one)),
            [_, Ok(two)] => Ok((1, two)),
            [Err(one), Err(two)] => Err(match (*one, *two) {
                (Fault::Damaged(why), _) | (_, Fault::Damaged(why)) => Fault::Damaged(why),
                (Fault::Empty, Fault::Empty) => Fault::Empty,
                _ => Fault::Foreign,
            }),
        }
    }
}

/// How a start found the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Stopped cleanly; the tracks are exact.
    Exact,
    /// Never been up; everything is to be copied.
    New,
    /// Not stopped cleanly; all tracks of hot regions.
    Unclean,
    /// Stopped cleanly, but the saved tracks are damaged; all tracks of hot regions.
    SavedDamaged,
    /// Intent was not kept the last time; everything.
    Everything,
}

/// What a start begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    pub way: Way,
    /// A superset of what differs between the two sides.
    pub tracks: Tracks,
    /// Regions that are hot on media; when [`Media::begin`] has returned the pages show them all, those of all `tracks`
    /// among them.
    pub hot: Hot,
    /// The intent log as it was found.
    pub logged: Logged,
    /// The pages that [`Media::begin`] has to write for that.
    unwritten: Vec<u64>,
}

impl Recovery {
    /// Where the intent log goes on when [`Media::begin`] has returned.
    pub fn log(&self) -> LogStart {
        let LogStart { slots, next } = self.logged.start;
        LogStart { slots, next: next + u64::from(self.logged.records > 0) }
    }
}

/// Works out what a start begins with. Only looks.
pub fn recover(medium: &dyn Medium, superblock: &Superblock) -> io::Result<Recovery> {
    let damaged = || io::Error::other("the geometry in the superblock is impossible");
    let geometry = superblock.geometry().ok_or_else(damaged)?;
    let layout = &superblock.layout;
    let mut hot = pages::read(medium, layout, superblock.id, superblock.regions())?;
    let logged = log::read(medium, layout, superblock.id)?;
    let mut unwritten = add_logged(&mut hot, &logged);
    let region_bytes = u64::from(superblock.region_size);
    let (way, tracks) = if superblock.full_copy_needed {
        (Way::Everything, std::iter::once(0..geometry.tracks()).collect())
    } else if !superblock.clean {
        let forgotten = present(Bug::HotForgotten);
        (Way::Unclean, if forgotten { Tracks::default() } else { hot.tracks(&geometry, region_bytes) })
    } else if superblock.saved == 0 {
        (Way::New, hot.tracks(&geometry, region_bytes))
    } else {
        match saved::read(medium, layout, superblock.id, superblock.saved, geometry.tracks())? {
            Some(tracks) => (Way::Exact, tracks),
            None => (Way::SavedDamaged, hot.tracks(&geometry, region_bytes)),
        }
    };
    // Of the other ways the tracks are those of the hot regions.
    let missing = match way {
        Way::Exact | Way::Everything => missing(&hot, superblock, &tracks),
        Way::New | Way::Unclean | Way::SavedDamaged => Vec::new(),
    };
    let (way, mut tracks) = if missing.is_empty() || way != Way::Exact {
        (way, tracks)
    } else {
        // A saved track whose region is not hot: one of the two is wrong, so both are believed.
        let mut both = hot.tracks(&geometry, region_bytes);
        both.unite(&tracks);
        (Way::SavedDamaged, both)
    };
    tracks.compact();
    for region in missing {
        hot.insert(region);
        unwritten.insert(region / REGIONS_PER_PAGE);
    }
    Ok(Recovery { way, tracks, hot, logged, unwritten: unwritten.into_iter().collect() })
}

/// Adds the regions that the log names, or all if it is damaged; returns the pages that do not show them.
fn add_logged(hot: &mut Hot, logged: &Logged) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    if present(Bug::LogForgotten) {
        return pages;
    }
    if logged.damaged {
        hot.fill();
        pages.extend(0..hot.regions.div_ceil(REGIONS_PER_PAGE));
    }
    for RegionNo(region) in &logged.regions {
        if *region < hot.regions && !hot.contains(*region) {
            hot.insert(*region);
            pages.insert(region / REGIONS_PER_PAGE);
        }
    }
    pages
}

/// Regions of `tracks` that are not hot, in order.
fn missing(hot: &Hot, superblock: &Superblock, tracks: &Tracks) -> Vec<u64> {
    let per_region = u64::from((superblock.region_size / superblock.track_size).max(1));
    let mut missing = Vec::new();
    tracks.groups(per_region, |region| {
        if !hot.contains(region) {
            missing.push(region);
        }
    });
    missing
}

#[derive(Debug)]
struct Stored {
    superblock: Superblock,
    /// The slot of the newest superblock.
    slot: usize,
}

/// The metadata of one volume, opened by the one daemon that may.
#[derive(Debug)]
pub struct Media {
    path: PathBuf,
    medium: Arc<Watched>,
    failed: Arc<AtomicBool>,
    stored: Mutex<Stored>,
}

impl Media {
    /// Makes a new volume. Whatever was on the medium is lost; who calls has looked.
    ///
    /// The superblock last: a crash before leaves no volume, or an older one whose absent pages make it copy
    /// everything.
    pub fn format(path: &Path, medium: Arc<dyn Medium>, superblock: Superblock) -> Result<Self, MetadataError> {
        if !superblock.fits() {
            return Err(MetadataError::Names);
        }
        let failed = |doing| move |source| MetadataError::Io { path: path.to_owned(), doing, source };
        let layout = superblock.layout;
        let chunk = Chunk::new();
        // The head between the slots and the pages, all pages, the log, and the first page of the save area.
        let (mut at, end) = (SLOTS[1] + PAGE_BYTES as u64, layout.save_offset + PAGE_BYTES as u64);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            medium.write_lazily(at, &chunk.0[..length]).map_err(failed("clearing the intent pages"))?;
            at += length as u64;
        }
        medium.flush().map_err(failed("flushing the intent pages"))?;
        let stored = Mutex::new(Stored { superblock, slot: 1 });
        let medium = Arc::new(Watched::new(medium));
        let media = Self { path: path.to_owned(), medium, failed: Arc::default(), stored };
        media.update(|_| {})?;
        Ok(media)
    }

    /// A new volume whose secondary is an exact copy already. The same as after a clean stop with nothing out of sync,
    /// and only then every region is made cold: a crash in between leaves more to copy, never less.
    pub fn assume_in_sync(&self) -> Result<(), MetadataError> {
        let superblock = self.end(&Tracks::default(), false)?;
        let layout = superblock.layout;
        let cold = |page| pages::encode(superblock.id, page, &[]);
        let mut pages = 0..layout.intent_pages;
        let written = pages.try_for_each(|page| {
            self.medium.write_lazily(layout.intent_offset + page * PAGE_BYTES as u64, &cold(page).0)
        });
        written.and_then(|()| self.medium.flush()).map_err(|source| self.io("writing the intent pages", source))
    }

    /// Finds the superblock. Nothing is written.
    pub fn open(path: &Path, medium: Arc<dyn Medium>) -> Result<Self, MetadataError> {
        let read = Slots::read(&*medium).map(|slots| slots.newest().map(|(slot, found)| (slot, found.clone())));
        let failed = |source| MetadataError::Io { path: path.to_owned(), doing: "reading the superblock", source };
        let (slot, superblock) = read.map_err(failed)?.map_err(|fault| fault.at(path))?;
        let stored = Mutex::new(Stored { superblock, slot });
        let medium = Arc::new(Watched::new(medium));
        Ok(Self { path: path.to_owned(), medium, failed: Arc::default(), stored })
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it was last stored.
    pub fn superblock(&self) -> Superblock {
        self.stored().superblock.clone()
    }

    /// Whether a write has failed: the volume cannot be stopped cleanly any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// For how long it has not answered, if that is so long that it may never.
    pub fn stalled(&self) -> Option<Duration> {
        self.medium.stalled()
    }

    /// An error if it is stalled.
    pub fn answers(&self) -> Result<(), MetadataError> {
        match self.stalled() {
            Some(waited) => Err(MetadataError::Stalled { path: self.path.clone(), waited_s: waited.as_secs() }),
            None => Ok(()),
        }
    }

    /// For those who write the intent.
    pub fn intent_area(&self) -> IntentArea {
        let stored = self.stored();
        IntentArea {
            medium: self.medium.clone(),
            layout: stored.superblock.layout,
            volume: stored.superblock.id,
            failed: self.failed.clone(),
        }
    }

    /// Refuses other devices, another volume's metadata, and features that may not be served.
    pub fn check(
        &self,
        name: &str,
        [primary, secondary, metadata]: [&Side; 3],
        track_size: u64,
        region_size: u64,
    ) -> Result<(), MetadataError> {
        let superblock = self.superblock();
        let same = |what, recorded: &dyn ToString, found: &dyn ToString| {
            let (recorded, found) = (recorded.to_string(), found.to_string());
            if recorded == found { Ok(()) } else { Err(MetadataError::Mismatch { what, recorded, found }) }
        };
        if superblock.features.not_served() != 0 {
            return Err(Fault::Features(superblock.features.not_served()).at(&self.path));
        }
        same("name of the volume", &superblock.name, &name)?;
        same("primary", &superblock.primary.identity, &primary.identity)?;
        same("secondary", &superblock.secondary.identity, &secondary.identity)?;
        same("metadata", &superblock.metadata.identity, &metadata.identity)?;
        same("size of the primary in bytes", &superblock.primary.size, &primary.size)?;
        same("size of the secondary in bytes", &superblock.secondary.size, &secondary.size)?;
        same("size of the metadata in bytes", &superblock.metadata.size, &metadata.size)?;
        same("track size in bytes", &superblock.track_size, &track_size)?;
        same("region size in bytes", &superblock.region_size, &region_size)
    }

    /// What a start begins with.
    pub fn recovery(&self) -> Result<Recovery, MetadataError> {
        recover(&*self.medium, &self.superblock()).map_err(|source| self.io("reading the intent pages", source))
    }

    fn io(&self, doing: &'static str, source: io::Error) -> MetadataError {
        MetadataError::Io { path: self.path.clone(), doing, source }
    }

    /// Changes the superblock, durably in both slots. Blocks.
    pub fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<Superblock, MetadataError> {
        let mut stored = self.stored();
        if self.has_failed() {
            return Err(MetadataError::Final { path: self.path.clone() });
        }
        let mut superblock = stored.superblock.clone();
        change(&mut superblock);
        for _ in SLOTS {
            superblock.sequence += 1;
            let slot = 1 - stored.slot;
            if let Err(source) = self.medium.write(SLOTS[slot], &superblock.encode().0) {
                self.failed.store(true, Ordering::SeqCst);
                return Err(self.io("writing the superblock", source));
            }
            *stored = Stored { superblock: superblock.clone(), slot };
        }
        Ok(superblock)
    }

    /// The volume is about to be served: from here until [`Media::end`] only the intent says what may differ.
    /// `kept`: whether somebody keeps them; if nobody does, an unclean stop means that everything is copied.
    pub fn begin(&self, recovery: &Recovery, kept: bool) -> Result<Superblock, MetadataError> {
        let area = self.intent_area();
        if present(Bug::LogResetFirst) {
            self.reset_log(&recovery.logged)?;
        }
        self.write_pages(&area, recovery.unwritten.iter().copied(), &recovery.hot)?;
        self.reset_log(&recovery.logged)?;
        self.update(|superblock| {
            superblock.clean = false;
            superblock.full_copy_needed = !kept;
            superblock.incomplete |= matches!(recovery.way, Way::New | Way::Everything);
        })
    }

    /// Writes these pages. When it returns all are durable, also the others: a daemon that was killed may have left
    /// some in a cache, from which they were read like any.
    fn write_pages(
        &self,
        area: &IntentArea,
        mut numbers: impl Iterator<Item = u64>,
        hot: &Hot,
    ) -> Result<(), MetadataError> {
        let mut page = Page::ZERO;
        let written = numbers.try_for_each(|number| {
            let extent = area.page(PageNo(number), hot.page(number), &mut page.0);
            area.write_lazily(extent.offset, &page.0)
        });
        let flush = || if present(Bug::CacheTakenForMedia) { Ok(()) } else { area.flush() };
        written.and_then(|()| flush()).map_err(|source| self.io("writing the intent pages", source))
    }

    /// The pages show whatever the log named: from here on none of its records counts.
    fn reset_log(&self, logged: &Logged) -> Result<(), MetadataError> {
        if logged.records == 0 {
            return Ok(());
        }
        let number = logged.start.next;
        let area = self.intent_area();
        let mut chunk = Chunk::new();
        let extent = area.record(&Record { number, tail: number, unsure: 0, regions: Vec::new() }, &mut chunk.0);
        let written = area.write(extent.offset, &chunk.0[..extent.length]);
        written.map_err(|source| self.io("writing the intent log", source))
    }

    /// Nobody could have written since [`Media::begin`], and nobody clears regions any more: media says again what it
    /// said `before`, when the start began with this `recovery`. The drain may have sent something meanwhile, and
    /// the keeper cleared its regions: those of the saved tracks have to be hot.
    pub fn undo(&self, before: &Superblock, recovery: &Recovery) -> Result<Superblock, MetadataError> {
        let now = pages::read(&*self.medium, &before.layout, before.id, before.regions());
        let now = now.map_err(|source| self.io("reading the intent pages", source))?;
        let area = self.intent_area();
        let changed = (0..area.pages()).filter(|page| now.page(*page) != recovery.hot.page(*page));
        self.write_pages(&area, changed, &recovery.hot)?;
        self.update(|superblock| {
            superblock.clean = before.clean;
            superblock.full_copy_needed = before.full_copy_needed;
            superblock.incomplete = before.incomplete;
        })
    }

    /// The volume has stopped with exactly these tracks out of sync, and can be written no more.
    pub fn end(&self, tracks: &Tracks, incomplete: bool) -> Result<Superblock, MetadataError> {
        if self.has_failed() {
            return Err(MetadataError::Final { path: self.path.clone() });
        }
        let superblock = self.superblock();
        // Never used before: no older content of the area can carry it.
        let number = superblock.sequence + 1;
        if present(Bug::CleanBeforeTracks) {
            self.update(|superblock| superblock.clean = true)?;
        }
        if let Err(refusal) = saved::write(&*self.medium, &superblock.layout, superblock.id, number, tracks) {
            self.failed.store(true, Ordering::SeqCst);
            return Err(refusal.at(&self.path));
        }
        self.update(|superblock| {
            superblock.clean = true;
            superblock.full_copy_needed = false;
            superblock.incomplete = incomplete;
            superblock.saved = number;
        })
    }

    /// The volume is deleted: nobody takes this for a volume's metadata any more.
    pub fn wipe(&self) -> Result<(), MetadataError> {
        self.failed.store(true, Ordering::SeqCst);
        for offset in SLOTS {
            self.medium.write(offset, &Page::ZERO.0).map_err(|source| self.io("removing the superblock", source))?;
        }
        Ok(())
    }
}
