//! Writes the seeds of every target into `corpus/`: small files that are whole, for the fuzzers to damage.

use bitnet_formats::gguf;
use bitnet_inference::{GenerateOptions, LoadOptions, Model, OpenOptions};
use bitnet_testkit::files::safetensors;
use bitnet_testkit::{adapter, tiny};
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

/// A dictionary with the embedding and the optimizer's state.
const PICKLE: &[u8] = b"\x80\x02}(X\x19\0\0\0model.embed_tokens.weightctorch._utils\n_rebuild_tensor_v2\nq\0((X\x07\0\0\0storage\
ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQK\0(K\x04K\x04t(K\x04K\x01t\x89ccollections\nOrderedDict\n)RtR\
X\x05\0\0\0state}q\x01(X\x01\0\0\0ah\0((X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\x001X\x03\0\0\0cpuK\0tQK\0(K\0t(K\x01t\
\x89NtR]G@\x08\0\0\0\0\0\0a\x85uu.";

/// A session of the small model with an answer of a few tokens.
fn session() -> Vec<u8> {
    let checkpoint = gguf::read(Path::new("seed"), tiny::gguf().bytes().into()).expect("it is whole");
    let load = LoadOptions { cache: Some(256), ..LoadOptions::default() };
    let options = OpenOptions { load, ..OpenOptions::default() };
    let mut model = Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}).expect("it is whole");
    let options = GenerateOptions { max_tokens: Some(4), ..GenerateOptions::default() };
    let mut generation = model.generate(&[0, 3, 4], options).expect("it is a prompt");
    generation.by_ref().for_each(drop);
    let ids = [&[0, 3, 4], generation.tokens()].concat();
    drop(generation);
    let path = std::env::temp_dir().join("bitnet-fuzz-seed");
    model.save_session(&path, &ids).expect("the disk has room");
    fs::read(&path).expect("it was written")
}

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
    for which in 0..8u8 {
        seed("packings", &format!("{which}"), &[&[which, 4, 0, 1], &[0x55; 300][..]].concat())?;
    }
    seed("torch", "pickle", PICKLE)?;
    seed(
        "torch",
        "older",
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02}.\x80\x02].",
    )?;
    // Version; a graph with one matrix of two by two f32.
    let tensor = [&b"\x08\x02\x08\x02\x10\x01\x42\x0emodel.x.weight\x4a\x10"[..], &[0; 16]].concat();
    let graph = [&[0x2a, tensor.len() as u8], &tensor[..]].concat();
    seed("onnx", "matrix", &[&[8, 8, 0x3a, graph.len() as u8], &graph[..]].concat())?;
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
    let folder = corpus.join("adapter");
    fs::create_dir_all(&folder)?;
    adapter::write(&folder, &adapter::config(2), &tiny::modules(), 2, 1);
    let file = |name: &str| fs::read(folder.join(name));
    let (config, tensors) = (file("adapter_config.json")?, file("adapter_model.safetensors")?);
    seed("adapter", "lora", &[&config[..], &[0], &tensors].concat())?;
    fs::remove_file(folder.join("adapter_config.json"))?;
    fs::remove_file(folder.join("adapter_model.safetensors"))?;
    let session = session();
    seed("session", "whole", &[&[0], &session[..]].concat())?;
    // Without the head, but for two bytes of the header's length, and without the checksum.
    let sealed = [&[1], &session[12..14], &session[20..session.len() - 32]].concat();
    seed("session", "sealed", &sealed)?;
    for (i, template) in TEMPLATES.iter().enumerate() {
        seed("template", &i.to_string(), template.as_bytes())?;
    }
    Ok(())
}
