//! A vocabulary of any kind, then a text through it and back. The first byte says which kind, the last 32 bytes are the text.
#![no_main]

use bitnet_formats::gguf;
use bitnet_tokenizer::{DecodeStream, Tokenizer};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;

const TEXT: usize = 32;

fn open(kind: u8, data: &[u8]) -> Option<Tokenizer> {
    match kind % 3 {
        0 => Tokenizer::from_json(data).ok(),
        1 => Tokenizer::from_sentencepiece(data).ok(),
        _ => bitnet_inference::tokenizer(&gguf::read(Path::new("fuzz"), data.to_vec().into()).ok()?).ok()?,
    }
}

fuzz_target!(
    init: {
        // The panics of the tokenizer library are caught and become errors; the fuzzer's own hook would end the run.
        std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    },
    |data: &[u8]| {
        let Some((kind, data)) = data.split_first() else { return };
        let (data, text) = data.split_at(data.len().saturating_sub(TEXT));
        let Some(tokenizer) = open(*kind, data).map(Arc::new) else { return };
        let text = String::from_utf8_lossy(text);
        let _ = tokenizer.end_tokens();
        for special in [true, false] {
            let Ok(ids) = tokenizer.encode(&text, special) else { continue };
            assert!(ids.len() < 1 << 20, "{} ids of {} bytes", ids.len(), text.len());
            let Ok(whole) = tokenizer.decode(&ids, special) else { continue };
            assert!(whole.len() < 1 << 24);
            let mut stream = DecodeStream::new(Arc::clone(&tokenizer), special);
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
        let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], false);
        if let Ok(Some(template)) = tokenizer.template() {
            let _ = template.source();
        }
    }
);
