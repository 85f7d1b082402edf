//! The simulated devices of one volume and what stands between them: sectors that hold stamps, requests that land
//! sector by sector, a secondary with a volatile cache that fails, hangs and loses, and the memory of runs and
//! before-images.
//!
//! Memory is as cruel as the real one: a before-image's buffer that is let go is the next to be handed out, and what is
//! written to the secondary is what the buffer holds while the request is carried out, not when it was submitted.

use crate::cache::Cache;
use crate::checker::{Stamp, Violation};
use crate::crash::Start;
use crate::disk::Disk;
use crate::options::{Options, SECTOR, TRACK_SECTORS};
use crate::rng::Rng;
use farpoint::geometry::{Geometry, TrackNo, TrackRange};
use farpoint::intent::{PageNo, Write};
use farpoint::metadata::layout::{Layout, PAGE_BYTES, RECORD_BYTES};
use farpoint::metadata::media::Media;
use farpoint::metadata::medium::Page;
use farpoint::uploader::{ImageNo, ImageRead, Segment, SlotNo};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    HostRead {
        queue: usize,
        tag: u16,
        done: usize,
    },
    HostWrite {
        queue: usize,
        tag: u16,
        write: u32,
        zero: bool,
    },
    HostFlush {
        queue: usize,
        tag: u16,
    },
    ReadImage {
        queue: usize,
        tag: u16,
        read: ImageRead,
    },
    ReadRun(SlotNo),
    SendRun(SlotNo, Segment),
    SendImage(ImageNo, TrackNo),
    FlushSecondary,
    /// The drain's.
    FlushPrimary,
    /// A page of the intent: the keeper's write of this number.
    WritePage(usize),
    /// The record of the log of this number: the same page twice.
    WriteRecord(u64),
}

impl IoKind {
    /// Index of its speed.
    pub fn class(self) -> usize {
        match self {
            Self::HostRead { .. } | Self::HostFlush { .. } => 0,
            Self::HostWrite { .. } => 1,
            Self::ReadImage { .. } => 2,
            Self::ReadRun(_) => 3,
            Self::SendRun(..) | Self::SendImage(..) => 4,
            Self::FlushSecondary | Self::FlushPrimary => 5,
            Self::WritePage(_) | Self::WriteRecord(_) => 8,
        }
    }

    pub fn to_secondary(self) -> bool {
        matches!(self, Self::SendRun(..) | Self::SendImage(..) | Self::FlushSecondary)
    }
}

/// How a request will end; drawn when it is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Good,
    /// Only so many sectors are moved, and it says so.
    Short(usize),
    /// Turned away: ask again.
    Again,
    /// Fails, after so many sectors.
    Error(usize),
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    pub volume: usize,
    pub kind: IoKind,
    /// First sector, number of sectors, and how many of them are done.
    pub start: usize,
    pub count: usize,
    pub done: usize,
    pub fate: Fate,
}

impl Io {
    /// Sectors that it will really move.
    pub fn goal(&self) -> usize {
        match self.fate {
            Fate::Good => self.count,
            Fate::Short(sectors) | Fate::Error(sectors) => sectors.min(self.count),
            Fate::Again => 0,
        }
    }
}

/// What the secondary does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Healthy,
    Failing,
    Hung,
}

/// The secondary of a volume.
#[derive(Debug)]
pub struct Secondary {
    /// What a read would see, and what would survive a power cut.
    pub live: Vec<Stamp>,
    pub durable: Vec<Stamp>,
    pub mode: Mode,
    /// The next flush fails and loses what it covered.
    pub lose: bool,
    dirty: Vec<bool>,
    /// What the flush under way covers.
    covered: Vec<(usize, Stamp)>,
    /// Requests that hang.
    pub hung: Vec<Io>,
    /// Per track, sends under way.
    sending: Vec<u8>,
}

