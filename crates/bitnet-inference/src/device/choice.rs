//! Which device a model is best run on, or which several.

use super::{Device, Placement, Speed};
use bitnet_wgpu::AdapterKind;

/// A device, and what decides whether it is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// How it is asked for.
    pub device: Device,
    /// What it calls itself.
    pub name: String,
    /// What makes its numbers; `None` of the processor.
    pub kind: Option<AdapterKind>,
    /// Bytes of its memory that are free, where that is known, else all of it; of the processor those that are available.
    pub memory: Option<u64>,
    /// What was measured of it once.
    pub speed: Option<Speed>,
}

impl Candidate {
    /// How good its like is, the best first; `None` is never taken.
    fn rank(&self) -> Option<usize> {
        match (self.device, self.kind) {
            (Device::Cuda(_), _) => Some(0),
            (_, Some(AdapterKind::Discrete)) => Some(1),
            (_, Some(AdapterKind::Integrated)) => Some(2),
            (Device::Cpu, _) => Some(3),
            // A processor that pretends to be a GPU, and what nobody knows.
            _ => None,
        }
    }

    /// Whether a model of `bytes` fits.
    fn holds(&self, bytes: u64) -> bool {
        self.memory.is_none_or(|memory| with_room(bytes) <= memory)
    }
}

/// With an eighth more, for what is computed.
fn with_room(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8)
}

/// Chooses among devices, the processor being one of them, for a model of so many bytes; and says why.
///
/// What is too small is left out. Of the rest the one that reads weights fastest is taken where all were measured, else the first of its
/// kind: NVIDIA's, discrete, integrated, the processor. Where none of NVIDIA's GPUs has room alone, the fewest that have it together are
/// taken, rather than the processor or a GPU that does not tell how much memory it has. Nothing too large for all of them is run on another
/// than the processor, which reads weights from their file.
pub fn choose(candidates: &[Candidate], bytes: u64) -> (Placement, String) {
    let ranked: Vec<(&Candidate, usize)> = candidates.iter().filter_map(|c| Some((c, c.rank()?))).collect();
    let (fits, small): (Vec<_>, Vec<_>) = ranked
        .into_iter()
        .partition(|(c, _)| c.device != Device::Cpu && c.holds(bytes) || c.device == Device::Cpu);
    let mut why = Vec::new();
    let measured: Option<Vec<_>> = fits.iter().map(|(c, _)| Some((*c, c.speed?.read))).collect();
    let best = match measured.filter(|_| fits.len() > 1) {
        Some(speeds) => {
            let best = speeds.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(c, _)| *c);
            let told = speeds.iter().map(|(c, read)| format!("{} {:.0} GB/s", c.device, read / 1e9));
            why.push(format!("measured: {}", told.collect::<Vec<_>>().join(", ")));
            best
        }
        None => fits.iter().min_by_key(|(_, rank)| *rank).map(|(c, _)| *c),
    };
    let best = best.filter(|best| best.device != Device::Cpu);
    let gb = |bytes: u64| bytes as f64 / 1e9;
    if best.is_none_or(|best| best.memory.is_none())
        && let Some(several) = together(&small, bytes)
    {
        let each =
            several.iter().map(|c| format!("{} with {:.1} GB free", c.device, gb(c.memory.unwrap_or(0))));
        let each = each.collect::<Vec<_>>().join(", ");
        let place = Placement::of(several.iter().map(|c| c.device).collect()).unwrap_or_default();
        return (place, format!("{each}: the model takes {:.1}", gb(bytes)));
    }
    match best {
        Some(best) => why.insert(0, best.name.clone()),
        None if fits.len() <= 1 && small.is_empty() => why.push("there is no GPU".to_owned()),
        None => {}
    }
    for (c, _) in &small {
        let memory = gb(c.memory.unwrap_or(0));
        why.push(format!("{} has {memory:.1} GB free, and the model takes {:.1}", c.device, gb(bytes)));
    }
    (best.map_or(Device::Cpu, |best| best.device).into(), why.join("; "))
}

