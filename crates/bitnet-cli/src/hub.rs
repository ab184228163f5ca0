//! Models of the hub: flags, and where a MODEL lies on this machine.

use crate::config;
use crate::downloads::Downloads;
use crate::failure::Failure;
use crate::shipped;
use bitnet_hub::{Cached, Cancel, Hub, Lease, Reference, Settings, Token, checked_endpoint, snapshot_of};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// What a MODEL may be, for help texts.
pub const MODEL_HELP: &str = "GGUF file, Hugging Face directory, file of tensors (safetensors, PyTorch, ONNX) with its \
    config.json beside it, or org/repo[:file-or-quant][@revision] of the hub; bitnet-mini, a small one, is part of this program and meant where no other is named";

/// Ends of names that texts do not have.
const MODEL_FILES: [&str; 6] = ["gguf", "safetensors", "onnx", "bin", "pt", "pth"];

/// Where the hub and the cache are. Commands without these flags take their environment variables all the same.
#[derive(Args, Clone, Debug)]
pub struct HubFlags {
    /// The cache of downloads [default: HF_HUB_CACHE, or `hub` in HF_HOME, or ~/.cache/huggingface/hub]
    #[arg(long, value_name = "DIR", env = "BITNET_CACHE_DIR", help_heading = "Hub")]
    cache_dir: Option<PathBuf>,
    /// The hub or a mirror of it [default: HF_ENDPOINT, or huggingface.co]
    #[arg(long, value_name = "URL", env = "BITNET_ENDPOINT", help_heading = "Hub")]
    endpoint: Option<String>,
    /// Token for gated and private repositories [default: HF_TOKEN, or the one that `hf auth login` stored]
    #[arg(long, env = "BITNET_TOKEN", hide_env_values = true, help_heading = "Hub")]
    token: Option<String>,
    /// Use what the cache has, and no network (also HF_HUB_OFFLINE=1)
    #[arg(long, env = "BITNET_OFFLINE", help_heading = "Hub")]
    offline: bool,
}

impl HubFlags {
    /// The environment's own.
    pub fn from_env() -> Result<Self, Failure> {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            flags: HubFlags,
        }
        let usage = |e: clap::Error| Failure::Usage(e.render().to_string());
        let mut command = config::get().settle(Alone::command());
        let matches = command.try_get_matches_from_mut(["bitnet"]).map_err(usage)?;
        Ok(Alone::from_arg_matches(&matches).map_err(usage)?.flags)
    }

    pub fn settings(&self) -> Result<Settings, Failure> {
        let mut settings = Settings::from_env(self.cache_dir.clone())?;
        if let Some(endpoint) = &self.endpoint {
            settings.endpoint = checked_endpoint(endpoint)?;
        }
        if let Some(token) = &self.token {
            settings.token = Token::new(token);
        }
        settings.offline |= self.offline;
        Ok(settings)
    }
}

/// A model on this machine. One of the cache stays there for as long as this lives.
pub struct Located {
    path: PathBuf,
    _cached: Option<Cached>,
    /// For a path into the cache.
    _lease: Option<Lease>,
}

impl Deref for Located {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// Whether a word names a model: a path that is there, an alias, a model of the hub, the model of this program, or a file that is not
/// there but is called like one.
pub fn names_model(word: &str) -> bool {
    let path = Path::new(word);
    let file = path.extension().and_then(|e| e.to_str()).is_some_and(|e| MODEL_FILES.contains(&e));
    path.exists()
        || config::get().alias(word).is_some()
        || Reference::is_meant(word)
        || shipped::is_meant(path)
        || file
}

/// The place of a MODEL: a path as it is; what an alias stands for; a model of the hub from the cache, which is filled first
/// where it lacks it.
pub fn locate(model: &Path, quiet: bool) -> Result<Located, Failure> {
    let alias = model.to_str().filter(|_| !model.exists()).and_then(|name| config::get().alias(name));
    let model = alias.as_deref().unwrap_or(model);
    let word = model.components().count() == 1 && model.extension().is_none();
    if word && !model.exists() && !shipped::is_meant(model) {
        let name = model.display();
        return Err(Failure::Model(format!(
            "{name}: no file, no alias of bitnet.toml and no org/repo has this name; `bitnet ls` lists what is there"
        )));
    }
    let reference = match model.to_str().filter(|text| !model.exists() && Reference::is_meant(text)) {
        Some(text) => text.parse::<Reference>()?,
        None => return Ok(Located { path: model.to_owned(), _cached: None, _lease: Lease::of(model) }),
    };
    let hub = Hub::new(HubFlags::from_env()?.settings()?);
    let downloads = Downloads::new(quiet);
    let cached = hub.obtain(&reference, &|event| downloads.event(event), &Cancel::new())?;
    downloads.finish();
    Ok(Located { path: cached.path.clone(), _cached: Some(cached), _lease: None })
}

/// Address of the repository whose snapshot holds a model. Mirrors serve what the hub has, so it is the hub's.
pub fn origin(path: &Path) -> Option<String> {
    snapshot_of(path).map(|origin| format!("https://huggingface.co/{}", origin.repo))
}

/// The repository whose snapshot a folder is: its name says more than the commit's.
pub fn repository(path: &Path) -> Option<String> {
    let origin = snapshot_of(path)?;
    path.ends_with(&origin.commit).then(|| origin.repo.to_string())
}