/// Everything of a volume that is not the code under test.
#[derive(Debug)]
pub struct Devices {
    pub geometry: Geometry,
    pub sectors: usize,
    pub primary: Vec<Stamp>,
    pub cache: Cache,
    /// The metadata, unless the run does without, and what keeps it.
    pub media: Option<Media>,
    pub disk: Option<Arc<Disk>>,
    pub volume_id: [u8; 16],
    pub layout: Option<Layout>,
    /// Pages and records being written.
    pub pages: BTreeMap<usize, (PageNo, Page)>,
    pub records: BTreeMap<u64, Box<[u8; RECORD_BYTES]>>,
    /// Tracks that cannot be read.
    pub unreadable: Vec<bool>,
    pub secondary: Secondary,
    /// Memory of runs and where each begins, of before-images, and of the host's reads by queue and tag.
    slots: Vec<Vec<Stamp>>,
    slot_starts: Vec<usize>,
    images: Vec<Vec<Stamp>>,
    /// Images that are free; the last is handed out first.
    pub free_images: Vec<ImageNo>,
    pub host_memory: Vec<Vec<Vec<Stamp>>>,
}

pub fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

impl Devices {
    pub fn new(options: &Options, (primary, first): (Vec<Stamp>, Vec<Stamp>), start: Option<Start>) -> Self {
        let (sectors, geometry) = (options.sectors(), options.geometry());
        let superblock = start.as_ref().map(|start| start.media.superblock());
        let (media, disk) = start.map(|start| (start.media, start.disk)).unzip();
        let run_sectors = index(options.limits.run_tracks) * TRACK_SECTORS;
        Self {
            geometry,
            sectors,
            unreadable: vec![false; options.tracks],
            secondary: Secondary {
                live: first.clone(),
                durable: first,
                mode: Mode::Healthy,
                lose: false,
                dirty: vec![false; sectors],
                covered: Vec::new(),
                hung: Vec::new(),
                sending: vec![0; options.tracks],
            },
            cache: Cache::new(&primary),
            primary,
            media,
            disk,
            volume_id: superblock.as_ref().map_or([0; 16], |superblock| superblock.id),
            layout: superblock.map(|superblock| superblock.layout),
            pages: BTreeMap::new(),
            records: BTreeMap::new(),
            slots: vec![vec![Stamp::BLANK; run_sectors]; options.limits.window],
            slot_starts: vec![0; options.limits.window],
            images: vec![vec![Stamp::BLANK; TRACK_SECTORS]; options.images],
            free_images: (0..options.images).map(ImageNo).collect(),
            host_memory: vec![vec![Vec::new(); usize::from(options.depth)]; options.queues],
        }
    }

    /// First sector and number of sectors of a run of tracks.
    pub fn sectors_of(&self, tracks: TrackRange) -> (usize, usize) {
        let (offset, length) = self.geometry.bytes(tracks);
        (index(offset / SECTOR), index(length / SECTOR))
    }

    /// A run will be read into the slot.
    pub fn aim_slot(&mut self, slot: SlotNo, start: usize) {
        self.slot_starts[slot.0] = start;
    }

    /// Moves the next sectors of a request.
    pub fn carry_out(&mut self, io: &Io, sectors: usize) {
        for done in io.done..io.done + sectors {
            let sector = io.start + done;
            match io.kind {
                IoKind::HostWrite { write, zero, .. } => {
                    self.primary[sector] = Stamp::new(write, io.volume, sector, zero);
                    self.cache.put(sector);
                }
                IoKind::HostRead { queue, tag, done: before } => {
                    self.host_memory[queue][usize::from(tag)][before + done] = self.primary[sector];
                }
                IoKind::ReadImage { read, .. } => {
                    let before = index(u64::from(read.done) / SECTOR);
                    self.images[read.image.0][before + done] = self.primary[sector];
                }
                IoKind::ReadRun(slot) => self.slots[slot.0][done] = self.primary[sector],
                IoKind::SendRun(slot, _) => {
                    let stamp = self.slots[slot.0][sector - self.slot_starts[slot.0]];
                    self.secondary.put(sector, stamp);
                }
                IoKind::SendImage(image, _) => self.secondary.put(sector, self.images[image.0][done]),
                IoKind::WritePage(_) | IoKind::WriteRecord(_) => {
                    if let Some((disk, offset, content)) = self.intent(io) {
                        disk.land(offset, sector, content);
                    }
                }
                IoKind::HostFlush { .. } | IoKind::FlushSecondary | IoKind::FlushPrimary => {}
            }
        }
    }

