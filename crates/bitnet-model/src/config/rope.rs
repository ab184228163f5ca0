//! Rotary position embedding: frequencies, and what stretches them over longer contexts.

use super::bad;
use crate::ModelError;
use bitnet_quant::spec;
use std::f32::consts::TAU;

/// Scaling of rotary frequencies as Llama 3.1 does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// What long wavelengths are divided by.
    pub factor: f32,
    /// Wavelengths above `original_context / low_freq_factor` are long.
    pub low_freq_factor: f32,
    /// Wavelengths below `original_context / high_freq_factor` stay.
    pub high_freq_factor: f32,
    /// The context before scaling.
    pub original_context: f32,
}

/// Scaling of rotary frequencies as YaRN does it (Peng et al., 2023).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnScaling {
    /// What low frequencies are divided by.
    pub factor: f32,
    /// The context before scaling.
    pub original_context: f32,
    /// Frequencies that turn round more often than this within that context stay.
    pub beta_fast: f32,
    /// Frequencies that turn round less often are divided whole.
    pub beta_slow: f32,
    /// Whether the numbers of the pairs between which frequencies change are made whole.
    pub truncate: bool,
    /// What cosines and sines are multiplied with.
    pub attention_factor: f32,
}

/// How frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// All are divided by this.
    Linear(f32),
    /// By wavelength.
    Llama3(Llama3Scaling),
    /// By turns within the original context.
    Yarn(YarnScaling),
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling by rule.
    pub scaling: Option<RopeScaling>,
    /// What each of the `head_dim/2` frequencies is divided by (GGUF's `rope_freqs.weight`).
    pub factors: Option<Vec<f32>>,
}

impl YarnScaling {
    /// `0.1 * weight * ln(factor) + 1`, from a factor of 1 on: with weight 1 the attention factor where none is given.
    pub fn magnitude(factor: f64, weight: f64) -> f32 {
        if factor <= 1.0 { 1.0 } else { (0.1 * weight * libm::log(factor) + 1.0) as f32 }
    }

    /// How much of each of the `d/2` frequencies is divided, from 0 to 1.
    fn shares(&self, theta: f64, d: usize) -> Vec<f32> {
        let turns = |n: f32| {
            let context = f64::from(self.original_context);
            d as f64 * libm::log(context / (f64::from(n) * std::f64::consts::TAU)) / (2.0 * libm::log(theta))
        };
        let (mut low, mut high) = (turns(self.beta_fast), turns(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..d / 2).map(|i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32).collect()
    }
}

impl Rope {
    /// Frequencies of the rotation, `[head_dim/2]` (rule 8).
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let mut inverse = spec::inverse_frequencies(self.theta, head_dim);
        if let Some(factors) = &self.factors {
            inverse.iter_mut().zip(factors).for_each(|(inv, factor)| *inv /= factor);
        }
        match self.scaling {
            None => {}
            Some(RopeScaling::Linear(factor)) => inverse.iter_mut().for_each(|inv| *inv /= factor),
            Some(RopeScaling::Llama3(s)) => inverse.iter_mut().for_each(|inv| *inv = s.scaled(*inv)),
            Some(RopeScaling::Yarn(s)) => {
                for (inv, share) in inverse.iter_mut().zip(s.shares(self.theta, head_dim)) {
                    *inv = *inv / s.factor * share + *inv * (1.0 - share);
                }
            }
        }
        inverse
    }

    /// What cosines and sines are multiplied with.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Some(RopeScaling::Yarn(s)) => s.attention_factor,
            _ => 1.0,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), ModelError> {
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            return Err(bad("rope theta", self.theta, "it must be a positive number"));
        }
        let factor = self.attention_factor();
        if !(factor > 0.0 && factor.is_finite())
            || self.inverse_frequencies(head_dim).iter().any(|inv| !inv.is_finite())
        {
            return Err(bad("rope scaling", "not finite", "its factors must be positive numbers"));
        }
        Ok(())
    }
}

impl Llama3Scaling {
    fn scaled(&self, inv: f32) -> f32 {
        let wavelength = TAU / inv;
        if wavelength > self.original_context / self.low_freq_factor {
            inv / self.factor
        } else if wavelength >= self.original_context / self.high_freq_factor {
            let range = self.high_freq_factor - self.low_freq_factor;
            let smooth = (self.original_context / wavelength - self.low_freq_factor) / range;
            (1.0 - smooth) * inv / self.factor + smooth * inv
        } else {
            inv
        }
    }
}
