//! A file system at work: threads that make, fill, truncate, rename, link and remove files at random, and a digest of
//! the tree that is left, to be the same wherever the tree is seen.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;

use crate::workload::Random;

const FILES: u64 = 60;
const DIRECTORIES: u64 = 6;
const FILE_BYTES_MAX: u64 = 400_000;

#[derive(Debug, Args)]
pub struct Churn {
    directory: PathBuf,
    /// Operations of each thread
    #[arg(long, default_value_t = 500)]
    operations: u64,
    #[arg(long, default_value_t = 4)]
    threads: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Churn {
    pub fn run(&self) -> Result<(), String> {
        let worker = |number: u64| {
            // Two threads share a directory, so that they also meet.
            let home = self.directory.join(format!("churn{}", number / 2));
            let mut random = Random::new(self.seed << 8 | number);
            for _ in 0..self.operations {
                step(&home, &mut random).map_err(|error| format!("{}: {error}", home.display()))?;
            }
            Ok(())
        };
        let results = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|number| scope.spawn(move || worker(number))).collect();
            threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|_| Err("a thread panicked".to_owned())))
    }
}

fn place(home: &Path, random: &mut Random) -> PathBuf {
    let directory = home.join(format!("d{}", random.below(DIRECTORIES)));
    directory.join(format!("f{}", random.below(FILES / DIRECTORIES)))
}

/// One operation. What another thread has just removed or made is no error.
fn step(home: &Path, random: &mut Random) -> io::Result<()> {
    let (path, other) = (place(home, random), place(home, random));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let length = random.below(FILE_BYTES_MAX);
    let result = match random.below(12) {
        0..5 => open().and_then(|file| fill(&file, random)),
        5 => open().and_then(|file| file.set_len(length)),
        6 => fs::rename(&path, &other),
        7 => fs::remove_file(&path),
        8 => fs::hard_link(&path, &other),
        9 => symlink(&other, path.with_extension("link")),
        10 => open().and_then(|file| file.sync_all()),
        _ => {
            fs::remove_dir_all(other.with_extension("dir")).or_else(|_| fs::create_dir_all(path.with_extension("dir")))
        }
    };
    let expected = [libc::ENOENT, libc::EEXIST, libc::ENOTDIR, libc::EISDIR, libc::ENOTEMPTY, libc::ELOOP];
    match result {
        Err(error) if !error.raw_os_error().is_some_and(|errno| expected.contains(&errno)) => Err(error),
        _ => Ok(()),
    }
}

fn fill(file: &File, random: &mut Random) -> io::Result<()> {
    let content: Vec<u8> = (0..random.below(30_000)).map(|at| (at >> 3) as u8 ^ random.below(4) as u8).collect();
    file.write_all_at(&content, random.below(FILE_BYTES_MAX))
}

#[derive(Debug, Args)]
pub struct Digest {
    directory: PathBuf,
}

impl Digest {
    /// Prints one line that is the same for the same tree: names, kinds, lengths, link targets and contents.
    pub fn run(&self) -> Result<(), String> {
        let (mut files, mut bytes, mut digest) = (0_u64, 0_u64, 0_u32);
        let mut to_do = vec![self.directory.clone()];
        let failed = |path: &Path, error: &io::Error| format!("{}: {error}", path.display());
        while let Some(directory) = to_do.pop() {
            let entries = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let mut entries: Vec<_> = entries.map_err(|error| failed(&directory, &error))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for path in entries.iter().map(fs::DirEntry::path) {
                let kind = fs::symlink_metadata(&path).map_err(|error| failed(&path, &error))?;
                let content = if kind.is_dir() {
                    to_do.push(path.clone());
                    Vec::new()
                } else if kind.is_symlink() {
                    fs::read_link(&path).map_err(|error| failed(&path, &error))?.into_os_string().into_encoded_bytes()
                } else {
                    fs::read(&path).map_err(|error| failed(&path, &error))?
                };
                let name = path.strip_prefix(&self.directory).unwrap_or(&path).as_os_str().as_encoded_bytes();
                for part in [name, &(content.len() as u64).to_le_bytes(), &content] {
                    digest = crc32c::crc32c_append(digest, part);
                }
                files += 1;
                bytes += content.len() as u64;
            }
        }
        println!("files={files} bytes={bytes} digest={digest:08x}");
        Ok(())
    }
}
