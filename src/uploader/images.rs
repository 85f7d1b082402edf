//! The bounded, pre-allocated memory of a volume's before-images, shared by the queues that fill it and the drain that
//! sends it (seed 004 \[0044\], IBM's side file).

use super::cargo::ImageNo;
use crate::memory::{Buffer, MemoryError, Pool};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A read of a track of the primary into an image's memory, as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRead {
    pub image: ImageNo,
    /// Where the track lies, in bytes.
    pub offset: u64,
    pub length: u32,
    /// So many bytes of it are in memory.
    pub done: u32,
    /// How often the primary has turned away what is left.
    pub again: u8,
}

/// One image: its memory, and what was read into it.
#[derive(Debug)]
struct Held {
    buffer: Buffer,
    read: ImageRead,
    checksum: u32,
}

impl Held {
    fn content(&self) -> &[u8] {
        &self.buffer[..usize::try_from(self.read.length).unwrap_or(usize::MAX)]
    }
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

    /// See [`Pool::lock_warning`].
    pub fn lock_warning(&self) -> Option<&str> {
        self.pool.as_ref()?.lock_warning()
    }

    fn place(&self, image: ImageNo) -> MutexGuard<'_, Option<Held>> {
        self.held[image.0].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for one more image; never waits.
    pub fn take(&self) -> Option<ImageNo> {
        let buffer = self.pool.as_ref()?.take()?;
        let image = ImageNo(buffer.index());
        let read = ImageRead { image, offset: 0, length: 0, done: 0, again: 0 };
        *self.place(image) = Some(Held { buffer, read, checksum: 0 });
        Some(image)
    }

    pub fn free(&self, image: ImageNo) {
        *self.place(image) = None;
    }

    /// Where a request is to put or find the image's content.
    pub fn pointer(&self, image: ImageNo) -> *mut u8 {
        self.place(image).as_mut().map_or(std::ptr::null_mut(), |held| held.buffer.as_mut_ptr())
    }

    /// What is about to be read into it.
    pub fn reading(&self, read: ImageRead) {
        if let Some(held) = self.place(read.image).as_mut() {
            held.read = read;
        }
    }

    /// What was being read into it; the answer was `moved` bytes. If that is the rest, remembers what they all are.
    pub fn filled(&self, image: ImageNo, moved: i32) -> Option<ImageRead> {
        let mut place = self.place(image);
        let held = place.as_mut()?;
        if u32::try_from(moved).is_ok_and(|moved| held.read.done + moved == held.read.length) {
            held.checksum = crc32c::crc32c(held.content());
        }
        Some(held.read)
    }

    /// Whether the content still is what was read (H20).
    pub fn intact(&self, image: ImageNo) -> bool {
        self.place(image).as_ref().is_some_and(|held| crc32c::crc32c(held.content()) == held.checksum)
    }

    pub fn used(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| self.held.len() - pool.free_count())
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }
}
