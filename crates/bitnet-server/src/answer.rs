//! From a request's fields to the engine's, and from its events to what responses are made of.

use crate::frame::Client;
use crate::state::{Served, Ticket};
use crate::worker::Subscription;
use crate::{ApiError, Server};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request as HttpRequest};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{AdapterUse, Event, Logprob, News, Request};
use bitnet_inference::sample::Mirostat;
use bitnet_inference::{FinishReason, Form, Timings, gbnf};
use bitnet_tokenizer::Tokenizer;
use futures_util::stream::unfold;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

/// Silence after which a comment shows that the stream is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A JSON body whose faults are told in the API's form.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await.map_err(|e| {
            let status = e.status();
            ApiError::new(status, e.body_text())
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string())
            }
            _ => ApiError::bad(format!("the body is not JSON: {e}")),
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// What OpenAI's and llama.cpp's routes have in common.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Fields {
    pub model: Option<String>,
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub n: Option<usize>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n_predict: Option<i64>,
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    repeat_penalty: Option<f64>,
    repeat_last_n: Option<i64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logit_bias: Option<Value>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    ignore_eos: Option<bool>,
    top_n_sigma: Option<f64>,
    xtc_probability: Option<f64>,
    xtc_threshold: Option<f64>,
    dynatemp_range: Option<f64>,
    dynatemp_exponent: Option<f64>,
    mirostat: Option<u8>,
    mirostat_tau: Option<f64>,
    mirostat_eta: Option<f64>,
    dry_multiplier: Option<f64>,
    dry_base: Option<f64>,
    dry_allowed_length: Option<usize>,
    dry_penalty_last_n: Option<i64>,
    dry_sequence_breakers: Option<Vec<String>>,
    response_format: Option<ResponseFormat>,
    json_schema: Option<Value>,
    grammar: Option<String>,
    cache_prompt: Option<bool>,
    priority: Option<i32>,
    lora: Option<Vec<Lora>>,
}

/// llama.cpp's word for an adapter of a request.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Lora {
    id: u32,
    scale: f32,
}

impl From<Lora> for AdapterUse {
    fn from(Lora { id, scale }: Lora) -> Self {
        Self { id, scale }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

/// OpenAI's word for the form of an answer.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject {
        /// llama.cpp takes one here too.
        #[serde(default)]
        schema: Option<Value>,
    },
    JsonSchema {
        json_schema: NamedSchema,
    },
}

#[derive(Deserialize)]
struct NamedSchema {
    schema: Value,
}

impl Fields {
    /// What the answer has to look like.
    fn form(&mut self) -> Result<Option<Form>, ApiError> {
        let asked = [
            self.response_format.take().and_then(|format| match format {
                ResponseFormat::Text => None,
                ResponseFormat::JsonObject { schema } => {
                    Some(Form::JsonSchema(schema.unwrap_or_else(|| json!({"type": "object"}))))
                }
                ResponseFormat::JsonSchema { json_schema } => Some(Form::JsonSchema(json_schema.schema)),
            }),
            self.json_schema.take().map(Form::JsonSchema),
            self.grammar.take().filter(|g| !g.trim().is_empty()).map(grammar).transpose()?,
        ];
        let mut asked = asked.into_iter().flatten();
        let form = asked.next();
        match asked.next() {
            None => Ok(form),
            Some(_) => {
                let message = "only one of response_format, json_schema and grammar can be followed";
                Err(ApiError::field("grammar", message))
            }
        }
    }

