//! What requests of OpenAI's and llama.cpp's routes have in common, and what the engine makes of it.

use crate::frame::Client;
use crate::state::Served;
use crate::{ApiError, Server};
use bitnet_inference::engine::{AdapterUse, Request};
use bitnet_inference::sample::Mirostat;
use bitnet_inference::{Form, gbnf};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T: ToSchema> {
    One(T),
    Many(Vec<T>),
}

impl<T: ToSchema> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// What OpenAI's and llama.cpp's routes have in common.
#[derive(Deserialize, Default, ToSchema)]
pub(crate) struct Fields {
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<usize>,
    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub n_predict: Option<i64>,
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub repeat_penalty: Option<f64>,
    pub repeat_last_n: Option<i64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub logit_bias: Option<Value>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany<String>>,
    pub ignore_eos: Option<bool>,
    pub top_n_sigma: Option<f64>,
    pub xtc_probability: Option<f64>,
    pub xtc_threshold: Option<f64>,
    pub dynatemp_range: Option<f64>,
    pub dynatemp_exponent: Option<f64>,
    pub mirostat: Option<u8>,
    pub mirostat_tau: Option<f64>,
    pub mirostat_eta: Option<f64>,
    pub dry_multiplier: Option<f64>,
    pub dry_base: Option<f64>,
    pub dry_allowed_length: Option<usize>,
    pub dry_penalty_last_n: Option<i64>,
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Texts that never appear in the answer.
    pub banned_strings: Option<Vec<String>>,
    pub response_format: Option<ResponseFormat>,
    pub json_schema: Option<Value>,
    pub grammar: Option<String>,
    pub cache_prompt: Option<bool>,
    pub priority: Option<i32>,
    pub lora: Option<Vec<Lora>>,
}

/// llama.cpp's word for an adapter of a request.
#[derive(Clone, Copy, Deserialize, ToSchema)]
pub(crate) struct Lora {
    id: u32,
    scale: f32,
}

impl From<Lora> for AdapterUse {
    fn from(Lora { id, scale }: Lora) -> Self {
        Self { id, scale }
    }
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// OpenAI's word for the form of an answer.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
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

#[derive(Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    pub schema: Value,
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
    pub async fn request(
        mut self,
        server: &Server,
        model: &Served,
        client: &Client,
    ) -> Result<Request, ApiError> {
        let form = match self.form()? {
            Some(form) => Some(model.compile(form).await?),
            None => None,
        };
        let defaults = model.defaults.clone();
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
            banned: self.banned_strings.unwrap_or(defaults.banned),
            dry_breakers: self.dry_sequence_breakers.unwrap_or(defaults.dry_breakers),
            choices: self.n.unwrap_or(1),
            cache_prompt: self.cache_prompt.unwrap_or(true),
            adapters: self
                .lora
                .map(|all| all.into_iter().map(AdapterUse::from).collect())
                .or(defaults.adapters),
            priority: self.priority.unwrap_or(0),
            client: Arc::clone(&client.name),
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
