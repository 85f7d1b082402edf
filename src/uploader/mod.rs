//! The drain: sends what is out of sync to the secondary, in large requests with a bounded window. `plan` decides,
//! `ring` carries out.

mod cargo;
mod images;
mod link;
mod message;
mod pace;
mod plan;
mod progress;
mod requests;
mod ring;

pub use cargo::{ImageNo, Segment, SlotNo};
pub use images::{ImageRead, Images};
pub use message::Message;
pub use plan::{Drain, Limits, Op, Policy, Report, Totals};
pub use ring::{Figures, Parts, Uploader};

/// A drain's.
pub type Mailbox = crate::mailbox::Mailbox<Message>;
