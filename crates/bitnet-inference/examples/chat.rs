//! A conversation: `cargo run --release --example chat -- model.gguf`. What was said before lies in the cache.

use bitnet_inference::{GenerateOptions, Model, OpenOptions};
use serde_json::{Map, Value, json};
use std::error::Error;
use std::io::Write;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("a model is needed")?;
    let mut model = Model::open(path.as_ref(), &OpenOptions::default(), &mut |_, _| {})?;
    let tokenizer = model.tokenizer().cloned().ok_or("the model has no tokenizer")?;
    let template = tokenizer.template().map_err(ToString::to_string)?.ok_or("the model has no template")?;
    let mut messages: Vec<Value> = Vec::new();
    for line in std::io::stdin().lines() {
        messages.push(json!({"role": "user", "content": line?}));
        let text = template.render(&Value::Array(messages.clone()), true, &Map::new())?;
        let prompt = tokenizer.encode_chat(&text)?;
        let mut answer = String::new();
        for piece in model.generate(&prompt, GenerateOptions::default())? {
            let piece = piece?;
            print!("{}", piece.text);
            std::io::stdout().flush()?;
            answer += &piece.text;
        }
        println!();
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    Ok(())
}
