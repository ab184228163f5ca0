//! Writes the seeds of every target into `corpus/`: small files that are whole, for the fuzzers to damage.

use bitnet_testkit::files::safetensors;
use bitnet_testkit::tiny;
use std::fs;
use std::io::Result;
use std::path::Path;

const TEMPLATES: [&str; 4] = [
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | capitalize + \
     ': ' + message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}",
    "{% generation %}{{ bos_token }}{% endgeneration %}{% if messages[0].role == 'x' %}{{ raise_exception('no') }}{% endif %}",
    "{%- macro f(x, y=1) -%}{{ x | tojson(indent=2) }}{%- endmacro -%}{% set ns = namespace(n=0) %}{{ f(messages) }}",
    "{{ strftime_now('%d %b %Y') }}{{ messages[1:] | map(attribute='role') | join(', ') }}{{ 'a'.strip().split(',')[0] }}",
];

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seed = |target: &str, name: &str, data: &[u8]| -> Result<()> {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), data)
    };
    let tensors = safetensors(&tiny::tensors());
    seed("safetensors", "tiny", &tensors)?;
    seed("safetensors", "empty", &safetensors(&[]))?;
    let gguf = tiny::gguf().bytes();
    seed("gguf", "tiny", &gguf)?;
    seed("model", "gguf", &gguf)?;
    let config = tiny::config().to_string();
    seed("model", "huggingface", &[config.as_bytes(), &[0], &tensors].concat())?;
    for which in 0..7u8 {
        seed("packings", &format!("{which}"), &[&[which, 4, 0, 1], &[0x55; 300][..]].concat())?;
    }
    let text = b"the cat. \xce\xb1 <s>hello</s>  a\n\xf0\x9f\x9a\x80";
    let vocabulary = |kind: u8, data: &[u8]| {
        let mut tail = text.to_vec();
        tail.resize(32, b' ');
        [&[kind], data, &tail].concat()
    };
    let unigram = serde_json::json!({"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.5]]}, "pre_tokenizer": {"type": "Metaspace",
        "replacement": "▁", "prepend_scheme": "always", "split": true}, "normalizer": {"type": "NFKC"}});
    let words = serde_json::json!({"model": {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0, "##b": 9},
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}, "pre_tokenizer": {"type": "Split",
        "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}});
    for (name, data) in [
        ("bpe", vocabulary(0, tiny::tokenizer().to_string().as_bytes())),
        ("unigram", vocabulary(0, unigram.to_string().as_bytes())),
        ("wordpiece", vocabulary(0, words.to_string().as_bytes())),
        ("sentencepiece-bpe", vocabulary(1, &tiny::sentencepiece(2))),
        ("sentencepiece-unigram", vocabulary(1, &tiny::sentencepiece(1))),
        ("gguf", vocabulary(2, &gguf)),
    ] {
        seed("tokenizer", name, &data)?;
    }
    for (i, template) in TEMPLATES.iter().enumerate() {
        seed("template", &i.to_string(), template.as_bytes())?;
    }
    Ok(())
}
