//! What each of several devices has of a model: some of the layers, or some of the rows.

use super::Device;
use crate::OpenError;
use bitnet_model::Sizes;
use std::fmt;

/// How several devices share a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// Each has consecutive layers.
    #[default]
    Layers,
    /// Each has some of the rows of every matrix, and some of the heads of attention; NVIDIA's GPUs alone.
    Rows,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layers => "layers",
            Self::Rows => "rows",
        })
    }
}

/// What the devices have.
#[derive(Debug, PartialEq)]
pub(super) enum Parts {
    /// So many layers each.
    Layers(Vec<usize>),
    /// Rows in these proportions.
    Rows(Vec<f64>),
}

/// Shares a model out as it was asked for. Where that is left open, devices get layers; and rows where whole layers cannot be had, because
/// there are more devices than layers or because one has not the memory, and rows can.
pub(super) fn parts(
    sizes: &Sizes,
    devices: &[(Device, Option<u64>)],
    (split, shares): (Option<Split>, &[f64]),
) -> Result<Parts, OpenError> {
    match split {
        Some(Split::Layers) => layers(sizes, devices, shares).map(Parts::Layers),
        Some(Split::Rows) => rows(sizes, devices, shares).map(Parts::Rows),
        None => match layers(sizes, devices, shares) {
            Err(e @ (OpenError::MoreDevices { .. } | OpenError::NoRoom { .. })) => {
                rows(sizes, devices, shares).map(Parts::Rows).map_err(|_| e)
            }
            outcome => outcome.map(Parts::Layers),
        },
    }
}

/// The proportions in which devices with so many bytes free share the rows: `shares` where there are any, else by free memory.
fn rows(sizes: &Sizes, devices: &[(Device, Option<u64>)], shares: &[f64]) -> Result<Vec<f64>, OpenError> {
    if let Some((device, _)) = devices.iter().find(|(device, _)| !matches!(device, Device::Cuda(_))) {
        return Err(OpenError::NoRows { device: *device });
    }
    check(shares, devices.len())?;
    let free = free_of_each(devices);
    let total = sizes.total() as f64;
    let shares = if shares.is_empty() { by_memory(total, devices, &free) } else { shares.to_vec() };
    let all: f64 = shares.iter().sum();
    for (((device, _), free), share) in devices.iter().zip(free).zip(&shares) {
        let need = total * share / all;
        if let Some(free) = free.filter(|free| need > *free) {
            return Err(OpenError::NoRoomForRows { device: *device, need: need as u64, free: free as u64 });
        }
    }
    Ok(shares)
}

/// Shares are positive numbers, one a device, if they are given.
fn check(shares: &[f64], devices: usize) -> Result<(), OpenError> {
    let wrong = shares.len() != devices || shares.iter().any(|s| !(s.is_finite() && *s > 0.0));
    match !shares.is_empty() && wrong {
        true => Err(OpenError::Shares { shares: shares.to_vec(), devices }),
        false => Ok(()),
    }
}

/// What each device has free; one that is named twice has half of it each time.
fn free_of_each(devices: &[(Device, Option<u64>)]) -> Vec<Option<f64>> {
    let each = devices.iter().map(|(device, free)| {
        let times = devices.iter().filter(|(other, _)| other == device).count();
        free.map(|free| free as f64 / times as f64)
    });
    each.collect()
}

/// What of a GPU's free memory layers may fill; the rest is for activations, scratch and what the estimate does not know.
const FILLED: f64 = 7.0 / 8.0;

/// The numbers of consecutive layers of devices with so many bytes free, the embedding lying with the first and the head with the last.
///
/// Layers are shared out in proportion to `shares` where there are any. Else GPUs are filled evenly, and the processor gets what they have
/// no room for, at least a layer; where a GPU does not tell how much memory it has, all devices get the same.
fn layers(sizes: &Sizes, devices: &[(Device, Option<u64>)], shares: &[f64]) -> Result<Vec<usize>, OpenError> {
    let count = sizes.layers.len();
    if devices.len() > count {
        return Err(OpenError::MoreDevices { devices: devices.len(), layers: count });
    }
    let mut bytes: Vec<f64> = sizes.layers.iter().map(|layer| (layer + sizes.cache) as f64).collect();
    bytes[0] += sizes.embedding as f64;
    bytes[count - 1] += sizes.head as f64;
    let free = free_of_each(devices);
    check(shares, devices.len())?;
    let split = match shares {
        [] => partition(&bytes, &by_memory(bytes.iter().sum(), devices, &free)),
        shares => partition(&vec![1.0; count], shares),
    };
    let mut first = 0;
    for (((device, _), free), layers) in devices.iter().zip(free).zip(&split) {
        let need: f64 = bytes[first..first + layers].iter().sum();
        first += layers;
        if let Some(free) = free.filter(|free| *device != Device::Cpu && need > *free) {
            let (need, free) = (need as u64, free as u64);
            return Err(OpenError::NoRoom { device: *device, layers: *layers, need, free });
        }
    }
    Ok(split)
}

