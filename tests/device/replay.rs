//! What a power cut would have left, at every entry of a log of dm-log-writes that holds primary, secondary and
//! metadata of a volume as three slices of one device, so that their order is known. At each: the metadata can be read,
//! every track in which the two sides differ is one that the next start copies (P1), and the primary has what its
//! writers were told is there (P5).
//!
//! What was written between two flushes may have reached the medium in any order. Beside the order of the log two
//! others are replayed, that in which the secondary is always first and that in which it is always last.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Args;
use farpoint::geometry::TrackNo;
use farpoint::metadata::inspect::inspect;
use farpoint::metadata::media::{Recovery, Way};
use farpoint::metadata::medium::Medium;

use crate::marked::{self, Plan, Step, Steps};
use crate::sector::{self, Content, SECTOR, SECTOR_BYTES};
use crate::write_log::{Entry, Kind, WriteLog};

const PRIMARY: usize = 0;
const SECONDARY: usize = 1;
const METADATA: usize = 2;
/// Unwritten sectors of an image file stay holes.
const PIECE: usize = 1 << 16;

#[derive(Debug, Args)]
pub struct Replay {
    log: PathBuf,
    /// Bytes of the primary, and of the secondary that follows it
    #[arg(long)]
    side: u64,
    /// Bytes of the metadata, which follow
    #[arg(long)]
    metadata: u64,
    #[command(flatten)]
    plan: Plan,
    /// Name so many entries at which to try a start
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// Check nothing; write what so many entries left to the image
    #[arg(long, requires = "image")]
    until: Option<usize>,
    #[arg(long)]
    image: Option<PathBuf>,
}

impl Replay {
    pub fn run(&self) -> Result<(), String> {
        let log = WriteLog::open(&self.log).map_err(|error| format!("{}: {error}", self.log.display()))?;
        if let (Some(until), Some(image)) = (self.until, &self.image) {
            let mut state = State::new(self);
            for entry in &log.entries[..until.min(log.entries.len())] {
                state.apply(&log, entry)?;
            }
            return state.write(image).map_err(|error| format!("{}: {error}", image.display()));
        }
        let points = self.check(&log, "in the order of the log", None)?;
        self.check(&log, "the secondary first", Some([2, 0, 1]))?;
        self.check(&log, "the secondary last", Some([0, 2, 1]))?;
        for range in parts(points.len(), self.starts) {
            // Where most is to be copied.
            if let Some(point) = points[range].iter().max_by_key(|point| point.differing) {
                println!("start-at={} differing={}", point.entries, point.differing);
            }
        }
        Ok(())
    }

    /// Replays all of it; returns the flushes after which a start would copy hot regions.
    fn check(&self, log: &WriteLog, what: &str, first: Option<[usize; 3]>) -> Result<Vec<Point>, String> {
        let mut state = State::new(self);
        let (mut points, mut flushes, mut cold, mut most) = (Vec::new(), 0, 0, 0);
        for (count, at) in self.order(&log.entries, first).into_iter().enumerate() {
            let entry = &log.entries[at];
            let context = |error| format!("{what}, after entry {at} of {} ({entry:?}): {error}", log.entries.len());
            state.apply(log, entry).map_err(context)?;
            state.must_be_safe().map_err(context)?;
            let differing = state.differing.len();
            flushes += usize::from(entry.flush);
            most = most.max(differing);
            let Some(recovery) = &state.recovery else { continue };
            let copies = recovery.tracks.count();
            cold += usize::from(differing > 0 && recovery.way == Way::Unclean && copies * state.track < self.side);
            if entry.flush && recovery.way == Way::Unclean {
                points.push(Point { entries: count + 1, differing });
            }
        }
        println!(
            "{what}: entries={} flushes={flushes} marks={} most_differing={most} partly_cold={cold}",
            log.entries.len(),
            state.marks
        );
        Ok(points)
    }

    /// The entries' places in the order to replay: those between two flushes by what is to be `first`.
    fn order(&self, entries: &[Entry], first: Option<[usize; 3]>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        let Some(first) = first else { return order };
        for run in order.chunk_by_mut(|one, next| !entries[*one].ordered && !entries[*next].ordered) {
            run.sort_by_key(|at| first[self.slice(entries[*at].offset).0]);
        }
        order
    }

    /// The slice that a byte of the device is in, and where that begins.
    fn slice(&self, offset: u64) -> (usize, u64) {
        match offset {
            _ if offset < self.side => (PRIMARY, 0),
            _ if offset < 2 * self.side => (SECONDARY, self.side),
            _ => (METADATA, 2 * self.side),
        }
    }
}

/// So many parts of about the same length.
fn parts(length: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).map(move |part| length * part / count..length * (part + 1) / count)
}

/// An instant at which a start may be tried.
struct Point {
    entries: usize,
    differing: usize,
}

/// What is known of one writer: what it will do next, and how far it was told that it is safe.
struct Writer {
    steps: Steps,
    flushed: Option<u64>,
}

/// The three slices, and what follows from them.
struct State<'a> {
    replay: &'a Replay,
    images: [Vec<u8>; 3],
    track: u64,
    differing: BTreeSet<u64>,
    /// None as long as there is no volume.
    recovery: Option<Recovery>,
    writers: Vec<Writer>,
    /// For each sector of the primary one more than the sequence of what it holds, and of what it must hold at least.
    holds: Vec<u64>,
    must_hold: Vec<u64>,
    marks: u64,
}

