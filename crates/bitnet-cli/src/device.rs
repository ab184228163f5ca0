//! Where a model runs: `--device`.

use crate::failure::Failure;
use crate::tuning::TuningFlag;
use bitnet_formats::Checkpoint;
use bitnet_inference::{Device, cuda_trouble};
use clap::Args;

#[derive(Args, Clone, Debug)]
pub struct DeviceFlag {
    /// Where it runs: cpu; cuda:N, an NVIDIA GPU; wgpu:N, a GPU through Vulkan, Metal or DirectX 12 (`doctor` lists them); auto: the
    /// one that reads weights fastest and has room for them, by what `doctor --measure` found, else the first NVIDIA GPU, else the
    /// first discrete GPU, else the first integrated one, else the cpu; it says which and why
    #[arg(long, default_value = "cpu", env = "BITNET_DEVICE", help_heading = "Device")]
    device: String,
    /// With --device auto: fail rather than run on the cpu because there is no GPU that can be used, or because it fails, be it in the
    /// middle of an answer
    #[arg(long, env = "BITNET_REQUIRE_DEVICE", help_heading = "Device")]
    require_device: bool,
}

/// What `--device` comes to for a model.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    pub device: Device,
    /// Whether the cpu may take over when the device fails.
    pub may_fall_back: bool,
}

impl DeviceFlag {
    /// Whether the cpu may take over where another device fails, at the beginning or later.
    pub fn may_fall_back(&self, device: Device) -> bool {
        self.device == "auto" && !self.require_device && device != Device::Cpu
    }

    /// The device for a model; `kernels` says whether flags name kernels of the processor.
    pub fn settle(
        &self,
        checkpoint: &Checkpoint,
        tuning: &TuningFlag,
        kernels: bool,
        quiet: bool,
    ) -> Result<Settled, Failure> {
        let name = &*self.device;
        if name != "auto" {
            let unknown = |_| Failure::Usage(format!("--device {name}: there are {}; auto", Device::list()));
            let device: Device = name.parse().map_err(unknown)?;
            return match kernels && device != Device::Cpu {
                true => Err(Failure::Usage(format!(
                    "--isa and --kernel choose among kernels of the cpu; --device {device} has its own"
                ))),
                false => Ok(Settled { device, may_fall_back: false }),
            };
        }
        let (device, why) = match kernels {
            true => (Device::Cpu, "--isa and --kernel choose among its kernels".to_owned()),
            false => {
                let bytes = checkpoint.tensors().iter().map(|tensor| tensor.data.len() as u64).sum();
                let speeds = tuning.speeds();
                let measured = |device: Device, name: &str| {
                    let measured = speeds.get(&device.to_string())?;
                    (measured.name == name).then_some(measured.speed)
                };
                Device::auto(bytes, &measured)
            }
        };
        let trouble = cuda_trouble().filter(|_| device == Device::Cpu && !kernels);
        let why = trouble.map_or(why.clone(), |trouble| format!("{why}; cuda cannot be used: {trouble}"));
        if self.require_device && device == Device::Cpu {
            return Err(Failure::Runtime(format!("--require-device: {device} would be taken ({why})")));
        }
        if !quiet {
            eprintln!("device: {device} ({why})");
        }
        Ok(Settled { device, may_fall_back: self.may_fall_back(device) })
    }
}
