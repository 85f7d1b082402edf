//! Takes lines from a stream, bounded in length and, once begun, in time. Between lines a client may be silent for as
//! long as it likes.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// Bytes asked for at a time; memory grows with what a client has really sent.
const READ_BYTES: usize = 4096;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the line is longer than {0} bytes; send one short object per line")]
    TooLong(usize),
    #[error("the line was not finished within {0:?}; send it in one piece")]
    TooSlow(Duration),
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub(super) struct Lines {
    /// What came after the last line taken.
    received: Vec<u8>,
    /// How much of it is known to have no end of line in it.
    searched: usize,
    bytes_max: usize,
    time_max: Duration,
}

impl Lines {
    pub(super) fn new(bytes_max: usize, time_max: Duration) -> Self {
        Self { received: Vec::new(), searched: 0, bytes_max, time_max }
    }

    /// The next line without its end, or nothing when the client has no more to say.
    pub(super) async fn next(&mut self, stream: &mut UnixStream) -> Result<Option<Vec<u8>>, LineError> {
        let mut deadline = None;
        loop {
            if let Some(line) = self.take()? {
                return Ok(Some(line));
            }
            if deadline.is_none() && !self.received.is_empty() {
                deadline = Some(Instant::now() + self.time_max);
            }
            self.received.reserve(READ_BYTES);
            let read = stream.read_buf(&mut self.received);
            let count = match deadline {
                Some(deadline) => timeout_at(deadline, read).await.map_err(|_| LineError::TooSlow(self.time_max))??,
                None => read.await?,
            };
            if count == 0 {
                // A last line without an end is a line too, as `printf` writes them.
                let rest = std::mem::take(&mut self.received);
                self.searched = 0;
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let unsearched = self.received.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n').map(|at| at + self.searched) else {
            self.searched = self.received.len();
            return if self.searched > self.bytes_max { Err(LineError::TooLong(self.bytes_max)) } else { Ok(None) };
        };
        if end > self.bytes_max {
            return Err(LineError::TooLong(self.bytes_max));
        }
        let rest = self.received.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.received, rest);
        line.truncate(end);
        self.searched = 0;
        Ok(Some(line))
    }
}
