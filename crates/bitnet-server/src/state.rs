//! What every route shares.

use crate::aside::aside;
use crate::frame::{Client, frame};
use crate::lora::Adapters;
use crate::metrics::HttpMetrics;
use crate::models::Models;
use crate::options::{ModelCard, Opened, ServeOptions};
use crate::rate::Rates;
use crate::trace::{Exporter, Trace};
use crate::worker::Worker;
use crate::{ApiError, anthropic, health, lora, models, native, ollama, openai, openapi, page, ws};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use bitnet_inference::engine::{AdapterUse, Request};
use bitnet_inference::{Constraint, Form, Forms, ModelFiles, Pooling};
use bitnet_memory::{Counted, Monitor, Pool};
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A server, with its models once they are loaded.
pub struct Server {
    pub(crate) options: ServeOptions,
    pub(crate) metrics: HttpMetrics,
    pub(crate) models: Models,
    /// Watches the system's memory for all engines.
    pub(crate) memory: Arc<Monitor>,
    /// Where traces go.
    pub(crate) traces: Option<Arc<Exporter>>,
    rates: Option<Rates>,
    draining: AtomicBool,
    /// Set when answers that are still being made have to end; the engines' threads look at it.
    ending: Arc<AtomicBool>,
    open: AtomicUsize,
}

/// A loaded model, or one of its adapters under a name of its own.
#[derive(Clone)]
pub(crate) struct Served {
    pub card: ModelCard,
    pub defaults: Request,
    pub worker: Worker,
    /// The model that it is an adapter of.
    pub base: Option<String>,
    /// The adapters of a model.
    pub adapters: Arc<Adapters>,
    tokenizer: Option<Arc<Tokenizer>>,
    pub vocab: usize,
    /// Positions of a sequence at most.
    pub capacity: usize,
    /// Length of a vector.
    pub width: usize,
    /// What the model's vectors are made of, where its files say.
    pub pooling: Option<Pooling>,
    /// What its weights can be prepared from again.
    pub files: ModelFiles,
    forms: Option<Arc<Forms>>,
    /// Where its memory comes from.
    pub memory: Arc<Pool>,
    /// What counts the memory of a device that has its own.
    pub device_memory: Option<Arc<dyn Counted>>,
}

impl Served {
    /// The same model, whose requests go through an adapter unless they choose others.
    pub fn through(&self, id: u32, name: String) -> Self {
        let adapters = Some(vec![AdapterUse { id, scale: 1.0 }]);
        Self {
            card: ModelCard { id: name, ..self.card.clone() },
            base: Some(self.card.id.clone()),
            adapters: Arc::default(),
            defaults: Request { adapters, ..self.defaults.clone() },
            ..self.clone()
        }
    }

    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            ApiError::new(StatusCode::NOT_IMPLEMENTED, "the model has no tokenizer; give token ids")
        })
    }

    pub async fn compile(&self, form: Form) -> Result<Constraint, ApiError> {
        self.tokenizer()?;
        let forms = Arc::clone(self.forms.as_ref().expect("a tokenizer has its compiler of forms"));
        aside(move || Ok(forms.compile(&form)?)).await
    }

    pub fn template(&self) -> Result<&ChatTemplate, ApiError> {
        let absent = || ApiError::new(StatusCode::NOT_IMPLEMENTED, "the model has no chat template");
        match self.tokenizer()?.template() {
            Ok(template) => template.ok_or_else(absent),
            Err(e) => Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, e.to_string())),
        }
    }
}

impl Server {
    /// A server without a model: routes that need one say that it is loading.
    ///
    /// # Errors
    /// The operating system would not start a thread for traces.
    pub fn new(options: ServeOptions) -> std::io::Result<Arc<Self>> {
        let traces = options.traces.clone().map(Exporter::start).transpose()?.map(Arc::new);
        Ok(Arc::new(Self {
            rates: options.rate.map(Rates::new),
            options,
            metrics: HttpMetrics::new(),
            models: Models::default(),
            memory: Arc::default(),
            traces,
            draining: AtomicBool::new(false),
            ending: Arc::default(),
            open: AtomicUsize::new(0),
        }))
    }

