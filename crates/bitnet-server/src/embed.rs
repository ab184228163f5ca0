//! Vectors of texts, for every interface that asks for them.

use crate::answer::{Answers, Usage};
use crate::frame::Client;
use crate::state::Served;
use crate::{ApiError, Server};
use bitnet_inference::EmbedOptions;
use bitnet_inference::engine::{News, Request};
use std::sync::Arc;
use std::time::Instant;

/// Vectors of length one, `[dimensions]` each, in the order of their prompts.
pub(crate) struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    pub usage: Usage,
}

/// Computes them. `dimensions` keeps the first ones, which are then a vector of length one again.
pub(crate) async fn embed(
    server: &Arc<Server>,
    model: &Served,
    client: &Client,
    prompts: Vec<Vec<u32>>,
    dimensions: Option<usize>,
) -> Result<Embedded, ApiError> {
    let width = model.width;
    if dimensions.is_some_and(|d| !(1..=width).contains(&d)) {
        return Err(ApiError::field("dimensions", format!("dimensions is within 1 and {width}")));
    }
    let options = EmbedOptions { pooling: model.pooling.unwrap_or_default(), normalize: true };
    let request = |prompt| Request {
        prompt,
        embedding: Some(options),
        client: Arc::clone(&client.name),
        deadline: server.options.timeout.map(|t| Instant::now() + t),
        adapters: model.defaults.adapters.clone(),
        ..Request::default()
    };
    let mut vectors = vec![Vec::new(); prompts.len()];
    let mut usage = Usage::default();
    let requests = prompts.into_iter().map(request).collect();
    let mut answers = Answers::submit(server, model, requests, client).await?;
    while let Some(event) = answers.next().await {
        match event.news {
            News::Embedding(vector) => vectors[event.choice] = vector,
            News::Finished { timings, .. } => usage.add(&timings, true),
            News::Failed(e) => return Err(ApiError::from(&*e)),
            News::Prompt(_) | News::Piece { .. } => {}
        }
    }
    // A request whose time was over has none.
    if answers.is_cut_off() || vectors.iter().any(Vec::is_empty) {
        return Err(ApiError::stopped());
    }
    if let Some(dimensions) = dimensions {
        vectors.iter_mut().for_each(|vector| shorten(vector, dimensions));
    }
    Ok(Embedded { vectors, usage })
}

fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    vector.truncate(dimensions);
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
