//! Steps that are learned: where they begin, and the way back through quantizers that clip.

use super::{Bits, Quantized, SEQ_CLIP, STEP_FLOOR, WeightQuantizer};
use bitnet_cpu::CpuTraining;

impl WeightQuantizer {
    /// The steps of master weights before the first one is learned. LSQ: `2 mean |w| / sqrt(highest code)`; SEQ, as ParetoQ's code has it:
    /// the largest magnitude of a row, or of one bit the mean.
    pub(crate) fn first_steps(self, masters: &[f32], cols: usize) -> Vec<f32> {
        let mean =
            |w: &[f32]| (w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / w.len().max(1) as f64) as f32;
        let rows = masters.chunks_exact(cols.max(1));
        let steps: Vec<f32> = match self {
            Self::Lsq { bits, rows: own } => {
                let root = bits.highest().sqrt();
                match own {
                    true => rows.map(|row| 2.0 * mean(row) / root).collect(),
                    false => vec![2.0 * mean(masters) / root],
                }
            }
            Self::Seq { bits: Bits::One } => rows.map(mean).collect(),
            Self::Seq { .. } => rows.map(|row| row.iter().fold(0.0f32, |m, w| m.max(w.abs()))).collect(),
            _ => Vec::new(),
        };
        steps.into_iter().map(|step| step.max(bitnet_quant::absmean::MEAN_FLOOR)).collect()
    }

    /// What gradients of steps are multiplied with: `1 / sqrt(weights * highest code)`, so that steps move as weights do.
    pub(super) fn step_factor(self, weights: usize) -> f64 {
        let highest = match self {
            Self::Lsq { bits, .. } => bits.highest(),
            Self::Seq { bits } => (bits.levels() / 2 - 1).max(1) as f32,
            _ => 1.0,
        };
        1.0 / libm::sqrt(weights as f64 * f64::from(highest))
    }

    /// Gradients of what passes used, `dw [rows, cols]`, become those of master weights; those of the steps are given, one for each.
    ///
    /// All but the learned quantizers are passed straight through, also where they clip. `strength` is the share of the quantized weights.
    pub(crate) fn backward(
        self,
        ops: &CpuTraining,
        (masters, cols): (&[f32], usize),
        steps: &[f32],
        quantized: &Quantized,
        strength: f32,
        dw: &mut [f32],
    ) -> Vec<f32> {
        if steps.is_empty() {
            return Vec::new();
        }
        let mut sums = vec![0.0f64; masters.len() / cols];
        let mut rows: Vec<(&mut [f32], &mut f64)> = dw.chunks_exact_mut(cols).zip(&mut sums).collect();
        ops.chunks(&mut rows, 1, &|row, at| {
            let (dw, sum) = &mut at[0];
            let step = steps[if steps.len() == 1 { 0 } else { row }].max(STEP_FLOOR);
            let level = quantized.scale(row) / step;
            let own = row * cols..(row + 1) * cols;
            let mut lanes = [0.0f64; 16];
            for (i, ((dw, w), code)) in
                dw.iter_mut().zip(&masters[own.clone()]).zip(&quantized.codes[own]).enumerate()
            {
                let z = w / step;
                let level = f32::from(*code) * level;
                let (inside, along) = match self {
                    Self::Lsq { bits, .. } => {
                        let (low, high) = bits.range();
                        let inside = z > low && z < high;
                        (inside, if inside { level - z } else { z.clamp(low, high) })
                    }
                    // The derivative of `step * sign(w)`: there is no offset that goes along.
                    Self::Seq { bits: Bits::One } => (z.abs() <= SEQ_CLIP, level),
                    _ => {
                        let inside = z.abs() <= SEQ_CLIP;
                        (inside, if inside { level - z } else { level })
                    }
                };
                lanes[i % 16] += f64::from(*dw) * f64::from(along);
                if !inside {
                    *dw *= 1.0 - strength;
                }
            }
            **sum = lanes.iter().sum();
        });
        let factor = self.step_factor(masters.len()) * f64::from(strength);
        let sums: Vec<f64> = if steps.len() == 1 { vec![sums.iter().sum()] } else { sums };
        sums.into_iter().map(|sum| (sum * factor) as f32).collect()
    }
}
