//! The host's side: the ublk device, its queues, the requests they bring. The only module that knows libublk.

mod device;
pub mod features;
mod intent_requests;
mod intent_write;
pub mod leftovers;
pub mod openers;
mod queue_io;
mod request;
pub mod run_dir;
mod ublk_queue;
mod unserved;
pub mod watchdog;

pub use device::{DeviceError, REQUEST_BYTES_MAX, Shape, UblkDevice};
pub use intent_write::{Attended, IntentDesk, IntentWrite};
pub use queue_io::{Handler, QueueIo, Zeroing};
pub use request::{Op, Request, SECTOR_SHIFT, Tag};
pub use ublk_queue::Shared;
