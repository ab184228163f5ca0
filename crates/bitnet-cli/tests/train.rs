//! Training through the command: a run is killed at any moment, and what it leaves becomes a model that runs.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::hub::{HubServer, Repo};
use common::{Folder, bitnet, bitnet_with, output, refused, text, training};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Weights, optimizer and place of the last checkpoint, and the metrics without what tells of time.
fn left(run: &Path) -> Vec<Vec<u8>> {
    let checkpoint = run.join("checkpoints/step-00000040");
    let files = ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"];
    let mut all: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(checkpoint.join(f)).unwrap()).collect();
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    all.extend(metrics.lines().map(|line| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let line = value.as_object_mut().unwrap();
        ["tokens_per_second", "resident_bytes", "peak_bytes"].iter().for_each(|key| drop(line.remove(*key)));
        value.to_string().into_bytes()
    }));
    all.push(std::fs::read(run.join("model/model.safetensors")).unwrap());
    all
}

/// Kills a run when it has told of so many steps; false when it came through before.
fn killed_behind(args: &[String], steps: usize) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).filter(|line| line.starts_with("step ")).take(steps).count();
    if told == steps {
        // SIGKILL: nothing is cleaned up.
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(told == steps || status.success(), "{status:?}");
    told == steps
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bits_and_its_model_runs() {
    let folder = Folder::new();
    let args = training(&folder, "whole");
    let done: Value = serde_json::from_str(&output(&refs(&args))).unwrap();
    assert_eq!((&done["stopped"], &done["step"]), (&"done".into(), &40.into()));
    // Fresh, it is ln 512 = 6.2.
    assert!(done["loss"].as_f64().unwrap() < 5.0, "{done}");
    let want = left(&folder.at("whole"));

    // Killed whenever it has told of some steps more, until it comes through.
    let (args, run) = (training(&folder, "killed"), folder.at("killed"));
    let (mut kills, mut resume) = (0, Vec::new());
    for steps in [2, 7, 3, 11, 1, 6, usize::MAX] {
        kills += usize::from(killed_behind(&[&args[..], &resume].concat(), steps));
        resume = vec!["--resume".to_owned(), text(&run)];
    }
    assert!(kills >= 4, "{kills}");
    let got = left(&run);
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(got == want, "part {i} differs");
    }

    // What the run did is in one file, also what was before it was killed.
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    for words in [
        "pretrain: ",
        "40 of 40",
        "Quantization, layer by layer",
        "train.jsonl",
        "num_hidden_layers = 2",
        "<svg",
    ] {
        assert!(report.contains(words), "{words:?} is not in the report");
    }
    assert!(
        !report.contains("http:") && !report.contains("https:") && !report.contains("interrupted"),
        "{report}"
    );
    let points = |html: &str| html.matches("<circle").count();
    assert_eq!(points(&report), points(&std::fs::read_to_string(folder.at("whole/report.html")).unwrap()));

    // From the checkpoint of a run to a file that runs.
    let (model, gguf) = (text(&run.join("model")), text(&folder.at("trained.gguf")));
    output(&["convert", &model, &gguf, "--to", "i2_s", "--verify", "-q"]);
    let ask =
        |model: &str| output(&["run", model, "ships at", "-n", "8", "--temp", "0", "--ignore-eos", "-q"]);
    assert_eq!(ask(&gguf), ask(&model));
    // A checkpoint can be run as it is.
    assert!(!ask(&text(&run.join("checkpoints/step-00000040"))).is_empty());
}

