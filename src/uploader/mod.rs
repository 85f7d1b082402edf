//! The drain: sends what is out of sync to the secondary, in large requests with a bounded window. `plan` decides,
//! `ring` carries out.

mod cargo;
mod link;
mod message;
mod pace;
mod plan;

pub use cargo::{ImageNo, Segment, SlotNo};
pub use message::Message;
pub use plan::{Drain, Limits, Op, Policy, Report, Totals};
