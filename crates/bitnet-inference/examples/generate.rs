//! Continues a text: `cargo run --release --example generate -- model.gguf "The capital of France is"`.

use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{GenerateOptions, Model, OpenOptions};
use std::error::Error;
use std::io::Write;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(text)) = (args.next(), args.next()) else {
        return Err("a model and a text are needed".into());
    };
    let mut model = Model::open(path.as_ref(), &OpenOptions::default(), &mut |_, _| {})?;
    let prompt = model.encode(&text)?;
    let options = GenerateOptions {
        sampling: SamplerOptions { temperature: 0.7, seed: Some(1), ..SamplerOptions::default() },
        max_tokens: Some(64),
        ..GenerateOptions::default()
    };
    let mut generation = model.generate(&prompt, options)?;
    for piece in generation.by_ref() {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    let t = generation.timings();
    println!("\n{} tokens, {:.1} a second", t.tokens, t.tokens_per_second());
    Ok(())
}
