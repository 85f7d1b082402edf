//! The life of one small volume, step by step, with what must be found again after each step.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use farpoint::geometry::{Geometry, TrackNo};
use farpoint::intent::{PageNo, Record, RegionNo};
use farpoint::metadata::layout::Layout;
use farpoint::metadata::media::{Media, Recovery, Slots, Way, recover};
use farpoint::metadata::medium::{Chunk, Medium, Page};
use farpoint::metadata::superblock::Superblock;
use farpoint::metadata::{Completed, MetadataError, Side, Tracks};

use super::disk::{Disk, Step};

pub const TRACK: u64 = 4096;
pub const SIZE: u64 = 300 << 20;
pub const TRACKS: u64 = SIZE / TRACK;
pub const TRACKS_PER_REGION: u64 = 1024;
const REGION: u32 = 4 << 20;
const PATH: &str = "/metadata";

/// What must hold of whatever a start finds.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// There may be no volume yet.
    pub unborn: bool,
    /// Tracks that may differ.
    pub tracks: BTreeSet<u64>,
    /// The last number of an increment that was used.
    pub number: u64,
    /// The secondary is known not to be a usable copy.
    pub incomplete: bool,
}

/// A step of the disk and what must hold if it is cut off there.
pub type Moment = (Step, Truth);

/// The content that a start finds, or the refusal.
pub fn start(content: Vec<u8>) -> Result<(Superblock, Recovery), MetadataError> {
    let disk = Arc::new(Disk::new(content));
    let media = Media::open(Path::new(PATH), disk)?;
    Ok((media.superblock(), media.recovery()?))
}

/// Fails unless a start from this content finds all of the truth, or refuses.
pub fn assert_safe(content: Vec<u8>, truth: &Truth, what: &dyn Fn() -> String) {
    let Ok((superblock, recovery)) = start(content) else { return };
    let lost = truth.tracks.iter().find(|track| !recovery.tracks.contains(TrackNo(**track)));
    assert_eq!(lost, None, "{}: a track is lost, {:?}", what(), recovery.way);
    assert!(superblock.last_increment >= truth.number, "{}: a number is used again", what());
    assert!(superblock.incomplete || !truth.incomplete, "{}: half a copy is taken for a whole one", what());
}

/// The same, and it may not be refused: what a crash alone does must never need a person.
pub fn assert_starts(content: Vec<u8>, truth: &Truth, what: &dyn Fn() -> String) {
    if !truth.unborn
        && let Err(error) = start(content.clone())
    {
        panic!("{}: refused: {error}", what());
    }
    assert_safe(content, truth, what);
}

/// Records that its log has room for.
const SLOTS: u64 = 4;

/// A volume that has one disk under its metadata.
pub struct Life {
    pub disk: Arc<Disk>,
    pub truth: Truth,
    moments: Vec<Moment>,
    /// Numbers of the log's next record, and of the oldest one that the page does not make up for.
    next: u64,
    tail: u64,
}

impl Life {
    /// On a disk that nobody has written to.
    pub fn new() -> Self {
        Self::over(Self::zeroes())
    }

    pub fn zeroes() -> Vec<u8> {
        vec![0; usize::try_from(Self::superblock().layout.bytes()).expect("small")]
    }

    pub fn over(content: Vec<u8>) -> Self {
        let truth = Truth { unborn: true, ..Truth::default() };
        Self { disk: Arc::new(Disk::new(content)), truth, moments: Vec::new(), next: 1, tail: 1 }
    }

    /// What was done to the disk, with what had to hold all through it.
    fn note(&mut self) {
        let truth = self.truth.clone();
        self.moments.extend(self.disk.take_steps().into_iter().map(|step| (step, truth.clone())));
    }

    pub fn moments(mut self) -> Vec<Moment> {
        self.note();
        self.moments
    }

    fn truth(&mut self, change: impl FnOnce(&mut Truth)) {
        self.note();
        change(&mut self.truth);
    }

    /// Everything that can happen, in order; ends at the first call of the disk that fails.
    pub fn live(&mut self, saved: &Tracks) -> Result<(), MetadataError> {
        self.create()?;
        self.first_run(saved)?;
        self.second_run(saved)?;
        self.third_run()
    }

