//! What metadata asks of the file or device that it lies on: the seam at which tests fail, tear and lose writes.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use super::layout::PAGE_BYTES;
use crate::storage::Device;

/// A file or device that holds metadata. Every offset and length is a multiple of [`PAGE_BYTES`] and every buffer is
/// aligned to it, as direct I/O wants.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Fills `buffer`; what lies behind the end reads as zeroes.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes; durable when it returns. After an error nothing is known of the range.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes; durable only after the next [`Medium::flush`].
    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
    /// For a ring, if there is something that one can write to.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}

impl Medium for Device {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes, true)
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes, false)
    }

    fn flush(&self) -> io::Result<()> {
        Self::flush(self)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(Self::raw_fd(self))
    }
}

/// One page of memory, aligned.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; PAGE_BYTES]);

impl Page {
    pub const ZERO: Self = Self([0; PAGE_BYTES]);

    pub fn is_zero(&self) -> bool {
        self.0 == Self::ZERO.0
    }

    /// The bytes at `at`, for numbers.
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Of everything but the four bytes at `at`.
    pub fn checksum(&self, at: usize) -> u32 {
        checksum(&self.0, at)
    }
}

/// Of everything but the checksum itself, which is the four bytes at `at`.
pub fn checksum(page: &[u8; PAGE_BYTES], at: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page[..at]), &page[at + 4..])
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

/// Many pages of memory, aligned: the unit of long reads and writes. The pages of a large volume are read one after the
/// other before it can be served, and each read has to wait for the disk.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Chunk(pub [u8; CHUNK_BYTES]);

pub const CHUNK_BYTES: usize = 64 * PAGE_BYTES;

impl Chunk {
    #[expect(clippy::large_stack_arrays, reason = "small beside a stack, if it is ever made there")]
    pub fn new() -> Box<Self> {
        Box::new(Self([0; CHUNK_BYTES]))
    }
}
