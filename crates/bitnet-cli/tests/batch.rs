//! A file of requests: every row is answered once, whatever is wrong with others, and a batch that was stopped goes on.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, bitnet, fixture, refused, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn batch(model: &str, input: &str, output: &str, more: &[&str]) -> BTreeMap<u64, Value> {
    let ran = bitnet(&[&["batch", model, input, "-o", output, "--seed", "5", "-n", "6"], more].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines = std::fs::read_to_string(output).unwrap();
    let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let count = rows.len();
    let rows: BTreeMap<u64, Value> = rows.into_iter().map(|r| (r["index"].as_u64().unwrap(), r)).collect();
    assert_eq!(rows.len(), count, "no row is done twice");
    rows
}

#[test]
fn rows_of_every_kind_are_answered() {
    let (folder, model) = (Folder::new(), fixture("bitnet-packed"));
    let rows = [
        json!({"prompt": "ships", "max_tokens": 3}),
        json!({"messages": [{"role": "user", "content": "hi"}], "json_schema": {"enum": ["a"]}, "max_tokens": 40}),
        json!({"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "any", "messages": [{"role": "user", "content": "hi"}]}}),
        json!("ships"),
        json!({"prompt": vec![7; 600]}),
        json!({"custom_id": "y", "url": "/v1/nowhere", "body": {}}),
        json!({"nothing": 1}),
    ];
    let mut input: String = rows.iter().map(|row| format!("{row}\n")).collect();
    input += "{\n\n";
    let (input, output) = (folder.write("in.jsonl", input), text(&folder.at("out.jsonl")));
    let got = batch(&model, &input, &output, &[]);
    assert_eq!(got.len(), 8);
    assert_eq!(got[&0]["usage"]["completion_tokens"], 3);
    assert_eq!((&got[&1]["text"], &got[&1]["finish_reason"]), (&json!("\"a\""), &json!("stop")));
    assert_eq!((&got[&2]["custom_id"], &got[&2]["response"]["status_code"]), (&json!("x"), &json!(200)));
    assert!(got[&2]["response"]["body"]["choices"][0]["message"]["content"].is_string());
    assert!(got[&3]["text"].is_string());
    assert_eq!(got[&4]["error"]["code"], "context_length_exceeded");
    assert_eq!(got[&5]["response"]["status_code"], 404);
    assert!(got[&6]["error"]["message"].is_string() && got[&7]["error"]["message"].is_string());
}

#[test]
fn a_batch_that_was_stopped_goes_on() {
    let (folder, model) = (Folder::new(), fixture("bitnet-packed"));
    let prompts: String = (0..20).map(|i| format!("line {i}\n")).collect();
    let (input, output) = (folder.write("in.txt", prompts), text(&folder.at("out.jsonl")));
    let want = batch(&model, &input, &output, &[]);
    assert_eq!(want.len(), 20);
    refused(&["batch", &model, &input, "-o", &output], 2, &["--resume"]);
    // Stopped in the middle of a line.
    let lines = std::fs::read_to_string(&output).unwrap();
    let at = lines.match_indices('\n').nth(7).unwrap().0;
    folder.write("out.jsonl", &lines[..at + 9]);
    let resumed = batch(&model, &input, &output, &["--resume", "--concurrency", "3"]);
    // How much the cache held may differ; texts may not.
    let texts = |rows: &BTreeMap<u64, Value>| rows.values().map(|r| r["text"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&resumed), texts(&want));
    folder.write("out.jsonl", "{\"a\": 1}\n");
    refused(&["batch", &model, &input, "-o", &output, "--resume"], 2, &["out.jsonl"]);
    refused(&["batch", &model, &folder.write("in.csv", "a"), "-o", "x"], 2, &[".jsonl"]);
}