    /// Cut short after so many runs, for images.
    pub fn live_until(&mut self, runs: usize, saved: &Tracks) -> Result<(), MetadataError> {
        self.create()?;
        if runs > 0 {
            self.first_run(saved)?;
        }
        if runs > 1 {
            self.second_run(saved)?;
        }
        Ok(())
    }

    pub fn superblock() -> Superblock {
        let geometry = Geometry::new(SIZE, TRACK).expect("valid");
        let side = |identity: &str, size| Side { identity: identity.to_owned(), size };
        let layout = Layout::with_slots(&geometry, 1, u32::try_from(SLOTS).expect("small"));
        let bytes = layout.bytes();
        let sides = [side("wwid:primary", SIZE), side("file:2@3.000000004", SIZE), side("file:5@6.000000007", bytes)];
        Superblock::with_layout(*b"0123456789abcdef", "db", sides, &geometry, REGION, layout)
    }

    fn create(&mut self) -> Result<(), MetadataError> {
        Media::format(Path::new(PATH), self.disk.clone(), Self::superblock())?;
        self.truth(|truth| {
            *truth = Truth { unborn: false, tracks: (0..TRACKS).collect(), number: 0, incomplete: true };
        });
        Ok(())
    }

    fn open(&self) -> Result<(Media, Recovery), MetadataError> {
        let media = Media::open(Path::new(PATH), self.disk.clone())?;
        let recovery = media.recovery()?;
        Ok((media, recovery))
    }

    /// A start has begun: the page shows everything, and the log names nothing.
    fn begin(&mut self, media: &Media, recovery: &Recovery) -> Result<(), MetadataError> {
        media.begin(recovery, true)?;
        self.next = recovery.log().next;
        self.tail = self.next;
        Ok(())
    }

    /// Writes a record, which makes the page's write needless for now.
    fn record(&mut self, media: &Media, regions: Vec<RegionNo>) -> Result<(), MetadataError> {
        let record = Record { number: self.next, tail: self.tail, unsure: 0, regions };
        self.next += 1;
        write_record(media, &record).map_err(|source| io("writing a record", source))
    }

    /// Writes the page with the bits of exactly these regions.
    fn page(&mut self, media: &Media, regions: &BTreeSet<u64>) -> Result<(), MetadataError> {
        let mut words = [0_u64; 2];
        for region in regions {
            words[usize::try_from(region / 64).expect("small")] |= 1 << (region % 64);
        }
        write_page(media, &words).map_err(|source| io("writing a page", source))?;
        self.tail = self.next;
        Ok(())
    }

    fn regions(&self) -> BTreeSet<u64> {
        self.truth.tracks.iter().map(|track| track / TRACKS_PER_REGION).collect()
    }

    /// A host write to a region that is cold: nothing may differ before the page is durable, or a record.
    fn write(&mut self, media: &Media, track: u64) -> Result<(), MetadataError> {
        let mut regions = self.regions();
        regions.insert(track / TRACKS_PER_REGION);
        if self.next + 1 - self.tail < SLOTS {
            self.record(media, vec![RegionNo(track / TRACKS_PER_REGION)])?;
        } else {
            self.page(media, &regions)?;
        }
        self.truth(|truth| {
            truth.tracks.insert(track);
        });
        Ok(())
    }

    /// The drain has brought all but these to the secondary, and the keeper clears what is left of the regions.
    fn drained_but(&mut self, media: &Media, left: &Tracks) -> Result<(), MetadataError> {
        self.truth(|truth| truth.tracks.retain(|track| left.contains(TrackNo(*track))));
        self.page(media, &self.regions())?;
        // Of what was cleared the log may still have records that count.
        self.record(media, Vec::new())
    }

    fn number(&mut self, media: &Media, number: u64) -> Result<(), MetadataError> {
        media.update(|superblock| superblock.last_increment = number)?;
        self.truth(|truth| truth.number = number);
        Ok(())
    }

    fn end(&mut self, media: &Media) -> Result<(), MetadataError> {
        media.end(&self.truth.tracks.iter().copied().collect(), self.truth.incomplete)?;
        self.note();
        Ok(())
    }

