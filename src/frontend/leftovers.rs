//! Devices that a daemon left behind when it was killed. The kernel has ended them, but their numbers and nodes stay
//! until somebody removes them; the next daemon does, before it makes any of its own.

use super::run_dir::RUN_DIR;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What libublk wrote down for our devices, and how their numbers are in the files' names.
const OURS: &str = "farpoint";
/// A removal that takes longer is left alone: the kernel may never answer (H28).
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device is waited for that the kernel is still ending.
const DYING_PAUSE: Duration = Duration::from_millis(250);
const DYING_TRIES: usize = 20;

/// Removes dead devices of former daemons. Returns the numbers of those removed, and of those that could not be.
/// Blocks.
pub fn remove() -> (Vec<u32>, Vec<u32>) {
    // Right after a kill the kernel may still be ending the device.
    for _ in 0..DYING_TRIES {
        if !ours().contains(&Left::Dying) {
            break;
        }
        thread::sleep(DYING_PAUSE);
    }
    let dead = ours().into_iter().filter_map(|left| if let Left::Dead(id) = left { Some(id) } else { None });
    dead.partition(|id| {
        let (done, answer) = mpsc::channel();
        let id = *id;
        thread::spawn(move || {
            let removed = UblkCtrl::new_simple(i32::try_from(id).unwrap_or(-1)).and_then(|control| control.del_dev());
            let _ = done.send(removed.is_ok());
        });
        answer.recv_timeout(TIMEOUT).unwrap_or(false)
    })
}

/// A device of ours that no living process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Dead(u32),
    /// Not ended by the kernel yet.
    Dying,
}

fn ours() -> Vec<Left> {
    let files = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    files.filter_map(|file| left(&file.path())).collect()
}

/// What the file at `path` says of a device of ours, if nobody serves it.
fn left(path: &Path) -> Option<Left> {
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
    let info = UblkCtrl::new_simple(i32::try_from(id).ok()?).ok()?.dev_info();
    if info.ublksrv_pid > 0 && Path::new(&format!("/proc/{}", info.ublksrv_pid)).exists() {
        return None;
    }
    let dead = u32::from(info.state) == sys::UBLK_S_DEV_DEAD;
    Some(if dead { Left::Dead(id) } else { Left::Dying })
}
