//! `devices` and `remove-device`: what the kernel has of farpoint's devices.

use clap::Args;

use super::context::{Context, Outcome, confirm};
use super::{unexpected, units};
use crate::controller::api::{Devices, Nothing, RemoveDevice, Request};
use crate::controller::limits;

pub(super) fn list(context: &Context) -> Outcome {
    let result = context.ask(&Request::Devices(Nothing {}))?;
    if context.globals.json {
        context.print(result.get())?;
        return Ok(0);
    }
    let found: Devices = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
    for device in &found.devices {
        let volume = device.volume.as_deref().map_or("unknown".to_owned(), units::word);
        context.print(&format!("{} state:{} volume:{volume}", units::word(&device.device), device.state.word()))?;
    }
    if found.devices.is_empty() {
        context.print("no devices")?;
    }
    Ok(0)
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The device, for example /dev/ublkb0
    device: String,
    /// Even if it is in use; its users get I/O errors
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Remove {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let request = Request::RemoveDevice(RemoveDevice { device: self.device.clone(), force: self.force });
        request.check()?;
        let device = limits::shorten(&self.device, 100);
        confirm(self.yes, &format!("remove {device} for good, whose I/O then fails"))?;
        context.command(&request, |_| Ok(format!("removed {device}")))
    }
}
