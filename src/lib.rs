//! farpoint: a ublk block device that mirrors changed tracks asynchronously and forms consistency points.
//!
//! One program; the library exists so that tests reach its parts, and `pub` here promises nothing to anyone else.
//! Modules in reading order, from the bottom: each uses only those above it (`tests/tidy.rs`).

pub mod bugs;
pub mod cli;
pub mod control;
pub mod controller;
pub mod doorbell;
pub mod frontend;
pub mod geometry;
pub mod group;
pub mod increment;
pub mod intent;
pub mod mailbox;
pub mod memory;
pub mod metadata;
pub mod secondary;
pub mod storage;
pub mod tracking;
pub mod uploader;
pub mod volume;
