//! `bitnet run`: continue a prompt.

use crate::args::{self, ModelFlags, SamplingFlags, ids};
use crate::commands::chat::Chat;
use crate::commands::vocabulary;
use crate::failure::Failure;
use crate::hub;
use crate::stages::FormFlags;
use crate::terminal::interrupt;
use bitnet_inference::{FinishReason, GenerateOptions, Generation, Model, Timings};
use clap::Args;
use serde_json::json;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet run \"The capital of France is\"
  bitnet run model.gguf \"The capital of France is\"
  bitnet run microsoft/bitnet-b1.58-2B-4T-gguf \"Once upon a time\"
  echo \"Once upon a time\" | bitnet run model.gguf -n 100
  bitnet run model.gguf \"Once upon a time\" --device cuda:0,cuda:1
  bitnet run model.gguf --tokens 128000,791,6864 --temp 0 --json
  BITNET_MODEL=model.gguf bitnet run \"The capital of France is\"")]
pub struct Run {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    model: Option<PathBuf>,
    /// Text to continue; standard input when absent and not a terminal
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// The model, by name; a single position is then the prompt [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long = "model", id = "model_flag", value_name = "MODEL")]
    model_flag: Option<PathBuf>,
    /// The prompt, by name
    #[arg(short, long = "prompt", id = "prompt_flag", value_name = "PROMPT", conflicts_with = "prompt")]
    prompt_flag: Option<String>,
    /// Token ids instead of a text, as given: nothing is put in front
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "prompt_flag"])]
    tokens: Option<String>,
    /// Keep what was computed of prompt and answer in this file, and begin with what it holds; without a prompt, go on behind them
    #[arg(long, visible_alias = "session", value_name = "FILE", env = "BITNET_PROMPT_CACHE")]
    prompt_cache: Option<PathBuf>,
    /// Print one JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model_flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    form: FormFlags,
}

enum Prompt {
    /// The ids of the session.
    Session,
    Text(String),
    Ids(Vec<u32>),
}

impl Run {
    pub fn execute(mut self, quiet: bool) -> Result<(), Failure> {
        let given = self.prompt_flag.is_some() || self.tokens.is_some();
        args::place_words(&mut self.model, &mut self.prompt, self.model_flag.is_some(), given);
        let path = args::named(self.model.take().or_else(|| self.model_flag.take()));
        // What is wrong with flags is said before a model is loaded.
        self.sampling.options(&self.model_flags)?;
        let form = self.form.form()?;
        let session = self.prompt_cache.clone();
        let goes_on = session.as_ref().is_some_and(|file| file.exists());
        let prompt = match self.prompt()? {
            Some(Prompt::Text(text)) if text.is_empty() && goes_on => Prompt::Session,
            None if goes_on => Prompt::Session,
            Some(prompt) => prompt,
            None => return Chat::with(path, self.model_flags, self.sampling, self.form).execute(quiet),
        };
        let (path, draft) = (hub::locate(&path, quiet)?, self.sampling.draft_model(quiet)?);
        let mut model =
            self.model_flags.open_to_sample(&path, draft.as_deref(), &mut self.sampling, quiet)?;
        let saved = match session.as_ref().filter(|_| goes_on) {
            Some(file) => model.load_session(file)?,
            None => Vec::new(),
        };
        let prompt = match prompt {
            Prompt::Session => saved,
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => encode(&model, &text, &path)?,
        };
        let options =
            GenerateOptions { form, cancel: Some(interrupt()), ..self.sampling.options(&self.model_flags)? };
        let mut generation = model.generate(&prompt, options)?;
        match self.json {
            true => print_json(&prompt, &mut generation)?,
            false => stream(&mut generation)?,
        }
        if !quiet {
            eprintln!("{}", speeds(generation.timings()));
        }
        let (reason, all) = (generation.finish_reason(), [&prompt[..], generation.tokens()].concat());
        drop(generation);
        if let Some(file) = &session {
            model.save_session(file, &all)?;
        }
        match reason {
            Some(FinishReason::Cancelled) => Err(Failure::Interrupted),
            _ => Ok(()),
        }
    }

    fn prompt(&self) -> Result<Option<Prompt>, Failure> {
        if let Some(tokens) = &self.tokens {
            return Ok(Some(Prompt::Ids(ids(tokens)?)));
        }
        if let Some(text) = self.prompt.as_ref().or(self.prompt_flag.as_ref()) {
            return Ok(Some(Prompt::Text(text.clone())));
        }
        if std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text)?;
        let text =
            String::from_utf8(text).map_err(|_| Failure::Usage("standard input is not UTF-8".to_owned()))?;
        // The line end that `echo` adds is no part of the prompt.
        Ok(Some(Prompt::Text(text.strip_suffix('\n').unwrap_or(&text).to_owned())))
    }
}

/// An empty text begins with what begins every text.
fn encode(model: &Model, text: &str, path: &Path) -> Result<Vec<u32>, Failure> {
    let ids = vocabulary::encode(model, text, path)?;
    if !ids.is_empty() {
        return Ok(ids);
    }
    Ok(model.config().bos.into_iter().collect())
}

/// Prints text as it comes.
pub fn stream(generation: &mut Generation<'_>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for piece in generation.by_ref() {
        let piece = piece?;
        if !piece.text.is_empty() {
            out.write_all(piece.text.as_bytes())?;
            out.flush()?;
        }
    }
    writeln!(out)?;
    Ok(())
}

fn print_json(prompt: &[u32], generation: &mut Generation<'_>) -> Result<(), Failure> {
    let mut text = String::new();
    for piece in generation.by_ref() {
        text += &piece?.text;
    }
    let t = generation.timings();
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    let object = json!({
        "prompt_tokens": prompt,
        "tokens": generation.tokens(),
        "text": text,
        "finish_reason": generation.finish_reason().map(FinishReason::name),
        "seed": generation.seed(),
        "timings": {
            "prompt_n": t.prompt_tokens,
            "prompt_ms": ms(t.prompt),
            "prompt_per_second": t.prompt_per_second(),
            "predicted_n": t.tokens,
            "predicted_ms": ms(t.generation),
            "predicted_per_second": t.tokens_per_second(),
            "cache_n": t.cached_tokens,
            "draft_n": t.drafted,
            "draft_n_accepted": t.accepted,
        },
    });
    writeln!(std::io::stdout(), "{object}")?;
    Ok(())
}

/// The last line: how fast it was.
pub fn speeds(t: Timings) -> String {
    let guesses = match t.drafted {
        0 => String::new(),
        n => format!("; {} of {n} guesses right, {:.2} tokens a step", t.accepted, t.tokens_per_step()),
    };
    format!(
        "prompt: {} tokens, {:.1} tokens/s; generation: {} tokens, {:.1} tokens/s{guesses}",
        t.prompt_tokens,
        t.prompt_per_second(),
        t.tokens,
        t.tokens_per_second()
    )
}
