//! Learning rates over the steps of a run.

/// How the learning rate goes on behind the warm-up. `p` runs from 0 at the end of the warm-up to 1 at the end of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// It stays.
    Constant,
    /// `floor + (1 - floor) (1 - p)`.
    Linear,
    /// `floor + (1 - floor) (1 + cos(pi p)) / 2`.
    Cosine,
    /// `floor^p`.
    Exponential,
    /// It stays, and falls linearly to the floor over the last part of the run.
    WarmupStableDecay {
        /// Which share of the run that part is.
        decay: f64,
    },
    /// `1 - p`, from the middle of the run on with another peak and without weight decay (BitNet's training tips).
    TwoStage {
        /// The second peak.
        second: f64,
    },
}

/// Learning rate and weight decay of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The form behind the warm-up.
    pub shape: Shape,
    /// The largest rate.
    pub base: f64,
    /// Where the rate ends, as a share of `base`.
    pub floor: f64,
    /// Steps in which it rises: step `t`, counted from 0, has `base (t + 1) / warmup`.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Schedule {
    /// The learning rate of step `t`, counted from 0.
    pub fn rate(&self, t: u64) -> f64 {
        let Self { base, floor, warmup, steps, .. } = *self;
        if t < warmup {
            return base * (t + 1) as f64 / warmup as f64;
        }
        let p = (t - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let down_to = |share: f64| base * (floor + (1.0 - floor) * share);
        match self.shape {
            Shape::Constant => base,
            Shape::Linear => down_to(1.0 - p),
            Shape::Cosine => down_to(0.5 * (1.0 + libm::cos(std::f64::consts::PI * p))),
            Shape::Exponential => base * libm::pow(floor, p),
            Shape::WarmupStableDecay { decay } => {
                let fall = steps as f64 * decay;
                down_to(((steps - t.min(steps)) as f64 / fall.max(1.0)).min(1.0))
            }
            Shape::TwoStage { second } => (if self.second_half(t) { second } else { base }) * (1.0 - p),
        }
    }

    /// The weight decay of step `t`.
    pub fn decay(&self, t: u64) -> f64 {
        match self.shape {
            Shape::TwoStage { .. } if self.second_half(t) => 0.0,
            _ => self.weight_decay,
        }
    }

    fn second_half(&self, t: u64) -> bool {
        t >= self.steps / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_testkit::golden;

    #[test]
    fn rates_are_those_of_the_reference() {
        let json = golden::json("training/schedules.json");
        let number = |key: &str| json[key].as_f64().unwrap();
        for (name, shape) in [
            ("constant", Shape::Constant),
            ("linear", Shape::Linear),
            ("cosine", Shape::Cosine),
            ("exponential", Shape::Exponential),
            ("two_stage", Shape::TwoStage { second: number("base2") }),
        ] {
            let schedule = Schedule {
                shape,
                base: number("base"),
                floor: number("floor"),
                warmup: number("W") as u64,
                steps: number("T") as u64,
                weight_decay: 0.1,
            };
            let want: Vec<f64> = serde_json::from_value(json["schedules"][name]["lr"].clone()).unwrap();
            for (t, want) in want.iter().enumerate() {
                let got = schedule.rate(t as u64);
                assert!((got - want).abs() <= 1e-12 * want.abs(), "{name} {t}: {got} {want}");
            }
            let decay: Vec<f64> =
                serde_json::from_value(json["weight_decay_two_stage"]["wd"].clone()).unwrap();
            if name == "two_stage" {
                let got: Vec<f64> = (0..40).map(|t| schedule.decay(t)).collect();
                assert_eq!(got, decay);
            }
        }
    }

    #[test]
    fn the_stable_part_ends_in_a_fall() {
        let shape = Shape::WarmupStableDecay { decay: 0.25 };
        let s = Schedule { shape, base: 2.0, floor: 0.5, warmup: 2, steps: 40, weight_decay: 0.0 };
        let rates: Vec<f64> = [0, 1, 2, 29, 30, 35, 40].map(|t| s.rate(t)).to_vec();
        assert_eq!(rates, [1.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0]);
    }
}
