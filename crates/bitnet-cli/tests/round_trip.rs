//! From texts to a model that is served, and everything between, by the command alone.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{GenerateOptions, Model};
use common::{Folder, end, output, post, start, text, training};
use serde_json::Value;

const WORDS: [&str; 8] = ["ships", "at", "night", "sail", "home", "from", "the", "sea"];

/// A text in which words follow each other as they do in no text that the model was made of: backwards.
fn backwards(first: usize, len: usize) -> String {
    (0..len).map(|j| WORDS[(first + 7 * j) % 8]).flat_map(|w| [w, " "]).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_model_is_trained_adapted_merged_packed_run_measured_and_served() {
    let folder = Folder::new();
    let mut args = training(&folder, "base");
    for change in ["train.steps=200", "train.checkpoint_every=200", "train.log_every=50", "train.export=f32"]
    {
        args.extend(["--set".to_owned(), change.to_owned()]);
    }
    let made = json(&output(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(made["loss"].as_f64().unwrap() < 3.0, "{made}");
    let base = text(&folder.at("base/model"));

    // An adapter learns texts of another kind.
    let rows: String = (0..40).map(|i| format!("{{\"text\": \"{}\"}}\n", backwards(i, 30))).collect();
    let (rows, settings) = (folder.write("other.jsonl", rows), output(&["train", "--example", "lora"]));
    let settings = folder.write("lora.toml", settings);
    let mut args = vec!["train", "lora", "--json", "-q", "-c", &settings];
    let changes = [
        format!("output={}", text(&folder.at("lora"))),
        format!("model.init={base}"),
        format!("data.train={rows}"),
        "data.sequence=64".to_owned(),
        "data.validation_share=0.2".to_owned(),
        "train.steps=50".to_owned(),
        "train.rate=2e-2".to_owned(),
    ];
    changes.iter().for_each(|change| args.extend(["--set", change]));
    let learned = json(&output(&args));
    let adapter = text(&folder.at("lora/adapter"));

    // Merged, packed, and measured beside what it was made of, on a text that none of them has seen.
    let (merged, packed) = (text(&folder.at("merged")), text(&folder.at("merged.gguf")));
    let parts = json(&output(&["merge", &base, &adapter, &merged, "--dtype", "f32", "--json"]));
    assert_eq!(parts["projections"].as_array().unwrap().len(), 14);
    output(&["convert", &merged, &packed, "--to", "i2_s", "--verify", "-q"]);
    let unseen = folder.write("unseen.txt", backwards(3, 400));
    let perplexity = |model: &str| {
        let told = json(&output(&["eval", model, "--ppl", &unseen, "-c", "64", "--json", "-q"]));
        told["ppl"].as_f64().unwrap()
    };
    let (before, after, of_file) = (perplexity(&base), perplexity(&merged), perplexity(&packed));
    let told = learned["validation_loss"].as_f64().unwrap().exp();
    assert!(told < before && after < before, "{before} {after} {told}");
    assert!((of_file / after - 1.0).abs() < 2e-2, "{of_file} {after}");
    let run = |more: &[&str]| {
        let all = ["run", "-p", "ships ", "-n", "12", "--temp", "0", "--ignore-eos", "-q", "--json"];
        json(&output(&[&all, more].concat()))["text"].clone()
    };
    assert_eq!(run(&["-m", &packed]), run(&["-m", &merged]));

    // Not merged, through the library, the command and the server: the same answer, and another one than without the adapter.
    let mut model = Model::open(base.as_ref(), &Default::default(), &mut |_, _| {}).unwrap();
    model.load_adapter(adapter.as_ref(), 1.0).unwrap();
    let prompt = model.encode("ships ").unwrap();
    let sampling = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let options = GenerateOptions { max_tokens: Some(12), sampling, ignore_eos: true, ..Default::default() };
    let want: String = model.generate(&prompt, options).unwrap().map(|piece| piece.unwrap().text).collect();
    assert_eq!(run(&["-m", &base, "--lora", &adapter]), want);
    assert_ne!(run(&["-m", &base]), want);
    let (server, address, _lines) = start(&[&base, "--lora", &adapter]);
    let ask = |more: &str| {
        let body = format!(
            "{{\"prompt\": \"ships \", \"max_tokens\": 12, \"temperature\": 0, \"ignore_eos\": true{more}}}"
        );
        let reply = post(&address, "/v1/completions", "", &body);
        json(reply.split_once("\r\n\r\n").unwrap().1)["choices"][0]["text"].clone()
    };
    assert_eq!(ask(""), want);
    assert_eq!(ask(", \"lora\": [{\"id\": 0, \"scale\": 0}]"), run(&["-m", &base]));
    end(server);
}
