//! The atomics of tracking: the processor's, or loom's when it explores every interleaving of them.

#[cfg(feature = "loom")]
pub(super) use crate::memory::sequential::{AtomicU32, AtomicU64};
#[cfg(not(feature = "loom"))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64};

pub(super) use std::sync::atomic::Ordering::SeqCst;
