//! Memory for the path of a write: taken once at start, locked, populated (bitmaps a little later, see
//! [`Words::populate`]), never given back while the volume runs.
//!
//! A write-back daemon that allocates while the kernel waits for it to write out dirty pages can wait for itself
//! (memory reclaim needs the device, the device needs memory). So buffers come from a [`Pool`] cut from one [`Arena`],
//! and bitmaps are [`Words`]. Neither may ever allocate after construction, and taking a buffer never waits: an empty
//! pool is an answer (`None`), not a reason to sleep.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
#[cfg(not(feature = "loom"))]
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};

/// Alignment of the region and of every slot; enough for direct I/O to any device with blocks up to 4 KiB.
pub const ALIGNMENT: usize = 4096;

/// How much of a [`Words`] is populated early; the rest is populated (and then stays locked) on first touch, so that
/// the bitmaps of a sparse 64 TiB volume do not cost their full size.
pub const WORDS_POPULATED_BYTES_MAX: usize = 64 << 20;

/// How much is populated with one call: a huge page.
const POPULATED_TOGETHER: usize = 2 << 20;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The request makes no sense (zero, unaligned, or larger than the address space).
    #[error("cannot reserve {slots} buffers of {slot_bytes} bytes: {why}")]
    Shape { slots: usize, slot_bytes: usize, why: &'static str },
    /// The kernel refused the mapping.
    #[error("cannot reserve {bytes} bytes of memory: {errno}; lower the pool or the bitmap size, or add memory")]
    Map { bytes: usize, errno: Errno },
}

/// An anonymous private mapping, unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    lock_warning: Option<String>,
}

// SAFETY: a `Mapping` is a range of plain memory that it owns alone; nothing in it belongs to a thread. It hands out no
// reference itself: `Arena` and `Words` decide who may touch which part.
#[expect(unsafe_code, reason = "a raw pointer to an owned mapping is not Send by itself")]
unsafe impl Send for Mapping {}
// SAFETY: as above; through `&Mapping` only the address and the length can be read.
#[expect(unsafe_code, reason = "a raw pointer to an owned mapping is not Sync by itself")]
unsafe impl Sync for Mapping {}

impl Mapping {
    #[expect(unsafe_code, reason = "mmap and madvise")]
    fn new(bytes: NonZeroUsize, flags: MapFlags) -> Result<Self, MemoryError> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses replaces nothing that exists.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, bytes, prot, MapFlags::MAP_PRIVATE | flags) }
            .map_err(|errno| MemoryError::Map { bytes: bytes.get(), errno })?;
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: the range is the mapping just made. DONTFORK keeps a child from sharing pages that direct I/O
            // writes into, DONTDUMP keeps users' data out of core dumps; neither changes what we see. Failing is
            // harmless, so the result is not looked at.
            let _ = unsafe { nix::sys::mman::madvise(start, bytes.get(), advice) };
        }
        Ok(Self { start: start.cast(), bytes: bytes.get(), lock_warning: None })
    }

    /// Locks the mapping, `on_fault` or at once. Not being allowed to is a warning: the daemon works, but may be paged.
    #[expect(unsafe_code, reason = "mlock2")]
    fn lock(&mut self, on_fault: bool) {
        let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
        // SAFETY: the range is our own mapping; locking changes no content.
        let result = unsafe { libc::mlock2(self.start.as_ptr().cast(), self.bytes, flags) };
        if let Err(errno) = Errno::result(result) {
            self.lock_warning = Some(format!(
                "cannot lock {} bytes of memory: {errno}; raise LimitMEMLOCK (RLIMIT_MEMLOCK) or run as root, \
                 else the device may stall when memory is short",
                self.bytes
            ));
        }
    }

    /// Populates the first `bytes` now, so that no page fault waits for memory later. Failing only means later faults.
    /// A little at a time: whoever in the process maps or unmaps memory has to wait meanwhile.
    #[cfg_attr(feature = "loom", allow(dead_code, reason = "the words of loom are not mapped"))]
    #[expect(unsafe_code, reason = "madvise")]
    fn populate(&self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        for at in (0..bytes).step_by(POPULATED_TOGETHER) {
            let (start, length) = (self.start.as_ptr().wrapping_add(at), POPULATED_TOGETHER.min(bytes - at));
            // SAFETY: the range lies in our own mapping; populating for write keeps its (zero) content.
            let _ = unsafe { libc::madvise(start.cast(), length, libc::MADV_POPULATE_WRITE) };
        }
    }

    /// Behind the first `bytes` a touch costs a page of memory and not a huge one: those of a sparse volume would add
    /// up to all of it, and the zeroing to seconds. Failing only means that.
    #[cfg_attr(feature = "loom", allow(dead_code, reason = "the words of loom are not mapped"))]
    #[expect(unsafe_code, reason = "madvise")]
    fn keep_sparse(&self, bytes: usize) {
        let Some(rest) = self.bytes.checked_sub(bytes).filter(|rest| *rest > 0) else { return };
        let start = self.start.as_ptr().wrapping_add(bytes);
        // SAFETY: the range is the end of our own mapping; the advice changes no content.
        let _ = unsafe { libc::madvise(start.cast(), rest, libc::MADV_NOHUGEPAGE) };
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "munmap")]
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping, and whoever could refer to it holds (an `Arc` of) the owner, which is
        // being dropped. An error cannot happen for a range that mmap returned, and there is no one to tell.
        let _ = unsafe { nix::sys::mman::munmap(self.start.cast(), self.bytes) };
    }
}

