//! Weights as passes use them, and their gradients as master weights get them.

use super::Model;
use crate::parameters::Part;
use crate::{Parameter, Quantized, Rounding, TrainError, WeightQuantizer};

impl Model {
    /// Quantizes the present values as they will be run: to the nearest codes, at full strength. Of weights that are not trained, what
    /// the first call made stays.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn quantize(&mut self) -> Result<(), TrainError> {
        self.quantize_with(None)
    }

    /// Quantizes the present values for a step of training, `t`, counted from 0.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn quantize_for(&mut self, t: u64) -> Result<(), TrainError> {
        self.quantize_with(Some(t))
    }

    fn quantize_with(&mut self, step: Option<u64>) -> Result<(), TrainError> {
        if self.precision.weights != WeightQuantizer::Float {
            self.quantize_weights(step)?;
        }
        self.measure();
        self.round()?;
        Ok(())
    }

    fn quantize_weights(&mut self, step: Option<u64>) -> Result<(), TrainError> {
        let layers = self.layers.len();
        let strength = |layer| step.map_or(1.0, |t| self.precision.ramp.strength(t, layer, layers));
        let strengths: Vec<f32> = (0..layers).map(strength).collect();
        let same = strengths == self.strength;
        let inputs = self.precision.quantizes_inputs();
        for (place, p) in self.parameters.list().iter().enumerate().filter(|(_, p)| p.quantized) {
            if self.is_frozen(place) {
                continue;
            }
            let quantized = &mut self.quantized[place];
            let trained = self.parameters.trained_range(place).is_some();
            if !trained && !quantized.codes.is_empty() && same {
                continue;
            }
            let masters = self.values.part(p.range.clone());
            let rounding = match step {
                Some(t) if trained => self.precision.rounding(t, place),
                _ => Rounding::Nearest,
            };
            let (cols, strength) = (p.slot.cols, strengths[p.slot.layer]);
            let absmean = self.precision.weights == WeightQuantizer::Absmean && rounding == Rounding::Nearest;
            let Quantized { codes, scales, mixed } = &mut *quantized;
            mixed.sized(0);
            if !(absmean && self.ops.absmean(masters.clone(), cols, codes, scales)) {
                // Learned steps are few, and asking for none of them leaves all values where they are.
                let steps = match self.parameters.beside(place, Part::Steps) {
                    Some(_) => self.parameters.steps(place, &self.values),
                    None => &[],
                };
                let masters = masters.host();
                self.precision.weights.quantize(&self.ops, masters, cols, steps, rounding, quantized);
            }
            if strength < 1.0 {
                quantized.mix(&self.ops, masters.host(), cols, strength);
            }
            if self.ops.is_on_device() {
                continue;
            }
            let Quantized { codes, scales, mixed } = quantized;
            // Weights that have become no numbers are found by the loss that they give.
            let trits = self.precision.weights.is_ternary()
                && inputs
                && mixed.is_empty()
                && scales.iter().all(|scale| scale.is_finite());
            let weights = trits.then(|| self.ops.prepare((p.slot.rows, cols), codes, scales));
            self.prepared[place] = weights.transpose()?;
        }
        self.strength = strengths;
        Ok(())
    }

    /// The quantized weights that passes use, with the parameter they are of.
    pub fn quantized(&self) -> impl Iterator<Item = (&Parameter, &Quantized)> {
        self.parameters.list().iter().zip(&self.quantized).filter(|(_, q)| !q.codes.is_empty())
    }

    /// Gradients of quantized weights, summed over all passes of a step, become those of master weights and of learned steps.
    pub fn through_quantizers(&mut self) {
        for place in 0..self.parameters.list().len() {
            let (Some(steps), Some(range)) =
                (self.parameters.beside(place, Part::Steps), self.parameters.trained_range(place))
            else {
                continue;
            };
            let p = &self.parameters.list()[place];
            let sums = self.precision.weights.backward(
                &self.ops,
                (&self.values[p.range.clone()], p.slot.cols),
                self.parameters.steps(place, &self.values),
                &self.quantized[place],
                self.strength[p.slot.layer],
                &mut self.gradients[range],
            );
            if let Some(range) = self.parameters.trained_range(steps) {
                self.gradients[range].copy_from_slice(&sums);
            }
        }
    }
}
