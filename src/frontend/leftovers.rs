//! Devices that a daemon left behind when it was killed. The kernel has ended them, but their numbers and nodes stay
//! until somebody removes them; the next daemon does, before it makes any of its own.

use super::run_dir::RUN_DIR;
use super::watchdog::Limit;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What libublk wrote down for our devices, and how their numbers are in the files' names.
const OURS: &str = "farpoint";
/// How long the kernel is waited for, in all questions together and in all removals.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device is waited for that the kernel is still ending.
const DYING_PAUSE: Duration = Duration::from_millis(250);
const DYING_TRIES: usize = 20;

/// Removes dead devices of former daemons. Returns the numbers of those removed, and of those that could not be.
/// Blocks, but not for ever.
pub fn remove() -> (Vec<u32>, Vec<u32>) {
    let files = fs::read_dir(RUN_DIR).into_iter().flatten().flatten().map(|file| file.path()).collect();
    let questions = Limit::new(TIMEOUT);
    let (dead, alive) = settled(files, |path| left(path, questions));
    let removals = Limit::new(TIMEOUT);
    let (removed, mut stuck): (Vec<u32>, _) = dead.into_iter().partition(|&id| {
        let number = i32::try_from(id).unwrap_or(-1);
        let remove = move || UblkCtrl::new_simple(number).and_then(|control| control.del_dev()).is_ok();
        removals.ask(remove).unwrap_or(false)
    });
    stuck.extend(alive);
    (removed, stuck)
}

/// What has become of a device of ours that no living process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Dead(u32),
    /// Right after a kill: not ended by the kernel yet.
    Dying(u32),
    /// The kernel does not say.
    Silent(u32),
}

/// The devices that are dead, and those that are still not. One that is being ended is looked at again for a while.
fn settled(mut files: Vec<PathBuf>, look: impl Fn(&Path) -> Option<Left>) -> (Vec<u32>, Vec<u32>) {
    let (mut dead, mut alive) = (Vec::new(), Vec::new());
    for tries in (0..DYING_TRIES).rev() {
        files.retain(|path| {
            match look(path) {
                Some(Left::Dying(_)) if tries > 0 => return true,
                Some(Left::Dead(id)) => dead.push(id),
                Some(Left::Dying(id) | Left::Silent(id)) => alive.push(id),
                None => {}
            }
            false
        });
        if files.is_empty() {
            break;
        }
        thread::sleep(DYING_PAUSE);
    }
    (dead, alive)
}

/// What the file at `path` says of a device of ours, if nobody serves it.
fn left(path: &Path, questions: Limit) -> Option<Left> {
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
    let info = questions.ask(move || {
        let info = UblkCtrl::new_simple(number).ok()?.dev_info();
        Some((info.ublksrv_pid, u32::from(info.state)))
    });
    let Some(info) = info else { return Some(Left::Silent(id)) };
    let (process, state) = info?;
    if process > 0 && Path::new(&format!("/proc/{process}")).exists() {
        return None;
    }
    Some(if state == sys::UBLK_S_DEV_DEAD { Left::Dead(id) } else { Left::Dying(id) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_device_that_is_being_ended_is_looked_at_again() {
        let looks = Cell::new(0);
        let files = ["a", "b", "c", "d"].map(PathBuf::from).to_vec();
        let found = settled(files, |path| match path.to_str() {
            Some("a") => Some(Left::Dead(1)),
            Some("b") => {
                looks.set(looks.get() + 1);
                Some(if looks.get() < 3 { Left::Dying(2) } else { Left::Dead(2) })
            }
            Some("c") => Some(Left::Silent(3)),
            _ => None,
        });
        assert_eq!((found, looks.get()), ((vec![1, 2], vec![3]), 3));
    }
}
