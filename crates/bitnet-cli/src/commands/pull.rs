//! `bitnet pull`: a model of the hub into the cache.

use crate::config::{self, Config};
use crate::downloads::Downloads;
use crate::failure::Failure;
use crate::hub::HubFlags;
use bitnet_hub::{Cancel, Hub, Patterns, Reference};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet pull microsoft/bitnet-b1.58-2B-4T-gguf
  bitnet pull prism-ml/Ternary-Bonsai-1.7B-gguf:Q2_0        one file, by its quantization
  bitnet pull org/repo:folder/model.gguf@v1.0               one file, of a tag, branch or commit
  bitnet pull org/repo --include '*.json' --exclude 'vocab*'
  bitnet run org/repo \"Once upon a time\"                    pulls first what the cache lacks

Without :file-or-quant it fetches safetensors weights with config.json, tokenizer, template and licence, or the only \
GGUF file. An interrupted pull goes on where it was. Files are verified, and lie where Python's huggingface_hub looks \
for them. HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY are honoured, HF_HUB_DOWNLOAD_TIMEOUT (10 s without a byte), \
and SSL_CERT_FILE (authorities that are trusted instead of the system's).")]
pub struct Pull {
    /// org/repo[:file-or-quant][@revision]
    #[arg(value_name = "MODEL")]
    reference: Option<String>,
    /// The model, by name [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "reference")]
    model: Option<String>,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REV", env = "BITNET_REVISION")]
    revision: Option<String>,
    /// Fetch files that fit this pattern instead of what the model needs; may be repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave out files that fit this pattern; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Connections at a time
    #[arg(long, default_value_t = 8, value_name = "N", env = "BITNET_CONNECTIONS", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Print one JSON object instead of the path
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
}

impl Pull {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let named = self.reference.or(self.model).map(PathBuf::from).or_else(Config::model);
        let named = named.ok_or_else(|| {
            Failure::Usage(
                "no model is named; give org/repo, BITNET_MODEL, or `model` in bitnet.toml (see --help)"
                    .to_owned(),
            )
        })?;
        let text = named.to_string_lossy();
        let alias = config::get().alias(&text);
        let text = alias.as_deref().map_or(text, |meant| meant.to_string_lossy());
        let mut reference: Reference = text.parse()?;
        match (&reference.revision, self.revision) {
            (Some(one), Some(other)) if *one != other => {
                return Err(Failure::Usage(format!("{text} names a revision, and --revision another")));
            }
            (None, Some(revision)) => reference = format!("{reference}@{revision}").parse()?,
            _ => {}
        }
        let mut settings = self.hub.settings()?;
        settings.connections = self.connections.into();
        let patterns = Patterns { include: self.include, exclude: self.exclude };
        let downloads = Downloads::new(quiet);
        let hub = Hub::new(settings);
        let pulled = hub.pull(&reference, &patterns, &|event| downloads.event(event), &Cancel::new())?;
        downloads.finish();
        let mut out = std::io::stdout().lock();
        if self.json {
            let object =
                json!({"repo": reference.repo.as_str(), "commit": pulled.commit, "path": pulled.path});
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "{}", pulled.path.display())?;
        }
        Ok(())
    }
}
