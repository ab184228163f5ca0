//! Quantizers of weights: codes of master weights, made again for every step, and what their gradients become.

mod inputs;
mod learned;
#[cfg(test)]
mod tests;

use crate::Array;
use crate::random::{Purpose, bits};
use bitnet_cpu::CpuTraining;
use bitnet_quant::absmean::{MEAN_FLOOR, MeanMagnitude};

pub(crate) use inputs::{InputCodes, InputQuantizer, hadamard, int4};

/// Elements that a thread quantizes at a time.
const PIECE: usize = 1 << 14;
/// Where SEQ clips: at 1, rounding would leave the outermost level (arXiv 2502.02631).
const SEQ_CLIP: f32 = 0.99;
/// TWN's threshold, as a share of the mean magnitude (arXiv 1605.04711).
const TWN_SHARE: f32 = 0.7;
/// The smallest learned step: scales must be positive.
const STEP_FLOOR: f32 = 1e-8;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are numbers")]
pub enum Bits {
    One,
    /// Three values.
    Ternary,
    Two,
    Three,
    Four,
    Eight,
}

impl Bits {
    /// Values of a weight.
    fn levels(self) -> i32 {
        match self {
            Self::One => 2,
            Self::Ternary => 3,
            Self::Two => 4,
            Self::Three => 8,
            Self::Four => 16,
            Self::Eight => 256,
        }
    }

    /// The lowest and the highest code of a quantizer with a level at zero.
    fn range(self) -> (f32, f32) {
        match self {
            Self::Ternary => (-1.0, 1.0),
            _ => {
                let half = self.levels() / 2;
                (-half as f32, (half - 1) as f32)
            }
        }
    }

    /// The highest code as LSQ counts it where it scales gradients of steps.
    fn highest(self) -> f32 {
        self.range().1.max(1.0)
    }
}

/// How the weights of projections are quantized in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightQuantizer {
    /// Not at all.
    Float,
    /// `s = 1 / mean |w|`, `code = clamp(round half even(w s), -1, 1)` (BitNet b1.58, arXiv 2402.17764).
    Absmean,
    /// The same with the median, the lower one of two, instead of the mean.
    Absmedian,
    /// Ternary weight networks: magnitudes above `0.7 mean |w|` become their mean (arXiv 1605.04711).
    Twn,
    /// `code = round(clamp(w / step))` with a learned step for the tensor or each row (LSQ, arXiv 1902.08153).
    Lsq {
        /// All but one bit.
        bits: Bits,
        /// Whether each row has a step of its own.
        rows: bool,
    },
    /// Stretched elastic quantizer (ParetoQ, arXiv 2502.02631): levels without a zero, but for three, with a learned step for each row. Of
    /// one bit it is the sign.
    Seq {
        /// All but eight bits.
        bits: Bits,
    },
}

/// How what lies between two codes is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// `floor(v + u)`, with `u` uniform in `[0, 1)`: the mean of the code is `v`. `u` follows from seed, stream and the weight's index.
    Stochastic {
        /// What random numbers follow from.
        seed: u64,
        /// Tells steps and tensors apart.
        stream: u64,
    },
}

impl Rounding {
    fn round(self, v: f32, index: usize) -> f32 {
        match self {
            Self::Nearest => v.round_ties_even(),
            Self::Stochastic { seed, stream } => {
                // 24 bits: the f32 is below 1.
                let u = (bits(seed, Purpose::Rounding, stream, index as u64) >> 40) as f32;
                with_random(v, u * (1.0 / (1 << 24) as f32))
            }
        }
    }
}

fn with_random(v: f32, u: f32) -> f32 {
    (v + u).floor()
}

/// Codes and scales of a matrix: `weight = code * scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// Row-major, like the master weights.
    pub codes: Array<i8>,
    /// Multipliers: one for the matrix, or one a row.
    pub scales: Array,
    /// While quantization comes in by degrees, what passes use instead: `strength * code * scale + (1 - strength) * master`.
    pub(crate) mixed: Array,
}

impl WeightQuantizer {
    /// Whether codes are -1, 0 and 1, which is what the inference engine has products for.
    pub fn is_ternary(self) -> bool {
        match self {
            Self::Float => false,
            Self::Absmean | Self::Absmedian | Self::Twn => true,
            Self::Lsq { bits, .. } | Self::Seq { bits } => bits <= Bits::Ternary,
        }
    }

    /// Whether readers of master weights make the same codes and scales of them.
    pub(crate) fn is_of_readers(self) -> bool {
        matches!(self, Self::Float | Self::Absmean)
    }

    /// Learned steps of a matrix with these rows; 0 for quantizers that compute scales.
    pub fn steps(self, rows: usize) -> usize {
        match self {
            Self::Lsq { rows: false, .. } => 1,
            Self::Lsq { .. } | Self::Seq { .. } => rows,
            _ => 0,
        }
    }

