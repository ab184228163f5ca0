//! Answers every line of a file: `cargo run --release --example batch -- model.gguf prompts.txt`.

use bitnet_inference::{GenerateOptions, LoadOptions, Model, OpenOptions};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(file)) = (args.next(), args.next()) else {
        return Err("a model and a file are needed".into());
    };
    // Room for sixteen answers at once.
    let load = LoadOptions { context: Some(512), cache: Some(16 * 512), ..LoadOptions::default() };
    let open = OpenOptions { load, ..OpenOptions::default() };
    let mut model = Model::open(path.as_ref(), &open, &mut |_, _| {})?;
    let texts = std::fs::read_to_string(file)?;
    let prompts: Vec<Vec<u32>> = texts.lines().map(|line| model.encode(line)).collect::<Result<_, _>>()?;
    let options = GenerateOptions { max_tokens: Some(64), ..GenerateOptions::default() };
    for (line, answer) in texts.lines().zip(model.batch(&prompts, &options)) {
        match answer {
            Ok(answer) => println!("{line}{}\n", answer.text),
            Err(e) => eprintln!("{line}: {e}"),
        }
    }
    Ok(())
}
