//! The figures, in llama-perplexity's words.

use super::divergence::Compared;
use crate::failure::Failure;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Sums of negative log-likelihoods.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity {
    tokens: usize,
    sum: f64,
    squares: f64,
}

impl Perplexity {
    pub fn add(&mut self, nll: f64) {
        self.tokens += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    pub fn value(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the mean, carried through the exponential.
    fn error(&self) -> f64 {
        error(self.tokens, self.mean(), self.squares) * self.value()
    }

    /// `bytes` of text are what the tokens stand for.
    pub fn print(&self, bytes: usize, as_json: bool) -> Result<(), Failure> {
        let bits = self.sum / std::f64::consts::LN_2 / bytes.max(1) as f64;
        let mut out = std::io::stdout().lock();
        if as_json {
            let object = json!({
                "ppl": self.value(), "ppl_error": self.error(), "nll": self.mean(), "tokens": self.tokens,
                "bytes": bytes, "bits_per_byte": bits,
            });
            return Ok(writeln!(out, "{object}")?);
        }
        writeln!(out, "Final estimate: PPL = {:.4} +/- {:.5}", self.value(), self.error())?;
        Ok(writeln!(out, "{bits:.4} bits per byte; {} tokens, {bytes} bytes", self.tokens)?)
    }
}

/// The standard error of a mean, from the sum of squares.
fn error(count: usize, mean: f64, squares: f64) -> f64 {
    let variance = squares / count as f64 - mean * mean;
    if count > 1 && variance > 0.0 { (variance / (count - 1) as f64).sqrt() } else { 0.0 }
}

/// What all positions say together.
struct Figures {
    own: Perplexity,
    base: Perplexity,
    ratio: Distribution,
    kld: Distribution,
    difference: Distribution,
    correlation: f64,
    /// The share of positions with one likeliest token, and its standard error.
    same: f64,
    same_error: f64,
}

/// What lies between two models, position by position.
#[derive(Default)]
pub struct Divergence(Vec<Compared>);

/// Shares of all positions whose figure is no higher.
const PERCENTILES: [(&str, f64); 9] = [
    ("99.9%", 0.999),
    ("99.0%", 0.99),
    ("95.0%", 0.95),
    ("90.0%", 0.90),
    ("Median", 0.5),
    ("10.0%", 0.1),
    ("5.0%", 0.05),
    ("1.0%", 0.01),
    ("0.1%", 0.001),
];

/// Mean, error of the mean, and order.
struct Distribution {
    mean: f64,
    error: f64,
    rms: f64,
    sorted: Vec<f64>,
}

impl Distribution {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / n;
        let squares = sorted.iter().map(|v| v * v).sum::<f64>();
        Self { mean, error: error(sorted.len(), mean, squares), rms: (squares / n).sqrt(), sorted }
    }

    /// Between the two values that are nearest.
    fn at(&self, share: f64) -> f64 {
        let place = share * (self.sorted.len() - 1) as f64;
        let (low, rest) = (place.floor() as usize, place.fract());
        let high = self.sorted[(low + 1).min(self.sorted.len() - 1)];
        self.sorted[low] * (1.0 - rest) + high * rest
    }

    fn max(&self) -> f64 {
        self.at(1.0)
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("mean".to_owned(), json!(self.mean));
        object.insert("mean_error".to_owned(), json!(self.error));
        object.insert("rms".to_owned(), json!(self.rms));
        object.insert("max".to_owned(), json!(self.max()));
        for (name, share) in PERCENTILES {
            let name = if name == "Median" {
                "median".to_owned()
            } else {
                format!("p{}", name.trim_end_matches(['%']).trim_end_matches(".0"))
            };
            object.insert(name, json!(self.at(share)));
        }
        object.insert("min".to_owned(), json!(self.at(0.0)));
        Value::Object(object)
    }

    fn print(&self, out: &mut impl Write, what: &str, factor: f64, unit: &str) -> std::io::Result<()> {
        let scaled = |v: f64| v * factor;
        writeln!(
            out,
            "{:<8}{what:>4}: {:>12.6}{unit} ± {:.6}{unit}",
            "Mean",
            scaled(self.mean),
            scaled(self.error)
        )?;
        let rest = PERCENTILES.iter().map(|(name, share)| (*name, self.at(*share)));
        let all = [("Maximum", self.max())].into_iter().chain(rest).chain([("Minimum", self.at(0.0))]);
        for (name, value) in all {
            writeln!(out, "{name:<8}{what:>4}: {:>12.6}{unit}", scaled(value))?;
        }
        Ok(())
    }
}

impl Divergence {
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Compared>) {
        self.0.extend(rows);
    }

