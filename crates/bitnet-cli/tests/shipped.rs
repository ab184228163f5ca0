//! The model that is part of the program, and its card.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_cpu::Isa;
use common::{Folder, bitnet, bitnet_with, output, output_of};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn written() -> Value {
    serde_json::from_slice(&std::fs::read(models().join("figures.json")).unwrap()).unwrap()
}

fn texts(of: &Value) -> Vec<(String, String)> {
    of.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

#[test]
fn it_says_on_every_instruction_set_what_its_card_says() {
    let written = written();
    let (greedy, replies) = (texts(&written["greedy"]), texts(&written["replies"]));
    assert!(greedy.len() > 1 && replies.len() > 1);
    for isa in Isa::available() {
        let isa = isa.to_string();
        for (prompt, text) in &greedy {
            let json = output(&["run", prompt, "--isa", &isa, "--temp", "0", "-n", "48", "--json", "-q"]);
            let said: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(said["text"].as_str().unwrap(), text, "{isa}: {prompt}");
        }
    }
    for (question, text) in &replies {
        let args = ["chat", "--temp", "0", "-n", "48", "-q", "--no-color"];
        assert_eq!(output_of(&args, &format!("{question}\n")).trim(), text, "{question}");
    }
}

#[test]
fn it_is_the_file_beside_its_card_and_small() {
    let folder = Folder::new();
    let file = models().join("bitnet-mini.gguf");
    assert!(std::fs::metadata(&file).unwrap().len() < 16 << 20);
    // Without a name, by its name and by its path it is the same.
    let path = file.display().to_string();
    let say = |args: &[&str]| output(&[&["run", "--temp", "0", "-n", "8", "-q"], args].concat());
    let want = say(&[&path, "We must"]);
    assert_eq!(say(&["We must"]), want);
    assert_eq!(say(&["bitnet-mini", "We must"]), want);
    assert_eq!(say(&["-m", "bitnet-mini", "We must"]), want);
    // A model of one's own goes first, and so does a file of its name.
    let other = common::fixture("llama-packed");
    let ran = bitnet_with(&["run", "-n", "1", "We must"], "", &[("BITNET_MODEL", &other)]);
    assert!(ran.stderr.contains(": Llama"), "{ran:?}");
    let inspected: Value = serde_json::from_str(&output(&["inspect", "--json", "-q"])).unwrap();
    assert_eq!(inspected["path"], "bitnet-mini");
    // What is converted is it, too.
    let converted = folder.at("out.gguf").display().to_string();
    output(&["convert", "bitnet-mini", &converted, "--to", "i2_s", "-q"]);
    assert_eq!(say(&[&converted, "We must"]), want);
    assert!(bitnet(&["inspect", "bitnet-maxi"]).stderr.contains("bitnet-maxi"));
}

#[test]
fn its_card_names_every_figure() {
    let card = std::fs::read_to_string(models().join("README.md")).unwrap();
    let figures = texts(&written()["figures"]);
    assert!(!figures.is_empty());
    for (name, value) in figures {
        assert!(card.contains(&format!("| {name} | {value} |")), "{name}: {value}");
    }
    let loss = std::fs::read_to_string(models().join("loss.svg")).unwrap();
    assert!(loss.starts_with("<svg") && loss.contains("<polyline"));
}
