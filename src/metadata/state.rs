//! The state record of a volume: who its devices are, which increments it has had, whether it was stopped cleanly, and
//! if so, which tracks were out of sync.
//!
//! All numbers little-endian:
//!
//! ```text
//! offset  size  header
//!      0     8  magic "FARPOINT"
//!      8     4  version, 1
//!     12     4  CRC32C of everything but these four bytes
//!     16     8  length of what follows
//!               body
//!      0     4  flags: 1 clean, 2 full copy needed, 4 an increment has completed, 8 the last
//!               full copy was not finished
//!      4     4  track size
//!      8     8  size of the primary
//!     16     8  size of the secondary
//!     24     8  number of the last increment begun
//!     32     8  number of the last increment completed
//!     40     8  when that was, milliseconds since 1970 (for display only)
//!     48     4  length of the primary's identity, in bytes
//!     52     4  length of the secondary's identity
//!     56        the two identities, UTF-8
//!               the tracks out of sync, a portable roaring treemap, up to the end
//! ```
//!
//! Rules of its use, which its callers keep:
//! 1. `up` stores the record with `clean` off before the first write is accepted. A crash from then on leaves a record
//!    that is not clean, and loading one means that everything is copied.
//! 2. The number of an increment is stored before its cut: none is ever used twice.
//! 3. `down` stores the exact tracks and `clean` last, when no write can come any more and the secondary is flushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use roaring::RoaringTreemap;

use super::MetadataError;
use crate::storage::Device;

const MAGIC: &[u8; 8] = b"FARPOINT";
const VERSION: u32 = 1;
const CRC_OFFSET: usize = 12;
const HEADER_BYTES: usize = 24;
/// Largest record: the plain bitmap of 64 TiB in tracks of 64 KiB is half of this.
const RECORD_BYTES_MAX: usize = 256 << 20;

const CLEAN: u32 = 1;
const FULL_COPY_NEEDED: u32 = 2;
const HAS_COMPLETED: u32 = 4;
const INCOMPLETE: u32 = 8;

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

/// The record.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub primary: Side,
    pub secondary: Side,
    /// In bytes.
    pub track_size: u32,
    /// Number of the last increment begun, 0 if there was none.
    pub last_increment: u64,
    pub completed: Option<Completed>,
    /// `out_of_sync` is exact; else it means nothing.
    pub clean: bool,
    /// Every track must be copied whatever `out_of_sync` says.
    pub full_copy_needed: bool,
    /// The last full copy was not finished: the secondary has never been a usable copy since.
    pub incomplete: bool,
    /// Tracks out of sync at a clean stop.
    pub out_of_sync: RoaringTreemap,
}

impl State {
    /// A volume that has never been up: nothing has been copied.
    pub fn new(primary: Side, secondary: Side, track_size: u32) -> Self {
        Self {
            primary,
            secondary,
            track_size,
            last_increment: 0,
            completed: None,
            clean: true,
            full_copy_needed: true,
            incomplete: true,
            out_of_sync: RoaringTreemap::new(),
        }
    }

    /// Where the record of a volume is. The name has been checked before: it holds no `/`.
    pub fn path(state_dir: &Path, volume: &str) -> PathBuf {
        state_dir.join(format!("{volume}.state"))
    }

