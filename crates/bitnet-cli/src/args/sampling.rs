//! How an answer is sampled and when it ends.

use super::ModelFlags;
use crate::failure::Failure;
use crate::hub::{self, Located};
use crate::lora::LoraFlags;
use crate::stages::StageFlags;
use bitnet_formats::Header;
use bitnet_formats::gguf::Value;
use bitnet_inference::GenerateOptions;
use bitnet_inference::sample::SamplerOptions;
use clap::builder::{BoolishValueParser, Resettable};
use clap::{ArgAction, Args, Command, FromArgMatches, ValueEnum};
use std::path::PathBuf;

/// Where guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Spec {
    None,
    /// What followed the last few tokens the time before
    Ngram,
    /// A smaller model of the same vocabulary: --draft-model
    Draft,
}

/// How an answer is sampled and when it ends.
#[derive(Args, Clone, Debug)]
pub struct SamplingFlags {
    /// Tokens to generate at most; -1 is as many as the context holds
    #[arg(
        short = 'n',
        long,
        default_value_t = 512,
        allow_negative_numbers = true,
        env = "BITNET_PREDICT",
        help_heading = "Sampling"
    )]
    predict: i64,
    /// Temperature; 0 is greedy [default: the model's own, or 0.8]
    #[arg(long, allow_negative_numbers = true, env = "BITNET_TEMP", help_heading = "Sampling")]
    temp: Option<f64>,
    /// Keep the K most likely tokens; 0 keeps all [default: the model's own, or 40]
    #[arg(long, env = "BITNET_TOP_K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Keep the most likely tokens that reach this probability together; 1 keeps all [default: the model's own, or 0.95]
    #[arg(long, env = "BITNET_TOP_P", help_heading = "Sampling")]
    top_p: Option<f64>,
    /// Keep tokens at least this fraction as likely as the best; 0 keeps all
    #[arg(long, default_value_t = 0.05, env = "BITNET_MIN_P", help_heading = "Sampling")]
    min_p: f64,
    /// Keep the tokens of typical surprise that reach this probability together; 1 keeps all
    #[arg(
        long,
        visible_alias = "typical-p",
        default_value_t = 1.0,
        env = "BITNET_TYPICAL",
        help_heading = "Sampling"
    )]
    typical: f64,
    /// Penalty for repeated tokens; 1 is none
    #[arg(long, default_value_t = 1.0, env = "BITNET_REPEAT_PENALTY", help_heading = "Sampling")]
    repeat_penalty: f64,
    /// How many of the last tokens the penalties look at; -1 is all, 0 none
    #[arg(
        long,
        default_value_t = 64,
        allow_negative_numbers = true,
        env = "BITNET_REPEAT_LAST_N",
        help_heading = "Sampling"
    )]
    repeat_last_n: i64,
    /// Subtracted from a token's logit for each time it was seen lately
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        env = "BITNET_FREQUENCY_PENALTY",
        help_heading = "Sampling"
    )]
    frequency_penalty: f64,
    /// Subtracted from a token's logit if it was seen lately
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        env = "BITNET_PRESENCE_PENALTY",
        help_heading = "Sampling"
    )]
    presence_penalty: f64,
    /// Add to a token's logit, as ID+BIAS or ID-BIAS (15043+1, 15043-1, 15043-inf); may be repeated
    #[arg(short, long, value_name = "ID+BIAS", help_heading = "Sampling")]
    logit_bias: Vec<String>,
    /// Seed; -1 takes a new one
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true, env = "BITNET_SEED", help_heading = "Sampling")]
    seed: i64,
    /// End the answer before this text; may be repeated
    #[arg(
        short = 'r',
        long = "stop",
        visible_alias = "reverse-prompt",
        value_name = "TEXT",
        help_heading = "Sampling"
    )]
    stop: Vec<String>,
    /// Never let the answer contain this text, in whatever case its ASCII letters are; may be repeated
    #[arg(long = "banned-string", value_name = "TEXT", help_heading = "Sampling")]
    banned: Vec<String>,
    /// Never end at an end token: they are banned
    #[arg(long, help_heading = "Sampling")]
    ignore_eos: bool,
    /// Guess tokens ahead and let one step check them; changes speed, never the answer [default: draft with --draft-model, else none]
    #[arg(long, value_enum, env = "BITNET_SPEC", help_heading = "Sampling")]
    spec: Option<Spec>,
    /// Model that guesses (also -md): a path, or one of the hub
    #[arg(
        long,
        visible_alias = "model-draft",
        value_name = "MODEL",
        env = "BITNET_DRAFT_MODEL",
        help_heading = "Sampling"
    )]
    draft_model: Option<PathBuf>,
    /// Tokens to guess ahead at most
    #[arg(
        long,
        visible_alias = "draft-max",
        default_value_t = 4,
        value_name = "N",
        env = "BITNET_DRAFT",
        help_heading = "Sampling"
    )]
    draft: usize,
    #[command(flatten)]
    stages: StageFlags,
    #[command(flatten)]
    pub lora: LoraFlags,
}

