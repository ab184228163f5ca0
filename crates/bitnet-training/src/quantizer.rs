//! Ternary weights of master weights, made again for every step.

use bitnet_cpu::CpuTraining;
use bitnet_quant::absmean::MeanMagnitude;

/// Elements that a thread quantizes at a time.
const PIECE: usize = 1 << 14;

/// Trits and scale of a matrix: `weight = trit * scale`.
///
/// Backward, the quantizer is the identity (straight-through estimator): the gradient of the ternary weights is that of the master weights,
/// also beyond the range that is clipped, and nothing flows through the scale (arXiv 2402.17764).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ternary {
    /// Row-major, like the master weights.
    pub trits: Vec<i8>,
    /// The multiplier.
    pub scale: f32,
}

impl Ternary {
    /// Quantizes by absmean: `s = 1 / mean |w|`, `trit = clamp(round half even(w * s), -1, 1)`, `scale = 1 / s`. Equals what loading a
    /// checkpoint of these master weights makes of them.
    pub fn absmean(&mut self, ops: &CpuTraining, masters: &[f32], cols: usize) {
        let mut mean = MeanMagnitude::default();
        masters.chunks(cols.max(1)).for_each(|row| mean.row(row));
        let s = 1.0 / mean.mean();
        self.scale = 1.0 / s;
        self.trits.resize(masters.len(), 0);
        ops.chunks(&mut self.trits, PIECE, &|i, trits| {
            for (trit, w) in trits.iter_mut().zip(&masters[i * PIECE..]) {
                let x = w * s;
                *trit = i8::from(x > 0.5) - i8::from(x < -0.5);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_testkit::golden;

    const FILE: &str = "training/quantizers.safetensors";

    #[test]
    fn absmean_is_that_of_the_reference() {
        let ops = CpuTraining::new(None, Some(2)).unwrap();
        let (w, want) = (golden::floats(FILE, "w"), golden::floats(FILE, "absmean.y"));
        let mut got = Ternary::default();
        got.absmean(&ops, &w, 40);
        for (i, (trit, want)) in got.trits.iter().zip(&want).enumerate() {
            let y = f32::from(*trit) * got.scale;
            assert!((y - want).abs() <= 1e-6 * want.abs(), "{i}: {y} {want}");
        }
        // The straight-through estimator: what comes in goes out.
        assert_eq!(golden::floats(FILE, "absmean.dw"), golden::floats(FILE, "gy"));
    }

    #[test]
    fn trits_are_those_that_loading_makes() {
        let ops = CpuTraining::new(None, Some(3)).unwrap();
        let (rows, cols) = (70, 300);
        let w: Vec<f32> = (0..rows * cols).map(|i| crate::random::normal(5, 0, i as u64) as f32).collect();
        let mut got = Ternary::default();
        got.absmean(&ops, &w, cols);
        let want = bitnet_quant::absmean::absmean(&w, rows, cols).unwrap();
        assert_eq!(got.scale.to_bits(), want.scale_at(0, 0).to_bits());
        for (i, trit) in got.trits.iter().enumerate() {
            assert_eq!(*trit, want.trit(i / cols, i % cols));
        }
    }
}
