//! Devices that a daemon left behind when it ended without taking them down. They wait: their I/O is held by the kernel
//! until another daemon takes them back, or somebody removes them. What libublk wrote down says whose they are.

use super::run_dir::RUN_DIR;
use super::watchdog::Limit;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What libublk wrote down for our devices, and where it says whose device it is.
const OURS: &str = "farpoint";
pub(super) const VOLUME: &str = "volume";
/// How long the kernel is waited for, in all questions together and in a removal (H28).
const TIMEOUT: Duration = Duration::from_secs(10);

/// A device of ours that no living process serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub id: u32,
    /// The volume it was made for.
    pub volume: String,
    /// As it was made: it cannot be given others.
    pub queues: u16,
    pub depth: u16,
    /// Whether it can be taken back; else the kernel has ended it already.
    pub waits: bool,
}

impl Leftover {
    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }
}

/// The devices of former daemons, and the numbers of those about which the kernel says nothing. Blocks, but not for
/// ever.
pub fn find() -> (Vec<Leftover>, Vec<u32>) {
    let questions = Limit::new(TIMEOUT);
    let files = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for left in files.filter_map(|file| left(&file.path(), questions)) {
        match left {
            Ok(device) => found.push(device),
            Err(id) => silent.push(id),
        }
    }
    (found, silent)
}

/// What the file at `path` says of a device of ours, if nobody serves it; its number if the kernel does not answer.
fn left(path: &Path, questions: Limit) -> Option<Result<Leftover, u32>> {
    let text: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let id = text["dev_info"]["dev_id"].as_u64().and_then(|id| u32::try_from(id).ok())?;
    if text["target"]["tgt_type"] != OURS {
        return None;
    }
    if !Path::new(&format!("/dev/ublkc{id}")).exists() {
        // Removed by someone else, or gone with a restart of the machine.
        let _ = fs::remove_file(path);
        return None;
    }
    let number = i32::try_from(id).ok()?;
    let Some(info) = questions.ask(move || UblkCtrl::new_simple(number).map(|control| control.dev_info()).ok()) else {
        return Some(Err(id));
    };
    let info = info?;
    if info.ublksrv_pid > 0 && Path::new(&format!("/proc/{}", info.ublksrv_pid)).exists() {
        return None;
    }
    let recoverable = info.flags & u64::from(sys::UBLK_F_USER_RECOVERY) != 0;
    Some(Ok(Leftover {
        id,
        volume: text["target_data"][VOLUME].as_str().unwrap_or_default().to_owned(),
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        waits: recoverable && u32::from(info.state) != sys::UBLK_S_DEV_DEAD,
    }))
}

/// Removes a device; whoever still uses it gets errors. Blocks, but not for ever.
pub fn remove(id: u32) -> bool {
    let Ok(number) = i32::try_from(id) else { return false };
    // Not the waiting kind: a mounted file system keeps the number, but nothing else of it is left.
    let remove = move || {
        let control = UblkCtrl::new_simple(number)?;
        control.kill_dev()?;
        control.del_dev_async()
    };
    Limit::new(TIMEOUT).ask(move || remove().is_ok()).unwrap_or(false)
}