/// A disk that fills up, in the shape of a limit on the size of files, ends a run with the file's name; what was written before stays, and
/// once there is room the run goes on from it.
#[test]
fn a_full_disk_costs_the_steps_behind_the_last_checkpoint_and_no_more() {
    let folder = Folder::new();
    output(&refs(&training(&folder, "whole")));
    let (args, run) = (training(&folder, "full"), folder.at("full"));
    let limited = |blocks: &str, args: &[String]| {
        // Without the signal, writing is what fails.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let sh = ["-c", &script, env!("CARGO_BIN_EXE_bitnet")];
        let out = Command::new("sh").args(sh).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let checkpoints = || -> Vec<String> {
        let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).collect()
    };
    // Blocks have 512 or 1,024 bytes: more than metrics need, less than weights do.
    let (code, told) = limited("200", &args);
    assert_eq!(code, Some(1), "{told}");
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains(&text(&run)), "{told}");
    assert_eq!(checkpoints(), [""; 0], "{told}");
    // The same with checkpoints from before.
    let resume = [&args[..], &["--resume".to_owned(), text(&run)]].concat();
    assert!(killed_behind(&resume, 12));
    let before = checkpoints();
    assert!(before.contains(&"step-00000010".to_owned()), "{before:?}");
    let (code, told) = limited("200", &resume);
    assert_eq!(code, Some(1), "{told}");
    for checkpoint in before.iter().filter(|name| !name.starts_with('.')) {
        assert!(checkpoints().contains(checkpoint), "{checkpoint}");
    }
    output(&refs(&resume));
    assert!(left(&run) == left(&folder.at("whole")));
}

#[test]
fn a_model_is_made_of_nothing_but_texts() {
    let folder = Folder::new();
    let mut run = training(&folder, "run");
    let (texts, vocabulary) = (text(&folder.at("train.jsonl")), text(&folder.at("vocabulary")));
    let args = ["tokenizer", "train", &texts, "-o", &vocabulary, "--vocab-size", "272", "--json", "-q"];
    let made: Value = serde_json::from_str(&output(&args)).unwrap();
    assert_eq!((&made["texts"], &made["vocab_size"], &made["skipped"]), (&40.into(), &272.into(), &0.into()));
    let read = |name: &str| std::fs::read(folder.at("vocabulary").join(name)).unwrap();
    let files = [read("tokenizer.json"), read("tokenizer_config.json")];
    output(&args);
    assert!(
        files == [read("tokenizer.json"), read("tokenizer_config.json")],
        "other bytes of the same texts"
    );

    for change in [format!("model.tokenizer={vocabulary}"), "train.steps=4".to_owned()] {
        run.extend(["--set".to_owned(), change]);
    }
    output(&refs(&run));
    let (model, gguf) = (text(&folder.at("run/model")), text(&folder.at("made.gguf")));
    output(&["convert", &model, &gguf, "--to", "i2_s", "-q"]);
    let ids = |of: &str| output(&["tokenize", of, "ships at night"]);
    assert_eq!(ids(&gguf), ids(&vocabulary));
    let chat = bitnet_with(&["chat", &gguf, "-n", "4", "-q"], "hello\n", &[]);
    assert_eq!(chat.code, Some(0), "{chat:?}");

    for (args, code, words) in [
        (&["/nowhere.txt", "--vocab-size", "272"][..], 1, &["/nowhere.txt"][..]),
        (&[&texts, "--vocab-size", "100"], 2, &["100", "259 at least"]),
        (&[&texts], 2, &["4096", "fewer tokens"]),
        (&[&texts, "--vocab-size", "272", "--chat-template", "/nowhere"], 2, &["/nowhere"]),
        (&["notes.pdf"], 2, &["notes.pdf", ".jsonl"]),
    ] {
        refused(&[&["tokenizer", "train", "-o", &vocabulary], args].concat(), code, words);
    }
    assert!(files == [read("tokenizer.json"), read("tokenizer_config.json")]);
}

