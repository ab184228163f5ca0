//! Fetches a model of the hub and continues a text:
//! `cargo run --release --features hub --example hub -- microsoft/bitnet-b1.58-2B-4T-gguf "Once upon a time"`.

use bitnet_hub::{Hub, Settings};
use bitnet_inference::{GenerateOptions, OpenOptions, Progress, load_model_from_hub};
use std::error::Error;

fn show(progress: Progress) {
    if let Progress::Layers(done, all) = progress {
        eprintln!("layer {done} of {all}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(text)) = (args.next(), args.next()) else {
        return Err("the name of a model and a text are needed".into());
    };
    // HF_HOME, HF_TOKEN and their like; the models' usual place where they say nothing.
    let hub = Hub::new(Settings::from_env(None)?);
    let mut loaded = load_model_from_hub(&hub, &name.parse()?, OpenOptions::default(), show).await?;
    eprintln!("{}", loaded.cached.path.display());
    let prompt = loaded.model.encode(&text)?;
    for piece in loaded.model.generate(&prompt, GenerateOptions::default())? {
        print!("{}", piece?.text);
    }
    println!();
    Ok(())
}
