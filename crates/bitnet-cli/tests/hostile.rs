//! Damaged and hostile files: each gives one line that names the file, and the exit code for files.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::files::{Gguf, Key, Stored, huggingface, safetensors, with_header};
use bitnet_testkit::tensors::Noise;
use bitnet_testkit::tiny;
use common::{Folder, bitnet, output, refused, refused_with, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Loads a model and takes two steps with it.
fn load(path: &str) -> [&str; 7] {
    ["run", path, "--tokens", "1,5", "-n", "2", "--json"]
}

/// A model must be refused with exit code 3, its path, and all of `words`.
fn bad(path: &str, words: &[&str]) {
    refused(&load(path), 3, &[&[path], words].concat());
}

fn gguf(folder: &Folder, words: &[&str], damage: impl FnOnce(&mut Gguf)) {
    let mut file = tiny::gguf();
    damage(&mut file);
    bad(&folder.write("model.gguf", file.bytes()), words);
}

/// A Hugging Face directory after changes to its configuration and tensors.
fn directory(words: &[&str], damage: impl FnOnce(&mut Value, &mut Vec<Stored>)) {
    let (folder, mut config, mut tensors) = (Folder::new(), tiny::config(), tiny::tensors());
    damage(&mut config, &mut tensors);
    huggingface(folder.at("").as_path(), &config, &tensors, 1);
    bad(&folder.path(), words);
}

fn named<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

/// Where a name begins in a file.
fn find(file: &[u8], name: &str) -> usize {
    file.windows(name.len()).position(|w| w == name.as_bytes()).unwrap()
}

#[test]
fn whole_models_run() {
    let folder = Folder::with_model();
    output(&load(&folder.path()));
    output(&load(&folder.write("model.gguf", tiny::gguf().bytes())));
}

#[test]
fn a_gguf_file_may_be_cut_off_anywhere() {
    let (folder, file, whole) = (Folder::new(), tiny::gguf(), tiny::gguf().bytes());
    // The header's numbers, every name, the beginning and the end of every tensor, and anywhere.
    let mut lengths = BTreeSet::from([0, 1, 4, 8, 16, 24, 32, whole.len() - 1]);
    let mut end = whole.len();
    for (t, _) in file.tensors.iter().rev() {
        let at = find(&whole, &t.name);
        end -= t.bytes.len().next_multiple_of(32);
        lengths.extend([at, at + t.name.len(), at + t.name.len() + 4, end, end + t.bytes.len() - 1]);
    }
    for key in ["general.architecture", "tokenizer.ggml.tokens", "tokenizer.chat_template"] {
        lengths.extend([find(&whole, key), find(&whole, key) + key.len() + 4]);
    }
    let mut noise = Noise(3);
    lengths.extend((0..20).map(|_| noise.bits() as usize % whole.len()));
    for len in lengths {
        bad(&folder.write("model.gguf", &whole[..len]), &[]);
    }
}

#[test]
fn a_safetensors_file_may_be_cut_off_anywhere() {
    let (folder, whole) = (Folder::with_model(), safetensors(&tiny::tensors()));
    let mut end = whole.len();
    let mut lengths = BTreeSet::from([0, 1, 7, 8, 9]);
    for t in tiny::tensors().iter().rev() {
        end -= t.bytes.len();
        lengths.extend([end, end + t.bytes.len() - 1, find(&whole, &t.name)]);
    }
    let mut noise = Noise(4);
    lengths.extend((0..20).map(|_| noise.bits() as usize % whole.len()));
    for len in lengths {
        folder.write("model.safetensors", &whole[..len]);
        bad(&folder.path(), &["model.safetensors"]);
    }
}

#[test]
fn pytorch_and_onnx_files_may_be_cut_off_anywhere() {
    let (model, out) = (Folder::with_model(), Folder::new());
    for (target, name) in [("pt-f32", "pytorch_model.bin"), ("onnx", "model.onnx")] {
        let dir = text(&out.at(target));
        output(&["convert", &model.path(), &dir, "--to", target, "-q"]);
        output(&load(&dir));
        let file = out.at(target).join(name);
        let whole = std::fs::read(&file).unwrap();
        let mut noise = Noise(5);
        let mut lengths = BTreeSet::from([0, 1, 2, 3, 4, 8, 30, whole.len() - 22, whole.len() - 1]);
        lengths.extend(tiny::tensors().iter().map(|t| find(&whole, &t.name)));
        lengths.extend((0..20).map(|_| noise.bits() as usize % whole.len()));
        for len in lengths {
            std::fs::write(&file, &whole[..len]).unwrap();
            bad(&dir, &[name]);
        }
        // A bit that is another one makes another model or none.
        for _ in 0..30 {
            let mut bytes = whole.clone();
            bytes[noise.bits() as usize % 2000] ^= 1 << (noise.bits() % 8);
            std::fs::write(&file, bytes).unwrap();
            let ran = bitnet(&[&load(&dir)[..], &["-q"]].concat());
            assert!(matches!(ran.code, Some(0 | 3)) && ran.stderr.lines().count() <= 1, "{ran:?}");
        }
    }
}

#[test]
fn headers_that_lie_about_lengths_are_refused() {
    let (folder, whole) = (Folder::with_model(), tiny::gguf().bytes());
    let tokens = find(&whole, "tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".len();
    let norm = find(&whole, "output_norm.weight") + "output_norm.weight".len();
    let template = find(&whole, "tokenizer.chat_template") + "tokenizer.chat_template".len();
    // Tensors, keys, a key's name, an array, a string, a dimension and an offset.
    for at in [8, 16, 24, tokens + 8, template + 4, norm + 4, norm + 16] {
        for lie in [1 << 63, u64::MAX, 1 << 40, 1 << 30] {
            let mut file = whole.clone();
            file[at..at + 8].copy_from_slice(&u64::to_le_bytes(lie));
            bad(&folder.write("model.gguf", file), &[]);
        }
    }
    let whole = safetensors(&tiny::tensors());
    for lie in [1 << 63, u64::MAX, 1 << 40, 1 << 30, whole.len() as u64 - 7] {
        let file = [&u64::to_le_bytes(lie)[..], &whole[8..]].concat();
        folder.write("model.safetensors", file);
        bad(&folder.path(), &["model.safetensors"]);
    }
}

#[test]
fn tensors_may_not_overlap_or_leave_their_file() {
    let folder = Folder::with_model();
    for offset in [0, 32, 1 << 20, 1 << 62, u64::MAX - 31] {
        gguf(&folder, &["tensor"], |file| file.get("output_norm.weight").1 = Some(offset));
    }
    gguf(&folder, &["output_norm.weight", "aligned"], |file| {
        let data: usize = file.tensors.iter().map(|(t, _)| t.bytes.len().next_multiple_of(32)).sum();
        let (last, offset) = file.get("output_norm.weight");
        *offset = Some((data - last.bytes.len() + 4) as u64);
        last.bytes.extend([0; 4]);
    });
    for offsets in [[0, 128], [64, 192], [1 << 40, (1 << 40) + 128], [128, 0], [usize::MAX - 127, 0]] {
        let tensor = json!({"dtype": "F32", "shape": [32], "data_offsets": offsets});
        let first = json!({"dtype": "F32", "shape": [32], "data_offsets": [0, 128]});
        let header = json!({"model.norm.weight": tensor, "x": first}).to_string();
        folder.write("model.safetensors", with_header(&header, &[0; 256]));
        bad(&folder.path(), &["model.safetensors"]);
    }
}

#[test]
fn every_missing_tensor_is_named() {
    let folder = Folder::new();
    for (t, _) in tiny::gguf().tensors {
        gguf(&folder, &[&t.name], |file| file.remove(&t.name));
    }
    for t in tiny::tensors() {
        directory(&[&t.name], |_, tensors| tensors.retain(|other| other.name != t.name));
    }
}

#[test]
fn tensors_of_the_wrong_kind_are_named() {
    let folder = Folder::new();
    let down = "blk.0.ffn_down.weight";
    gguf(&folder, &[down, "[64, 32]", "[32, 64]"], |file| file.get(down).0.shape.reverse());
    gguf(&folder, &["token_embd.weight", "shape"], |file| {
        file.get("token_embd.weight").0.shape = vec![24 * 32]
    });
    gguf(&folder, &["output_norm.weight", "I32", "F32"], |file| {
        file.get("output_norm.weight").0.ttype.0 = 26
    });
    gguf(&folder, &["output_norm.weight"], |file| file.get("output_norm.weight").0.shape = vec![1 << 63, 2]);
    gguf(&folder, &["extra.weight", "bitnet-b1.58"], |file| {
        file.push("extra.weight", &[32], 0, vec![0; 128])
    });
    gguf(&folder, &["output_norm.weight", "twice"], |file| {
        file.push("output_norm.weight", &[32], 0, vec![0; 128]);
    });
    // Types that are known to somebody say to whom.
    for (id, words) in [
        (12, ["Q4_K", "llama.cpp"]),
        (38, ["TL1", "I2_S"]),
        (142, ["PQ2_0", "Hadamard"]),
        (9999, ["9999", "unknown"]),
    ] {
        gguf(&folder, &[&[down], &words[..]].concat(), |file| file.get(down).0.ttype.0 = id);
    }
    let q = "model.layers.0.self_attn.q_proj.weight";
    directory(&[q, "shape"], |_, tensors| named(tensors, q).shape.reverse());
    directory(&["model.norm.weight", "I32"], |_, tensors| {
        named(tensors, "model.norm.weight").ttype.1 = "I32"
    });
    directory(&["model.safetensors"], |_, tensors| named(tensors, q).ttype.1 = "F99");
    directory(&["extra"], |_, tensors| tensors.push(Stored { name: "extra".into(), ..tensors[0].clone() }));
}

#[test]
fn numbers_that_are_none_are_named() {
    let folder = Folder::new();
    for value in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        let bytes = value.to_le_bytes();
        let scale = "model.layers.0.mlp.up_proj.weight_scale";
        directory(&["model.layers.0.mlp.up_proj", "scale"], |_, tensors| {
            named(tensors, scale).bytes = bytes.to_vec()
        });
    }
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let bytes = value.to_le_bytes();
        gguf(&folder, &["blk.0.attn_v.weight", "scale"], |file| {
            let data = &mut file.get("blk.0.attn_v.weight").0.bytes;
            let at = data.len() - 32;
            data[at..at + 4].copy_from_slice(&bytes);
        });
    }
    gguf(&folder, &["blk.0.ffn_norm.weight", "NaN"], |file| {
        file.get("blk.0.ffn_norm.weight").0.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    // Two bits make a code that is no trit.
    gguf(&folder, &["blk.0.attn_q.weight"], |file| file.get("blk.0.attn_q.weight").0.bytes[5] = 0xff);
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let key = |name: &str| format!("bitnet-b1.58.{name}");
    for (name, value) in [
        ("block_count", 1 << 30),
        ("block_count", 0),
        ("embedding_length", u32::MAX),
        ("context_length", u32::MAX),
        ("attention.head_count", 0),
        ("attention.head_count", 7),
        ("attention.head_count_kv", 3),
        ("feed_forward_length", 1 << 31),
        ("vocab_size", 1 << 31),
    ] {
        gguf(&folder, &[], |file| file.set(&key(name), Key::U32(value)));
    }
    gguf(&folder, &["feed_forward_length"], |file| file.remove(&key("feed_forward_length")));
    gguf(&folder, &["feed_forward_length"], |file| file.set(&key("feed_forward_length"), Key::String("x")));
    gguf(&folder, &["mamba", "llama"], |file| file.set("general.architecture", Key::String("mamba")));
    gguf(&folder, &["general.alignment"], |file| file.set("general.alignment", Key::U32(0)));
    gguf(&folder, &["3 parts", "llama-gguf-split"], |file| file.set("split.count", Key::U32(3)));
    gguf(&folder, &["version is 1"], |file| file.version = 1);
    for (key, value) in [
        ("hidden_size", json!(1u64 << 63)),
        ("hidden_size", json!(-1)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("max_position_embeddings", json!(1u64 << 60)),
        ("num_attention_heads", json!(0)),
        ("rms_norm_eps", json!("small")),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 0})),
        ("architectures", json!(["MambaForCausalLM"])),
        ("architectures", Value::Null),
    ] {
        directory(&[], |config, _| config[key] = value);
    }
    let folder = Folder::with_model();
    for text in ["", "{", "[]", "null", "{\"architectures\": [", &"[".repeat(100_000)] {
        folder.write("config.json", text);
        bad(&folder.path(), &["config.json"]);
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = Folder::new();
    bad(&text(&folder.at("absent")), &[]);
    bad(&text(&folder.at("absent.gguf")), &[]);
    bad(&folder.path(), &["config.json"]);
    bad(&folder.write("empty.gguf", ""), &["empty"]);
    bad(&folder.write("notes.txt", "hello, this is no model"), &["neither"]);
    bad(&folder.write("big.gguf", b"FUGG\x03\0\0\0"), &["big-endian"]);
    let pipe = text(&folder.at("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    bad(&pipe, &["no regular file"]);
    bad("/dev/zero", &["no regular file"]);
    // Index files and vocabularies are opened too.
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let folder = Folder::with_model();
        std::fs::remove_file(folder.at(file)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(folder.at(file)).status().unwrap().success());
        bad(&folder.path(), &[file]);
        std::fs::remove_file(folder.at(file)).unwrap();
        std::fs::create_dir(folder.at(file)).unwrap();
        bad(&folder.path(), &[file]);
    }
    for command in ["tokenize", "detokenize"] {
        refused(&[command, &pipe, "1"], 3, &[&pipe]);
        refused(&[command, "absent/tokenizer.json", "1"], 3, &["absent/tokenizer.json"]);
    }
}

#[test]
fn shards_must_be_what_their_index_says() {
    let folder = Folder::new();
    huggingface(folder.at("").as_path(), &tiny::config(), &tiny::tensors(), 3);
    output(&load(&folder.path()));
    let index = "model.safetensors.index.json";
    for (map, word) in [
        (json!({"weight_map": {"x": "../x.safetensors"}}), "../x.safetensors"),
        (json!({"weight_map": {"x": "/etc/passwd"}}), "/etc/passwd"),
        (json!({"weight_map": {"x": "absent.safetensors"}}), "absent.safetensors"),
        (json!({"weight_map": {"x": "model-00001-of-00003.safetensors"}}), "\"x\""),
        (json!({"weight_map": 7}), "weight_map"),
        (json!({}), "weight_map"),
    ] {
        folder.write(index, map.to_string());
        bad(&folder.path(), &[word]);
    }
}

#[test]
fn a_model_without_a_tokenizer_takes_ids_alone() {
    let folder = Folder::with_model();
    std::fs::remove_file(folder.at("tokenizer.json")).unwrap();
    let (path, out) = (folder.path(), text(&folder.at("out")));
    output(&load(&path));
    output(&["inspect", &path]);
    output(&["logits", &path, "--tokens", "1,2", "-o", &out]);
    for args in [
        &["run", &path, "a text"][..],
        &["logits", &path, "a text", "-o", &out],
        &["chat", &path],
        &["tokenize", &path, "a text"],
    ] {
        refused(args, 3, &[&path, "tokenizer.json", "--tokens"]);
    }
}

#[test]
fn vocabularies_that_cannot_be_are_refused() {
    let folder = Folder::with_model();
    for text in ["", "{}", "null", "{\"model\": {\"type\": \"BPE\"}}", &"[".repeat(100_000)] {
        let file = folder.write("tokenizer.json", text);
        refused(&["tokenize", &file, "a"], 3, &[&file]);
        bad(&folder.path(), &["tokenizer.json"]);
    }
    let mut vocabulary = tiny::tokenizer();
    vocabulary["post_processor"]["special_tokens"] = json!({});
    let file = folder.write("tokenizer.json", vocabulary.to_string());
    refused(&["tokenize", &file, "a"], 3, &[&file, "<s>"]);
    let file = folder.write("tokenizer.model", [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    refused(&["tokenize", &file, "a"], 3, &[&file]);
    let folder = Folder::new();
    gguf(&folder, &["tokenizer.ggml.model", "martian"], |file| {
        file.set("tokenizer.ggml.model", Key::String("martian"));
    });
    gguf(&folder, &["tokenizer.ggml.tokens"], |file| file.set("tokenizer.ggml.tokens", Key::I32s(&[1, 2])));
    gguf(&folder, &["tokenizer.ggml.tokens"], |file| file.remove("tokenizer.ggml.tokens"));
}

#[test]
fn bad_templates_stop_what_needs_them_and_nothing_else() {
    let folder = Folder::new();
    let messages = folder.write("messages.json", json!([{"role": "user", "content": "hi"}]).to_string());
    for (template, word) in [
        ("{% for m in messages %}{{ m", "does not parse"),
        ("{%}", "does not parse"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", "fuel"),
        (
            "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "fuel",
        ),
        ("{{ 'a' * 10000000000 }}", "fuel"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "rendered"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ] {
        let mut file = tiny::gguf();
        file.set("tokenizer.chat_template", Key::String(template));
        let path = folder.write("model.gguf", file.bytes());
        refused(&["template", &path, &messages], 3, &[&path, word]);
        refused_with(&["chat", &path], "hello\n", 3, &[&path, word]);
        output(&["run", &path, "the", "-n", "2"]);
        output(&["inspect", &path]);
    }
    let mut file = tiny::gguf();
    file.remove("tokenizer.chat_template");
    let path = folder.write("model.gguf", file.bytes());
    refused(&["chat", &path], 3, &[&path, "bitnet run"]);
}

/// The limit of the address space that these tests run in is too small for some contexts; whatever asks for the memory that is not there,
/// the command ends with a line and a code, and by no signal.
#[test]
#[cfg(target_os = "linux")]
fn what_does_not_fit_into_the_address_space_is_refused() {
    let (folder, mut file) = (Folder::new(), tiny::gguf());
    file.set("bitnet-b1.58.context_length", Key::U32(1 << 24));
    let path = folder.write("model.gguf", file.bytes());
    let (mut fit, mut missing) = (0, BTreeSet::new());
    for doublings in 10..25 {
        let context = (1u32 << doublings).to_string();
        let ran = bitnet(&[&load(&path)[..], &["-q", "-c", &context]].concat());
        if ran.code == Some(0) {
            assert!(missing.is_empty(), "a context of {context} fits, and a shorter one does not");
            fit += 1;
            continue;
        }
        assert!(matches!(ran.code, Some(1 | 3)) && ran.stderr.lines().count() == 1, "{context}: {ran:?}");
        let what = ran
            .stderr
            .trim_end()
            .split_once("could not allocate ")
            .and_then(|(_, what)| what.split_once(" for "));
        let Some((_, what)) = what else { panic!("{context}: {ran:?}") };
        missing.insert(what.to_owned());
    }
    assert!(fit > 3 && !missing.is_empty(), "{fit} fit; no memory for {missing:?}");
}
