//! What every route shares.

use crate::frame::frame;
use crate::metrics::Metrics;
use crate::options::{ModelCard, ServeOptions};
use crate::worker::Worker;
use crate::{ApiError, anthropic, health, lora, native, openai};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use bitnet_inference::Forms;
use bitnet_inference::engine::Engine;
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// A server, with its model once that is loaded.
pub struct Server {
    pub(crate) options: ServeOptions,
    pub(crate) metrics: Arc<Metrics>,
    model: OnceLock<Served>,
    draining: AtomicBool,
    open: AtomicUsize,
}

/// A loaded model.
pub(crate) struct Served {
    pub card: ModelCard,
    pub worker: Worker,
    tokenizer: Option<Arc<Tokenizer>>,
    pub vocab: usize,
    forms: Option<Arc<Forms>>,
}

impl Served {
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            ApiError::new(StatusCode::NOT_IMPLEMENTED, "the model has no tokenizer; give token ids")
        })
    }

    pub fn forms(&self) -> Result<Arc<Forms>, ApiError> {
        self.tokenizer()?;
        Ok(Arc::clone(self.forms.as_ref().expect("a tokenizer has its compiler of forms")))
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
    pub fn new(options: ServeOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            metrics: Arc::new(Metrics::new()),
            model: OnceLock::new(),
            draining: AtomicBool::new(false),
            open: AtomicUsize::new(0),
        })
    }

    /// Begins to serve a model.
    ///
    /// # Errors
    /// The operating system would not start a thread.
    pub fn load(&self, engine: Engine, card: ModelCard) -> std::io::Result<()> {
        let (tokenizer, vocab) = (engine.tokenizer().cloned(), engine.config().vocab);
        let forms = engine.forms().cloned();
        let worker = Worker::start(engine, Arc::clone(&self.metrics))?;
        // A second model is not taken; nobody offers one.
        let _ = self.model.set(Served { card, worker, tokenizer, vocab, forms });
        Ok(())
    }

    pub(crate) fn model(&self) -> Result<&Served, ApiError> {
        let loading = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "loading model");
        self.model.get().ok_or_else(|| loading.with_code("loading"))
    }

    /// The model, if it is the one that a request names; a request that names none means it.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<&Served, ApiError> {
        let model = self.model()?;
        match name.filter(|name| !name.is_empty() && *name != model.card.id) {
            None => Ok(model),
            Some(name) => {
                let message = format!("there is no model {name:?}; {:?} is served", model.card.id);
                let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
                Err(ApiError { param: Some("model".to_owned()), ..error })
            }
        }
    }

    /// New requests are refused from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Ends what is still running.
    pub(crate) fn cancel_all(&self) {
        if let Some(model) = self.model.get() {
            model.worker.cancel_all();
        }
    }

    /// Requests that are being answered.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// A request that is taken: it counts as open while the ticket is there.
    pub(crate) fn ticket(self: &Arc<Self>) -> Result<Ticket, ApiError> {
        // Counted before the look, so that whoever drains either sees it or has been seen.
        self.open.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket(Arc::clone(self));
        if self.is_draining() { Err(ApiError::ending()) } else { Ok(ticket) }
    }
}

/// Counts a request while it is being answered.
pub(crate) struct Ticket(Arc<Server>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{id}", get(openai::models::one))
        .route("/tokenize", post(native::tokenize))
        .route("/detokenize", post(native::detokenize))
        .route("/apply-template", post(native::apply_template))
        .route("/lora-adapters", get(lora::list).post(lora::set))
        .route("/health", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/healthz", get(health::live))
        .route("/metrics", get(health::metrics))
        .fallback(health::no_route)
        .method_not_allowed_fallback(health::no_method)
        .layer(DefaultBodyLimit::max(server.options.body_limit))
        .layer(from_fn_with_state(Arc::clone(&server), frame))
        .with_state(server)
}