    /// Quantizes master weights with rows of `cols` elements; `steps` are the learned ones.
    pub fn quantize(
        self,
        ops: &CpuTraining,
        masters: &[f32],
        cols: usize,
        steps: &[f32],
        rounding: Rounding,
        out: &mut Quantized,
    ) {
        out.mixed.sized(0);
        let mut codes = std::mem::take(&mut out.codes).into_vec();
        codes.resize(masters.len(), 0);
        let mut scales = std::mem::take(&mut out.scales).into_vec();
        scales.clear();
        let mut fill = |code: &(dyn Fn(f32, usize, usize) -> i8 + Sync)| {
            let rows = (PIECE / cols.max(1)).max(1);
            ops.chunks(&mut codes, rows * cols, &|piece, codes| {
                let first = piece * rows * cols;
                let masters = masters[first..].chunks_exact(cols);
                for ((r, codes), masters) in codes.chunks_exact_mut(cols).enumerate().zip(masters) {
                    for ((i, code_of), w) in codes.iter_mut().enumerate().zip(masters) {
                        *code_of = code(*w, piece * rows + r, first + r * cols + i);
                    }
                }
            });
        };
        let step = |row: usize| steps[if steps.len() == 1 { 0 } else { row }].max(STEP_FLOOR);
        match self {
            Self::Float => codes.clear(),
            Self::Absmean | Self::Absmedian => {
                let center =
                    if self == Self::Absmean { mean_magnitude(masters, cols) } else { median(masters) };
                let s = 1.0 / center;
                scales.push(1.0 / s);
                match rounding {
                    Rounding::Nearest => fill(&|w, _, _| {
                        let x = w * s;
                        i8::from(x > 0.5) - i8::from(x < -0.5)
                    }),
                    rounding => fill(&|w, _, i| rounding.round(w * s, i).clamp(-1.0, 1.0) as i8),
                }
            }
            Self::Twn => {
                let threshold = TWN_SHARE * mean_magnitude(masters, cols);
                fill(&|w, _, _| i8::from(w > threshold) - i8::from(w < -threshold));
                let (mut sum, mut count) = (0.0f64, 0usize);
                for w in masters.iter().filter(|w| w.abs() > threshold) {
                    sum += f64::from(w.abs());
                    count += 1;
                }
                scales.push(((sum / count.max(1) as f64) as f32).max(MEAN_FLOOR));
            }
            Self::Lsq { bits, .. } => {
                let (low, high) = bits.range();
                scales.extend((0..steps.len()).map(step));
                // The sum of the highest code and a random number below 1 may be rounded up.
                fill(&|w, row, i| rounding.round((w / step(row)).clamp(low, high), i).min(high) as i8);
            }
            Self::Seq { bits: Bits::One } => {
                scales.extend((0..steps.len()).map(step));
                fill(&|w, _, _| if w < 0.0 { -1 } else { 1 });
            }
            Self::Seq { bits } => {
                let levels = bits.levels();
                let n = levels as f32 / 2.0;
                // Codes of an even number of levels are odd: they are halves otherwise.
                let (shift, odd) = if levels % 2 == 0 { (0.5, true) } else { (0.0, false) };
                scales.extend((0..steps.len()).map(|r| step(r) / if odd { levels as f32 } else { n }));
                let (low, high) = if odd { (-n, n - 1.0) } else { (-1.0, 1.0) };
                fill(&|w, row, i| {
                    let v = (w / step(row)).clamp(-SEQ_CLIP, SEQ_CLIP) * n - shift;
                    let whole = rounding.round(v, i).clamp(low, high) as i8;
                    if odd { 2 * whole + 1 } else { whole }
                });
            }
        }
        (out.codes, out.scales) = (Array::in_rows(codes, cols.max(1)), scales.into());
    }
}

impl Quantized {
    /// What the matrix is multiplied with in a row.
    pub fn scale(&self, row: usize) -> f32 {
        self.scales[if self.scales.len() == 1 { 0 } else { row }]
    }

    /// Keeps a mixture with the master weights, rows of `cols` elements, for passes; a strength of 1 is the codes alone.
    pub(crate) fn mix(&mut self, ops: &CpuTraining, masters: &[f32], cols: usize, strength: f32) {
        self.mixed.sized(0);
        if strength >= 1.0 {
            return;
        }
        let (codes, scales) = (&*self.codes, &*self.scales);
        ops.chunks(self.mixed.sized(masters.len()), cols, &|row, mixed| {
            let scale = scales[if scales.len() == 1 { 0 } else { row }];
            let own = row * cols..(row + 1) * cols;
            for ((mixed, code), w) in mixed.iter_mut().zip(&codes[own.clone()]).zip(&masters[own]) {
                *mixed = strength * (f32::from(*code) * scale) + (1.0 - strength) * w;
            }
        });
    }
}

fn mean_magnitude(w: &[f32], cols: usize) -> f32 {
    let mut mean = MeanMagnitude::default();
    w.chunks(cols.max(1)).for_each(|row| mean.row(row));
    mean.mean()
}

/// The median magnitude, the lower one of two.
fn median(w: &[f32]) -> f32 {
    let mut magnitudes: Vec<f32> = w.iter().map(|w| w.abs()).collect();
    let Some(middle) = magnitudes.len().checked_sub(1) else { return MEAN_FLOOR };
    let (_, median, _) = magnitudes.select_nth_unstable_by(middle / 2, f32::total_cmp);
    median.max(MEAN_FLOOR)
}