    /// From nothing to a clean stop in the middle of an increment.
    fn first_run(&mut self, saved: &Tracks) -> Result<(), MetadataError> {
        let (media, recovery) = self.open()?;
        assert_eq!((recovery.way, recovery.tracks.count()), (Way::New, TRACKS));
        self.begin(&media, &recovery)?;
        self.drained_but(&media, saved)?;
        self.number(&media, 5)?;
        self.truth(|truth| truth.incomplete = false);
        media.update(|superblock| {
            superblock.completed = Some(Completed { increment: 5, time_ms: 1_700_000_000_000 });
            superblock.incomplete = false;
        })?;
        self.number(&media, 6)?;
        // More than the log has room for.
        for region in 40..45 {
            self.write(&media, region * TRACKS_PER_REGION)?;
        }
        self.end(&media)
    }

    /// From a clean stop to a crash.
    fn second_run(&mut self, saved: &Tracks) -> Result<(), MetadataError> {
        let (media, recovery) = self.open()?;
        let exact: BTreeSet<u64> = (0..TRACKS).filter(|track| recovery.tracks.contains(TrackNo(*track))).collect();
        assert_eq!((recovery.way, &exact), (Way::Exact, &self.truth.tracks), "a clean stop copies nothing else (P7)");
        let before = media.superblock();
        self.begin(&media, &recovery)?;
        // The start fails; until then the drain was at work, and the keeper.
        let first = exact.first().expect("out of sync") / TRACKS_PER_REGION;
        let left = exact.iter().copied().filter(|track| track / TRACKS_PER_REGION != first).collect();
        self.drained_but(&media, &left)?;
        media.undo(&before, &recovery)?;
        self.truth(|truth| truth.tracks.clone_from(&exact));
        let (media, recovery) = self.open()?;
        assert_eq!(recovery.way, Way::Exact, "nobody could have written");
        self.begin(&media, &recovery)?;
        self.write(&media, 60 * TRACKS_PER_REGION + 3)?;
        self.number(&media, 7)?;
        self.drained_but(&media, saved)?;
        self.write(&media, TRACKS - 1)?;
        self.note();
        Ok(())
    }

    /// From a crash to a clean stop, with a second crash on the way.
    fn third_run(&mut self) -> Result<(), MetadataError> {
        for _ in 0..2 {
            let (media, recovery) = self.open()?;
            assert_eq!(recovery.way, Way::Unclean);
            let hot: BTreeSet<u64> = self.regions();
            assert_eq!(recovery.hot.count(), hot.len() as u64, "only what was hot is copied again (P7)");
            assert_eq!(recovery.tracks.count(), hot.len() as u64 * TRACKS_PER_REGION);
            self.begin(&media, &recovery)?;
            self.note();
        }
        let (media, recovery) = self.open()?;
        self.begin(&media, &recovery)?;
        self.end(&media)
    }
}

/// Writes the only page of the intent, durably.
pub fn write_page(media: &Media, words: &[u64]) -> io::Result<()> {
    let (area, mut memory) = (media.intent_area(), Page::ZERO);
    let extent = area.page(PageNo(0), words, &mut memory.0);
    area.write(extent.offset, &memory.0)
}

/// Writes a record of its log, durably.
pub fn write_record(media: &Media, record: &Record) -> io::Result<()> {
    let (area, mut memory) = (media.intent_area(), Chunk::new());
    let extent = area.record(record, &mut memory.0);
    area.write(extent.offset, &memory.0[..extent.length])
}

fn io(doing: &'static str, source: io::Error) -> MetadataError {
    MetadataError::Io { path: PATH.into(), doing, source }
}

/// The superblock and what a start would do, by the functions that `farpoint check` uses.
pub fn look(content: &[u8]) -> io::Result<Option<(Superblock, Recovery)>> {
    let disk = Disk::new(content.to_vec());
    let slots = Slots::read(&disk)?;
    let Ok((_, superblock)) = slots.newest() else { return Ok(None) };
    let recovery = recover(&disk as &dyn Medium, superblock)?;
    Ok(Some((superblock.clone(), recovery)))
}

/// Few tracks, in two regions.
pub fn few() -> Tracks {
    [5, 700, 8 * TRACKS_PER_REGION].into_iter().collect()
}

/// Tracks that take more than one chunk to save.
pub fn many() -> Tracks {
    (0..TRACKS).filter(|track| (track.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).is_multiple_of(4)).collect()
}
