//! Devices that a daemon left behind when it ended without taking them down. They wait: their I/O is held by the kernel
//! until another daemon takes them back, or somebody removes them (H22).
//!
//! Whose they are the device itself says: the kernel keeps 64 bits for the server that made it. A file somewhere, a
//! process number or the device's number may all have come to mean something else since.

use super::run_dir;
use super::watchdog::Limit;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long the kernel is waited for, in all questions together and in a removal (H28).
const TIMEOUT: Duration = Duration::from_secs(10);
/// The upper 16 bits of what a device of ours says.
const OURS: u64 = 0x6670 << 48;

/// What a device says of the volume it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(pub(super) u64);

impl Owner {
    /// The volume with this random number.
    pub fn new(volume: u64) -> Self {
        Self(OURS | volume & !(0xffff << 48))
    }

    fn of(bits: u64) -> Option<Self> {
        (bits >> 48 == OURS >> 48).then_some(Self(bits))
    }
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub id: u32,
    pub owner: Owner,
    /// As it was made: it cannot be given others.
    pub queues: u16,
    pub depth: u16,
    /// Whether it can be taken back; else it was never started, or the kernel has ended it.
    pub waits: bool,
    state: u32,
}

impl Leftover {
    /// Whether it is certain that nobody serves it.
    pub fn is_held(&self) -> bool {
        self.state == sys::UBLK_S_DEV_QUIESCED
    }

    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }
}

/// The devices of farpoint volumes, served or not. Blocks, but not for ever: a kernel that does not answer about one of
/// the ublk devices is an error, for that one may be any volume's.
pub fn find() -> io::Result<Vec<Leftover>> {
    if !Path::new("/dev/ublk-control").exists() {
        return Ok(Vec::new());
    }
    // libublk reads a file in it for each.
    run_dir::secure(Path::new(run_dir::RUN_DIR))?;
    let questions = Limit::new(TIMEOUT);
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc")).and_then(|id| id.parse::<i32>().ok());
        let Some(number) = number else { continue };
        let answer = questions.ask(move || UblkCtrl::new_simple(number).map(|control| control.dev_info()).ok());
        // One that has gone meanwhile is nobody's.
        let Some(info) = answer.ok_or_else(|| silent(number))? else { continue };
        let Some(owner) = Owner::of(info.ublksrv_flags) else { continue };
        let state = u32::from(info.state);
        let (id, queues, depth) = (info.dev_id, info.nr_hw_queues, info.queue_depth);
        found.push(Leftover { id, owner, queues, depth, waits: state != sys::UBLK_S_DEV_DEAD, state });
    }
    Ok(found)
}

fn silent(number: i32) -> io::Error {
    io::Error::other(format!(
        "the kernel does not answer about /dev/ublkb{number}, which may be this volume's; see its log, and restart the \
         machine if that device can be neither used nor removed"
    ))
}

/// The device of one volume that no daemon serves, for one who has the volume's lock. What cannot be taken back is
/// removed. Blocks.
pub fn of(owner: Owner) -> io::Result<Option<Leftover>> {
    for device in find()?.into_iter().filter(|device| device.owner == owner) {
        if device.waits {
            return Ok(Some(device));
        }
        remove(device.id)?;
    }
    Ok(None)
}

/// A device that no daemon serves and that belongs to none of these volumes. Blocks.
pub fn stranger(known: &[Owner]) -> io::Result<Option<Leftover>> {
    Ok(strange(find()?, known))
}

fn strange(devices: Vec<Leftover>, known: &[Owner]) -> Option<Leftover> {
    devices.into_iter().find(|device| device.is_held() && !known.contains(&device.owner))
}

/// Removes a device; whoever still uses it gets errors. Blocks, but not for ever.
pub fn remove(id: u32) -> io::Result<()> {
    let number = i32::try_from(id).map_err(io::Error::other)?;
    // Not the waiting kind: a mounted file system keeps the number, but nothing else of it is left.
    let remove = move || {
        let control = UblkCtrl::new_simple(number)?;
        control.kill_dev()?;
        control.del_dev_async()
    };
    let why =
        |why: String| io::Error::other(format!("/dev/ublkb{id} could not be removed: {why}; see the kernel's log"));
    match Limit::new(TIMEOUT).ask(remove) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(why(super::ublk_queue::describe(&error).to_string())),
        None => Err(why("the kernel does not answer".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_another_server_is_not_ours() {
        for bits in [0, 1, u64::MAX, 0x6671 << 48, 0x6670] {
            assert_eq!(Owner::of(bits), None, "{bits:x}");
        }
        let owner = Owner::new(u64::MAX);
        assert_eq!(Owner::of(owner.0), Some(owner));
        assert_ne!(Owner::new(1), Owner::new(2));
    }

    #[test]
    fn a_stranger_is_a_device_that_waits_for_a_volume_that_is_not_known() {
        let device = |id, owner, state| Leftover {
            id,
            owner: Owner::new(owner),
            queues: 1,
            depth: 1,
            waits: state != sys::UBLK_S_DEV_DEAD,
            state,
        };
        let waits = |owner| device(7, owner, sys::UBLK_S_DEV_QUIESCED);
        let served = device(8, 5, sys::UBLK_S_DEV_LIVE);
        let known = [Owner::new(1), Owner::new(2)];
        assert_eq!(strange(vec![waits(1), served.clone(), waits(2)], &known), None);
        assert_eq!(strange(vec![waits(1), served, waits(3)], &known), Some(waits(3)));
    }
}
