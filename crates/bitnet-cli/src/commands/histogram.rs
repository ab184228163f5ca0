//! `bitnet inspect --hist`: how the weights of each tensor are spread.

use crate::failure::Failure;
use bitnet_core::{Matrix, Scale, TernaryMatrix};
use bitnet_formats::Checkpoint;
use bitnet_model::{ModelConfig, ModelTensors};
use bitnet_quant::dense::dequantize_row;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// Columns of a histogram, from the least to the greatest value.
const BINS: usize = 16;

/// Heights of a bar.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

enum Spread {
    /// How many trits are -1, 0 and +1, and the least and the greatest scale.
    Trits {
        counts: [u64; 3],
        scales: [f32; 2],
    },
    Values {
        min: f32,
        max: f32,
        mean: f64,
        deviation: f64,
        bins: [u64; BINS],
    },
}

/// Prints a line a tensor, or one JSON object.
pub fn print(
    path: &Path,
    checkpoint: &Checkpoint,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let config = ModelConfig::read(checkpoint).map_err(Failure::at(path))?;
    let tensors = ModelTensors::new(checkpoint, &config);
    let mut found = Vec::new();
    for slot in tensors.slots() {
        let spread = match slot.role.is_norm() {
            true => {
                let norm = tensors.vector(&slot).map_err(Failure::at(path))?;
                Spread::of_values(|each| each(&norm))
            }
            false => Spread::of(&tensors.matrix(&slot).map_err(Failure::at(path))?),
        };
        found.push((config.arch.tensor_name(slot.role, slot.layer), spread));
    }
    if as_json {
        let object: Map<String, Value> = found.iter().map(|(name, s)| (name.clone(), s.json())).collect();
        return Ok(writeln!(out, "{}", json!({"tensors": object}))?);
    }
    let width = found.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, spread) in &found {
        writeln!(out, "{name:<width$}  {}", spread.line())?;
    }
    Ok(())
}

impl Spread {
    fn of(matrix: &Matrix) -> Self {
        match matrix {
            Matrix::Ternary(m) => Self::of_trits(m),
            Matrix::Dense(m) => Self::of_values(|each| {
                let mut row = vec![0.0; m.cols()];
                for r in 0..m.rows() {
                    dequantize_row(m.dtype(), m.row(r), &mut row);
                    each(&row);
                }
            }),
        }
    }

    fn of_trits(m: &TernaryMatrix) -> Self {
        let mut counts = [0u64; 3];
        for row in 0..m.rows() {
            let codes = m.row_codes(row);
            for byte in codes {
                (0..4).for_each(|at| counts[usize::from(byte >> (2 * at) & 3).min(2)] += 1);
            }
            // Rows are padded with zero trits.
            counts[1] -= (4 * codes.len() - m.cols()) as u64;
        }
        let scales = match m.scale() {
            Scale::Tensor(scale) => vec![*scale],
            Scale::Rows(values) | Scale::Groups { values, .. } => values.to_vec(),
        };
        let least = scales.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = scales.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Self::Trits { counts, scales: [least, greatest] }
    }

    /// `rows` gives all values, once to learn their range and once to sort them into bins.
    fn of_values(mut rows: impl FnMut(&mut dyn FnMut(&[f32]))) -> Self {
        let (mut min, mut max, mut sum, mut squares, mut count) =
            (f32::INFINITY, f32::NEG_INFINITY, 0.0, 0.0, 0.0);
        rows(&mut |row| {
            for v in row {
                (min, max) = (min.min(*v), max.max(*v));
                let v = f64::from(*v);
                (sum, squares, count) = (sum + v, squares + v * v, count + 1.0);
            }
        });
        let mut bins = [0; BINS];
        let step = (max - min) / BINS as f32;
        rows(&mut |row| {
            // Where all values are one, they are in the first bin.
            row.iter().for_each(|v| bins[(((v - min) / step) as usize).min(BINS - 1)] += 1);
        });
        let mean: f64 = sum / count;
        Self::Values { min, max, mean, deviation: (squares / count - mean * mean).max(0.0).sqrt(), bins }
    }

    fn line(&self) -> String {
        match self {
            Self::Trits { counts, scales } => {
                let all = counts.iter().sum::<u64>() as f64;
                let share = counts.map(|n| format!("{:.1} %", n as f64 * 100.0 / all));
                let scale = match scales[0] == scales[1] {
                    true => format!("{:e}", scales[0]),
                    false => format!("{:e} to {:e}", scales[0], scales[1]),
                };
                format!("-1: {}, 0: {}, +1: {}; scale {scale}", share[0], share[1], share[2])
            }
            Self::Values { min, max, mean, deviation, bins } => {
                let most = bins.iter().max().copied().unwrap_or(0).max(1);
                let bar = |n: &u64| if *n == 0 { ' ' } else { BARS[(n * 7 / most) as usize] };
                let bars: String = bins.iter().map(bar).collect();
                format!("{min:.4} |{bars}| {max:.4}; mean {mean:.4}, standard deviation {deviation:.4}")
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Trits { counts, scales } => json!({"trits": counts, "scales": scales}),
            Self::Values { min, max, mean, deviation, bins } => json!({
                "min": min, "max": max, "mean": mean, "standard_deviation": deviation, "bins": bins,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trits_and_values_are_counted() {
        let trits = [-1, 0, 1, 1, 0, 0, 1, 0, -1, 1];
        let m = TernaryMatrix::from_trits(2, 5, &trits, Scale::Rows([0.5, 2.0].into())).unwrap();
        let Spread::Trits { counts, scales } = Spread::of_trits(&m) else { panic!() };
        assert_eq!((counts, scales), ([2, 4, 4], [0.5, 2.0]));
        let values: Vec<f32> = (0..32).map(|v| v as f32).collect();
        let Spread::Values { bins, mean, .. } = Spread::of_values(|each| each(&values)) else { panic!() };
        assert_eq!((bins, mean), ([2; BINS], 15.5));
        let Spread::Values { bins, deviation, .. } = Spread::of_values(|each| each(&[3.0; 5])) else {
            panic!()
        };
        assert_eq!((bins[0], deviation), (5, 0.0));
    }
}
