//! temporary
#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
use std::ops::Deref;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
#[derive(Debug)]
pub struct Words(Box<[AtomicU64]>);
impl Words {
    pub fn zeroed(count: u64) -> std::io::Result<Self> {
        Ok(Self((0..count).map(|_| AtomicU64::new(0)).collect()))
    }
}
impl Deref for Words {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}
