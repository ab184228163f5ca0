//! Inputs of adapters that are left out in a pass of training.

use crate::random::{Purpose, bits};
use bitnet_cpu::CpuTraining;

/// Which inputs are left out follows from the seed, the pass, the projection and the element, so the way back leaves out the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    /// The share that is left out.
    pub(super) share: f64,
    pub(super) seed: u64,
    /// The number of the pass.
    pub(super) pass: u64,
}

impl Dropout {
    /// Leaves out elements of `x [m, k]` and makes the others larger, for the projection at this place.
    pub(super) fn apply(&self, ops: &CpuTraining, place: usize, x: &mut [f32], k: usize) {
        let factor = (1.0 / (1.0 - self.share)) as f32;
        // As many of 2^32 numbers.
        let limit = (self.share * (1u64 << 32) as f64) as u64;
        let stream = self.pass << 24 | place as u64;
        ops.chunks(x, k, &|row, x| {
            for (i, x) in x.iter_mut().enumerate() {
                let drawn = bits(self.seed, Purpose::Dropout, stream, (row * k + i) as u64) >> 32;
                *x = if drawn < limit { 0.0 } else { *x * factor };
            }
        });
    }
}
