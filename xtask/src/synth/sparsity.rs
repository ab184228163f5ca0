//! Feed-forward blocks as sparse as trained ones, made of plain tensors.
//!
//! Trained ReLU-squared models have more gates below zero than above, and a few feed-forward channels much larger than the
//! rest, so that most inputs of `down` quantize to zero. No tensor of a BitNet model is a bias, so one is made of a constant
//! direction: some channels of the residual stream hold the embedding's constant through all layers, because nothing is
//! added to them; each feed-forward norm brings them to one size, whatever the stream around them has grown to; and every
//! gate's row holds -1 there. Large channels come from the sub-norm, whose weights spread like exp(normal).

mod census;

use super::random::{Random, Stream};
use super::shape::{Family, Place, Shape};
use super::{Item, Role};
pub(super) use census::measure;
use std::fmt;
use std::str::FromStr;

/// Shares of the feed-forward blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sparsity {
    /// Of gates, those that are not above zero.
    pub(super) gates: f64,
    /// Of inputs of `down`, those that quantize to zero.
    pub(super) zeros: f64,
}

impl FromStr for Sparsity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shares: Vec<f64> = text.split(',').filter_map(|s| s.parse().ok()).collect();
        match shares[..] {
            [gates, zeros] if 0.5 <= gates && gates <= zeros && zeros < 1.0 => Ok(Self { gates, zeros }),
            _ => Err("two shares between 0.5 and 1, the second one not smaller".to_owned()),
        }
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gates, zeros) = (self.gates * 100.0, self.zeros * 100.0);
        write!(
            f,
            "{gates:.1} % of gates are not above zero, {zeros:.1} % of inputs of `down` quantize to zero"
        )
    }
}

/// How a shape's tensors give a sparsity.
pub(super) struct Plan {
    /// The first channels of the residual stream; they are the constant ones.
    constant: usize,
    /// What they hold.
    value: f32,
    /// What a feed-forward norm makes of it.
    normed: f32,
    /// Deviation of the logarithm of the sub-norms' weights.
    spread: f32,
    hidden: usize,
}

impl Plan {
    pub(super) fn new(asked: Sparsity, shape: &Shape) -> Result<Self, String> {
        if shape.family != Family::BitNet {
            return Err("only ReLU-squared makes zeros; --sparsity is for 2b-4t and tiny".to_owned());
        }
        let (shift, spread) = Simulation::new(shape.ffn).solve(asked)?;
        let constant = shape.hidden / 128;
        // A gate is a sum of this many products of order one, divided by the square root.
        let terms = 0.6 * shape.hidden as f32;
        let normed = shift * terms.sqrt() / constant as f32;
        Ok(Self { constant, value: shape.table_deviation(), normed, spread, hidden: shape.hidden })
    }

    /// Changes a row of a projection.
    pub(super) fn codes(&self, item: &Item, row: usize, codes: &mut [u8]) {
        if item.role == Role::Residual && row < self.constant {
            codes.fill(0b0101_0101);
        }
        if item.place == Place::Gate {
            for col in 0..self.constant {
                codes[col / 4] &= !(3 << (2 * (col % 4)));
            }
        }
    }

    /// A number of a table or norm that without sparsity is `plain`, made of `normal`.
    pub(super) fn float(&self, item: &Item, col: usize, normal: f32, plain: f32) -> f32 {
        match item.place {
            Place::Embedding if col < self.constant => self.value,
            Place::FfnNorm { layer } if col < self.constant => self.normed * self.rms(layer) / self.value,
            Place::FfnSubNorm => log_normal(self.spread, normal),
            _ => plain,
        }
    }

    /// Root mean square of the residual stream in front of a feed-forward block: every residual projection before it adds
    /// outputs of deviation 0.5 to the channels that are not constant.
    fn rms(&self, layer: usize) -> f32 {
        let changing = (self.hidden - self.constant) as f32 / self.hidden as f32;
        (self.value * self.value + changing * 0.25 * (2 * layer + 1) as f32).sqrt()
    }
}

/// Spread by `exp(spread * normal)`, with a mean square of 1.
fn log_normal(spread: f32, normal: f32) -> f32 {
    (spread * normal - spread * spread).exp()
}

/// Feed-forward channels of some tokens as numbers of their distribution.
struct Simulation {
    ffn: usize,
    /// `[tokens, ffn]`: gates before they are shifted, and `up`.
    gates: Vec<f32>,
    up: Vec<f32>,
    /// `[ffn]`: logarithms of the sub-norm, of deviation 1.
    norm: Vec<f32>,
}

const TOKENS: usize = 16;

impl Simulation {
    fn new(ffn: usize) -> Self {
        let numbers =
            |stream: Stream, count: usize| (0..count as u64).map(|i| stream.exact_normal(i)).collect();
        let stream = |index| Random(0).stream(index);
        Self {
            ffn,
            gates: numbers(stream(0), TOKENS * ffn),
            up: numbers(stream(1), TOKENS * ffn),
            norm: (0..ffn as u64).map(|i| stream(2).normal(i)).collect(),
        }
    }

    /// How far gates move down, and the spread of the sub-norm.
    fn solve(&self, asked: Sparsity) -> Result<(f32, f32), String> {
        let mut sorted = self.gates.clone();
        sorted.sort_by(f32::total_cmp);
        let shift = sorted[(asked.gates * sorted.len() as f64) as usize];
        let (mut low, mut high) = (0.0, 3.0);
        let (least, most) = (self.zeros(shift, low), self.zeros(shift, high));
        if !(least..=most).contains(&asked.zeros) {
            return Err(format!(
                "with these gates, between {least:.3} and {most:.3} of the inputs can be zero"
            ));
        }
        while high - low > 0.001 {
            let middle = (low + high) / 2.0;
            if self.zeros(shift, middle) < asked.zeros { low = middle } else { high = middle }
        }
        Ok((shift, low))
    }

    /// The share of `down` inputs that are less than half a step of their token's quantization.
    fn zeros(&self, shift: f32, spread: f32) -> f64 {
        let norm: Vec<f32> = self.norm.iter().map(|n| log_normal(spread, *n)).collect();
        let mut zeros = 0;
        for (gates, up) in self.gates.chunks_exact(self.ffn).zip(self.up.chunks_exact(self.ffn)) {
            let size = |i: usize| (gates[i] - shift).max(0.0).powi(2) * up[i].abs() * norm[i];
            let largest = (0..self.ffn).map(size).fold(0.0, f32::max);
            zeros += (0..self.ffn).filter(|i| size(*i) * 254.0 <= largest).count();
        }
        zeros as f64 / self.gates.len() as f64
    }
}
