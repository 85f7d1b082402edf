//! Disks that lose what was not flushed when the power is cut, for a guest: each file is served over NBD on a socket
//! beside it. A write stays in memory until a flush. When the power is cut, all disks stop at the same instant, and of
//! what was not flushed a random part is written, sector by sector: writes come in any order, and are torn.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::sector::{SECTOR, SECTOR_BYTES};
use crate::workload::Random;

/// How often it is looked whether the power is cut.
const LOOK: Duration = Duration::from_millis(10);
const REQUEST_BYTES_MAX: usize = 64 << 20;

// The protocol, in its oldest form: a greeting, then requests.
const GREETING: u64 = 0x4202_8186_1253;
const GREETING_REST: usize = 124;
/// Flags are given, there is a volatile cache that can be flushed, and single writes can ask to be durable.
const FLAGS: u32 = 1 | 1 << 2 | 1 << 3;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const REQUEST_BYTES: usize = 28;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const DURABLE: u16 = 1;
const INVALID: u32 = 22;

#[derive(Debug, Args)]
pub struct Disks {
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The power is cut when this file is there
    #[arg(long)]
    cut: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One disk: its medium, and what it holds in memory only.
struct Disk {
    file: File,
    size: u64,
    unflushed: HashMap<u64, [u8; SECTOR]>,
    flushes: u64,
}

/// All disks; None when the power is cut.
type Power = Mutex<Option<Vec<Disk>>>;

impl Disks {
    pub fn run(&self) -> Result<(), String> {
        let mut disks = Vec::new();
        let mut listeners = Vec::new();
        for path in &self.files {
            let failed = |error| format!("{}: {error}", path.display());
            disks.push(Disk::open(path).map_err(failed)?);
            let socket = path.with_extension("socket");
            let _ = std::fs::remove_file(&socket);
            listeners.push(UnixListener::bind(socket).map_err(failed)?);
        }
        let power = Arc::new(Power::new(Some(disks)));
        for (number, listener) in listeners.into_iter().enumerate() {
            let power = power.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let power = power.clone();
                    // An error is a guest that has gone.
                    thread::spawn(move || serve(stream, number, &power));
                }
            });
        }
        while !self.cut.exists() {
            thread::sleep(LOOK);
        }
        let disks = power.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (number, (disk, path)) in disks.into_iter().flatten().zip(&self.files).enumerate() {
            let name = path.file_stem().unwrap_or_default().display().to_string();
            let (unflushed, flushes) = (disk.unflushed.len(), disk.flushes);
            let kept = disk.lose(self.seed ^ (number as u64) << 40).map_err(|error| format!("{name}: {error}"))?;
            println!("{name}: flushes={flushes} unflushed_sectors={unflushed} lost_sectors={}", unflushed - kept);
        }
        Ok(())
    }
}

fn sectors(offset: u64, length: usize) -> impl Iterator<Item = u64> {
    (offset / SECTOR_BYTES..).take(length / SECTOR)
}

impl Disk {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size, unflushed: HashMap::new(), flushes: 0 })
    }

    fn holds(&self, offset: u64, length: usize) -> bool {
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR);
        aligned && length <= REQUEST_BYTES_MAX && offset.checked_add(length as u64).is_some_and(|end| end <= self.size)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)?;
        for (number, place) in sectors(offset, into.len()).zip(into.chunks_exact_mut(SECTOR)) {
            if let Some(content) = self.unflushed.get(&number) {
                place.copy_from_slice(content);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, content: &[u8]) {
        let contents = content.chunks_exact(SECTOR).filter_map(|content| content.try_into().ok());
        self.unflushed.extend(sectors(offset, content.len()).zip(contents));
    }

    fn write_durably(&mut self, offset: u64, content: &[u8]) -> io::Result<()> {
        for number in sectors(offset, content.len()) {
            self.unflushed.remove(&number);
        }
        self.file.write_all_at(content, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        for (number, content) in self.unflushed.drain() {
            self.file.write_all_at(&content, number * SECTOR_BYTES)?;
        }
        Ok(())
    }

    /// The power is cut: how many sectors reached the medium. Whether in one piece with their neighbours, and how many,
    /// differs from cut to cut, but never all.
    fn lose(self, seed: u64) -> io::Result<usize> {
        let mut random = Random::new(seed);
        let (quarters, together) = (random.below(4), [1, 8, 128][usize::try_from(random.below(3)).unwrap_or(0)]);
        let mut kept = 0;
        for (number, content) in self.unflushed {
            if Random::new(seed ^ (number / together) << 8).below(4) < quarters {
                self.file.write_all_at(&content, number * SECTOR_BYTES)?;
                kept += 1;
            }
        }
        Ok(kept)
    }
}

/// Serves one client until it or the power goes.
fn serve(mut stream: UnixStream, number: usize, power: &Power) -> io::Result<()> {
    let with_disk = |work: &mut dyn FnMut(&mut Disk) -> io::Result<u32>| {
        let mut disks = power.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = disks.as_mut().and_then(|disks| disks.get_mut(number));
        // Without power there is no answer.
        disk.ok_or(io::ErrorKind::BrokenPipe.into()).and_then(work)
    };
    let mut size = 0;
    with_disk(&mut |disk| {
        size = disk.size;
        Ok(0)
    })?;
    let mut greeting = Vec::from(*b"NBDMAGIC");
    greeting.extend(GREETING.to_be_bytes());
    greeting.extend(size.to_be_bytes());
    greeting.extend(FLAGS.to_be_bytes());
    greeting.resize(greeting.len() + GREETING_REST, 0);
    stream.write_all(&greeting)?;
    loop {
        let request = Request::read(&mut stream)?;
        let mut content = Vec::new();
        if request.kind == WRITE && request.length <= REQUEST_BYTES_MAX {
            content.resize(request.length, 0);
            stream.read_exact(&mut content)?;
        }
        let error = with_disk(&mut |disk| {
            match request.kind {
                DISCONNECT => return Err(io::ErrorKind::ConnectionAborted.into()),
                FLUSH => disk.flush()?,
                _ if !disk.holds(request.offset, request.length) => return Ok(INVALID),
                READ => {
                    content.resize(request.length, 0);
                    disk.read(request.offset, &mut content)?;
                }
                WRITE if request.flags & DURABLE != 0 => disk.write_durably(request.offset, &content)?,
                WRITE => disk.write(request.offset, &content),
                _ => return Ok(INVALID),
            }
            Ok(0)
        })?;
        let mut reply = Vec::from(REPLY.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(request.handle);
        if request.kind == READ && error == 0 {
            reply.append(&mut content);
        }
        stream.write_all(&reply)?;
    }
}

struct Request {
    flags: u16,
    kind: u16,
    handle: [u8; 8],
    offset: u64,
    length: usize,
}

impl Request {
    fn read(stream: &mut UnixStream) -> io::Result<Self> {
        let mut bytes = [0; REQUEST_BYTES];
        stream.read_exact(&mut bytes)?;
        let number =
            |place: std::ops::Range<usize>| bytes[place].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        if number(0..4) != u64::from(REQUEST) {
            return Err(io::Error::other("not a request"));
        }
        let mut handle = [0; 8];
        handle.copy_from_slice(&bytes[8..16]);
        Ok(Self {
            flags: number(4..6) as u16,
            kind: number(6..8) as u16,
            handle,
            offset: number(16..24),
            length: number(24..28) as usize,
        })
    }
}
