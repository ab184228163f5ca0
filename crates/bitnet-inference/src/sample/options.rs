//! What a caller may set, with llama.cpp's defaults, and the check that names a bad value.

use super::Mirostat;

/// Options of the sampler chain. The defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by this; 0 is greedy: the highest logit after bias and penalties, ties to the lowest id, and
    /// no other stage runs.
    pub temperature: f64,
    /// Keep this many best candidates; 0 keeps all.
    pub top_k: usize,
    /// Keep the best candidates that together reach this probability; 1 keeps all.
    pub top_p: f64,
    /// Keep candidates at least this fraction as probable as the best; 0 keeps all.
    pub min_p: f64,
    /// Keep the candidates whose surprise is nearest the expected one, until they reach this probability; 1 keeps all.
    pub typical_p: f64,
    /// Ban ids whose logit lies more than so many standard deviations below the best; 0 bans none.
    pub top_n_sigma: f64,
    /// How often, of the candidates with at least `xtc_threshold`, only the last one stays; 0 is never.
    pub xtc_probability: f64,
    /// The probability above which a candidate is a top choice.
    pub xtc_threshold: f64,
    /// The temperature lies this much below or above `temperature`, by the entropy of the candidates; 0 is fixed.
    pub dynatemp_range: f64,
    /// Exponent of the entropy's share.
    pub dynatemp_exponent: f64,
    /// Instead of all stages that keep some candidates, one that aims at a surprise.
    pub mirostat: Option<Mirostat>,
    /// The surprise that mirostat aims at, in bits.
    pub mirostat_tau: f64,
    /// How fast mirostat learns.
    pub mirostat_eta: f64,
    /// Penalty for going on with a repetition of `dry_allowed_length` tokens; 0 is off.
    pub dry_multiplier: f64,
    /// What each further token of a repetition multiplies the penalty by.
    pub dry_base: f64,
    /// Repetitions that cost nothing are shorter than this.
    pub dry_allowed_length: usize,
    /// How many of the last ids are looked through for repetitions; `usize::MAX` is all.
    pub dry_last_n: usize,
    /// Ids that no repetition reaches over, ascending.
    pub dry_breakers: Vec<u32>,
    /// Divides positive and multiplies negative logits of ids seen lately; 1 is off.
    pub repeat_penalty: f64,
    /// Subtracted once for each time that an id was seen lately; 0 is off.
    pub frequency_penalty: f64,
    /// Subtracted once from the logit of an id seen lately; 0 is off.
    pub presence_penalty: f64,
    /// How many of the last ids the penalties look at, the prompt included; 0 is none, `usize::MAX` all.
    pub repeat_last_n: usize,
    /// Added to the logit of an id before anything else; -infinity bans it. Several entries for one id add up.
    pub logit_bias: Vec<(u32, f64)>,
    /// Key of the generator; `None` takes a fresh one, which the result reports.
    pub seed: Option<u64>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            mirostat: None,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_last_n: usize::MAX,
            dry_breakers: Vec::new(),
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last_n: 64,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A sampler option has a value that means nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// A number lies outside its range.
    #[error("{name} must be {range}, got {value}")]
    Range {
        /// The option's name, as in the command line.
        name: &'static str,
        /// What is accepted.
        range: &'static str,
        /// What was given.
        value: f64,
    },
    /// A logit bias names an id that the model does not have.
    #[error("logit-bias names id {id}, the vocabulary has {vocab}")]
    BiasId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

impl SamplerOptions {
    /// Greedy decoding: no randomness, no penalties.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every value, for a vocabulary of `vocab` ids.
    pub fn validate(&self, vocab: usize) -> Result<(), OptionError> {
        let share = |v: f64| (0.0..=1.0).contains(&v);
        let positive = |v: f64| (0.0..=1e6).contains(&v);
        let checks: [(&'static str, f64, &'static str, bool); 15] = [
            ("top-n-sigma", self.top_n_sigma, "between 0 and 1e6", positive(self.top_n_sigma)),
            ("xtc-probability", self.xtc_probability, "between 0 and 1", share(self.xtc_probability)),
            ("xtc-threshold", self.xtc_threshold, "between 0 and 1", share(self.xtc_threshold)),
            ("dynatemp-range", self.dynatemp_range, "between 0 and 1e6", positive(self.dynatemp_range)),
            ("dynatemp-exp", self.dynatemp_exponent, "between 0 and 1e6", positive(self.dynatemp_exponent)),
            ("mirostat-ent", self.mirostat_tau, "between 0 and 1e6", positive(self.mirostat_tau)),
            ("mirostat-lr", self.mirostat_eta, "between 0 and 1", share(self.mirostat_eta)),
            ("dry-multiplier", self.dry_multiplier, "between 0 and 1e6", positive(self.dry_multiplier)),
            (
                "temp",
                self.temperature,
                "a finite number, 0 or more",
                self.temperature.is_finite() && self.temperature >= 0.0,
            ),
            ("top-p", self.top_p, "between 0 and 1", share(self.top_p)),
            ("min-p", self.min_p, "between 0 and 1", share(self.min_p)),
            ("typical-p", self.typical_p, "between 0 and 1", share(self.typical_p)),
            (
                "repeat-penalty",
                self.repeat_penalty,
                "a finite number between 1e-6 and 1e6",
                (1e-6..=1e6).contains(&self.repeat_penalty),
            ),
            (
                "frequency-penalty",
                self.frequency_penalty,
                "between -1e6 and 1e6",
                self.frequency_penalty.abs() <= 1e6,
            ),
            (
                "presence-penalty",
                self.presence_penalty,
                "between -1e6 and 1e6",
                self.presence_penalty.abs() <= 1e6,
            ),
        ];
        for (name, value, range, good) in checks {
            if !good {
                return Err(OptionError::Range { name, range, value });
            }
        }
        if !(1.0..=1e3).contains(&self.dry_base) {
            return Err(OptionError::Range {
                name: "dry-base",
                range: "between 1 and 1e3",
                value: self.dry_base,
            });
        }
        for &(id, value) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(OptionError::BiasId { id, vocab });
            }
            if !(value == f64::NEG_INFINITY || value.abs() <= 1e6) {
                let range = "-inf or between -1e6 and 1e6";
                return Err(OptionError::Range { name: "logit-bias", range, value });
            }
        }
        Ok(())
    }
}
