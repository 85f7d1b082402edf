//! The host's side: the ublk device, its queues, the requests they bring, and the doorbell that wakes them.

mod queue_io;
mod request;

pub use queue_io::{QueueIo, Zeroing};
pub use request::{Op, Request, SECTOR_SHIFT, Tag};