    pub fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|o| o.include_usage)
    }

    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// The engine's request, but for its prompt.
    pub fn request(mut self, server: &Server, model: &Served, client: &Client) -> Result<Request, ApiError> {
        let form = self.form()?;
        let form = form.map(|form| model.forms()?.compile(&form).map_err(ApiError::from)).transpose()?;
        let defaults = server.options.defaults.clone();
        let count = |v: i64| usize::try_from(v).unwrap_or(usize::MAX);
        let mut sampling = defaults.sampling;
        let set = |to: &mut f64, value: Option<f64>| *to = value.unwrap_or(*to);
        set(&mut sampling.temperature, self.temperature.map(|t| t.max(0.0)));
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.typical_p, self.typical_p);
        set(&mut sampling.repeat_penalty, self.repeat_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.top_n_sigma, self.top_n_sigma.map(|n| n.max(0.0)));
        set(&mut sampling.xtc_probability, self.xtc_probability);
        set(&mut sampling.xtc_threshold, self.xtc_threshold);
        set(&mut sampling.dynatemp_range, self.dynatemp_range);
        set(&mut sampling.dynatemp_exponent, self.dynatemp_exponent);
        set(&mut sampling.mirostat_tau, self.mirostat_tau);
        set(&mut sampling.mirostat_eta, self.mirostat_eta);
        set(&mut sampling.dry_multiplier, self.dry_multiplier);
        set(&mut sampling.dry_base, self.dry_base);
        sampling.mirostat = match self.mirostat {
            None => sampling.mirostat,
            Some(0) => None,
            Some(1) => Some(Mirostat::One),
            Some(2) => Some(Mirostat::Two),
            Some(_) => return Err(ApiError::field("mirostat", "mirostat is 0, 1 or 2")),
        };
        sampling.dry_allowed_length = self.dry_allowed_length.unwrap_or(sampling.dry_allowed_length);
        sampling.dry_last_n = self.dry_penalty_last_n.map_or(sampling.dry_last_n, count);
        // As in llama.cpp, what is below 0 keeps all.
        sampling.top_k = self.top_k.map_or(sampling.top_k, |k| usize::try_from(k).unwrap_or(0));
        sampling.repeat_last_n = self.repeat_last_n.map_or(sampling.repeat_last_n, count);
        sampling.seed = self.seed.and_then(|s| u64::try_from(s).ok()).or(sampling.seed);
        if let Some(bias) = &self.logit_bias {
            sampling.logit_bias = biases(bias)?;
        }
        let max = self.max_completion_tokens.or(self.max_tokens).or(self.n_predict);
        Ok(Request {
            sampling,
            max_tokens: max.map_or(defaults.max_tokens, |max| usize::try_from(max).ok()),
            stop: self.stop.map_or(defaults.stop, OneOrMany::into_vec),
            ignore_eos: self.ignore_eos.unwrap_or(defaults.ignore_eos),
            form,
            dry_breakers: self.dry_sequence_breakers.unwrap_or(defaults.dry_breakers),
            choices: self.n.unwrap_or(1),
            cache_prompt: self.cache_prompt.unwrap_or(true),
            adapters: self
                .lora
                .map(|all| all.into_iter().map(AdapterUse::from).collect())
                .or(defaults.adapters),
            priority: self.priority.unwrap_or(0),
            client: Arc::clone(&client.0),
            deadline: server.options.timeout.map(|t| Instant::now() + t),
            ..defaults
        })
    }
}

/// llama.cpp's grammars say `::=`; others are llguidance's Lark.
fn grammar(text: String) -> Result<Form, ApiError> {
    if !text.contains("::=") {
        return Ok(Form::Lark(text));
    }
    gbnf::to_lark(&text).map(Form::Lark).map_err(|why| ApiError::field("grammar", why))
}

/// `{"id": bias}` or `[[id, bias], ...]`; `false` bans.
fn biases(value: &Value) -> Result<Vec<(u32, f64)>, ApiError> {
    let wrong =
        || ApiError::field("logit_bias", "logit_bias is an object of ids and numbers, or a list of pairs");
    let number = |v: &Value| match v {
        Value::Bool(false) => Some(f64::NEG_INFINITY),
        v => v.as_f64(),
    };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let pairs = match value {
        Value::Null => Some(Vec::new()),
        Value::Object(map) => map.iter().map(|(k, v)| Some((k.parse().ok()?, number(v)?))).collect(),
        Value::Array(list) => {
            list.iter().map(|pair| Some((id(pair.get(0)?)?, number(pair.get(1)?)?))).collect()
        }
        _ => None,
    };
    pairs.ok_or_else(wrong)
}

/// Answers on their way: to one prompt or several.
pub(crate) struct Answers {
    /// One for each prompt, with the number of its first choice.
    subscriptions: Vec<(Subscription, usize)>,
    _ticket: Ticket,
}

impl Answers {
    pub async fn submit(
        server: &Arc<Server>,
        model: &Served,
        requests: Vec<Request>,
    ) -> Result<Self, ApiError> {
        let ticket = server.ticket()?;
        let wanted = requests.iter().map(|r| r.choices).fold(0, usize::saturating_add);
        let most = server.options.answers_limit;
        if wanted > most {
            return Err(ApiError::bad(format!("{wanted} answers were asked for; {most} can be had at once")));
        }
        let mut first = 0;
        let mut answers = Self { subscriptions: Vec::new(), _ticket: ticket };
        for request in requests {
            let choices = request.choices;
            let subscription = model.worker.submit(request).await?;
            answers.subscriptions.push((subscription, first));
            first += choices;
        }
        Ok(answers)
    }

