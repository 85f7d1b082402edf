//! A server that is killed while it takes a device back: some of the queues have been announced to the kernel and
//! others have not.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use clap::Args;
use io_uring::{IoUring, opcode, types};
use libublk::ctrl::UblkCtrl;
use libublk::sys;

#[derive(Debug, Args)]
pub struct HalfTaken {
    /// Number of a device that waits to be taken back
    id: i32,
    /// So many of its queues are announced, the first ones
    #[arg(long)]
    announced: u16,
}

impl HalfTaken {
    #[expect(unsafe_code, clippy::host_endian_bytes, reason = "requests to the kernel")]
    pub fn run(&self) -> Result<(), String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let control = UblkCtrl::new_simple(self.id).map_err(|error| failed("the device", &error))?;
        match control.start_user_recover() {
            Ok(0) => {}
            Ok(error) => return Err(format!("the recovery does not begin: {error}")),
            Err(error) => return Err(failed("the recovery does not begin", &error)),
        }
        let path = format!("/dev/ublkc{}", self.id);
        let device = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| failed(&path, &error))?;
        let depth = control.dev_info().queue_depth;
        for queue in 0..self.announced {
            let mut ring = IoUring::new(u32::from(depth)).map_err(|error| failed("a ring", &error))?;
            for tag in 0..depth {
                let mut command = [0; 16];
                command[..2].copy_from_slice(&queue.to_ne_bytes());
                command[2..4].copy_from_slice(&tag.to_ne_bytes());
                command[8..].copy_from_slice(&4096_u64.to_ne_bytes());
                let entry = opcode::UringCmd16::new(types::Fd(device.as_raw_fd()), sys::UBLK_U_IO_FETCH_REQ);
                // SAFETY: no request is ever answered, so that none refers to memory.
                unsafe { ring.submission().push(&entry.cmd(command).build()) }
                    .map_err(|error| failed("a request", &error))?;
            }
            ring.submit().map_err(|error| failed("the requests", &error))?;
            std::mem::forget(ring);
        }
        println!("{path}: {} queues announced", self.announced);
        Ok(())
    }
}
