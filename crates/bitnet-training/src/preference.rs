//! Direct preference optimization (arXiv 2305.18290): of two answers the one that was preferred becomes likelier than the other, measured
//! against the model at the start.

#[cfg(test)]
mod tests;

/// The objective over pairs of answers to a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// How near the model stays to the one at the start: what differences of log-likelihoods are multiplied with.
    pub beta: f64,
    /// The share of pairs that are taken to be the wrong way round (conservative DPO; below 0.5).
    pub label_smoothing: f64,
}

/// What became of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preferred {
    /// `-(1 - smoothing) ln sigmoid(margin) - smoothing ln sigmoid(-margin)`, in nats.
    pub loss: f64,
    /// `beta ((chosen - its reference) - (rejected - its reference))`, of log-likelihoods in nats: above 0, the chosen answer won.
    pub margin: f64,
    /// The derivative of the loss by the log-likelihood of the chosen answer; that by the other one's is its negative.
    pub slope: f64,
}

impl Dpo {
    /// The loss of a pair, from the log-likelihoods in nats of both answers, chosen first, under the model and under the one at the start.
    pub fn pair(&self, model: [f64; 2], reference: [f64; 2]) -> Preferred {
        let Self { beta, label_smoothing: e } = *self;
        let margin = beta * ((model[0] - reference[0]) - (model[1] - reference[1]));
        let loss = (1.0 - e) * softplus(-margin) + e * softplus(margin);
        let slope = beta * (e * sigmoid(margin) - (1.0 - e) * sigmoid(-margin));
        Preferred { loss, margin, slope }
    }
}

/// `ln(1 + exp(x))`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn sigmoid(x: f64) -> f64 {
    let e = libm::exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}