    /// Where a write of the intent goes, and what it writes.
    fn intent(&self, io: &Io) -> Option<(&Disk, u64, &[u8])> {
        let (disk, layout) = (self.disk.as_deref()?, self.layout.as_ref()?);
        match io.kind {
            IoKind::WritePage(number) => {
                let (page, content) = &self.pages[&number];
                Some((disk, layout.intent_offset + page.0 * PAGE_BYTES as u64, &content.0))
            }
            IoKind::WriteRecord(number) => {
                let slot = number % u64::from(layout.log_slots);
                Some((disk, layout.log_offset() + slot * RECORD_BYTES as u64, &self.records[&number][..]))
            }
            _ => None,
        }
    }

    /// Whether what this would be written over is being written: of the two the older might land last.
    pub fn is_writing_there(&self, write: Write) -> bool {
        let slots = self.layout.map_or(1, |layout| u64::from(layout.log_slots));
        match write {
            Write::Page(page) => self.pages.values().any(|(other, _)| *other == page),
            Write::Record(number) => self.records.keys().any(|other| other % slots == number % slots),
        }
    }

    /// A write of the intent is done: it is durable.
    pub fn persist_intent(&self, io: &Io) {
        if let Some((disk, offset, _)) = self.intent(io) {
            disk.persist(offset, io.count);
        }
    }

    /// Whether one of the sectors lies in a track that cannot be read.
    pub fn cannot_read(&self, io: &Io) -> bool {
        let last = (io.start + io.count.max(1) - 1) / TRACK_SECTORS;
        self.unreadable[io.start / TRACK_SECTORS..=last].iter().any(|unreadable| *unreadable)
    }

    /// Whether a track in the slot is all zeroes.
    pub fn slot_is_zero(&self, slot: SlotNo, track: TrackNo) -> bool {
        let (start, count) = self.sectors_of(TrackRange::one(track));
        let from = start - self.slot_starts[slot.0];
        self.slots[slot.0][from..from + count].iter().all(|stamp| stamp.is_zero())
    }

    /// A send begins: no other of the same track may be under way, and what is sent as zeroes has to be zeroes.
    pub fn begin_send(&mut self, volume: usize, kind: IoKind) -> Result<(), Violation> {
        let tracks = match kind {
            IoKind::SendRun(slot, segment) => {
                for track in segment.tracks.iter() {
                    if segment.zero != self.slot_is_zero(slot, track) {
                        return Err(Violation::new("H18", format!("track {volume}:{track}: zeroes told wrongly")));
                    }
                }
                segment.tracks
            }
            IoKind::SendImage(_, track) => TrackRange::one(track),
            _ => return Ok(()),
        };
        for track in tracks.iter() {
            let sending = &mut self.secondary.sending[index(track.0)];
            *sending += 1;
            if *sending > 1 {
                return Err(Violation::new("H14", format!("two sends of track {volume}:{track} at once")));
            }
        }
        Ok(())
    }

    pub fn end_send(&mut self, kind: IoKind) {
        let tracks = match kind {
            IoKind::SendRun(_, segment) => segment.tracks,
            IoKind::SendImage(_, track) => TrackRange::one(track),
            _ => return,
        };
        for track in tracks.iter() {
            self.secondary.sending[index(track.0)] -= 1;
        }
    }
}

impl Secondary {
    fn put(&mut self, sector: usize, stamp: Stamp) {
        self.live[sector] = stamp;
        self.dirty[sector] = true;
    }

    /// A flush is submitted: it covers what is in the cache now.
    pub fn begin_flush(&mut self) {
        self.covered.clear();
        let dirty = self.dirty.iter().enumerate().filter(|(_, dirty)| **dirty);
        self.covered.extend(dirty.map(|(sector, _)| (sector, self.live[sector])));
    }

    /// A flush ends. A failed one loses what it covered, all of it or a part, and says so only once.
    pub fn end_flush(&mut self, ok: bool, rng: &mut Rng) {
        let all = rng.chance(3, 4);
        for (sector, stamp) in std::mem::take(&mut self.covered) {
            let lost = !ok && (all || rng.chance(1, 2));
            let same = self.live[sector] == stamp;
            if !lost {
                self.durable[sector] = stamp;
            } else if same {
                self.live[sector] = self.durable[sector];
            }
            if same {
                self.dirty[sector] = false;
            }
        }
    }

    /// Whether every sector is durable as it reads.
    pub fn is_durable(&self) -> bool {
        self.live == self.durable
    }
}
