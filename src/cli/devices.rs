//! `devices` and `remove-device`: what the kernel has of farpoint's devices.

use clap::Args;

use super::context::{Context, Outcome, confirm};
use super::{unexpected, units};
use crate::controller::api::{Devices, Failure, FailureKind, Nothing, RemoveDevice, Request};
use crate::controller::limits;

#[derive(Debug, Args)]
pub(super) struct List {
    /// Say only of which volume this device is, /dev/ublkb0 for example
    device: Option<String>,
}

impl List {
    pub(super) fn run(&self, context: &Context) -> Outcome {
        let result = context.ask(&Request::Devices(Nothing {}))?;
        if context.globals.json && self.device.is_none() {
            context.print(result.get())?;
            return Ok(0);
        }
        let found: Devices = serde_json::from_str(result.get()).map_err(|error| unexpected(&error))?;
        match &self.device {
            None => list(context, &found),
            Some(device) => name(context, &found, device),
        }
    }
}

fn list(context: &Context, found: &Devices) -> Outcome {
    for device in &found.devices {
        let volume = device.volume.as_deref().map_or("unknown".to_owned(), units::word);
        context.print(&format!("{} state:{} volume:{volume}", units::word(&device.device), device.state.word()))?;
    }
    if found.devices.is_empty() {
        context.print("no devices")?;
    }
    Ok(0)
}

/// Of one device; udev asks, for its name in /dev/farpoint.
fn name(context: &Context, found: &Devices, device: &str) -> Outcome {
    let Some(one) = found.devices.iter().find(|found| found.device == device && found.volume.is_some()) else {
        let why = format!("\"{}\" is not the device of a volume that is known here", limits::quote(device));
        return Err(Failure::new(FailureKind::NotFound, why).into());
    };
    if context.globals.json {
        let report = serde_json::to_string(one).map_err(|error| unexpected(&error))?;
        context.print(&report)?;
    } else {
        context.print(&units::word(one.volume.as_deref().unwrap_or_default()))?;
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
