//! The bounded, pre-allocated memory of a volume's before-images, shared by the queues that fill it and the drain that
//! sends it (seed 004 \[0044\], IBM's side file).

use super::cargo::ImageNo;
use crate::memory::{Buffer, MemoryError, Pool};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One image: its memory, and what was read into it.
#[derive(Debug)]
struct Held {
    buffer: Buffer,
    /// Where on the primary it is from, in bytes.
    offset: u64,
    length: usize,
    checksum: u32,
}

/// Memory for as many images as the volume's setting allows.
#[derive(Debug)]
pub struct Images {
    pool: Option<Pool>,
    held: Box<[Mutex<Option<Held>>]>,
}

impl Images {
    /// Room for `count` images of `track_size` bytes; none for 0.
    pub fn new(count: usize, track_size: usize) -> Result<Self, MemoryError> {
        let pool = if count == 0 { None } else { Some(Pool::new(count, track_size)?) };
        Ok(Self { pool, held: (0..count).map(|_| Mutex::new(None)).collect() })
    }

    fn place(&self, image: ImageNo) -> MutexGuard<'_, Option<Held>> {
        self.held[image.0].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for one more image; never waits.
    pub fn take(&self) -> Option<ImageNo> {
        let buffer = self.pool.as_ref()?.take()?;
        let image = ImageNo(buffer.index());
        *self.place(image) = Some(Held { buffer, offset: 0, length: 0, checksum: 0 });
        Some(image)
    }

    pub fn free(&self, image: ImageNo) {
        *self.place(image) = None;
    }

    /// Where a request is to put or find the image's content.
    pub fn pointer(&self, image: ImageNo) -> *mut u8 {
        self.place(image).as_mut().map_or(std::ptr::null_mut(), |held| held.buffer.as_mut_ptr())
    }

    /// What is about to be read into it: `length` bytes from `offset` of the primary.
    pub fn describe(&self, image: ImageNo, offset: u64, length: usize) {
        if let Some(held) = self.place(image).as_mut() {
            (held.offset, held.length) = (offset, length);
        }
    }

    /// The read has ended with `moved` bytes. Remembers what they are; returns their offset, and whether it is all.
    pub fn filled(&self, image: ImageNo, moved: usize) -> (u64, bool) {
        let mut place = self.place(image);
        let Some(held) = place.as_mut() else { return (0, false) };
        held.checksum = crc32c::crc32c(&held.buffer[..held.length]);
        (held.offset, moved == held.length)
    }

    /// Whether the content still is what was read (H20).
    pub fn intact(&self, image: ImageNo) -> bool {
        self.place(image).as_ref().is_some_and(|held| crc32c::crc32c(&held.buffer[..held.length]) == held.checksum)
    }

    pub fn used(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| self.held.len() - pool.free_count())
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }
}
