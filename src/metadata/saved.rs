//! The save area: the exact tracks out of sync at a clean stop.
//!
//! All numbers little-endian:
//!
//! ```text
//! offset  size
//!      0     8  magic "FPSAVED", zero
//!      8     4  CRC32C of everything but these four bytes, the tracks included
//!     12     4  zero
//!     16    16  the volume's id
//!     32     8  what the superblock must name for this to count
//!     40     8  length of the tracks, in bytes
//!     48    16  zero
//!     64        the tracks, a portable roaring treemap
//! ```
//!
//! Written and flushed before the superblock that names it, and never while a superblock names it: one area is enough.
//! If it is not whole, the hot regions are copied instead, a superset.

use super::MetadataError;
use super::layout::{Layout, SAVED_HEADER_BYTES};
use super::medium::{CHUNK_BYTES, Chunk, Medium};
use super::tracks::Tracks;
use roaring::RoaringTreemap;
use std::io;

const MAGIC: &[u8; 8] = b"FPSAVED\0";
const CRC: usize = 8;
#[expect(clippy::cast_possible_truncation, reason = "it is 64")]
const HEADER: usize = SAVED_HEADER_BYTES as usize;

fn encode(volume: [u8; 16], number: u64, tracks: &Tracks) -> Vec<u8> {
    let tracks: &RoaringTreemap = tracks.as_ref();
    let length = tracks.serialized_size();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend(MAGIC);
    bytes.extend([0; 8]);
    bytes.extend(volume);
    bytes.extend(number.to_le_bytes());
    bytes.extend((length as u64).to_le_bytes());
    bytes.resize(HEADER, 0);
    tracks.serialize_into(&mut bytes).expect("writing to memory cannot fail");
    let crc = checksum(&bytes);
    bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC]), &bytes[CRC + 4..])
}

/// Writes the tracks and makes them durable.
pub(super) fn write(
    medium: &dyn Medium,
    layout: &Layout,
    volume: [u8; 16],
    number: u64,
    tracks: &Tracks,
) -> Result<(), Refusal> {
    let bytes = encode(volume, number, tracks);
    if bytes.len() as u64 > layout.save_bytes {
        return Err(Refusal::TooLarge(bytes.len()));
    }
    let mut chunk = Chunk::new();
    for (at, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let padded = part.len().next_multiple_of(super::layout::PAGE_BYTES);
        chunk.0[..part.len()].copy_from_slice(part);
        chunk.0[part.len()..padded].fill(0);
        medium.write_lazily(layout.save_offset + (at * CHUNK_BYTES) as u64, &chunk.0[..padded])?;
    }
    medium.flush()?;
    Ok(())
}

/// Why tracks could not be saved.
#[derive(Debug)]
pub(super) enum Refusal {
    TooLarge(usize),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Refusal {
    pub(super) fn at(self, path: &std::path::Path) -> MetadataError {
        let path = path.to_owned();
        match self {
            Self::TooLarge(bytes) => MetadataError::TooLarge { path, bytes },
            Self::Io(source) => MetadataError::Io { path, doing: "saving the tracks", source },
        }
    }
}

/// Reads the tracks that belong to `number`; `None` if they are not there, whole.
pub(super) fn read(
    medium: &dyn Medium,
    layout: &Layout,
    volume: [u8; 16],
    number: u64,
    track_count: u64,
) -> io::Result<Option<Tracks>> {
    let mut chunk = Chunk::new();
    let mut bytes = Vec::new();
    let mut wanted = HEADER as u64;
    while (bytes.len() as u64) < wanted {
        let at = bytes.len() as u64;
        let left = usize::try_from(layout.save_bytes - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        medium.read(layout.save_offset + at, &mut chunk.0[..left])?;
        bytes.extend(&chunk.0[..left]);
        if at == 0 {
            let field =
                |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
            let length = field(40).unwrap_or(u64::MAX);
            let ours = bytes.starts_with(MAGIC) && bytes.get(16..32) == Some(&volume) && field(32) == Some(number);
            // Before memory is taken for it.
            if !ours || length > layout.save_bytes - SAVED_HEADER_BYTES {
                return Ok(None);
            }
            wanted += length;
        }
    }
    bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    let crc = bytes.get(CRC..CRC + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if crc != Some(checksum(&bytes)) {
        return Ok(None);
    }
    let mut rest = &bytes[HEADER..];
    let tracks = RoaringTreemap::deserialize_from(&mut rest).ok().filter(|_| rest.is_empty());
    Ok(tracks.filter(|tracks| tracks.max().is_none_or(|last| last < track_count)).map(Tracks::from))
}
