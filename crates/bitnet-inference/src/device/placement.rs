//! One device or several.

use super::{Candidate, Device, Speed, UnknownDevice, choose, gpus};
use std::fmt;
use std::str::FromStr;

/// Where a model is: on one device, or on several, each of which has consecutive layers, in this order.
///
/// A device may be named twice; it then is two with half the memory each.
///
/// ```
/// use bitnet_inference::{Device, Placement};
/// let two: Placement = "cuda:0,cpu".parse()?;
/// assert_eq!(two.devices(), [Device::Cuda(0), Device::Cpu]);
/// assert_eq!(two.to_string(), "cuda:0,cpu");
/// # Ok::<(), bitnet_inference::UnknownDevice>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement(Vec<Device>);

/// Bytes of a GPU's memory that nobody has, where its driver tells. It is asked for when a device is to be chosen, since that takes a context.
fn free_memory(device: Device) -> Option<u64> {
    let Device::Cuda(number) = device else { return None };
    bitnet_cuda::free_memory(number).ok().map(|bytes| bytes as u64)
}

impl Placement {
    /// The best place here for a model that takes so many bytes, and why it is ([`choose`]); `speed` is what was measured of a device of
    /// that name.
    pub fn auto(bytes: u64, speed: &dyn Fn(Device, &str) -> Option<Speed>) -> (Self, String) {
        let cpu = Candidate {
            device: Device::Cpu,
            name: bitnet_cpu::processor_name(),
            kind: None,
            memory: Device::processor_memory(),
            speed: None,
        };
        let gpus = gpus().into_iter().map(|gpu| Candidate {
            device: gpu.device,
            name: gpu.name,
            kind: Some(gpu.made_by),
            memory: free_memory(gpu.device).or(gpu.memory),
            speed: None,
        });
        let mut all: Vec<Candidate> = std::iter::once(cpu).chain(gpus).collect();
        all.iter_mut().for_each(|c| c.speed = speed(c.device, &c.name));
        choose(&all, bytes)
    }

    /// Several devices, in the order of the layers that they have; `None` of none.
    pub fn of(devices: Vec<Device>) -> Option<Self> {
        (!devices.is_empty()).then_some(Self(devices))
    }

    /// The devices, at least one.
    pub fn devices(&self) -> &[Device] {
        &self.0
    }

    /// The device of the last layers, which has the results.
    pub fn last(&self) -> Device {
        self.0.last().copied().unwrap_or_default()
    }

    /// Whether this is one device, and that one.
    pub fn is(&self, device: Device) -> bool {
        self.0 == [device]
    }

    /// Whether a device is among them.
    pub fn has(&self, device: Device) -> bool {
        self.0.contains(&device)
    }
}

impl Default for Placement {
    fn default() -> Self {
        Device::default().into()
    }
}

impl From<Device> for Placement {
    fn from(device: Device) -> Self {
        Self(vec![device])
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Device::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Placement {
    type Err = UnknownDevice;

    fn from_str(names: &str) -> Result<Self, UnknownDevice> {
        names.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_devices_are_read_back() {
        for list in ["cpu", "cuda:0", "cuda:0,cuda:1", "cuda:1,wgpu:0,cpu", "cuda:0,cuda:0"] {
            assert_eq!(list.parse::<Placement>().unwrap().to_string(), list);
        }
        assert_eq!("cuda:0, cpu".parse::<Placement>().unwrap().devices(), [Device::Cuda(0), Device::Cpu]);
        for list in ["", ",", "cuda:0,", "cuda:0,,cpu", "cpu;cuda:0", "cuda:0,gpu", "auto,cpu"] {
            assert!(list.parse::<Placement>().is_err(), "{list}");
        }
        assert_eq!(Placement::of(Vec::new()), None);
        let two: Placement = "cuda:0,cpu".parse().unwrap();
        assert!(two.has(Device::Cpu) && !two.is(Device::Cpu) && !two.has(Device::Cuda(1)));
    }
}
