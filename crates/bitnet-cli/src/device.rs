//! Where a model runs: `--device`.

use crate::failure::Failure;
use bitnet_inference::Device;
use clap::Args;
use std::str::FromStr;

/// What the flag says.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Auto,
    Device(Device),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            _ => name.parse().map(Self::Device).map_err(|_| format!("there are: {}; auto", Device::list())),
        }
    }
}

#[derive(Args, Clone, Debug)]
pub struct DeviceFlag {
    /// Where it runs: cpu; wgpu:N, a GPU through Vulkan, Metal or DirectX 12 (`doctor` lists them); auto takes the first discrete
    /// GPU, else the first integrated one, else the cpu, and says why
    #[arg(long, default_value = "cpu", env = "BITNET_DEVICE", help_heading = "Device")]
    device: Choice,
}

impl DeviceFlag {
    /// The device; `kernels` says whether flags name kernels of the processor.
    pub fn settle(&self, kernels: bool, quiet: bool) -> Result<Device, Failure> {
        match self.device {
            Choice::Device(device) if kernels && device != Device::Cpu => Err(Failure::Usage(format!(
                "--isa and --kernel choose among kernels of the cpu; --device {device} has its own"
            ))),
            Choice::Device(device) => Ok(device),
            Choice::Auto => {
                let (device, why) = match kernels {
                    true => (Device::Cpu, "--isa and --kernel choose among its kernels".to_owned()),
                    false => Device::auto(),
                };
                if !quiet {
                    eprintln!("device: {device} ({why})");
                }
                Ok(device)
            }
        }
    }
}