/// One region of memory cut into equal slots. Allocated once; unmapped when the last [`Pool`] and [`Buffer`] are gone.
pub struct Arena {
    mapping: Mapping,
    slots: usize,
    slot_bytes: usize,
}

impl Arena {
    /// Reserves, populates and locks `slots` slots of `slot_bytes`, which must be a multiple of [`ALIGNMENT`].
    pub fn new(slots: usize, slot_bytes: usize) -> Result<Self, MemoryError> {
        let shape = |why| MemoryError::Shape { slots, slot_bytes, why };
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(ALIGNMENT) {
            return Err(shape("the size of a buffer must be a multiple of 4096"));
        }
        let bytes = slots.checked_mul(slot_bytes).and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or_else(|| shape("there must be at least one, and all must fit in the address space"))?;
        if isize::try_from(bytes.get()).is_err() {
            return Err(shape("all of them must fit in the address space"));
        }
        let mut mapping = Mapping::new(bytes, MapFlags::MAP_POPULATE)?;
        mapping.lock(false);
        Ok(Self { mapping, slots, slot_bytes })
    }

    /// What to tell the administrator if the memory could not be locked.
    pub fn lock_warning(&self) -> Option<&str> {
        self.mapping.lock_warning.as_deref()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("slots", &self.slots)
            .field("slot_bytes", &self.slot_bytes)
            .finish_non_exhaustive()
    }
}

struct Shared {
    arena: Arena,
    /// Free slots, last returned first (still in the cache). Its capacity is all slots, so a push never allocates.
    free: Mutex<Vec<usize>>,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        // The list is a plain stack and no code that holds the lock can panic, so a poisoned lock is still sound.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The free slots of an [`Arena`]. A clone is another handle on the same pool.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Allocates `slots` buffers of `slot_bytes` (a multiple of [`ALIGNMENT`]).
    pub fn new(slots: usize, slot_bytes: usize) -> Result<Self, MemoryError> {
        let arena = Arena::new(slots, slot_bytes)?;
        let free = Mutex::new((0..slots).rev().collect());
        Ok(Self { shared: Arc::new(Shared { arena, free }) })
    }

    /// A buffer that no one else has, or `None` when all are out. Never waits and never allocates. The content is
    /// whatever its last owner left.
    pub fn take(&self) -> Option<Buffer> {
        let index = self.shared.free().pop()?;
        Some(Buffer { shared: Arc::clone(&self.shared), index })
    }

    /// How many buffers are in the pool now.
    pub fn free_count(&self) -> usize {
        self.shared.free().len()
    }

    /// See [`Arena::lock_warning`].
    pub fn lock_warning(&self) -> Option<&str> {
        self.shared.arena.lock_warning()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("arena", &self.shared.arena).field("free", &self.free_count()).finish()
    }
}

/// The only handle on one slot; goes back to its pool on drop. Whoever gives its address to the kernel must keep the
/// handle until the completion has been seen.
pub struct Buffer {
    shared: Arc<Shared>,
    index: usize,
}

