//! `bitnet serve`: OpenAI's API over HTTP.

use crate::args::{self, ModelFlags, SamplingFlags};
use crate::failure::{Failure, chain};
use crate::hub::{self, Located};
use crate::logs::LogFlags;
use crate::shipped;
use bitnet_inference::engine::EngineOptions;
use bitnet_inference::{GenerateError, LoadOptions, ModelConfig};
use bitnet_server::{Keys, ModelCard, Opened, ServeError, ServeOptions, Server, Tls, TraceOptions, serve};
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

#[derive(Args)]
#[command(after_help = "\
Routes: /v1/chat/completions /v1/completions /v1/responses /v1/embeddings /v1/ws /v1/models
        /v1/messages /v1/messages/count_tokens
        /api/generate /api/chat /api/embed /api/tags /api/show /api/version
        /completion /tokenize /detokenize /apply-template /models /models/load /models/unload
        /lora-adapters /v1/load_lora_adapter /v1/unload_lora_adapter
        /health /healthz /readyz /metrics /openapi.json /docs, and a chat page on /

Examples:
  bitnet serve model.gguf
  bitnet serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --parallel 32
  bitnet serve model.gguf --lora sql/ --lora-dir adapters/
  bitnet serve model.gguf --device cuda:0,cpu --tensor-split 20,10
  bitnet serve small.gguf large.gguf --alias small,large --tls-cert cert.pem --tls-key key.pem
  curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'")]
pub struct Serve {
    /// Models; requests that name none mean the first [path, org/repo[:file-or-quant][@revision], hf://org/repo]
    #[arg(value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The model, by name; may be repeated [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "models")]
    model: Vec<PathBuf>,
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
    /// Name of a model in requests; repeated, of the next one [default: the file's]
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "BITNET_ALIAS",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    alias: Vec<String>,
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
    /// Have the steps of several models take turns on the processor's cores, rather than share them
    #[arg(long, env = "BITNET_TAKE_TURNS", help_heading = "Server")]
    take_turns: bool,
    /// Bytes of a request's body at most
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", env = "BITNET_BODY_LIMIT", help_heading = "Server")]
    body_limit: usize,
    /// Requests a minute that each key has; more are refused with 429 [default: no limit]
    #[arg(long, value_name = "N", env = "BITNET_RATE_LIMIT", help_heading = "Server")]
    rate_limit: Option<NonZeroU32>,
    /// Origin whose pages may use the server, like https://example.org, or * for any; may be repeated. Those of this machine always may
    #[arg(
        long,
        value_name = "ORIGIN",
        env = "BITNET_CORS_ORIGIN",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    cors_origin: Vec<String>,
    /// Name that requests may be addressed to, like gpu.example.org, or * for any; may be repeated. localhost and addresses of this machine
    /// always may [default: no other, or any where --host can be reached from elsewhere]
    #[arg(
        long,
        value_name = "NAME",
        env = "BITNET_ALLOWED_HOSTS",
        value_delimiter = ',',
        value_parser = host_name,
        help_heading = "Server"
    )]
    allowed_hosts: Vec<String>,
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
    /// Certificate chain of the server as PEM; connections are then encrypted
    #[arg(
        long,
        visible_alias = "ssl-cert-file",
        value_name = "FILE",
        env = "BITNET_TLS_CERT",
        requires = "tls_key",
        help_heading = "Server"
    )]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate as PEM
    #[arg(
        long,
        visible_alias = "ssl-key-file",
        value_name = "FILE",
        env = "BITNET_TLS_KEY",
        requires = "tls_cert",
        help_heading = "Server"
    )]
    tls_key: Option<PathBuf>,
    /// Folder from which clients may load LoRA adapters [default: none but those of --lora]
    #[arg(long, value_name = "DIR", env = "BITNET_LORA_DIR", help_heading = "Server")]
    lora_dir: Option<PathBuf>,
    /// Serve no chat page
    #[arg(long, env = "BITNET_NO_UI", help_heading = "Server")]
    no_ui: bool,
    #[command(flatten)]
    logs: LogFlags,
    /// Collector of OpenTelemetry traces, like http://localhost:4318 [default: OTEL_EXPORTER_OTLP_ENDPOINT, or no traces]
    #[arg(long, value_name = "URL", env = "BITNET_OTLP_ENDPOINT", help_heading = "Logs and traces")]
    otlp_endpoint: Option<String>,
    /// Headers for the collector: NAME=VALUE, separated by commas [default: OTEL_EXPORTER_OTLP_HEADERS]
    #[arg(
        long,
        value_name = "HEADERS",
        env = "BITNET_OTLP_HEADERS",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = header,
        help_heading = "Logs and traces"
    )]
    otlp_headers: Vec<(String, String)>,
    /// Name of the server in traces [default: OTEL_SERVICE_NAME, or bitnet]
    #[arg(long, value_name = "NAME", env = "BITNET_OTLP_SERVICE_NAME", help_heading = "Logs and traces")]
    otlp_service_name: Option<String>,
    #[command(flatten)]
    flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

