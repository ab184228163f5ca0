//! How quantization fares, projection by projection: a look on the schedule of the log.

use crate::model::Model;
use crate::{Parameter, Quantized};
use bitnet_cpu::CpuTraining;

/// Elements that a thread looks at at a time. It decides the order of sums.
const PIECE: usize = 1 << 15;

/// What is told of a projection.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerHealth {
    pub(super) tensor: String,
    /// The mean, where each row has one.
    pub(super) scale: f64,
    /// Share of codes that are zero.
    pub(super) zeros: f64,
    /// Share of codes that are others than at the last look.
    pub(super) flips: f64,
    /// Share of weights that were cut off: their magnitude is larger than what became of them, by more than half a step.
    pub(super) clipped: f64,
    /// Signal to noise of the quantized weights, in dB: `10 log10 (sum w^2 / sum (w - q)^2)`.
    pub(super) snr: f64,
    /// The norm of the last gradient, which went straight through the quantizer.
    pub(super) gradient: f64,
}

/// The codes of the last look.
pub(super) struct Health {
    before: Vec<Vec<i8>>,
}

/// Sums over a piece.
#[derive(Clone, Copy, Default)]
struct Sums {
    zeros: u64,
    flips: u64,
    clipped: u64,
    signal: f64,
    noise: f64,
    gradient: f64,
}

impl Health {
    /// Begins with the codes that the model has now.
    pub(super) fn new(model: &Model) -> Self {
        Self { before: looked_at(model).map(|(_, quantized)| quantized.codes.to_vec()).collect() }
    }

    /// Looks at a model whose codes are those of its present weights.
    pub(super) fn look(&mut self, model: &Model) -> Vec<LayerHealth> {
        let mut all = Vec::new();
        for ((p, quantized), before) in looked_at(model).zip(&mut self.before) {
            let weights = &model.values[p.range.clone()];
            let gradients = &model.gradients[model.parameters().of_trained(p)];
            let sums = sums(model.ops(), quantized, p.slot.cols, weights, gradients, before);
            let share = |count: u64| count as f64 / weights.len().max(1) as f64;
            let scales = quantized.scales.iter().map(|scale| f64::from(*scale));
            all.push(LayerHealth {
                tensor: p.name.clone(),
                scale: scales.sum::<f64>() / quantized.scales.len().max(1) as f64,
                zeros: share(sums.zeros),
                flips: share(sums.flips),
                clipped: share(sums.clipped),
                snr: 10.0 * libm::log10(sums.signal / sums.noise),
                gradient: libm::sqrt(sums.gradient),
            });
            before.copy_from_slice(&quantized.codes);
        }
        all
    }
}

/// What is quantized and trained. Codes that stay as they are have nothing to tell.
fn looked_at(model: &Model) -> impl Iterator<Item = (&Parameter, &Quantized)> {
    let first = model.parameters().start();
    model.quantized().filter(move |(p, _)| p.range.start >= first)
}

fn sums(
    ops: &CpuTraining,
    quantized: &Quantized,
    cols: usize,
    weights: &[f32],
    gradients: &[f32],
    before: &[i8],
) -> Sums {
    let mut parts = vec![Sums::default(); weights.len().div_ceil(PIECE)];
    ops.chunks(&mut parts, 1, &|piece, part| {
        let (from, sums) = (piece * PIECE, &mut part[0]);
        let pairs = weights[from..].iter().zip(&gradients[from..]).take(PIECE);
        for (i, (w, g)) in pairs.enumerate() {
            let (at, w, g) = (from + i, f64::from(*w), f64::from(*g));
            let row = if quantized.scales.len() > 1 { at / cols } else { 0 };
            let (code, scale) = (quantized.codes[at], f64::from(quantized.scales[row]));
            let q = f64::from(code) * scale;
            sums.zeros += u64::from(code == 0);
            sums.flips += u64::from(code != before[at]);
            sums.clipped += u64::from(w.abs() - q.abs() > 0.5 * scale);
            sums.signal += w * w;
            sums.noise += (w - q) * (w - q);
            sums.gradient += g * g;
        }
    });
    parts.into_iter().fold(Sums::default(), |all, part| Sums {
        zeros: all.zeros + part.zeros,
        flips: all.flips + part.flips,
        clipped: all.clipped + part.clipped,
        signal: all.signal + part.signal,
        noise: all.noise + part.noise,
        gradient: all.gradient + part.gradient,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rounding, WeightQuantizer};

    fn absmean(ops: &CpuTraining, weights: &[f32]) -> Quantized {
        let mut quantized = Quantized::default();
        let cols = weights.len();
        WeightQuantizer::Absmean.quantize(ops, weights, cols, &[], Rounding::Nearest, &mut quantized);
        quantized
    }

    /// Eight weights whose mean magnitude, and so their scale, is 1.
    #[test]
    fn shares_and_noise_are_those_of_a_count_by_hand() {
        let ops = CpuTraining::new(None, Some(2)).unwrap();
        let weights = [1.0f32, -1.0, 0.25, 0.25, -2.0, 2.0, 0.5, 1.0];
        let quantized = absmean(&ops, &weights);
        assert_eq!(
            (&quantized.scales[..], &quantized.codes[..]),
            (&[1.0][..], &[1, -1, 0, 0, -1, 1, 0, 1][..])
        );
        let before = [1, 1, 0, -1, -1, 1, 0, 1];
        let sums = sums(&ops, &quantized, 8, &weights, &[0.5; 8], &before);
        assert_eq!((sums.zeros, sums.flips, sums.clipped), (3, 2, 2));
        // 1 + 1 + 1/16 + 1/16 + 4 + 4 + 1/4 + 1, and 1/16 + 1/16 + 1 + 1 + 1/4.
        assert_eq!((sums.signal, sums.noise, sums.gradient), (11.375, 2.375, 2.0));
        // With a scale for each row.
        let rows = Quantized {
            codes: vec![1, 0, 2, -1].into(),
            scales: vec![1.0, 0.5].into(),
            ..Quantized::default()
        };
        let got = super::sums(&ops, &rows, 2, &[1.75, 0.25, 1.0, -0.5], &[0.0; 4], &rows.codes);
        assert_eq!((got.zeros, got.flips, got.clipped, got.noise), (1, 0, 1, 0.625));
    }

    #[test]
    fn pieces_add_up() {
        let ops = CpuTraining::new(None, Some(2)).unwrap();
        let n = PIECE * 2 + 5;
        let weights: Vec<f32> = (0..n).map(|i| crate::random::normal(1, 2, i as u64) as f32).collect();
        let quantized = absmean(&ops, &weights);
        let sums = sums(&ops, &quantized, n, &weights, &weights, &quantized.codes);
        assert_eq!(sums.flips, 0);
        assert_eq!(sums.zeros, quantized.codes.iter().filter(|code| **code == 0).count() as u64);
        assert!((sums.gradient / sums.signal - 1.0).abs() < 1e-12);
        // Of a normal distribution a share of 2 (1 - Phi(1.5 * 0.7979)) is cut off.
        let share = sums.clipped as f64 / n as f64;
        assert!((share - 0.231).abs() < 0.01, "{share}");
    }
}