impl Buffer {
    /// The number of the slot: from 0, below the number of slots.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Address of the first byte, aligned to [`ALIGNMENT`].
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start()
    }

    /// Inside the mapping: `index < slots`, and `slots * slot_bytes` is its length.
    fn start(&self) -> *mut u8 {
        let arena = &self.shared.arena;
        arena.mapping.start.as_ptr().wrapping_add(self.index * arena.slot_bytes)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[expect(unsafe_code, reason = "a slice over the slot")]
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is `slot_bytes` of initialised (zeroed by the kernel) memory that lives as long as `shared`;
        // this handle is the only one on it, and `&self` keeps `&mut` away.
        unsafe { slice::from_raw_parts(self.start(), self.shared.arena.slot_bytes) }
    }
}

impl DerefMut for Buffer {
    #[expect(unsafe_code, reason = "a slice over the slot")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` keeps every other reference away.
        unsafe { slice::from_raw_parts_mut(self.start(), self.shared.arena.slot_bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.free().push(self.index);
    }
}

impl fmt::Debug for Buffer {
    /// Never prints the content: it is users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Loom's atomics with the one total order that `SeqCst` gives and loom leaves out: it takes such accesses for
/// acquire and release. Here every access reads the newest value and writes it, so that they are in one order; and so
/// that loom, which remembers only the last access to a word, does not miss that a load of one thread and a change of
/// another depend on each other when the other has loaded the word in between.
#[cfg(feature = "loom")]
pub mod sequential {
    use loom::sync::atomic::{self, Ordering};

    macro_rules! sequential {
        ($name:ident, $word:ty) => {
            #[derive(Debug)]
            pub struct $name(atomic::$name);

            impl $name {
                pub fn new(value: $word) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $word {
                    self.0.fetch_or(0, order)
                }

                pub fn store(&self, value: $word, order: Ordering) {
                    self.0.swap(value, order);
                }

                pub fn swap(&self, value: $word, order: Ordering) -> $word {
                    self.0.swap(value, order)
                }

                pub fn fetch_add(&self, value: $word, order: Ordering) -> $word {
                    self.0.fetch_add(value, order)
                }

                pub fn fetch_sub(&self, value: $word, order: Ordering) -> $word {
                    self.0.fetch_sub(value, order)
                }

                pub fn fetch_or(&self, value: $word, order: Ordering) -> $word {
                    self.0.fetch_or(value, order)
                }

                pub fn fetch_and(&self, value: $word, order: Ordering) -> $word {
                    self.0.fetch_and(value, order)
                }

                pub fn compare_exchange(
                    &self,
                    current: $word,
                    new: $word,
                    ok: Ordering,
                    failed: Ordering,
                ) -> Result<$word, $word> {
                    self.0.compare_exchange(current, new, ok, failed)
                }

                pub fn fetch_max(&self, value: $word, order: Ordering) -> $word {
                    self.0.fetch_max(value, order)
                }
            }
        };
    }

    sequential!(AtomicU32, u32);
    sequential!(AtomicU64, u64);
}

/// As the real one, of loom's atomics, in ordinary memory: small, for exploring interleavings.
#[cfg(feature = "loom")]
#[derive(Debug)]
pub struct Words(Box<[sequential::AtomicU64]>);

#[cfg(feature = "loom")]
impl Words {
    pub fn new(words: usize) -> Result<Self, MemoryError> {
        Ok(Self((0..words).map(|_| sequential::AtomicU64::new(0)).collect()))
    }

    pub fn populate(&self) {}

    pub fn lock_warning(&self) -> Option<&str> {
        None
    }
}

#[cfg(feature = "loom")]
impl Deref for Words {
    type Target = [sequential::AtomicU64];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A fixed array of zeroed words for a bitmap. Costs memory only where it was touched (beyond
/// [`WORDS_POPULATED_BYTES_MAX`]), and what was touched is never paged out.
#[cfg(not(feature = "loom"))]
pub struct Words {
    mapping: Mapping,
    words: usize,
}

#[cfg(not(feature = "loom"))]
impl Words {
    /// `words` zeroed words; zero words is a valid, empty array.
    pub fn new(words: usize) -> Result<Self, MemoryError> {
        let shape = || MemoryError::Shape { slots: words, slot_bytes: 8, why: "they must fit in the address space" };
        let bytes = words.max(1).checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new).ok_or_else(shape)?;
        if isize::try_from(bytes.get()).is_err() {
            return Err(shape());
        }
        let mut mapping = Mapping::new(bytes, MapFlags::MAP_NORESERVE)?;
        mapping.lock(true);
        mapping.keep_sparse(WORDS_POPULATED_BYTES_MAX);
        Ok(Self { mapping, words })
    }

    /// Takes memory for the first [`WORDS_POPULATED_BYTES_MAX`] now, so that no touch of them waits for memory later.
    /// Takes its time: not for whoever waits for the volume. Others may use the words meanwhile.
    pub fn populate(&self) {
        self.mapping.populate(WORDS_POPULATED_BYTES_MAX);
    }

    /// What to tell the administrator if the memory could not be locked.
    pub fn lock_warning(&self) -> Option<&str> {
        self.mapping.lock_warning.as_deref()
    }
}

#[cfg(not(feature = "loom"))]
impl Deref for Words {
    type Target = [AtomicU64];

