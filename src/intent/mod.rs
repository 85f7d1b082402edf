//! The durable intent of a volume (ARCHITECTURE.md: intent): a region is marked hot on media before a write to it
//! reaches the primary, so that after a crash only hot regions have to be copied again (P1, P7).
//!
//! [`Regions`] is what a write sees: a word per region, lock-free. [`Keeper`] decides which page of the intent is
//! written, when, and with what, and what is named in the log before that; pure, as the drain's plan is. It is carried
//! out by `volume`'s metadata thread, and by the queues for their own writes (`volume/desk.rs`).
//!
//! **Both ways of waking.** A write that finds a region cold tells the keeper by a letter ([`Message::Want`]), and
//! parks. Letters lie in a queue and cannot be overlooked; every one of them is answered with a ring of the queue's
//! doorbell once all its regions are hot or never will be, even if they were hot already when it was read. The write
//! looks only after that ring, on the thread that parked it, so whatever order the two threads run in it looks after
//! the last of its regions became hot. Since it keeps its pins, none of them can be cooled again before it has looked.

mod keeper;
mod log;
mod message;
mod page;
mod queues;
mod regions;
mod sweep;
#[cfg(all(test, not(feature = "loom")))]
mod tests;

pub use keeper::{Figures, Keeper, Limits, Op, RECORD_REGIONS_MAX, Write};
pub use log::{LogStart, RECORDS_UNDER_WAY_MAX, Record};
pub use message::Message;
pub use page::PageNo;
pub use queues::Queues;
pub use regions::{Pinned, REGION_SIZE_DEFAULT, REGION_SIZE_MAX, RegionNo, RegionRange, Regions};

/// A keeper's.
pub type Mailbox = crate::mailbox::Mailbox<Message>;
