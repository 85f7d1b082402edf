//! The devices of farpoint volumes that the kernel has, whoever serves them.

use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind, limits};

/// The answer to `devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    pub devices: Vec<DeviceReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// For example `/dev/ublkb0`.
    pub device: String,
    pub state: DeviceState,
    /// The volume that it is of; absent if the daemon knows no such volume.
    pub volume: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// By this daemon, or by a server that is not known here.
    Served,
    /// It has outlived its daemon, and its I/O waits.
    Waiting,
    /// It was never started, or has ended: nobody can use it.
    Dead,
}

impl DeviceState {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// As in the list.
    pub device: String,
    /// Even if it is in use; its users get I/O errors.
    #[serde(default)]
    pub force: bool,
}

impl RemoveDevice {
    /// The device's number.
    pub fn id(&self) -> Result<u32, Failure> {
        let number = self.device.strip_prefix("/dev/ublkb").and_then(|number| number.parse().ok());
        number.ok_or_else(|| {
            let device = limits::quote(&self.device);
            Failure::new(FailureKind::Usage, format!("\"{device}\" is no ublk device; name one such as /dev/ublkb0"))
        })
    }
}
