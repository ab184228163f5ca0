//! Two answers at once, as streams: `cargo run --release --example stream -- model.gguf`. Any executor would do.

use bitnet_inference::engine::EngineOptions;
use bitnet_inference::{GenerateOptions, LoadOptions, Model, OpenOptions, SharedModel};
use futures_util::StreamExt;
use std::error::Error;

async fn say(model: &SharedModel, text: &str) -> Result<(), Box<dyn Error>> {
    let options = GenerateOptions { max_tokens: Some(32), ..GenerateOptions::default() };
    let mut stream = model.generate_stream(&model.encode(text)?, options)?;
    while let Some(piece) = stream.next().await {
        println!("{text} | {:?}", piece?.text);
    }
    println!("{text} ended: {:?}", stream.finish_reason());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("a model is needed")?;
    // Room for two contexts.
    let load = LoadOptions { context: Some(1024), cache: Some(2048), ..LoadOptions::default() };
    let open = OpenOptions { load, ..OpenOptions::default() };
    let model = Model::open(path.as_ref(), &open, &mut |_, _| {})?.share(EngineOptions::default())?;
    let (one, other) = tokio::join!(say(&model, "One, two,"), say(&model, "Once upon a time"));
    one.and(other)
}
