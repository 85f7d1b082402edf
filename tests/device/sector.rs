//! What a written sector says of itself: which write it belongs to, where it should be, and whether it is whole.

/// The unit that a write cannot tear.
pub const SECTOR: usize = 512;
pub const SECTOR_BYTES: u64 = SECTOR as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"fpsector");
const WORDS: usize = 5;
const CHECKSUM_AT: usize = SECTOR - 4;

/// One write of one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId {
    pub writer: u32,
    pub sequence: u64,
}

/// A sector's account of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub write: WriteId,
    pub volume: u32,
    pub lba: u64,
}

/// What is found in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Never written.
    Empty,
    Whole(Stamp),
    /// Neither: torn, or something else.
    Broken,
}

fn words(stamp: &Stamp) -> [u64; WORDS] {
    let Stamp { write, volume, lba } = *stamp;
    [MAGIC, write.writer.into(), volume.into(), write.sequence, lba]
}

/// Fills one sector.
pub fn fill(sector: &mut [u8], stamp: &Stamp) {
    let words = words(stamp);
    // The whole sector depends on the write, so that a torn one is seen wherever the tear is.
    let mut filler = (stamp.write.sequence << 20 | stamp.lba).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (at, place) in sector.chunks_exact_mut(8).enumerate() {
        filler = filler.rotate_left(7) ^ at as u64;
        place.copy_from_slice(&words.get(at).copied().unwrap_or(filler).to_le_bytes());
    }
    let checksum = crc32c::crc32c(&sector[..CHECKSUM_AT]);
    sector[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads one sector.
pub fn parse(sector: &[u8]) -> Content {
    let word = |at: usize| {
        let bytes = sector.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let checksum = sector.get(CHECKSUM_AT..).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    if word(0) == 0 && sector.iter().all(|byte| *byte == 0) {
        return Content::Empty;
    }
    if word(0) != MAGIC || checksum != crc32c::crc32c(&sector[..CHECKSUM_AT]) {
        return Content::Broken;
    }
    match (u32::try_from(word(1)), u32::try_from(word(2))) {
        (Ok(writer), Ok(volume)) => {
            Content::Whole(Stamp { write: WriteId { writer, sequence: word(3) }, volume, lba: word(4) })
        }
        _ => Content::Broken,
    }
}
