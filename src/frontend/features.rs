//! What the running kernel's ublk driver offers, asked and not assumed.

use super::watchdog::Limit;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::time::Duration;

/// A kernel that takes longer is taken for one that never answers.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Every feature bit known here, with the kernel's name for it.
const NAMES: [(u32, &str); 20] = [
    (sys::UBLK_F_SUPPORT_ZERO_COPY, "zero-copy"),
    (sys::UBLK_F_URING_CMD_COMP_IN_TASK, "comp-in-task"),
    (sys::UBLK_F_NEED_GET_DATA, "need-get-data"),
    (sys::UBLK_F_USER_RECOVERY, "user-recovery"),
    (sys::UBLK_F_USER_RECOVERY_REISSUE, "user-recovery-reissue"),
    (sys::UBLK_F_UNPRIVILEGED_DEV, "unprivileged-dev"),
    (sys::UBLK_F_CMD_IOCTL_ENCODE, "ioctl-encode"),
    (sys::UBLK_F_USER_COPY, "user-copy"),
    (sys::UBLK_F_ZONED, "zoned"),
    (sys::UBLK_F_USER_RECOVERY_FAIL_IO, "user-recovery-fail-io"),
    (sys::UBLK_F_UPDATE_SIZE, "update-size"),
    (sys::UBLK_F_AUTO_BUF_REG, "auto-buf-reg"),
    (sys::UBLK_F_QUIESCE, "quiesce"),
    (sys::UBLK_F_PER_IO_DAEMON, "per-io-daemon"),
    (sys::UBLK_F_BUF_REG_OFF_DAEMON, "buf-reg-off-daemon"),
    (sys::UBLK_F_BATCH_IO, "batch-io"),
    (sys::UBLK_F_INTEGRITY, "integrity"),
    (sys::UBLK_F_SAFE_STOP_DEV, "safe-stop"),
    (sys::UBLK_F_NO_AUTO_PART_SCAN, "no-auto-part-scan"),
    (sys::UBLK_F_SHMEM_ZC, "shmem-zero-copy"),
];

/// Feature bits of the driver; `None` without a driver, or if it does not answer. Blocks: call it off the control
/// thread.
pub fn probe() -> Option<u64> {
    if !std::path::Path::new("/dev/ublk-control").exists() {
        return None;
    }
    let answer = Limit::new(TIMEOUT).ask(UblkCtrl::get_features);
    if answer.is_none() {
        tracing::error!("the ublk driver does not answer; see the kernel's log, and restart the machine if up fails");
    }
    answer.flatten()
}

/// Names of the features in `bits`, unknown ones by their number.
pub fn names(bits: u64) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| {
            let name = NAMES.iter().find(|(mask, _)| u64::from(*mask) == 1 << bit);
            name.map_or_else(|| format!("bit-{bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_and_unknown_ones_are_not_hidden() {
        let bits = u64::from(sys::UBLK_F_USER_RECOVERY) | u64::from(sys::UBLK_F_QUIESCE) | 1 << 40;
        assert_eq!(names(bits), ["user-recovery", "quiesce", "bit-40"]);
    }
}
