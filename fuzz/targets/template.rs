//! Any text as a chat template, rendered over a short conversation.
#![no_main]

use bitnet_tokenizer::{ChatTemplate, SpecialTokens};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, json};

fuzz_target!(|source: &str| {
    let tokens = SpecialTokens { bos: Some("<s>".into()), ..SpecialTokens::default() };
    let Ok(template) = ChatTemplate::new(source, tokens) else { return };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "tool_calls": [{"name": "f", "arguments": {"x": 1.5}}]},
        {"role": "assistant", "content": null},
    ]);
    let _ = template.render(&messages, true, &Map::new());
});
