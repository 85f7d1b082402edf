//! The intent of a volume on its medium, for those who write it: a thread that may block, and queues, which write on
//! their own rings.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::layout::{Layout, PAGE_BYTES};
use super::medium::Medium;
use super::watch::Watched;
use super::{log, pages};
use crate::intent::{PageNo, Record};

/// Memory that any write of the intent fits into, in bytes.
pub const WRITE_BYTES_MAX: usize = log::RECORD_BYTES;

/// Where a write goes, and its length; both fit for direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: usize,
}

/// Where the intent pages and the intent log of a volume are.
#[derive(Debug, Clone)]
pub struct IntentArea {
    pub(super) medium: Arc<Watched>,
    pub(super) layout: Layout,
    pub(super) volume: [u8; 16],
    /// Shared with [`super::media::Media`]: what has failed once is never written again.
    pub(super) failed: Arc<AtomicBool>,
}

impl IntentArea {
    pub fn pages(&self) -> u64 {
        self.layout.intent_pages
    }

    /// A page as it is to be written, at the beginning of `into`. `words` are those of the page, at most
    /// [`super::layout::WORDS_PER_PAGE`]; those that are missing are zero.
    pub fn page(&self, page: PageNo, words: &[u64], into: &mut [u8]) -> Extent {
        debug_assert!(page.0 < self.layout.intent_pages, "a page of the volume");
        into[..PAGE_BYTES].copy_from_slice(&pages::encode(self.volume, page.0, words).0);
        Extent { offset: self.layout.intent_offset + page.0 * PAGE_BYTES as u64, length: PAGE_BYTES }
    }

    /// A record of the log as it is to be written, at the beginning of `into`.
    pub fn record(&self, record: &Record, into: &mut [u8]) -> Extent {
        log::put(self.volume, record, into);
        Extent { offset: log::offset(&self.layout, record.number), length: log::RECORD_BYTES }
    }

    /// Writes; durable when it returns. Blocks. Never two writes of one page or record at a time (H4).
    ///
    /// After an error nothing is known of what it was to write, and nothing of this volume's metadata is written any
    /// more: not even its clean stop, so that the next start takes media as it finds it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.unless_failed(|| self.medium.write(offset, bytes))
    }

    /// The same, durable only after the next [`Self::flush`].
    pub fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.unless_failed(|| self.medium.write_lazily(offset, bytes))
    }

    /// Makes durable what was written lazily; an error is one of all of it.
    pub fn flush(&self) -> io::Result<()> {
        self.unless_failed(|| self.medium.flush())
    }

    fn unless_failed(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.check()?;
        self.judge(work())
    }

    /// An error is final. And where another write has failed meanwhile nobody knows whose error the device told.
    fn judge(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|_| self.failed.store(true, Ordering::SeqCst)).and_then(|()| self.check())
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier write of the volume's metadata has failed"));
        }
        Ok(())
    }

    /// Whether a request has gone unanswered for so long that nobody should wait for it any more.
    pub fn is_stalled(&self) -> bool {
        self.medium.stalled().is_some()
    }

    // For a write on somebody's ring.

    /// The file or device, if a ring can write to it.
    pub fn raw_fd(&self) -> Option<RawFd> {
        self.medium.raw_fd()
    }

    /// A write is about to be submitted; to be given to [`Self::answered`]. Refused after an error, as all writes are.
    pub fn asked(&self) -> io::Result<Instant> {
        self.check()?;
        Ok(self.medium.begin())
    }

    /// It was answered, or nobody will ever know. Says whether it is durable.
    pub fn answered(&self, asked: Instant, result: io::Result<()>) -> io::Result<()> {
        self.medium.end(asked);
        self.judge(result)
    }
}