    /// Mean divergence so far.
    pub fn mean(&self) -> f64 {
        self.0.iter().map(|c| c.kld).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// One object.
    pub fn json(&self) -> Value {
        let Figures { own, base, ratio, kld, difference, correlation, same, same_error } = self.figures();
        json!({
            "tokens": self.0.len(), "ppl": own.value(), "ppl_error": own.error(), "base_ppl": base.value(),
            "base_ppl_error": base.error(), "correlation": correlation, "ln_ppl_ratio": ratio.mean,
            "ln_ppl_ratio_error": ratio.error, "kld": kld.json(), "p_difference": difference.json(),
            "same_top": same, "same_top_error": same_error,
        })
    }

    fn figures(&self) -> Figures {
        let sum = |of: fn(&Compared) -> f64| {
            let mut all = Perplexity::default();
            self.0.iter().for_each(|c| all.add(of(c)));
            all
        };
        let (own, base) = (sum(|c| c.nll), sum(|c| c.base_nll));
        let ratio = Distribution::new(self.0.iter().map(|c| c.nll - c.base_nll));
        let kld = Distribution::new(self.0.iter().map(|c| c.kld));
        let difference = Distribution::new(self.0.iter().map(Compared::difference));
        let n = self.0.len() as f64;
        let same = self.0.iter().filter(|c| c.same_top).count() as f64 / n;
        let same_error = (same * (1.0 - same) / (n - 1.0).max(1.0)).sqrt();
        let products =
            self.0.iter().map(|c| (c.nll - own.mean()) * (c.base_nll - base.mean())).sum::<f64>() / n;
        let spread = |p: &Perplexity| (p.squares / n - p.mean() * p.mean()).max(0.0).sqrt();
        let correlation = products / (spread(&own) * spread(&base)).max(f64::MIN_POSITIVE);
        Figures { own, base, ratio, kld, difference, correlation, same, same_error }
    }

    pub fn print(&self, as_json: bool) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if as_json {
            return Ok(writeln!(out, "{}", self.json())?);
        }
        let Figures { own, base, ratio, kld, difference, correlation, same, same_error } = self.figures();
        writeln!(out, "====== Perplexity statistics ======")?;
        writeln!(out, "Mean PPL(Q)                   : {:>10.6} ± {:.6}", own.value(), own.error())?;
        writeln!(out, "Mean PPL(base)                : {:>10.6} ± {:.6}", base.value(), base.error())?;
        writeln!(out, "Cor(ln(PPL(Q)), ln(PPL(base))): {:>9.2}%", correlation * 100.0)?;
        writeln!(out, "Mean ln(PPL(Q)/PPL(base))     : {:>10.6} ± {:.6}", ratio.mean, ratio.error)?;
        writeln!(out, "\n====== KL divergence statistics ======")?;
        kld.print(&mut out, "KLD", 1.0, "")?;
        writeln!(out, "\n====== Token probability statistics ======")?;
        difference.print(&mut out, "Δp", 100.0, "%")?;
        writeln!(out, "{:<8}{:>4}: {:>12.6}%", "RMS", "Δp", difference.rms * 100.0)?;
        Ok(writeln!(out, "Same top p  : {:>12.3}% ± {:.3}%", same * 100.0, same_error * 100.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perplexity_and_its_error() {
        let mut all = Perplexity::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|nll| all.add(nll));
        assert!((all.value() - 3f64.exp()).abs() < 1e-12);
        // Variance 3.5, by four values.
        assert!((all.error() - (3.5f64 / 3.0).sqrt() * 3f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn percentiles_lie_between_values() {
        let of = Distribution::new([3.0, 1.0, 2.0].into_iter());
        assert_eq!((of.at(0.0), of.at(0.25), of.at(0.5), of.max()), (1.0, 1.5, 2.0, 3.0));
    }
}