impl SamplingFlags {
    pub fn options(&self, flags: &ModelFlags) -> Result<GenerateOptions, Failure> {
        let defaults = SamplerOptions::default();
        let mut sampling = SamplerOptions {
            // llama.cpp takes what is below 0 as greedy.
            temperature: self.temp.map_or(defaults.temperature, |temp| if temp < 0.0 { 0.0 } else { temp }),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p,
            typical_p: self.typical,
            repeat_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_last_n: usize::try_from(self.repeat_last_n).unwrap_or(usize::MAX),
            logit_bias: self.logit_bias.iter().map(|b| bias(b)).collect::<Result<_, _>>()?,
            seed: u64::try_from(self.seed).ok(),
            ..SamplerOptions::default()
        };
        self.stages.apply(&mut sampling);
        let defaults = GenerateOptions::default();
        Ok(GenerateOptions {
            sampling,
            max_tokens: usize::try_from(self.predict).ok(),
            stop: self.stop.clone(),
            banned: self.banned.clone(),
            ignore_eos: self.ignore_eos,
            batch: flags.batch_size,
            form: None,
            dry_breakers: self.stages.breakers(defaults.dry_breakers),
            draft: if self.spec()? == Spec::None { 0 } else { self.draft },
            adapters: None,
            cancel: None,
        })
    }

    fn spec(&self) -> Result<Spec, Failure> {
        match (self.spec, &self.draft_model) {
            (None, None) => Ok(Spec::None),
            (None | Some(Spec::Draft), Some(_)) => Ok(Spec::Draft),
            (Some(Spec::Draft), None) => {
                Err(Failure::Usage("--spec draft needs a model that guesses: --draft-model MODEL".to_owned()))
            }
            (Some(_), Some(_)) => {
                Err(Failure::Usage("--draft-model guesses with --spec draft alone".to_owned()))
            }
            (Some(spec), None) => Ok(spec),
        }
    }

    /// Where the model that guesses lies, if one is named; it stays there for as long as the place is held.
    pub fn draft_model(&self, quiet: bool) -> Result<Option<Located>, Failure> {
        self.draft_model.as_deref().map(|path| hub::locate(path, quiet)).transpose()
    }

    /// Takes from a model what the flags leave open: what its `generation_config.json`, or the same in GGUF, says.
    pub fn suit(&mut self, header: &Header) {
        let own = |setting: &str, key: &str| match header {
            Header::HuggingFace { generation_config, .. } => generation_config.get(setting)?.as_f64(),
            Header::Gguf { metadata, .. } => match metadata.get(key)? {
                // The decimal that it was rounded from, so that both formats answer alike.
                Value::F32(v) => v.to_string().parse().ok(),
                v => v.as_f64().or_else(|| v.as_u64().map(|n| n as f64)),
            },
        };
        let positive = |v: &f64| v.is_finite() && *v >= 0.0;
        let temp = || own("temperature", "general.sampling.temp").filter(positive);
        let top_k = || own("top_k", "general.sampling.top_k").filter(positive);
        let top_p = || own("top_p", "general.sampling.top_p").filter(|p| (0.0..=1.0).contains(p));
        self.temp = self.temp.or_else(temp);
        self.top_k = self.top_k.or_else(|| top_k().map(|k| k as usize));
        self.top_p = self.top_p.or_else(top_p);
    }

    /// The flags as a parser that knows no defaults: what it does not read stays.
    fn changes() -> Command {
        Self::augment_args_for_update(Command::new("set").no_binary_name(true)).mut_args(|arg| {
            let flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let arg = arg.default_value(Resettable::Reset).env(Resettable::Reset);
            if flag { arg.action(ArgAction::Set).value_parser(BoolishValueParser::new()) } else { arg }
        })
    }

    /// What [`Self::set`] takes.
    pub fn names() -> Vec<String> {
        let command = Self::changes();
        let names = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned));
        // Adapters and a model that guesses are loaded at the start.
        names.filter(|name| !name.starts_with("lora") && name != "draft-model").collect()
    }

    /// Sets a flag by its name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let command = Self::changes();
        let called = |arg: &&clap::Arg| {
            let short = arg.get_short().is_some_and(|short| name.chars().eq([short]));
            short || arg.get_long() == Some(name) || arg.get_all_aliases().unwrap_or_default().contains(&name)
        };
        let long = command.get_arguments().find(called).and_then(clap::Arg::get_long);
        let Some(name) = long.filter(|long| Self::names().iter().any(|known| known == long)) else {
            return Err(Failure::Usage(format!("{name} cannot be set; /set lists what can")));
        };
        let first_line = |e: clap::Error| {
            let text = e.to_string();
            Failure::Usage(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        };
        let matches =
            Self::changes().try_get_matches_from([format!("--{name}={value}")]).map_err(first_line)?;
        self.update_from_arg_matches(&matches).map_err(first_line)
    }
}

fn bias(text: &str) -> Result<(u32, f64), Failure> {
    let at = text.find(['+', '-']).unwrap_or(text.len());
    let (id, value) = text.split_at(at);
    match (id.parse(), value.parse()) {
        (Ok(id), Ok(value)) => Ok((id, value)),
        _ => Err(Failure::Usage(format!("--logit-bias {text:?} is not of the form ID+BIAS or ID-BIAS"))),
    }
}
