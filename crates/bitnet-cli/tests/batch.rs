//! A file of requests: every row is answered once, whatever is wrong with others, and a batch that was stopped goes on.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, bitnet, fixture, refused, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

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
    folder.write("out.jsonl", "{\"index\": 20}\n");
    refused(&["batch", &model, &input, "-o", &output, "--resume"], 2, &["row 20", "20 rows"]);
    for (input, output, words) in [
        (folder.write("in.xml", "a"), "x.jsonl", &[".jsonl", ".parquet"]),
        (folder.write("in.txt", "a"), "x.xml", &[".jsonl", ".parquet"]),
        (folder.write("in.csv", "a,b\n1,2\n"), "x.csv", &["a, b", "--column"]),
        (folder.write("answered.csv", "prompt,answer\n1,2\n"), "x.csv", &["answer", "output's own"]),
        (folder.write("in.parquet", "PAR1 or not"), "x.csv", &["in.parquet", ""]),
    ] {
        refused(&["batch", &model, &input, "-o", output], 2, words);
    }
}

/// Runs a batch whose output is a table, and returns it.
fn table(model: &str, input: &str, output: &str, more: &[&str]) -> String {
    let args = [&["batch", model, input, "-o", output, "--temp", "0", "-n", "4"], more].concat();
    let ran = bitnet(&args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    String::from_utf8_lossy(&std::fs::read(output).unwrap()).into_owned()
}

#[test]
fn tables_come_and_go_with_all_their_columns() {
    let (folder, model) = (Folder::new(), fixture("bitnet-packed"));
    let long = "x ".repeat(2000);
    let input = format!("id,question\n7,\"ships, \"\"at\"\" night\"\n8,{long}\n9,\"a|b\nc\"\n");
    let input = folder.write("in.csv", input);
    let at = |name: &str| text(&folder.at(name));
    let csv = table(&model, &input, &at("out.csv"), &["--column", "question"]);
    let mut rows = csv::Reader::from_reader(csv.as_bytes());
    let names = "id,question,answer,finish_reason,prompt_tokens,completion_tokens,error";
    assert_eq!(rows.headers().unwrap().iter().collect::<Vec<_>>().join(","), names);
    let rows: Vec<csv::StringRecord> = rows.records().map(Result::unwrap).collect();
    let ids: Vec<&str> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(ids, ["7", "8", "9"]);
    assert_eq!(
        (&rows[0][1], &rows[0][3], &rows[0][5], &rows[0][6]),
        ("ships, \"at\" night", "length", "4", "")
    );
    assert!(rows[1][2].is_empty() && rows[1][6].contains("tokens"), "{:?}", &rows[1]);
    // Parquet holds the same, and is read as well as written.
    table(&model, &input, &at("out.parquet"), &["--column", "question"]);
    let again = at("again.csv");
    let ran = bitnet(&["batch", &model, &at("out.parquet"), "-o", &again, "--column", "question"]);
    assert_eq!(ran.code, Some(2), "the answers' columns are there already: {ran:?}");
    let lines = at("lines.jsonl");
    let read = batch(&model, &at("out.parquet"), &lines, &["--column", "answer"]);
    assert!(read[&0]["text"].is_string() && read[&1]["error"]["message"] == "it has no prompt", "{read:?}");
    let page = table(&model, &input, &at("out.md"), &["--column", "question"]);
    assert!(page.starts_with("| id | question | answer |") && page.contains("| 9 | a\\|b<br>c | "), "{page}");
    assert_eq!(page.lines().count(), 5, "{page}");
    // A whole table is not made again, nor written over.
    refused(&["batch", &model, &input, "-o", &at("out.csv"), "--column", "question"], 2, &["out.csv"]);
    assert_eq!(table(&model, &input, &at("out.csv"), &["--column", "question", "--resume"]), csv);
    assert!(!folder.names().iter().any(|name| name.contains(".part")), "{:?}", folder.names());
    // What columns call messages are messages.
    let messages = json!([{"role": "user", "content": "hi"}]).to_string().replace('"', "\"\"");
    let input = folder.write("talk.csv", format!("messages\n\"{messages}\"\n{{\n"));
    let talk = table(&model, &input, &at("talk-out.csv"), &[]);
    assert!(talk.contains(",length,") && talk.contains("no JSON"), "{talk}");
    // Without a place to go to, lines go to standard output.
    let ran = bitnet(&["batch", &model, &folder.write("one.txt", "ships\n"), "-n", "2", "-q"]);
    let line: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&line["index"], &line["usage"]["completion_tokens"]), (&json!(0), &json!(2)));
    // A model that is named needs no position.
    let named =
        bitnet(&["batch", "-m", &model, &folder.at("one.txt").display().to_string(), "-n", "2", "-q"]);
    assert_eq!(serde_json::from_str::<Value>(&named.stdout).unwrap()["usage"], line["usage"], "{named:?}");
}

/// Rows of the journal, the one being written left out.
fn lines(journal: &str) -> usize {
    std::fs::read_to_string(journal).map_or(0, |text| text.matches('\n').count())
}

#[test]
fn a_batch_that_is_killed_loses_no_row_and_does_none_twice() {
    let (folder, model) = (Folder::new(), fixture("bitnet-packed"));
    let prompts: String = (0..80).map(|i| format!("line {i}\n")).collect();
    let (input, whole) = (folder.write("in.txt", prompts), text(&folder.at("whole.csv")));
    let flags = ["--seed", "5", "-n", "24", "--concurrency", "3", "--isa", "scalar", "-t", "1", "-q"];
    let args = |output: &str, more: &[&str]| -> Vec<String> {
        let args = [&["batch", &model, &input, "-o", output][..], &flags, more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let start = |output: &str, more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_bitnet")).args(args(output, more)).env_clear().spawn().unwrap()
    };
    assert!(start(&whole, &[]).wait().unwrap().success());
    for (name, journal) in [("out.jsonl", "out.jsonl"), ("out.csv", "out.csv.part.jsonl")] {
        let (output, journal) = (text(&folder.at(name)), text(&folder.at(journal)));
        let (mut killed, mut more) = (0, &[][..]);
        loop {
            let (mut child, before) = (start(&output, more), lines(&journal));
            more = &["--resume"];
            // After some more rows, wherever it is.
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if lines(&journal) >= before + 15 {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    break None;
                }
                std::thread::sleep(Duration::from_millis(2));
            };
            match ended {
                Some(status) => {
                    assert!(status.success());
                    break;
                }
                None => killed += 1,
            }
        }
        assert!(killed >= 2, "{name} was killed {killed} times");
        if name.ends_with("csv") {
            assert_eq!(std::fs::read_to_string(&output).unwrap(), std::fs::read_to_string(&whole).unwrap());
            continue;
        }
        let rows = std::fs::read_to_string(&output).unwrap();
        let rows = rows.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["index"].as_u64().unwrap());
        let mut rows: Vec<u64> = rows.collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..80).collect::<Vec<_>>());
    }
}