/// A name as it stands in `Host`, without a port.
fn host_name(text: &str) -> Result<String, String> {
    let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match text == "*" || text.parse::<IpAddr>().is_ok() || (!text.is_empty() && is_name(text)) {
        true => Ok(text.to_owned()),
        false => Err("not the name or address of a host, without scheme and port".to_owned()),
    }
}

/// `NAME=VALUE`.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
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
        self.logs.start(quiet)?;
        // What is wrong with flags is said before a model is loaded.
        self.sampling.options(&self.flags)?;
        let server = Server::new(self.options()?)?;
        let running = serve(server.clone(), SocketAddr::new(self.host, self.port))?;
        if !quiet {
            eprintln!("listening on {}://{}", running.scheme(), running.address());
        }
        // Whoever ends it while models are fetched and read does not wait for them.
        let (tell, told) = channel();
        let ending = running.ending();
        std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let loaded = catch_unwind(AssertUnwindSafe(|| self.load(&server, quiet)));
            let ready = matches!(loaded, Ok(Ok(())));
            // Sent before the end, where it is looked for.
            let _ = tell.send(loaded);
            match ready {
                true if !quiet => eprintln!("ready"),
                true => {}
                false => ending.end(),
            }
        })?;
        running.wait()?;
        match told.try_recv() {
            Ok(loaded) => loaded.unwrap_or_else(|panic| resume_unwind(panic)),
            // It was ended before.
            Err(_) => Ok(()),
        }
    }

    /// Loads all models.
    fn load(&self, server: &Server, quiet: bool) -> Result<(), Failure> {
        for source in self.sources(quiet)? {
            server.load(source.open()?)?;
            let id = source.id.clone();
            server.reopen(&id, Arc::new(move || source.open().map_err(|f| f.message().to_owned())));
        }
        Ok(())
    }

    /// How the server behaves.
    fn options(&self) -> Result<ServeOptions, Failure> {
        let keys = Keys::new(&self.api_key, self.api_key_file.clone())
            .map_err(|e| Failure::Usage(format!("--api-key-file: {e}")))?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(
                Tls::from_files(cert, key)
                    .map_err(|e| Failure::Usage(format!("--tls-cert, --tls-key: {e}")))?,
            ),
            _ => None,
        };
        if let Some(folder) = self.lora_dir.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Failure::Usage(format!("--lora-dir: {} is no folder", folder.display())));
        }
        let traces = self.traces()?;
        Ok(ServeOptions {
            keys,
            body_limit: self.body_limit,
            answers_limit: self.queue.saturating_add(self.parallel),
            rate: self.rate_limit,
            origins: self.cors_origin.clone(),
            hosts: self.allowed_hosts.clone(),
            tls,
            traces,
            page: !self.no_ui,
            adapters: self.lora_dir.clone(),
            timeout: self.request_timeout.map(Duration::from_secs),
            drain: Duration::from_secs(self.drain_timeout),
            ..ServeOptions::default()
        })
    }

    /// Where traces go: what flags leave open, OpenTelemetry's own variables say.
    fn traces(&self) -> Result<Option<TraceOptions>, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = self.otlp_endpoint.clone().or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let Some(endpoint) = endpoint else { return Ok(None) };
        let mut headers = self.otlp_headers.clone();
        if headers.is_empty() {
            let listed = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
            let pairs = listed.split(',').filter(|pair| !pair.trim().is_empty()).map(header);
            headers = pairs
                .collect::<Result<_, _>>()
                .map_err(|e| Failure::Usage(format!("OTEL_EXPORTER_OTLP_HEADERS: {e}")))?;
        }
        let named = self.otlp_service_name.clone().or_else(|| variable("OTEL_SERVICE_NAME"));
        let service = named.unwrap_or_else(|| "bitnet".to_owned());
        Ok(Some(TraceOptions { endpoint, headers, service }))
    }

    /// The models, each with a name of its own.
    fn sources(&self, quiet: bool) -> Result<Vec<Source>, Failure> {
        let mut sources: Vec<Source> = Vec::new();
        let draft = self.sampling.draft_model(quiet)?.map(Arc::new);
        let mut models = [&self.models[..], &self.model].concat();
        if models.is_empty() {
            models.push(args::named(None));
        }
        for (at, model) in models.iter().enumerate() {
            let path = hub::locate(model, quiet)?;
            let id = self.alias.get(at).cloned().unwrap_or_else(|| name(&path));
            if sources.iter().any(|source| source.id == id) {
                let message = format!("two models are called {id:?}; --alias gives each a name of its own");
                return Err(Failure::Usage(message));
            }
            let engine = EngineOptions {
                budget: self.flags.batch_size.max(1),
                seats: self.parallel,
                queue: self.queue,
                prefix_cache: !self.no_prefix_cache,
                take_turns: self.take_turns,
            };
            sources.push(Source {
                path,
                id,
                draft: draft.clone(),
                flags: self.flags.clone(),
                sampling: self.sampling.clone(),
                engine,
                cache: self.cache_size,
                quiet,
            });
        }
        Ok(sources)
    }
}

