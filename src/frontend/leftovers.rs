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

/// Removes dead devices of former daemons. Returns the numbers of those removed, and of those that could not be. Blocks.
pub fn remove() -> (Vec<u32>, Vec<u32>) {
    dead().into_iter().partition(|id| {
        let (done, answer) = mpsc::channel();
        let id = *id;
        thread::spawn(move || {
            let removed = UblkCtrl::new_simple(i32::try_from(id).unwrap_or(-1)).and_then(|control| control.del_dev());
            let _ = done.send(removed.is_ok());
        });
        answer.recv_timeout(TIMEOUT).unwrap_or(false)
    })
}

/// Numbers of our devices that no living process serves.
fn dead() -> Vec<u32> {
    let files = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    let ours = files.filter_map(|file| {
        let path = file.path();
        let text: serde_json::Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let id = text["dev_info"]["dev_id"].as_u64().and_then(|id| u32::try_from(id).ok())?;
        (text["target"]["tgt_type"] == OURS).then_some((path, id))
    });
    ours.filter_map(|(path, id)| {
        if !Path::new(&format!("/dev/ublkc{id}")).exists() {
            // Removed by someone else, or gone with a restart of the machine.
            let _ = fs::remove_file(path);
            return None;
        }
        let control = UblkCtrl::new_simple(i32::try_from(id).ok()?).ok()?;
        let info = control.dev_info();
        let served = info.ublksrv_pid > 0 && Path::new(&format!("/proc/{}", info.ublksrv_pid)).exists();
        (u32::from(info.state) == sys::UBLK_S_DEV_DEAD && !served).then_some(id)
    })
    .collect()
}
