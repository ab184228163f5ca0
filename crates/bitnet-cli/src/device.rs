//! Where a model runs: `--device`.

use crate::failure::Failure;
use bitnet_inference::Device;
use clap::Args;

#[derive(Args, Clone, Debug)]
pub struct DeviceFlag {
    /// Where it runs: cpu; cuda:N, an NVIDIA GPU; wgpu:N, a GPU through Vulkan, Metal or DirectX 12 (`doctor` lists them); auto
    /// takes the first NVIDIA GPU, else the first discrete GPU, else the first integrated one, else the cpu, and says why
    #[arg(long, default_value = "cpu", env = "BITNET_DEVICE", help_heading = "Device")]
    device: String,
}

impl DeviceFlag {
    /// The device; `kernels` says whether flags name kernels of the processor.
    pub fn settle(&self, kernels: bool, quiet: bool) -> Result<Device, Failure> {
        let name = &*self.device;
        if name != "auto" {
            let unknown = |_| Failure::Usage(format!("--device {name}: there are {}; auto", Device::list()));
            let device: Device = name.parse().map_err(unknown)?;
            return match kernels && device != Device::Cpu {
                true => Err(Failure::Usage(format!(
                    "--isa and --kernel choose among kernels of the cpu; --device {device} has its own"
                ))),
                false => Ok(device),
            };
        }
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