impl<'a> State<'a> {
    fn new(replay: &'a Replay) -> Self {
        let bytes = |length: u64| vec![0; usize::try_from(length).unwrap_or(0)];
        let sectors = || vec![0; usize::try_from(replay.side / SECTOR_BYTES).unwrap_or(0)];
        let writer = |number| Writer { steps: replay.plan.steps(number, replay.side), flushed: None };
        Self {
            replay,
            images: [bytes(replay.side), bytes(replay.side), bytes(replay.metadata)],
            track: 65536,
            differing: BTreeSet::new(),
            recovery: None,
            writers: (0..replay.plan.writers).map(writer).collect(),
            holds: sectors(),
            must_hold: sectors(),
            marks: 0,
        }
    }

    fn apply(&mut self, log: &WriteLog, entry: &Entry) -> Result<(), String> {
        match &entry.kind {
            Kind::Mark(text) => {
                return marked::parse_mark(text).map_or(Ok(()), |id| self.promise(id.writer, id.sequence));
            }
            Kind::Flush => return Ok(()),
            Kind::Write { .. } | Kind::Discard => {}
        }
        let (slice, start) = self.replay.slice(entry.offset);
        let from = usize::try_from(entry.offset - start).map_err(|error| error.to_string())?;
        let place = from..from + usize::try_from(entry.length).map_err(|error| error.to_string())?;
        let image = self.images[slice].get_mut(place.clone()).ok_or("it is in two slices, or behind the end")?;
        log.content(entry, image).map_err(|error| error.to_string())?;
        match slice {
            METADATA => self.look()?,
            _ => self.compare(&place),
        }
        if slice == PRIMARY { self.read(&place) } else { Ok(()) }
    }

    /// What the next start would find.
    fn look(&mut self) -> Result<(), String> {
        match inspect(Path::new("metadata"), &Image(self.images[METADATA].clone())) {
            Ok(found) => {
                self.track = found.superblock.track_size.into();
                self.recovery = Some(found.recovery);
                Ok(())
            }
            Err(_) if self.recovery.is_none() => Ok(()),
            Err(error) => Err(format!("the metadata cannot be read any more: {error}")),
        }
    }

    fn compare(&mut self, place: &Range<usize>) {
        let size = usize::try_from(self.track).unwrap_or(1);
        for track in place.start / size..=(place.end - 1) / size {
            let bytes = track * size..((track + 1) * size).min(self.images[PRIMARY].len());
            if self.images[PRIMARY][bytes.clone()] == self.images[SECONDARY][bytes] {
                self.differing.remove(&(track as u64));
            } else {
                self.differing.insert(track as u64);
            }
        }
    }

    /// P1, and what the writers were told.
    fn must_be_safe(&self) -> Result<(), String> {
        let Some(recovery) = &self.recovery else { return Ok(()) };
        match self.differing.iter().find(|track| !recovery.tracks.contains(TrackNo(**track))) {
            None => Ok(()),
            Some(track) => {
                Err(format!("track {track} differs, and the next start ({:?}) does not copy it", recovery.way))
            }
        }
    }

    /// Notes what sectors of the primary hold now.
    fn read(&mut self, place: &Range<usize>) -> Result<(), String> {
        for lba in place.start / SECTOR..place.end / SECTOR {
            let sector = &self.images[PRIMARY][lba * SECTOR..(lba + 1) * SECTOR];
            self.holds[lba] = match sector::parse(sector) {
                Content::Empty => 0,
                Content::Whole(stamp) if stamp.lba == lba as u64 => stamp.write.sequence + 1,
                other => return Err(format!("sector {lba} of the primary is {other:?}")),
            };
            self.is_kept(lba)?;
        }
        Ok(())
    }

    fn is_kept(&self, lba: usize) -> Result<(), String> {
        let (holds, must_hold) = (self.holds[lba], self.must_hold[lba]);
        if holds >= must_hold {
            return Ok(());
        }
        Err(format!("sector {lba} of the primary holds write {holds} of its writer, and write {must_hold} was flushed"))
    }

    /// Everything up to this write was flushed.
    fn promise(&mut self, writer: u32, sequence: u64) -> Result<(), String> {
        self.marks += 1;
        let state = self.writers.get_mut(writer as usize).ok_or("a mark of a writer that there is not")?;
        let from = state.flushed.map_or(0, |flushed| flushed + 1);
        state.flushed = Some(sequence);
        let steps: Vec<Step> = (from..=sequence).filter_map(|_| state.steps.next()).collect();
        for step in steps {
            for lba in step.lba..step.lba + step.sectors {
                let lba = usize::try_from(lba).map_err(|error| error.to_string())?;
                self.must_hold[lba] = step.id.sequence + 1;
            }
        }
        // Only now, because later writes of the same flush may be over earlier ones.
        (0..self.holds.len()).try_for_each(|lba| self.is_kept(lba))
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(2 * self.replay.side + self.replay.metadata)?;
        let starts = [0, self.replay.side, 2 * self.replay.side];
        for (start, image) in starts.into_iter().zip(&self.images) {
            for (at, piece) in (0_u64..).step_by(PIECE).zip(image.chunks(PIECE)) {
                if piece.iter().any(|byte| *byte != 0) {
                    file.write_all_at(piece, start + at)?;
                }
            }
        }
        Ok(())
    }
}

/// The metadata's slice, only to be looked at.
#[derive(Debug)]
struct Image(Vec<u8>);

impl Medium for Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|from| self.0.get(from..)).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        buffer[count..].fill(0);
        Ok(())
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