    /// Begins to serve a model under its card's name.
    ///
    /// # Errors
    /// The operating system would not start a thread.
    pub fn load(&self, opened: Opened) -> std::io::Result<()> {
        let Opened { mut engine, card, defaults } = opened;
        engine.watch_memory(Arc::clone(&self.memory));
        let id = card.id.clone();
        // Where nobody logs, whoever opened the model tells.
        if tracing::enabled!(tracing::Level::WARN) {
            let name = id.clone();
            engine.tell_takeover(move |takeover| tracing::warn!(model = name, "{takeover}"));
        }
        self.models.put(&id, |metrics| {
            let (tokenizer, forms) = (engine.tokenizer().cloned(), engine.forms().cloned());
            let (vocab, width) = (engine.config().vocab, engine.config().hidden);
            let (capacity, pooling) = (engine.capacity(), engine.pooling());
            let (adapters, memory) = (engine.adapters().to_vec(), Arc::clone(engine.memory()));
            let device_memory = engine.device_memory();
            let files = engine.files();
            let worker = Worker::start(engine, metrics, Arc::clone(&self.ending))?;
            let served = Served {
                card,
                defaults,
                worker,
                base: None,
                adapters: Arc::default(),
                tokenizer,
                vocab,
                capacity,
                width,
                pooling,
                files,
                forms,
                memory,
                device_memory,
            };
            Ok(Served { adapters: Arc::new(Adapters::new(&served, &adapters)), ..served })
        })
    }

    /// The model that a request names; one that names none means the first.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        self.models.find(name)
    }

    /// Counts a request of a client; refused when it has had its share of this minute.
    pub(crate) fn admit(&self, client: &Client) -> Result<(), ApiError> {
        self.rates.as_ref().map_or(Ok(()), |rates| rates.admit(client))
    }

    /// New requests are refused from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Ends what is still running, that of models which are unloaded too.
    pub(crate) fn cancel_all(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Whether they have been told to end.
    #[cfg(test)]
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Requests that are being answered.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// A request that is taken: it counts as open while the ticket is there, and so does its span.
    pub(crate) fn ticket(self: &Arc<Self>, trace: Option<Arc<Trace>>) -> Result<Ticket, ApiError> {
        // Counted before the look, so that whoever drains either sees it or has been seen.
        self.open.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket { server: Arc::clone(self), _trace: trace };
        if self.is_draining() { Err(ApiError::ending()) } else { Ok(ticket) }
    }
}

/// Counts a request while it is being answered.
pub(crate) struct Ticket {
    server: Arc<Server>,
    _trace: Option<Arc<Trace>>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All routes.
pub fn router(server: Arc<Server>) -> Router {
    let (router, document) = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(openai::chat::create))
        .routes(routes!(openai::completions::create))
        .routes(routes!(openai::responses::create))
        .routes(routes!(openai::embeddings::create))
        .routes(routes!(ws::open))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::one))
        .routes(routes!(models::list))
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(anthropic::create))
        .routes(routes!(anthropic::count_tokens))
        .routes(routes!(native::completion::create))
        .routes(routes!(native::tokenize))
        .routes(routes!(native::detokenize))
        .routes(routes!(native::apply_template))
        .routes(routes!(lora::list, lora::set))
        .routes(routes!(lora::load))
        .routes(routes!(lora::unload))
        .routes(routes!(ollama::generate::create))
        .routes(routes!(ollama::chat::create))
        .routes(routes!(ollama::embed::create))
        .routes(routes!(ollama::models::tags))
        .routes(routes!(ollama::models::show))
        .routes(routes!(ollama::models::version))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::live))
        .routes(routes!(health::counted))
        .split_for_parts();
    let router = if server.options.page { router.merge(page::router()) } else { router };
    router
        .merge(openapi::pages(document))
        .fallback(health::no_route)
        .method_not_allowed_fallback(health::no_method)
        .layer(DefaultBodyLimit::max(server.options.body_limit))
        .layer(from_fn_with_state(Arc::clone(&server), frame))
        .with_state(server)
}