    /// The next event of any of them, its choice counted through all prompts; `None` when all have ended.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| {
            let mut open = false;
            for (subscription, first) in &mut self.subscriptions {
                match subscription.poll(context) {
                    Poll::Ready(Some(event)) => {
                        return Poll::Ready(Some(Event { choice: *first + event.choice, ..event }));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Whether, behind the last event, some have not ended.
    fn is_cut_off(&self) -> bool {
        self.subscriptions.iter().any(|(subscription, _)| subscription.is_open())
    }

    /// Waits for all of them.
    pub async fn collect(mut self, choices: usize) -> Result<Vec<Answer>, ApiError> {
        let mut answers: Vec<Answer> = (0..choices).map(|_| Answer::default()).collect();
        while let Some(event) = self.next().await {
            answers[event.choice].take(event.news)?;
        }
        if self.is_cut_off() { Err(ApiError::stopped()) } else { Ok(answers) }
    }
}

/// A whole answer.
#[derive(Default)]
pub(crate) struct Answer {
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprob>,
    pub prompt: Vec<Logprob>,
    pub end: Option<(FinishReason, Timings)>,
    /// The stop string that ended it.
    pub stop: Option<String>,
}

impl Answer {
    pub fn take(&mut self, news: News) -> Result<(), ApiError> {
        match news {
            News::Prompt(all) => self.prompt.extend(all),
            // None of the routes asks for one.
            News::Embedding(_) => {}
            News::Piece { id, text, logprob } => {
                self.text += &text;
                self.ids.extend(id);
                self.logprobs.extend(logprob);
            }
            News::Finished { reason, stop, timings } => {
                (self.end, self.stop) = (Some((reason, timings)), stop)
            }
            News::Failed(e) => return Err(ApiError::from(&*e)),
        }
        Ok(())
    }

    pub fn reason(&self) -> Option<&'static str> {
        self.end.map(|(reason, _)| reason.name())
    }
}

/// Tokens of answers, summed up.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    prompt: usize,
    cached: usize,
    answer: usize,
}

impl Usage {
    /// Adds an answer; its prompt only with the first choice of one.
    pub fn add(&mut self, timings: &Timings, first: bool) {
        self.answer += timings.tokens;
        if first {
            self.prompt += timings.prompt_tokens + timings.cached_tokens;
            self.cached += timings.cached_tokens;
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// llama.cpp's `timings`.
pub(crate) fn timings(t: &Timings) -> Value {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    json!({
        "prompt_n": t.prompt_tokens,
        "prompt_ms": ms(t.prompt),
        "prompt_per_second": t.prompt_per_second(),
        "predicted_n": t.tokens,
        "predicted_ms": ms(t.generation),
        "predicted_per_second": t.tokens_per_second(),
        "cache_n": t.cached_tokens,
    })
}

/// The text of a token, and its bytes where it is whole characters.
pub(crate) fn token(tokenizer: &Tokenizer, id: u32) -> (String, Option<Vec<u8>>) {
    let text = tokenizer.decode(&[id], false).unwrap_or_default();
    let bytes = (!text.contains('\u{fffd}')).then(|| text.clone().into_bytes());
    (text, bytes)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Makes the chunks of a stream.
pub(crate) trait Chunks: Send + 'static {
    /// Those before any event.
    fn begin(&mut self) -> Vec<Value>;
    /// Those of an event.
    fn event(&mut self, event: Event) -> Result<Vec<Value>, ApiError>;
    /// Those behind the last one.
    fn end(&mut self) -> Vec<Value>;
    /// A chunk as it is sent.
    fn line(value: &Value) -> String {
        format!("data: {value}\n\n")
    }
    /// An error as a chunk.
    fn error(error: &ApiError) -> Value {
        error.body()
    }
    /// What is sent behind everything.
    const LAST: &'static str = "data: [DONE]\n\n";
}

/// A response of server-sent events: chunks, a comment in silence, `[DONE]`. Dropping it cancels the request.
pub(crate) fn stream<C: Chunks>(answers: Answers, mut chunks: C) -> Response {
    let lines: VecDeque<String> = chunks.begin().iter().map(C::line).collect();
    let state = (answers, chunks, lines, false);
    let body = unfold(state, |(mut answers, mut chunks, mut lines, mut done)| async move {
        loop {
            if !lines.is_empty() {
                let all: String = lines.drain(..).collect();
                return Some((Ok::<_, Infallible>(all), (answers, chunks, lines, done)));
            }
            if done {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE, answers.next()).await {
                Err(_) => lines.push_back(": keep-alive\n\n".to_owned()),
                Ok(Some(event)) => match chunks.event(event) {
                    Ok(values) => lines.extend(values.iter().map(C::line)),
                    Err(e) => {
                        lines.push_back(C::line(&C::error(&e)));
                        done = true;
                    }
                },
                Ok(None) if answers.is_cut_off() => {
                    lines.push_back(C::line(&C::error(&ApiError::stopped())));
                    done = true;
                }
                Ok(None) => {
                    lines.extend(chunks.end().iter().map(C::line));
                    lines.push_back(C::LAST.to_owned());
                    done = true;
                }
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}
