//! Prompts: as text or as token ids, one or many.

use crate::ApiError;
use crate::aside::aside;
use crate::state::Served;
use serde_json::Value;
use std::sync::Arc;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A text, a list of texts, ids, or a list of lists of ids.
pub(crate) struct Prompts(pub Vec<Prompt>);

/// A prompt, as text or as ids.
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

fn ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn parse(value: Value) -> Option<Vec<Prompt>> {
    match value {
        Value::String(text) => Some(vec![Prompt::Text(text)]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            Some(vec![Prompt::Ids(ids(&list)?)])
        }
        Value::Array(list) if !list.is_empty() => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Some(Prompt::Text(text)),
                Value::Array(list) => Some(Prompt::Ids(ids(&list)?)),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

impl Prompts {
    /// Reads the field of a request that holds them.
    pub fn read(value: Value, field: &str) -> Result<Self, ApiError> {
        let wrong = || ApiError::field(field, format!("{field} is a text, token ids, or a list of either"));
        parse(value).map(Self).ok_or_else(wrong)
    }
}

impl PartialSchema for Prompts {
    fn schema() -> RefOr<Schema> {
        let list = |items: RefOr<Schema>| ArrayBuilder::new().items(items).min_items(Some(1)).build();
        let ids = list(u32::schema());
        AnyOfBuilder::new()
            .item(String::schema())
            .item(list(String::schema()))
            .item(ids.clone())
            .item(list(Schema::Array(ids).into()))
            .into()
    }
}

impl ToSchema for Prompts {}

/// Ids of prompts; an empty text begins with what begins every text.
pub(crate) async fn encode(model: &Arc<Served>, prompts: Prompts) -> Result<Vec<Vec<u32>>, ApiError> {
    let model = Arc::clone(model);
    let one = move |prompt: Prompt| match prompt {
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Text(text) => {
            let tokenizer = model.tokenizer()?;
            let ids = tokenizer.encode(&text, true).map_err(|e| ApiError::internal(e.to_string()))?;
            Ok(if ids.is_empty() { tokenizer.bos().into_iter().collect() } else { ids })
        }
    };
    aside(move || prompts.0.into_iter().map(one).collect()).await
}
