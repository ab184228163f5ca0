//! Flags of sampler stages that are off by default, and of the form of an answer. Names and defaults are llama.cpp's.

use crate::failure::Failure;
use bitnet_inference::sample::{Mirostat, SamplerOptions};
use bitnet_inference::{Form, gbnf};
use clap::{Args, value_parser};
use std::path::PathBuf;

/// Stages that are off until a flag turns them on.
#[derive(Args, Clone, Debug)]
pub struct StageFlags {
    /// Ban tokens this many standard deviations below the best; 0 bans none
    #[arg(
        long,
        visible_alias = "top-n-sigma",
        default_value_t = 0.0,
        env = "BITNET_TOP_NSIGMA",
        help_heading = "Sampling"
    )]
    top_nsigma: f64,
    /// How often only the last of the top choices stays; 0 is never
    #[arg(long, default_value_t = 0.0, env = "BITNET_XTC_PROBABILITY", help_heading = "Sampling")]
    xtc_probability: f64,
    /// The probability from which on a token is a top choice
    #[arg(long, default_value_t = 0.1, env = "BITNET_XTC_THRESHOLD", help_heading = "Sampling")]
    xtc_threshold: f64,
    /// How far the temperature moves with the model's doubt; 0 is not at all
    #[arg(long, default_value_t = 0.0, env = "BITNET_DYNATEMP_RANGE", help_heading = "Sampling")]
    dynatemp_range: f64,
    /// Exponent of that doubt
    #[arg(long, default_value_t = 1.0, env = "BITNET_DYNATEMP_EXP", help_heading = "Sampling")]
    dynatemp_exp: f64,
    /// Mirostat 1 or 2 instead of top-k, top-p and their like; 0 is off
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u8).range(0..=2), env = "BITNET_MIROSTAT", help_heading = "Sampling")]
    mirostat: u8,
    /// How fast mirostat learns
    #[arg(long, default_value_t = 0.1, env = "BITNET_MIROSTAT_LR", help_heading = "Sampling")]
    mirostat_lr: f64,
    /// The surprise that mirostat aims at, in bits
    #[arg(long, default_value_t = 5.0, env = "BITNET_MIROSTAT_ENT", help_heading = "Sampling")]
    mirostat_ent: f64,
    /// Penalty for going on with a repetition (DRY); 0 is off
    #[arg(long, default_value_t = 0.0, env = "BITNET_DRY_MULTIPLIER", help_heading = "Sampling")]
    dry_multiplier: f64,
    /// What each further token of a repetition multiplies it by
    #[arg(long, default_value_t = 1.75, env = "BITNET_DRY_BASE", help_heading = "Sampling")]
    dry_base: f64,
    /// Tokens of a repetition that cost nothing yet
    #[arg(long, default_value_t = 2, env = "BITNET_DRY_ALLOWED_LENGTH", help_heading = "Sampling")]
    dry_allowed_length: usize,
    /// How many of the last tokens are looked through for repetitions; -1 is all, 0 none
    #[arg(
        long,
        default_value_t = -1,
        allow_negative_numbers = true,
        env = "BITNET_DRY_PENALTY_LAST_N",
        help_heading = "Sampling"
    )]
    dry_penalty_last_n: i64,
    /// Text that no repetition reaches over, instead of line end, colon, quotation mark and asterisk; may be repeated, "none" is none
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    dry_sequence_breaker: Vec<String>,
}

impl StageFlags {
    /// Turns on what is asked for.
    pub fn apply(&self, options: &mut SamplerOptions) {
        options.top_n_sigma = self.top_nsigma.max(0.0);
        options.xtc_probability = self.xtc_probability;
        options.xtc_threshold = self.xtc_threshold;
        options.dynatemp_range = self.dynatemp_range;
        options.dynatemp_exponent = self.dynatemp_exp;
        options.mirostat = match self.mirostat {
            0 => None,
            1 => Some(Mirostat::One),
            _ => Some(Mirostat::Two),
        };
        options.mirostat_eta = self.mirostat_lr;
        options.mirostat_tau = self.mirostat_ent;
        options.dry_multiplier = self.dry_multiplier;
        options.dry_base = self.dry_base;
        options.dry_allowed_length = self.dry_allowed_length;
        options.dry_last_n = usize::try_from(self.dry_penalty_last_n).unwrap_or(usize::MAX);
    }

    /// What repetitions do not reach over, where it is not `default`.
    pub fn breakers(&self, default: Vec<String>) -> Vec<String> {
        match self.dry_sequence_breaker.is_empty() {
            true => default,
            false => self.dry_sequence_breaker.iter().filter(|b| *b != "none").cloned().collect(),
        }
    }
}

/// What an answer has to look like.
#[derive(Args, Clone, Debug, Default)]
pub struct FormFlags {
    /// Grammar that the answer follows: llama.cpp's GBNF, or llguidance's Lark
    #[arg(long, value_name = "GRAMMAR", conflicts_with_all = ["grammar_file", "json_schema"], help_heading = "Sampling")]
    grammar: Option<String>,
    /// The grammar, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "json_schema", help_heading = "Sampling")]
    grammar_file: Option<PathBuf>,
    /// JSON schema that the answer follows
    #[arg(short, long, value_name = "SCHEMA", help_heading = "Sampling")]
    json_schema: Option<String>,
}

impl FormFlags {
    pub fn form(&self) -> Result<Option<Form>, Failure> {
        if let Some(schema) = &self.json_schema {
            let schema = serde_json::from_str(schema)
                .map_err(|e| Failure::Usage(format!("--json-schema is not JSON: {e}")))?;
            return Ok(Some(Form::JsonSchema(schema)));
        }
        let grammar = match &self.grammar_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| Failure::Usage(format!("--grammar-file {}: {e}", path.display())))?,
            ),
            None => self.grammar.clone(),
        };
        let Some(grammar) = grammar else { return Ok(None) };
        match grammar.contains("::=") {
            true => gbnf::to_lark(&grammar)
                .map(|lark| Some(Form::Lark(lark)))
                .map_err(|e| Failure::Usage(format!("--grammar: {e}"))),
            false => Ok(Some(Form::Lark(grammar))),
        }
    }
}
