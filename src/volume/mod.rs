//! One running volume: joins the device, the tracking, and the drain.

mod host;

pub use host::{Host, HostCounters};