#[test]
fn data_comes_from_the_hub_and_stays_in_the_cache() {
    let (folder, server) = (Folder::new(), HubServer::start());
    let rows: String =
        (0..40).map(|i| format!("{i},\"ships at night {i} sail home from the sea\"\n")).collect();
    let table = format!("id,text\n{rows}").into_bytes();
    server.put("datasets/org/words", Repo::new(&[("data/train.csv", table)]));
    let home = folder.path();
    let (mut args, run) = (training(&folder, "run"), folder.at("run"));
    for change in ["train.steps=2", "data.train=hf://datasets/org/words/data/train.csv"] {
        args.extend(["--set".to_owned(), change.to_owned()]);
    }
    let go = |more: &[&str], env: &[(&str, &str)]| {
        let env = [&[("HOME", &*home), ("HF_ENDPOINT", server.url())], env].concat();
        bitnet_with(&[&refs(&args)[..], more].concat(), "", &env)
    };
    let ran = go(&[], &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(server.seen().iter().any(|s| s.line.contains("/datasets/org/words/resolve/")));
    // What goes on says where its data is from, and needs no network.
    let kept = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(kept.contains("hf://datasets/org/words/data/train.csv"), "{kept}");
    let ran = go(&["--resume", &text(&run), "--set", "train.steps=3"], &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!((ran.code, server.seen().len()), (Some(0), 0), "{ran:?}");
    for (file, words) in [
        ("hf://datasets/org/words/other.csv", "data/train.csv"),
        ("hf://datasets/org/words", "hf://datasets/org/name/FILE"),
        ("hf://datasets/org/none/a.csv", "has no datasets/org/none"),
        ("hf://datasets/org", "org/name"),
    ] {
        let ran = go(&["-q", "--set", &format!("data.train={file}")], &[]);
        assert!(ran.stderr.contains(words) && ran.stderr.lines().count() == 1, "{file}: {ran:?}");
        assert!(matches!(ran.code, Some(2 | 4)), "{file}: {ran:?}");
    }
    let ran = bitnet_with(&["rm", "hf://datasets/org/words"], "", &[("HOME", &home)]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!folder.at(".cache/huggingface/hub/datasets--org--words").exists());
}

#[test]
fn what_is_wrong_is_told_in_a_line() {
    let folder = Folder::new();
    let args = training(&folder, "run");
    let with = |change: &str| {
        let mut args = args.clone();
        args.extend(["--set".to_owned(), change.to_owned()]);
        args
    };
    for (change, code, words) in [
        ("train.stesp=3", 2, &["train.stesp is unknown", "train.steps"][..]),
        ("train.steps=many", 2, &["train.steps is \"many\"", "whole number"]),
        ("data.train=/nowhere.txt", 1, &["/nowhere.txt"]),
        ("data.sequence=100000", 2, &["data.sequence is 100000", "1024"]),
        ("model.init=/nowhere", 2, &["model.tokenizer does not go with model.init"]),
        ("train.workers=2", 2, &["train.workers is 2", "train.accumulate"]),
        ("output=/dev/null/x", 1, &["/dev/null/x"]),
    ] {
        let args = with(change);
        refused(&refs(&args), code, words);
    }
    folder.write("empty.jsonl", "{}\n");
    let empty = with(&format!("data.train={}", text(&folder.at("empty.jsonl"))));
    refused(&refs(&empty), 2, &["there is no example in", "empty.jsonl:1: it has none of text"]);
    for (name, bytes, words) in [
        ("a.parquet", &b"PAR1 or not"[..], "a.parquet: "),
        ("b.csv", b"id,words\n1,a\n", "b.csv has none of the columns text,"),
        ("c.xml", b"<a/>", "c.xml ends in none of .txt, .jsonl, .json, .csv and .parquet"),
    ] {
        refused(&refs(&with(&format!("data.train={}", folder.write(name, bytes)))), 2, &[words]);
    }
    let answers = folder.write("sft.toml", output(&["train", "--example", "sft"]));
    refused(
        &["train", "sft", "-c", &answers, "--set", "model.init=/nowhere"],
        3,
        &["/nowhere", "no such file"],
    );
    refused(&["train", "pretrain", "-c", "/nowhere.toml"], 1, &["/nowhere.toml"]);
    assert_eq!(bitnet(&["train", "pretrain"]).code, Some(2));
    assert_eq!(bitnet(&["train", "--example", "nothing"]).code, Some(2));
}
