//! Whether there is memory for a volume. What it takes is taken at start or with its first full copy, and locked: where
//! it is not there, the kernel would end some process, perhaps this one, instead of refusing.

use super::api::{Failure, FailureKind};
use super::config::VolumeConfig;
use super::limits::{MIB, TIB};
use crate::frontend::REQUEST_BYTES_MAX;
use crate::intent::REGION_SIZE_MAX;
use std::fs;

/// Bytes of memory that a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Two bits for each track, and the regions.
    marks: u64,
    /// Before-images, the memory of the queues and of the drain.
    buffers: u64,
}

impl Need {
    fn of(config: &VolumeConfig, size: u64) -> Self {
        let tracks = size.div_ceil(config.track_size.max(1));
        let queues = u64::from(config.queues) * u64::from(config.depth) * u64::from(REQUEST_BYTES_MAX);
        // A request of the drain is 1 MiB, the largest track.
        let drain = u64::from(config.drain_window) * MIB;
        // A word for each region of the intent.
        let regions = size.div_ceil(config.region_size.max(1)) * 8;
        Self { marks: tracks.div_ceil(8) * 2 + regions, buffers: config.image_pool + queues + drain }
    }

    /// Why it does not fit into `available` bytes, and what would.
    fn refusal(self, config: &VolumeConfig, available: u64) -> Option<String> {
        let Self { marks, buffers } = self;
        if marks.saturating_add(buffers) <= available {
            return None;
        }
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let advice = if marks > buffers && (config.track_size < MIB || config.region_size < REGION_SIZE_MAX) {
            "use larger tracks and regions (a new volume with a larger --track-size, --region-size), or add memory"
        } else {
            "lower image_pool, queues, depth or drain_window in its file, or add memory"
        };
        Some(format!(
            "it needs {} MiB of memory, {} for the marks of its tracks and regions and {} for buffers, and {} MiB \
             are available; {advice}",
            mib(marks.saturating_add(buffers)),
            mib(marks),
            mib(buffers),
            available / MIB,
        ))
    }
}

/// Refuses a volume of `size` bytes that this machine has no memory for now. Reads a file: not for the control thread.
pub(super) fn check(config: &VolumeConfig, size: u64) -> Result<(), Failure> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    // Where the kernel does not say, it is tried.
    let Some(available) = available(&text) else { return Ok(()) };
    match Need::of(config, size).refusal(config, available) {
        Some(why) => Err(Failure::new(FailureKind::Failed, why)),
        None => Ok(()),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024).min(1024 * TIB))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::limits::{GIB, KIB};

    fn config(track_size: u64) -> VolumeConfig {
        VolumeConfig { track_size, ..VolumeConfig::new("/a".into(), "/b".into()) }
    }

    #[test]
    fn a_huge_volume_of_small_tracks_is_refused_with_numbers_and_advice() {
        let refusal = |track_size, size, available| {
            let config = config(track_size);
            Need::of(&config, size).refusal(&config, available)
        };
        assert_eq!(refusal(64 * KIB, 64 * TIB, 2 * GIB), None);
        let why = refusal(4 * KIB, 1024 * TIB, 8 * GIB).expect("a refusal");
        let expected = "it needs 67728 MiB of memory, 67584 for the marks of its tracks and regions and 144 for \
                        buffers, and 8192 MiB are available; use larger tracks";
        assert!(why.starts_with(expected), "{why}");
        let why = refusal(64 * KIB, GIB, 100 * MIB).expect("a refusal");
        assert!(why.contains("144 for buffers") && why.contains("image_pool"), "{why}");
    }

    #[test]
    fn what_the_kernel_says_is_available_is_read() {
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:    2048 kB\n"), Some(2 * MIB));
        assert_eq!(available("MemFree: 1 kB\n"), None);
        assert!(available(&fs::read_to_string("/proc/meminfo").expect("Linux")).is_some_and(|bytes| bytes > MIB));
    }
}