    #[expect(unsafe_code, reason = "a slice over the mapping")]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds at least `words` words, zero is a valid AtomicU64, it lives as
        // long as `self`, and it is reached through shared atomics only.
        unsafe { slice::from_raw_parts(self.mapping.start.as_ptr().cast(), self.words) }
    }
}

#[cfg(not(feature = "loom"))]
impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").field("words", &self.words).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_buffer_has_one_owner_and_comes_back() {
        let pool = Pool::new(3, 8192).expect("three buffers");
        let mut taken: Vec<_> = (0..3).map(|_| pool.take().expect("free")).collect();
        assert!(pool.take().is_none(), "an empty pool answers, it does not wait");
        for (mark, buffer) in (1..).zip(&mut taken) {
            assert_eq!(buffer.as_mut_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), 8192);
            buffer.fill(mark);
        }
        for (mark, buffer) in (1_u8..).zip(&taken) {
            assert!(buffer.iter().all(|byte| *byte == mark), "slots do not overlap");
        }
        let freed = taken.pop().map(|buffer| buffer.index());
        assert_eq!(pool.free_count(), 1);
        assert_eq!(pool.take().map(|buffer| buffer.index()), freed);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = Pool::new(1, 4096).expect("one buffer");
        let mut buffer = pool.take().expect("free");
        drop(pool);
        buffer.fill(7);
        assert_eq!(buffer[4095], 7);
    }

    #[test]
    fn buffers_go_round_between_threads() {
        let pool = Pool::new(4, 4096).expect("four buffers");
        std::thread::scope(|scope| {
            for mark in 1..=4_u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let Some(mut buffer) = pool.take() else { continue };
                        buffer.fill(mark);
                        assert!(buffer.iter().all(|byte| *byte == mark), "another thread wrote to it");
                    }
                });
            }
        });
        assert_eq!(pool.free_count(), 4);
    }

    #[test]
    fn a_senseless_shape_is_refused() {
        for (slots, bytes) in [(0, 4096), (1, 0), (1, 512), (usize::MAX, 4096), (usize::MAX / 4096, 4096)] {
            assert!(matches!(Pool::new(slots, bytes), Err(MemoryError::Shape { .. })), "{slots} x {bytes}");
        }
        assert!(Words::new(usize::MAX).is_err());
    }

    #[test]
    fn words_start_at_zero_and_keep_what_is_stored() {
        let words = Words::new(100_000).expect("words");
        assert_eq!(words.len(), 100_000);
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        words[99_999].fetch_or(1 << 63, Ordering::Relaxed);
        assert_eq!(words[99_999].load(Ordering::Relaxed), 1 << 63);
        assert!(Words::new(0).expect("an empty bitmap").is_empty());
    }

    #[test]
    #[expect(unsafe_code, reason = "mincore")]
    fn a_touch_far_behind_costs_a_page_and_not_a_huge_one() {
        let words = Words::new(2 * WORDS_POPULATED_BYTES_MAX / 8).expect("128 MiB of words");
        let page = ALIGNMENT / 8;
        let far = words.len() - 100 * page;
        words[far].store(1, Ordering::Relaxed);
        let mut resident = [0_u8; 2];
        // SAFETY: two pages of the mapping, which nothing is changed in, and a byte for each of them.
        let looked =
            unsafe { libc::mincore((&raw const words[far]).cast_mut().cast(), 2 * ALIGNMENT, resident.as_mut_ptr()) };
        assert_eq!((looked, resident.map(|page| page & 1)), (0, [1, 0]));
    }

    #[test]
    fn the_bitmap_of_64_tib_is_cheap_until_it_is_touched() {
        let words = Words::new((1 << 30) / 64).expect("128 MiB of words");
        words[(1 << 30) / 64 - 1].store(1, Ordering::Relaxed);
        assert_eq!(words[(1 << 30) / 64 - 1].load(Ordering::Relaxed), 1);
    }
}
