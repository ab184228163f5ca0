//! `bitnet serve`: OpenAI's API over HTTP.

use crate::args::{self, ModelFlags, SamplingFlags};
use crate::failure::{Failure, chain};
use crate::hub;
use bitnet_inference::engine::EngineOptions;
use bitnet_inference::{GenerateError, LoadOptions, Model, ModelConfig};
use bitnet_server::{Keys, ModelCard, ServeError, ServeOptions, Server, serve};
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Args)]
#[command(after_help = "\
Routes: /v1/chat/completions /v1/completions /v1/models /v1/messages /v1/messages/count_tokens
        /tokenize /detokenize /apply-template /health /healthz /readyz /metrics

Examples:
  bitnet serve model.gguf
  bitnet serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --parallel 32
  curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'")]
pub struct Serve {
    #[command(flatten)]
    model: args::ModelPath,
    /// Address to listen on; one outside this machine needs a key
    #[arg(long, default_value = "127.0.0.1", env = "BITNET_HOST", help_heading = "Server")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080, env = "BITNET_PORT", help_heading = "Server")]
    port: u16,
    /// Key that requests must give; may be repeated
    #[arg(long, value_name = "KEY", env = "BITNET_API_KEY", hide_env_values = true, help_heading = "Server")]
    api_key: Vec<String>,
    /// File with a key on each line; it is read again when it changes
    #[arg(long, value_name = "FILE", env = "BITNET_API_KEY_FILE", help_heading = "Server")]
    api_key_file: Option<PathBuf>,
    /// Name of the model in requests [default: the file's]
    #[arg(short, long, value_name = "NAME", env = "BITNET_ALIAS", help_heading = "Server")]
    alias: Option<String>,
    /// Answers made at once; more requests wait
    #[arg(
        long,
        visible_alias = "np",
        default_value_t = 16,
        value_name = "N",
        env = "BITNET_PARALLEL",
        help_heading = "Server"
    )]
    parallel: usize,
    /// Requests that may wait; more are refused with 429
    #[arg(long, default_value_t = 1024, value_name = "N", env = "BITNET_QUEUE", help_heading = "Server")]
    queue: usize,
    /// Tokens that the key-value cache holds for all requests [default: four contexts]
    #[arg(long, value_name = "TOKENS", env = "BITNET_CACHE_SIZE", help_heading = "Server")]
    cache_size: Option<usize>,
    /// Compute every prompt from its beginning, whatever the cache holds of it
    #[arg(long, env = "BITNET_NO_PREFIX_CACHE", help_heading = "Server")]
    no_prefix_cache: bool,
    /// Bytes of a request's body at most
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", env = "BITNET_BODY_LIMIT", help_heading = "Server")]
    body_limit: usize,
    /// Seconds that a request may take [default: no limit]
    #[arg(long, value_name = "SECONDS", env = "BITNET_REQUEST_TIMEOUT", help_heading = "Server")]
    request_timeout: Option<u64>,
    /// Seconds that running requests may go on after SIGTERM
    #[arg(
        long,
        default_value_t = 30,
        value_name = "SECONDS",
        env = "BITNET_DRAIN_TIMEOUT",
        help_heading = "Server"
    )]
    drain_timeout: u64,
    #[command(flatten)]
    flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

impl From<ServeError> for Failure {
    fn from(e: ServeError) -> Self {
        match e {
            ServeError::Open { .. } => Self::Usage(chain(&e)),
            e => Self::Runtime(chain(&e)),
        }
    }
}

impl Serve {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        if self.parallel == 0 {
            return Err(Failure::Usage("--parallel is 0; at least one answer has to be made".to_owned()));
        }
        let answers = self.sampling.options(&self.flags)?;
        let keys = Keys::new(&self.api_key, self.api_key_file.clone())
            .map_err(|e| Failure::Usage(format!("--api-key-file: {e}")))?;
        let sampling = answers.sampling.clone();
        let server = Server::new(ServeOptions {
            keys,
            defaults: answers.into(),
            body_limit: self.body_limit,
            answers_limit: self.queue.saturating_add(self.parallel),
            timeout: self.request_timeout.map(Duration::from_secs),
            drain: Duration::from_secs(self.drain_timeout),
        });
        let running = serve(server.clone(), SocketAddr::new(self.host, self.port))?;
        if !quiet {
            eprintln!("listening on http://{}", running.address());
        }
        let path = self.model.locate(quiet)?;
        let (mut model, card) = load(&path, self.alias.clone(), &self.flags, self.cache_size, quiet)?;
        self.sampling.lora.load(&mut model)?;
        sampling.validate(model.config().vocab).map_err(GenerateError::from)?;
        let engine = model.into_engine(EngineOptions {
            budget: self.flags.batch_size.max(1),
            seats: self.parallel,
            queue: self.queue,
            prefix_cache: !self.no_prefix_cache,
        });
        server.load(engine, card)?;
        if !quiet {
            eprintln!("ready");
        }
        Ok(running.wait()?)
    }
}

/// Loads a model with a cache for many requests: `cache` tokens, or four contexts.
pub fn load(
    path: &Path,
    alias: Option<String>,
    flags: &ModelFlags,
    cache: Option<usize>,
    quiet: bool,
) -> Result<(Model, ModelCard), Failure> {
    let mut options = flags.options()?;
    let checkpoint = bitnet_formats::open(path)?;
    let config = ModelConfig::read(&checkpoint).map_err(Failure::at(path))?;
    let context = options.load.context.unwrap_or(config.context.min(LoadOptions::DEFAULT_CONTEXT));
    options.load.cache = Some(cache.unwrap_or(context.saturating_mul(4)));
    let (model, _) = args::load(path, &checkpoint, options, &flags.tuning, quiet)?;
    let (report, device) = (model.report(), model.device());
    let stem = || path.file_stem().or(path.file_name()).map(|name| name.to_string_lossy().into_owned());
    let card = ModelCard {
        id: alias.or_else(|| hub::repository(path)).or_else(stem).unwrap_or_else(|| "model".to_owned()),
        created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        context: model.config().context,
        params: report.ternary_weights + report.dense_weights,
        size: report.weight_bytes as u64,
        ftype: file_type(&checkpoint),
        kernel: device.kernel.to_owned(),
        isa: device.isa.to_owned(),
        device: device.device.to_owned(),
    };
    Ok((model, card))
}

/// The type that most bytes of a file have.
fn file_type(checkpoint: &bitnet_formats::Checkpoint) -> String {
    let mut bytes = std::collections::BTreeMap::<String, usize>::new();
    for tensor in checkpoint.tensors() {
        *bytes.entry(tensor.ttype.name().to_owned()).or_default() += tensor.data.len();
    }
    bytes.into_iter().max_by_key(|(_, len)| *len).map_or_else(String::new, |(name, _)| name)
}
