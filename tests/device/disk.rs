//! A device or file as the tests read and write it: around the page cache, so that what is read is what is there, and
//! what is written has reached the device when the call returns.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Alignment of memory, offset and length that every device takes.
pub const ALIGNMENT: usize = 4096;
/// How much is read at a time.
const CHUNK: usize = 1 << 20;

/// Memory that direct I/O takes.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length.next_multiple_of(ALIGNMENT) + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// An open device or file.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
}

impl Disk {
    pub fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(writable);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
        let mut file = match direct {
            // A file system without direct I/O.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(path)?,
            opened => opened?,
        };
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads up to the buffer's length; less only at the end.
    pub fn read(&self, buffer: &mut Buffer, offset: u64) -> io::Result<usize> {
        let wanted = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.length);
        loop {
            match self.file.read_at(buffer.bytes_mut(), offset) {
                Ok(count) if count >= wanted => return Ok(wanted),
                Ok(count) => return Err(io::Error::other(format!("read {count} of {wanted} bytes at {offset}"))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes the first `length` bytes of the buffer with one call.
    pub fn write(&self, buffer: &Buffer, length: usize, offset: u64) -> io::Result<()> {
        match self.file.write_at(&buffer.bytes()[..length], offset) {
            Ok(count) if count == length => Ok(()),
            Ok(count) => Err(io::Error::other(format!("wrote {count} of {length} bytes at {offset}"))),
            Err(error) => Err(error),
        }
    }

    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The first `size` bytes.
    pub fn image(&self, size: u64) -> io::Result<Vec<u8>> {
        let size = size.min(self.size);
        let mut image = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let mut buffer = Buffer::new(CHUNK);
        while (image.len() as u64) < size {
            let count = self.read(&mut buffer, image.len() as u64)?;
            image.extend_from_slice(&buffer.bytes()[..count]);
        }
        image.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(image)
    }
}

/// The first byte in which the first `size` bytes of two devices differ.
pub fn first_difference(one: &Disk, other: &Disk, size: u64) -> io::Result<Option<u64>> {
    let (mut left, mut right) = (Buffer::new(CHUNK), Buffer::new(CHUNK));
    let mut offset = 0;
    while offset < size {
        let count = one.read(&mut left, offset)?.min(other.read(&mut right, offset)?);
        let count = count.min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        if count == 0 {
            return Err(io::Error::other(format!("one of them ends at byte {offset} of {size}")));
        }
        let (left, right) = (&left.bytes()[..count], &right.bytes()[..count]);
        if left != right {
            let at = left.iter().zip(right).position(|(one, other)| one != other).unwrap_or(0);
            return Ok(Some(offset + at as u64));
        }
        offset += count as u64;
    }
    Ok(None)
}