/// The fewest of NVIDIA's GPUs that have room for a model together, in their order.
fn together<'a>(small: &[(&'a Candidate, usize)], bytes: u64) -> Option<Vec<&'a Candidate>> {
    let mut gpus: Vec<_> = small.iter().filter(|(c, _)| matches!(c.device, Device::Cuda(_))).collect();
    gpus.sort_by_key(|(c, _)| std::cmp::Reverse(c.memory));
    let mut room = 0u64;
    let enough = gpus.iter().position(|(c, _)| {
        room = room.saturating_add(c.memory.unwrap_or(0));
        with_room(bytes) <= room
    })?;
    let mut several: Vec<&Candidate> = gpus[..=enough].iter().map(|(c, _)| *c).collect();
    several.sort_by_key(|c| small.iter().position(|(other, _)| other.device == c.device));
    Some(several)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(
        device: Device,
        kind: Option<AdapterKind>,
        memory: Option<u64>,
        read: Option<f64>,
    ) -> Candidate {
        let speed = read.map(|read| Speed { read, int8: 1e12, float: 1e11 });
        Candidate { device, name: format!("the {device}"), kind, memory, speed }
    }

    #[test]
    fn what_is_measured_and_fits_is_taken() {
        let gb = |n: u64| Some(n * 1_000_000_000);
        let cpu = |read| candidate(Device::Cpu, None, gb(16), read);
        let cuda = |n, read| candidate(Device::Cuda(n), Some(AdapterKind::Discrete), gb(8), read);
        let wgpu = |kind, read| candidate(Device::Wgpu(0), Some(kind), None, read);
        let small = 1_000_000_000;
        for (candidates, bytes, device, why) in [
            (vec![cpu(None)], small, Device::Cpu, "there is no GPU"),
            (vec![cpu(None), wgpu(AdapterKind::Software, Some(1e15))], small, Device::Cpu, "there is no GPU"),
            (vec![cpu(None), wgpu(AdapterKind::Integrated, None)], small, Device::Wgpu(0), "the wgpu:0"),
            (
                vec![cpu(None), wgpu(AdapterKind::Discrete, None), cuda(0, None)],
                small,
                Device::Cuda(0),
                "the cuda:0",
            ),
            // A GPU that reads slower than the processor.
            (
                vec![cpu(Some(90e9)), wgpu(AdapterKind::Integrated, Some(40e9))],
                small,
                Device::Cpu,
                "measured: cpu 90 GB/s, wgpu:0 40 GB/s",
            ),
            (
                vec![cpu(Some(30e9)), cuda(0, Some(300e9)), cuda(1, Some(900e9))],
                small,
                Device::Cuda(1),
                "the cuda:1; measured: cpu 30 GB/s, cuda:0 300 GB/s, cuda:1 900 GB/s",
            ),
            // One that was not measured: by kind.
            (vec![cpu(Some(90e9)), cuda(0, None)], small, Device::Cuda(0), "the cuda:0"),
            // Too large for the GPU; and an eighth more is needed.
            (
                vec![cpu(None), cuda(0, None)],
                9_000_000_000,
                Device::Cpu,
                "cuda:0 has 8.0 GB free, and the model takes 9.0",
            ),
            (
                vec![cpu(None), cuda(0, Some(1e12)), wgpu(AdapterKind::Integrated, None)],
                7_500_000_000,
                Device::Wgpu(0),
                "the wgpu:0; cuda:0 has 8.0 GB free, and the model takes 7.5",
            ),
            (
                vec![cpu(None), cuda(0, None)],
                u64::MAX,
                Device::Cpu,
                "cuda:0 has 8.0 GB free, and the model takes 18446744073.7",
            ),
        ] {
            assert_eq!(choose(&candidates, bytes), (device.into(), why.to_owned()));
        }
        assert!(choose(&[], 1).0.is(Device::Cpu));
    }

    #[test]
    fn what_fits_on_no_gpu_is_put_on_several() {
        const GB: u64 = 1_000_000_000;
        let cpu = candidate(Device::Cpu, None, Some(64 * GB), Some(90e9));
        let cuda = |n, gb: u64| candidate(Device::Cuda(n), Some(AdapterKind::Discrete), Some(gb * GB), None);
        let wgpu = candidate(Device::Wgpu(0), Some(AdapterKind::Discrete), None, None);
        for (candidates, gb, place) in [
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 8)], 7, "cuda:0"),
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 8)], 14, "cuda:0,cuda:1"),
            // The fewest, and no more than there are.
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 12), cuda(2, 8), cuda(3, 12)], 20, "cuda:1,cuda:3"),
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 12), cuda(2, 8)], 22, "cuda:0,cuda:1,cuda:2"),
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 8)], 15, "cpu"),
            // The same GPU under another name, of which nobody knows how much memory it has.
            (vec![cpu.clone(), cuda(0, 8), cuda(1, 8), wgpu.clone()], 14, "cuda:0,cuda:1"),
            (vec![cpu.clone(), cuda(0, 8), wgpu], 14, "wgpu:0"),
        ] {
            assert_eq!(choose(&candidates, gb * GB).0.to_string(), place, "{gb} GB");
        }
        let (_, why) = choose(&[cpu, cuda(0, 8), cuda(1, 8)], 14 * GB);
        assert_eq!(why, "cuda:0 with 8.0 GB free, cuda:1 with 8.0 GB free: the model takes 14.0");
    }
}