/// Where a model comes from, at the start and whenever a client asks for it again.
pub struct Source {
    pub path: Located,
    /// What it is called in requests.
    pub id: String,
    /// The model that guesses ahead for it.
    pub draft: Option<Arc<Located>>,
    pub flags: ModelFlags,
    pub sampling: SamplingFlags,
    pub engine: EngineOptions,
    /// Tokens that its cache holds; four contexts when `None`.
    pub cache: Option<usize>,
    pub quiet: bool,
}

impl Source {
    pub fn open(&self) -> Result<Opened, Failure> {
        let checkpoint = shipped::open(&self.path)?;
        let mut opening = self.flags.options(&checkpoint, self.quiet)?;
        let load = &mut opening.options.load;
        let config = ModelConfig::read(&checkpoint).map_err(Failure::at(&self.path))?;
        let context = load.context.unwrap_or(config.context.min(LoadOptions::DEFAULT_CONTEXT));
        let cache = Some(self.cache.unwrap_or(context.saturating_mul(4)));
        load.cache = cache;
        let mut sampling = self.sampling.clone();
        sampling.suit(&checkpoint.header);
        let defaults = sampling.options(&self.flags)?;
        defaults.sampling.validate(config.vocab).map_err(GenerateError::from)?;
        let (mut model, _) = args::load(&self.path, &checkpoint, opening, &self.flags.tuning, self.quiet)?;
        if let Some(draft) = &self.draft {
            self.flags.add_draft(draft, &mut model, cache, self.quiet)?;
        }
        self.sampling.lora.load(&mut model)?;
        let report = model.report();
        let card = ModelCard {
            id: self.id.clone(),
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            context: model.config().context,
            params: report.ternary_weights + report.dense_weights,
            size: report.weight_bytes as u64,
            ftype: file_type(&checkpoint),
        };
        Ok(Opened { engine: model.into_engine(self.engine), card, defaults: defaults.into() })
    }
}

/// What a model is called if nobody says otherwise.
pub fn name(path: &Path) -> String {
    let stem = || path.file_stem().or(path.file_name()).map(|name| name.to_string_lossy().into_owned());
    hub::repository(path).or_else(stem).unwrap_or_else(|| "model".to_owned())
}

/// The type that most bytes of a file have.
fn file_type(checkpoint: &bitnet_formats::Checkpoint) -> String {
    let mut bytes = std::collections::BTreeMap::<String, usize>::new();
    for tensor in checkpoint.tensors() {
        *bytes.entry(tensor.ttype.name().to_owned()).or_default() += tensor.data.len();
    }
    bytes.into_iter().max_by_key(|(_, len)| *len).map_or_else(String::new, |(name, _)| name)
}