/// How much of `total` bytes each device is to hold.
fn by_memory(total: f64, devices: &[(Device, Option<u64>)], free: &[Option<f64>]) -> Vec<f64> {
    let is_cpu = |at: usize| devices[at].0 == Device::Cpu;
    let room = |at: usize| free[at].map(|free| free * FILLED);
    let rooms: Option<Vec<f64>> = (0..devices.len()).filter(|at| !is_cpu(*at)).map(room).collect();
    let Some(rooms) = rooms.filter(|rooms| !rooms.is_empty()) else { return vec![1.0; devices.len()] };
    let left = total - rooms.iter().sum::<f64>();
    // A share is never nothing.
    (0..devices.len()).map(|at| if is_cpu(at) { left } else { room(at).unwrap_or(0.0) }.max(1.0)).collect()
}

/// Cuts a row of layers into as many parts as there are shares, each of at least one, so that what they hold is nearest to being in
/// proportion: the sum of the parts' squares over their shares is least. There are no fewer layers than shares.
fn partition(bytes: &[f64], shares: &[f64]) -> Vec<usize> {
    let (n, parts) = (bytes.len(), shares.len());
    let mut sums = vec![0.0; n + 1];
    for (at, bytes) in bytes.iter().enumerate() {
        sums[at + 1] = sums[at] + bytes;
    }
    // Of the first parts with the first layers: what is least, and where the last part begins.
    let mut best = vec![vec![(f64::INFINITY, 0); n + 1]; parts + 1];
    best[0][0].0 = 0.0;
    for part in 1..=parts {
        for end in part..=n {
            for begin in part - 1..end {
                let held = sums[end] - sums[begin];
                let cost = best[part - 1][begin].0 + held * held / shares[part - 1];
                if cost < best[part][end].0 {
                    best[part][end] = (cost, begin);
                }
            }
        }
    }
    let mut counts = vec![0; parts];
    let mut end = n;
    for part in (1..=parts).rev() {
        let begin = best[part][end].1;
        counts[part - 1] = end - begin;
        end = begin;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// Ten layers of 1 GB with their cache, and 2 GB at either end.
    fn sizes() -> Sizes {
        Sizes { embedding: 2 * GB, layers: vec![GB * 3 / 4; 10], head: 2 * GB, tied: true, cache: GB / 4 }
    }

    fn of(devices: &[(Device, Option<u64>)], shares: &[f64]) -> Result<Vec<usize>, OpenError> {
        layers(&sizes(), devices, shares)
    }

    fn cuda(number: usize, gb: u64) -> (Device, Option<u64>) {
        (Device::Cuda(number), Some(gb * GB))
    }

    #[test]
    fn layers_go_by_free_memory() {
        let cpu = (Device::Cpu, Some(64 * GB));
        let wgpu = (Device::Wgpu(0), None);
        for (devices, want) in [
            (vec![cuda(0, 16), cuda(1, 16)], vec![5, 5]),
            // 2 GB and 2 layers to 6 layers and 2 GB.
            (vec![cuda(0, 8), cuda(1, 16)], vec![3, 7]),
            (vec![cuda(0, 16), cuda(1, 24), cuda(2, 16)], vec![2, 6, 2]),
            // One device that is named twice has half the memory each time.
            (vec![cuda(0, 16), cuda(0, 16)], vec![5, 5]),
            // The processor gets what has no room.
            (vec![cuda(0, 8), cpu], vec![5, 5]),
            (vec![cuda(0, 64), cpu], vec![9, 1]),
            (vec![cuda(0, 10), cuda(1, 4), cpu], vec![6, 3, 1]),
            (vec![cpu, cuda(0, 8)], vec![5, 5]),
            // Nobody knows.
            (vec![wgpu, cpu], vec![5, 5]),
            (vec![cpu, cpu], vec![5, 5]),
            (vec![cuda(0, 32)], vec![10]),
        ] {
            let got = of(&devices, &[]).unwrap();
            assert_eq!(got, want, "{devices:?}");
        }
    }

    #[test]
    fn layers_go_by_shares() {
        let two = [cuda(0, 32), cuda(1, 32)];
        for (shares, want) in
            [([1.0, 1.0], [5, 5]), ([3.0, 7.0], [3, 7]), ([9.0, 1.0], [9, 1]), ([1000.0, 1.0], [9, 1])]
        {
            assert_eq!(of(&two, &shares).unwrap(), want, "{shares:?}");
        }
        let refused = |shares: &[f64]| matches!(of(&two, shares), Err(OpenError::Shares { devices: 2, .. }));
        assert!(refused(&[1.0]) && refused(&[1.0; 3]) && refused(&[1.0, 0.0]) && refused(&[f64::NAN, 1.0]));
    }

    #[test]
    fn rows_are_taken_where_layers_do_not_fit() {
        let parts = |devices: &[_], split, shares: &[f64]| parts(&sizes(), devices, (split, shares));
        let two = [cuda(0, 16), cuda(1, 8)];
        assert_eq!(parts(&two, None, &[]).unwrap(), Parts::Layers(vec![7, 3]));
        assert_eq!(parts(&two, Some(Split::Rows), &[]).unwrap(), Parts::Rows(vec![14e9, 7e9]));
        assert_eq!(parts(&two, Some(Split::Rows), &[3.0, 1.0]).unwrap(), Parts::Rows(vec![3.0, 1.0]));
        // More devices than layers, and an end that no device holds alone with a layer.
        let many: Vec<_> = (0..11).map(|n| cuda(n, 4)).collect();
        assert_eq!(parts(&many, None, &[]).unwrap(), Parts::Rows(vec![3.5e9; 11]));
        let small: Vec<_> = (0..8).map(|n| cuda(n, 2)).collect();
        assert_eq!(parts(&small, None, &[]).unwrap(), Parts::Rows(vec![1.75e9; 8]));
        // Not asked for, or of others than NVIDIA's GPUs, or too large all the same: the error is that of layers.
        let refused = parts(&many, Some(Split::Layers), &[]);
        assert!(matches!(refused, Err(OpenError::MoreDevices { .. })), "{refused:?}");
        let with_cpu: Vec<_> = many.iter().copied().chain([(Device::Cpu, None)]).collect();
        assert!(matches!(parts(&with_cpu, None, &[]), Err(OpenError::MoreDevices { devices: 12, .. })));
        let tight = parts(&[cuda(0, 4), cuda(1, 4)], None, &[]);
        assert!(matches!(tight, Err(OpenError::NoRoom { .. })), "{tight:?}");
        let refused = parts(&with_cpu, Some(Split::Rows), &[]);
        assert!(matches!(refused, Err(OpenError::NoRows { device: Device::Cpu })), "{refused:?}");
        let refused = parts(&two, Some(Split::Rows), &[1.0]);
        assert!(matches!(refused, Err(OpenError::Shares { .. })), "{refused:?}");
        let lopsided = parts(&two, Some(Split::Rows), &[1.0, 3.0]).unwrap_err();
        let told = "a share of all rows takes 9.0 GB, and cuda:1 has 8.0 GB free; a smaller share";
        assert!(lopsided.to_string().starts_with(told), "{lopsided}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let small = of(&[cuda(0, 4), cuda(1, 4)], &[]);
        assert!(matches!(small, Err(OpenError::NoRoom { free: 4_000_000_000, .. })), "{small:?}");
        // Named twice, it has half its memory each time.
        let twice = of(&[cuda(0, 12), cuda(0, 12)], &[]);
        assert!(matches!(twice, Err(OpenError::NoRoom { free: 6_000_000_000, .. })), "{twice:?}");
        let lopsided = of(&[cuda(0, 4), cuda(1, 32)], &[1.0, 1.0]);
        let told = lopsided.unwrap_err().to_string();
        assert!(told.starts_with("5 of the layers take 7.0 GB, and cuda:0 has 4.0 GB free"), "{told}");
        let many: Vec<_> = (0..11).map(|n| cuda(n, 16)).collect();
        assert!(matches!(of(&many, &[]), Err(OpenError::MoreDevices { devices: 11, layers: 10 })));
    }
}
