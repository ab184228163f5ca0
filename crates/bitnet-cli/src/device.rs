//! Where a model runs: `--device`.

use crate::failure::Failure;
use crate::tuning::TuningFlag;
use bitnet_formats::Checkpoint;
use bitnet_inference::{Device, LoadOptions, ModelConfig, Placement, Split, cuda_trouble};
use bitnet_model::Sizes;
use clap::{Args, ValueEnum};

#[derive(Args, Clone, Debug)]
pub struct DeviceFlag {
    /// Where it runs: cpu; cuda:N, an NVIDIA GPU; wgpu:N, a GPU through Vulkan, Metal or DirectX 12 (`doctor` lists them); a list, as
    /// cuda:0,cuda:1 or cuda:0,cpu, of devices that share the model (--split-mode) by the memory that each has free, and the cpu gets what
    /// the others have no room for; auto: the one that reads weights fastest and has room for the model, by what `doctor --measure`
    /// found, else the first NVIDIA GPU, else several of them, else the first discrete GPU, else the first integrated one, else the cpu; it
    /// says which and why
    #[arg(long, default_value = "cpu", env = "BITNET_DEVICE", help_heading = "Device")]
    device: String,
    /// What each device of a list has: layer, consecutive layers in the list's order; row, some of the rows of every matrix and of the heads of
    /// attention, NVIDIA GPUs alone (also -sm) [default: layer; row where whole layers do not fit and rows do]
    #[arg(long, value_enum, env = "BITNET_SPLIT_MODE", help_heading = "Device")]
    split_mode: Option<SplitMode>,
    /// In which proportion the devices of a list share the model, as 3,1 or 20,10 (also -ts) [default: by their memory]
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        env = "BITNET_TENSOR_SPLIT",
        help_heading = "Device"
    )]
    tensor_split: Vec<f64>,
    /// With --device auto: fail rather than run on the cpu because there is no GPU that can be used, or because it fails, be it in the
    /// middle of an answer
    #[arg(long, env = "BITNET_REQUIRE_DEVICE", help_heading = "Device")]
    require_device: bool,
}

/// How devices share a model, as llama.cpp names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitMode {
    Layer,
    Row,
}

impl From<SplitMode> for Split {
    fn from(mode: SplitMode) -> Self {
        match mode {
            SplitMode::Layer => Self::Layers,
            SplitMode::Row => Self::Rows,
        }
    }
}

/// What `--device` comes to for a model.
#[derive(Clone, Debug)]
pub struct Settled {
    pub device: Placement,
    /// How several devices share the model, and in which proportion, where that was said.
    pub split: Option<Split>,
    pub shares: Vec<f64>,
    /// Whether the cpu may take over when the device fails.
    pub may_fall_back: bool,
}

impl DeviceFlag {
    /// Whether the cpu may take over where another device fails, at the beginning or later.
    pub fn may_fall_back(&self, device: &Placement) -> bool {
        self.device == "auto" && !self.require_device && !device.has(Device::Cpu)
    }

    /// The device for a model that is to be loaded so; `kernels` says whether flags name kernels of the processor.
    pub fn settle(
        &self,
        checkpoint: &Checkpoint,
        load: &LoadOptions,
        tuning: &TuningFlag,
        kernels: bool,
        quiet: bool,
    ) -> Result<Settled, Failure> {
        let name = &*self.device;
        if name != "auto" {
            let unknown = |_| Failure::Usage(format!("--device {name}: there are {}; auto", Device::list()));
            let device: Placement = name.parse().map_err(unknown)?;
            if kernels && !device.has(Device::Cpu) {
                return Err(Failure::Usage(format!(
                    "--isa and --kernel choose among kernels of the cpu; --device {device} has its own"
                )));
            }
            let (shares, devices) = (self.tensor_split.clone(), device.devices().len());
            if !shares.is_empty() && (devices == 1 || shares.len() != devices) {
                return Err(self.no_shares());
            }
            let split = self.split_mode.map(Split::from);
            if split.is_some() && devices == 1 {
                return Err(self.no_split());
            }
            return Ok(Settled { device, split, shares, may_fall_back: false });
        }
        if !self.tensor_split.is_empty() {
            return Err(self.no_shares());
        }
        if self.split_mode.is_some() {
            return Err(self.no_split());
        }
        let (device, why) = match kernels {
            true => (Device::Cpu.into(), "--isa and --kernel choose among its kernels".to_owned()),
            false => {
                let sizes = ModelConfig::read(checkpoint).and_then(|c| Sizes::of(checkpoint, &c, load));
                // What is wrong with the files is told when they are loaded.
                let bytes = sizes.map_or(0, |sizes| sizes.total());
                let speeds = tuning.speeds();
                let measured = |device: Device, name: &str| {
                    let measured = speeds.get(&device.to_string())?;
                    (measured.name == name).then_some(measured.speed)
                };
                Placement::auto(bytes, &measured)
            }
        };
        let trouble = cuda_trouble().filter(|_| device.is(Device::Cpu) && !kernels);
        let why = trouble.map_or(why.clone(), |trouble| format!("{why}; cuda cannot be used: {trouble}"));
        if self.require_device && device.is(Device::Cpu) {
            return Err(Failure::Runtime(format!("--require-device: {device} would be taken ({why})")));
        }
        if !quiet {
            eprintln!("device: {device} ({why})");
        }
        let may_fall_back = self.may_fall_back(&device);
        Ok(Settled { device, split: None, shares: Vec::new(), may_fall_back })
    }

    fn no_split(&self) -> Failure {
        Failure::Usage(format!(
            "--split-mode says how the devices of a list share a model, and --device is {}",
            self.device
        ))
    }

    fn no_shares(&self) -> Failure {
        Failure::Usage(format!(
            "--tensor-split takes a number for each device of a list, and --device is {}",
            self.device
        ))
    }
}