    /// Reads a record; `None` if there is none. One that is not clean comes back with `full_copy_needed`.
    pub fn load(path: &Path) -> Result<Option<Self>, MetadataError> {
        let failed = |doing| move |source| MetadataError::Io { path: path.to_owned(), doing, source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("opening the state record")(error)),
        };
        let mut bytes = Vec::new();
        // One byte more than allowed, to tell "too long" from "just fits"; memory only for what is there.
        let bound = RECORD_BYTES_MAX as u64 + 1;
        file.take(bound).read_to_end(&mut bytes).map_err(failed("reading the state record"))?;
        decode(&bytes).map(Some).map_err(|fault| fault.at(path))
    }

    /// Replaces the record at `path`. After an error the old or the new one is there, whole; which one is not known, so
    /// the volume must not go on as if either were.
    ///
    /// 1. The whole record goes to a temporary file. A crash here leaves the old record and a file that no one reads
    ///    and the next store overwrites.
    /// 2. The temporary file is flushed. Without this a power cut after the rename may leave the new name with no
    ///    content.
    /// 3. It takes the record's name. A crash before: the old record; after: the new one; no moment has none.
    /// 4. The directory is flushed. Without this a power cut later brings the old name, hence the old record, back: a
    ///    clean one, whose tracks have meanwhile changed.
    pub fn store(&self, path: &Path) -> Result<(), MetadataError> {
        let failed = |doing| move |source| MetadataError::Io { path: path.to_owned(), doing, source };
        let bytes = self.encode();
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(MetadataError::TooLarge { path: path.to_owned(), bytes: bytes.len() });
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // Made anew, so that whatever has that name (a link, say) is neither followed nor written to.
        let mut open = OpenOptions::new();
        open.write(true).create_new(true).mode(0o600);
        let mut file = match open.open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary).and_then(|()| open.open(&temporary))
            }
            opened => opened,
        }
        .map_err(failed("creating the new state record"))?;
        file.write_all(&bytes).map_err(failed("writing the state record"))?;
        file.sync_all().map_err(failed("flushing the state record"))?;
        fs::rename(&temporary, path).map_err(failed("renaming the state record"))?;
        let directory = File::open(directory).map_err(failed("opening the state directory"))?;
        directory.sync_all().map_err(failed("flushing the state directory"))
    }

    /// The volume goes up: takes the tracks to begin with, `None` for all of them. The record is then no longer clean;
    /// store it before the first write is accepted.
    pub fn begin(&mut self) -> Option<RoaringTreemap> {
        let tracks = std::mem::take(&mut self.out_of_sync);
        let exact = self.clean && !self.full_copy_needed;
        self.clean = false;
        self.full_copy_needed = true;
        exact.then_some(tracks)
    }

    /// The volume has stopped with exactly these tracks out of sync; store it last of all.
    pub fn end(&mut self, out_of_sync: RoaringTreemap) {
        self.out_of_sync = out_of_sync;
        self.clean = true;
        self.full_copy_needed = false;
    }

    /// Refuses devices or a track size other than the record's.
    pub fn check(&self, primary: &Side, secondary: &Side, track_size: u32) -> Result<(), MetadataError> {
        let same = |what, recorded: &dyn ToString, found: &dyn ToString| {
            let (recorded, found) = (recorded.to_string(), found.to_string());
            if recorded == found { Ok(()) } else { Err(MetadataError::Mismatch { what, recorded, found }) }
        };
        same("primary", &self.primary.identity, &primary.identity)?;
        same("secondary", &self.secondary.identity, &secondary.identity)?;
        same("size of the primary in bytes", &self.primary.size, &primary.size)?;
        same("size of the secondary in bytes", &self.secondary.size, &secondary.size)?;
        same("track size in bytes", &self.track_size, &track_size)
    }

    fn encode(&self) -> Vec<u8> {
        let completed = self.completed.unwrap_or(Completed { increment: 0, time_ms: 0 });
        let mut flags = 0;
        for (flag, on) in [
            (CLEAN, self.clean),
            (FULL_COPY_NEEDED, self.full_copy_needed),
            (HAS_COMPLETED, self.completed.is_some()),
            (INCOMPLETE, self.incomplete),
        ] {
            flags |= if on { flag } else { 0 };
        }
        let identities = [&self.primary.identity, &self.secondary.identity];
        let mut body = Vec::with_capacity(128 + self.out_of_sync.serialized_size());
        body.extend(flags.to_le_bytes());
        body.extend(self.track_size.to_le_bytes());
        for number in
            [self.primary.size, self.secondary.size, self.last_increment, completed.increment, completed.time_ms]
        {
            body.extend(number.to_le_bytes());
        }
        for identity in identities {
            // A length that does not fit is refused on reading, not cut.
            body.extend(u32::try_from(identity.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        for identity in identities {
            body.extend(identity.as_bytes());
        }
        self.out_of_sync.serialize_into(&mut body).expect("writing to memory cannot fail");
        let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
        record.extend(MAGIC);
        record.extend(VERSION.to_le_bytes());
        record.extend([0; 4]);
        record.extend((body.len() as u64).to_le_bytes());
        record.append(&mut body);
        let crc = checksum(&record);
        record[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        record
    }
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Foreign,
    Version(u32),
    Damaged(&'static str),
}

impl Fault {
    fn at(self, path: &Path) -> MetadataError {
        let path = path.to_owned();
        match self {
            Self::Foreign => MetadataError::Foreign { path },
            Self::Version(found) => MetadataError::Version { path, found, known: VERSION },
            Self::Damaged(why) => MetadataError::Damaged { path, why },
        }
    }
}

/// Of everything but the checksum itself.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..CRC_OFFSET]), &record[CRC_OFFSET + 4..])
}

/// Takes numbers off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Fault::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Fault::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, len: u32) -> Result<String, Fault> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let text = str::from_utf8(self.take(len)?).map_err(|_| Fault::Damaged("an identity is not text"))?;
        Ok(text.to_owned())
    }
}

fn decode(record: &[u8]) -> Result<State, Fault> {
    let begins_alike = record.iter().zip(MAGIC).all(|(found, known)| found == known);
    if record.len() > RECORD_BYTES_MAX {
        return Err(if begins_alike { Fault::Damaged("it is too long") } else { Fault::Foreign });
    }
    if !begins_alike {
        return Err(Fault::Foreign);
    }
    let mut reader = Reader(record);
    reader.take(MAGIC.len())?;
    match reader.u32()? {
        VERSION => {}
        other => return Err(Fault::Version(other)),
    }
    let crc = reader.u32()?;
    if reader.u64()? != reader.0.len() as u64 {
        return Err(Fault::Damaged("its length is not the one it tells"));
    }
    if checksum(record) != crc {
        return Err(Fault::Damaged("its checksum is wrong"));
    }
    decode_body(reader)
}

fn decode_body(mut reader: Reader<'_>) -> Result<State, Fault> {
    let flags = reader.u32()?;
    if flags & !(CLEAN | FULL_COPY_NEEDED | HAS_COMPLETED | INCOMPLETE) != 0 {
        return Err(Fault::Damaged("it has unknown flags"));
    }
    let track_size = reader.u32()?;
    if !track_size.is_power_of_two() || !(4 << 10..=1 << 20).contains(&track_size) {
        return Err(Fault::Damaged("its track size is impossible"));
    }
    let (primary_size, secondary_size) = (reader.u64()?, reader.u64()?);
    let last_increment = reader.u64()?;
    let completed = Completed { increment: reader.u64()?, time_ms: reader.u64()? };
    if completed.increment > last_increment {
        return Err(Fault::Damaged("an increment has completed that was never begun"));
    }
    let lengths = (reader.u32()?, reader.u32()?);
    let identities = (reader.text(lengths.0)?, reader.text(lengths.1)?);
    let clean = flags & CLEAN != 0;
    let mut rest = reader.0;
    let marks = RoaringTreemap::deserialize_from(&mut rest).map_err(|_| Fault::Damaged("its tracks cannot be read"))?;
    if !rest.is_empty() || marks.max().is_some_and(|last| last >= primary_size.div_ceil(u64::from(track_size))) {
        return Err(Fault::Damaged("its tracks are not those of the volume"));
    }
    Ok(State {
        primary: Side { identity: identities.0, size: primary_size },
        secondary: Side { identity: identities.1, size: secondary_size },
        track_size,
        last_increment,
        completed: (flags & HAS_COMPLETED != 0).then_some(completed),
        clean,
        full_copy_needed: !clean || flags & FULL_COPY_NEEDED != 0,
        incomplete: !clean || flags & INCOMPLETE != 0,
        out_of_sync: if clean { marks } else { RoaringTreemap::new() },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACK: u32 = 65536;
    const TRACKS: u64 = 100_000;

    fn side(identity: &str) -> Side {
        Side { identity: identity.to_owned(), size: TRACKS * u64::from(TRACK) }
    }

    fn example() -> State {
        let mut state = State::new(side("wwid:1"), side("file:2@3.000000004"), TRACK);
        state.last_increment = 9;
        state.completed = Some(Completed { increment: 8, time_ms: 1_700_000_000_000 });
        state.end((0..100).chain([TRACKS - 1]).collect());
        state
    }

    fn any_state() -> impl Strategy<Value = State> {
        let marks = proptest::collection::vec(0..TRACKS, 0..200);
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), 12_u32..=20);
        (".{0,40}", ".{0,40}", numbers, any::<[bool; 4]>(), marks).prop_map(
            |(one, other, (last, done, time_ms, shift), [clean, full, completed, incomplete], marks)| {
                let mut state = State::new(side(&one), side(&other), 1 << shift);
                state.primary.size = TRACKS << shift;
                state.last_increment = last;
                state.completed = completed.then(|| Completed { increment: done.min(last), time_ms });
                state.clean = clean;
                state.full_copy_needed = full || !clean;
                state.incomplete = incomplete || !clean;
                state.out_of_sync = if clean { marks.into_iter().collect() } else { RoaringTreemap::new() };
                state
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(state in any_state()) {
            prop_assert_eq!(decode(&state.encode()), Ok(state));
        }

        #[test]
        fn a_changed_record_is_refused(state in any_state(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut record = state.encode();
            let at = at.index(record.len());
            record[at] ^= flip;
            prop_assert!(decode(&record).is_err());
        }

        #[test]
        fn nonsense_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes).is_err());
        }

        /// A record whose checksum is right and whose content is not: what a bug, not a disk, would write.
        #[test]
        fn a_well_checked_but_wrong_body_never_panics(
            state in any_state(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut record = state.encode();
            for (at, value) in changes {
                let at = HEADER_BYTES + at.index(record.len() - HEADER_BYTES);
                record[at] = value;
            }
            let crc = checksum(&record);
            record[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
            if let Ok(read) = decode(&record) {
                let tracks = read.primary.size.div_ceil(u64::from(read.track_size));
                prop_assert!(read.out_of_sync.max().is_none_or(|last| last < tracks));
                prop_assert!(read.clean || read.full_copy_needed);
            }
        }
    }

    #[test]
    fn a_record_cut_at_any_byte_is_refused() {
        let record = example().encode();
        for len in 0..record.len() {
            assert!(matches!(decode(&record[..len]), Err(Fault::Damaged(_))), "cut to {len} bytes");
        }
        let mut longer = record.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        assert_eq!(decode(&record), Ok(example()));
    }

    #[test]
    fn every_single_bit_counts() {
        let record = example().encode();
        for bit in 0..record.len() * 8 {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut record = example().encode();
        record[8..12].copy_from_slice(&7_u32.to_le_bytes());
        assert_eq!(decode(&record), Err(Fault::Version(7)));
        assert_eq!(decode(b"a text that someone left here"), Err(Fault::Foreign));
    }

    #[test]
    fn a_record_is_stored_and_replaced_whole() {
        let directory = tempfile::tempdir().expect("directory");
        let path = State::path(directory.path(), "db");
        assert!(State::load(&path).expect("nothing there").is_none());
        let mut state = example();
        state.store(&path).expect("stored");
        assert_eq!(State::load(&path).expect("read"), Some(state.clone()));
        // A crash may have left a temporary file, and a stranger a link of that name.
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").expect("write");
        std::os::unix::fs::symlink(&victim, directory.path().join("db.state.new")).expect("link");
        state.last_increment = 10;
        state.store(&path).expect("stored again");
        assert_eq!(State::load(&path).expect("read"), Some(state));
        assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
    }

    #[test]
    fn only_a_clean_stop_spares_the_full_copy() {
        let directory = tempfile::tempdir().expect("directory");
        let path = State::path(directory.path(), "db");
        let reload = || State::load(&path).expect("readable").expect("there");
        let mut state = State::new(side("a"), side("b"), TRACK);
        state.store(&path).expect("stored");
        assert_eq!(reload().begin(), None, "nothing has been copied yet");
        state.begin();
        state.store(&path).expect("stored");
        assert_eq!(reload().begin(), None, "a crash while it was up");
        let marks: RoaringTreemap = [1, 5, 7].into_iter().collect();
        state.end(marks.clone());
        state.store(&path).expect("stored");
        let mut state = reload();
        assert_eq!(state.begin(), Some(marks));
        state.store(&path).expect("stored");
        assert_eq!(reload().begin(), None, "a crash after the next start");
    }

    #[test]
    fn other_devices_are_refused_by_both_names() {
        let state = example();
        let (primary, secondary) = (state.primary.clone(), state.secondary.clone());
        state.check(&primary, &secondary, TRACK).expect("the same");
        let refusal = |result: Result<(), MetadataError>| result.expect_err("another").to_string();
        let swapped = refusal(state.check(&secondary, &primary, TRACK));
        assert!(swapped.contains("wwid:1") && swapped.contains("file:2@3"), "{swapped}");
        let smaller = Side { size: 4096, ..primary.clone() };
        assert!(refusal(state.check(&smaller, &secondary, TRACK)).contains("4096"));
        let tracks = refusal(state.check(&primary, &secondary, 4096));
        assert!(tracks.contains("65536") && tracks.contains("4096"), "{tracks}");
    }
}
