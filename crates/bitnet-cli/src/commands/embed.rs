//! `bitnet embed`: texts as vectors.

use super::vocabulary;
use crate::args::{self, ModelFlags};
use crate::failure::Failure;
use crate::hub;
use crate::lora::LoraFlags;
use bitnet_inference::{EmbedOptions, Pooling};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::{Read, Write};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
A vector is a line of numbers with blanks between them; --json prints one object in OpenAI's form.

Examples:
  bitnet embed model.gguf \"ships at night\"
  bitnet embed model.gguf texts.txt --json
  bitnet embed model.gguf --tokens 128000,9906,1917
  echo \"ships at night\" | bitnet embed model.gguf --pooling mean")]
pub struct Embed {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    model: Option<PathBuf>,
    /// A text, or a file with a text on each line; standard input when absent
    #[arg(value_name = "TEXT|FILE")]
    text: Option<String>,
    /// The model, by name; a single position is then the text [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long = "model", id = "model_flag", value_name = "MODEL")]
    model_flag: Option<PathBuf>,
    /// The text, by name
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text")]
    prompt: Option<String>,
    /// Token ids instead of a text, as given: nothing is put in front
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "prompt"])]
    tokens: Option<String>,
    /// Which states become the vector [default: what the model was made for, else last]
    #[arg(long, value_enum, env = "BITNET_POOLING")]
    pooling: Option<PoolingFlag>,
    /// 2 divides a vector by its length, -1 leaves it as it is
    #[arg(
        long,
        default_value_t = 2,
        value_name = "N",
        allow_negative_numbers = true,
        env = "BITNET_EMBD_NORMALIZE"
    )]
    embd_normalize: i32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ModelFlags,
    #[command(flatten)]
    lora: LoraFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PoolingFlag {
    /// The last token's state
    Last,
    /// The mean of all
    Mean,
    /// The first token's
    Cls,
}

impl From<PoolingFlag> for Pooling {
    fn from(flag: PoolingFlag) -> Self {
        match flag {
            PoolingFlag::Last => Self::Last,
            PoolingFlag::Mean => Self::Mean,
            PoolingFlag::Cls => Self::Cls,
        }
    }
}

impl Embed {
    pub fn execute(mut self, quiet: bool) -> Result<(), Failure> {
        let normalize = match self.embd_normalize {
            2 => true,
            -1 => false,
            n => return Err(Failure::Usage(format!("--embd-normalize {n} is not known; 2 and -1 are"))),
        };
        let given = self.prompt.is_some() || self.tokens.is_some();
        args::place_words(&mut self.model, &mut self.text, self.model_flag.is_some(), given);
        let path = args::named(self.model.take().or_else(|| self.model_flag.take()));
        let ids = self.tokens.as_deref().map(args::ids).transpose()?;
        let texts = if ids.is_some() { Vec::new() } else { self.texts()? };
        let path = hub::locate(&path, quiet)?;
        let mut model = self.flags.open(&path, quiet)?;
        self.lora.load(&mut model)?;
        let pooling = self.pooling.map(Pooling::from).or(model.pooling()).unwrap_or_default();
        let encoded = texts.iter().map(|text| vocabulary::encode(&model, text, &path));
        let prompts = ids.map(Ok).into_iter().chain(encoded).collect::<Result<Vec<_>, _>>()?;
        let vectors = model.embed(&prompts, EmbedOptions { pooling, normalize })?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let data = vectors.iter().enumerate();
            let data = data.map(|(index, v)| json!({"object": "embedding", "index": index, "embedding": v}));
            let tokens: usize = prompts.iter().map(Vec::len).sum();
            let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
            let data = data.collect::<Vec<_>>();
            writeln!(out, "{}", json!({"object": "list", "data": data, "usage": usage}))?;
        } else {
            for vector in vectors {
                let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
                writeln!(out, "{}", numbers.join(" "))?;
            }
        }
        Ok(out.flush()?)
    }

    fn texts(&self) -> Result<Vec<String>, Failure> {
        let lines = |bytes: Vec<u8>, name: &str| -> Result<Vec<String>, Failure> {
            let text =
                String::from_utf8(bytes).map_err(|_| Failure::Usage(format!("{name} is not UTF-8")))?;
            let lines: Vec<String> =
                text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
            if lines.is_empty() { Err(Failure::Usage(format!("{name} has no text"))) } else { Ok(lines) }
        };
        if let Some(text) = &self.prompt {
            return Ok(vec![text.clone()]);
        }
        match &self.text {
            Some(text) if std::path::Path::new(text).is_file() => {
                let bytes = std::fs::read(text).map_err(|e| Failure::Usage(format!("{text}: {e}")))?;
                lines(bytes, text)
            }
            Some(text) => Ok(vec![text.clone()]),
            None => {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes)?;
                lines(bytes, "standard input")
            }
        }
    }
}
