//! Which adapters there are.

use pollster::block_on;
use wgpu::{
    Adapter, Backends, DeviceType, DownlevelFlags, Features, Instance, InstanceDescriptor, InstanceFlags,
};

/// What makes an adapter's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU of a virtual machine.
    Virtual,
    /// The processor: it is there to test with.
    Software,
    /// It does not say.
    Other,
}

impl AdapterKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Software => "software",
            Self::Other => "unknown kind",
        }
    }
}

/// An adapter as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDetails {
    /// What it calls itself.
    pub name: String,
    /// The interface it is reached by: `vulkan`, `metal` or `dx12`.
    pub api: &'static str,
    /// What it is.
    pub kind: AdapterKind,
    /// Its driver and the driver's version, as far as they are known.
    pub driver: String,
}

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuError {
    /// There is no adapter of this number.
    #[error("there is no adapter {number}; {found} can be used")]
    NoSuchAdapter {
        /// What was asked for.
        number: usize,
        /// How many there are.
        found: usize,
    },
    /// There is none left for anything.
    #[error("{name} has no memory left")]
    NoMemory {
        /// The adapter.
        name: String,
    },
    /// The driver refuses.
    #[error("{name} cannot be opened")]
    Open {
        /// The adapter.
        name: String,
        /// Why.
        source: wgpu::RequestDeviceError,
    },
}

/// The adapters that the shaders run on; their order is that of their numbers.
pub fn adapters() -> Vec<AdapterDetails> {
    usable().iter().map(details).collect()
}

pub(crate) fn usable() -> Vec<Adapter> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        // Neither validation layers nor names for debuggers, whatever the build.
        flags: InstanceFlags::empty(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = block_on(instance.enumerate_adapters(Backends::all()));
    adapters.retain(|adapter| {
        let flags = DownlevelFlags::COMPUTE_SHADERS | DownlevelFlags::SHADER_F16_IN_F32;
        adapter.features().contains(Features::IMMEDIATES)
            && adapter.get_downlevel_capabilities().flags.contains(flags)
    });
    adapters
}

pub(crate) fn details(adapter: &Adapter) -> AdapterDetails {
    let info = adapter.get_info();
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => AdapterKind::Discrete,
        DeviceType::IntegratedGpu => AdapterKind::Integrated,
        DeviceType::VirtualGpu => AdapterKind::Virtual,
        DeviceType::Cpu => AdapterKind::Software,
        DeviceType::Other => AdapterKind::Other,
    };
    let driver = [info.driver, info.driver_info].into_iter().filter(|part| !part.is_empty());
    AdapterDetails {
        name: info.name,
        api: info.backend.to_str(),
        kind,
        driver: driver.collect::<Vec<_>>().join(" "),
    }
}
