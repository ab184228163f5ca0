//! Requests that cannot be met, and outputs that cannot be written.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::tiny;
use common::{Folder, Ran, bitnet, bitnet_with, output, refused, refused_with, text};
use std::process::Command;

#[test]
fn flags_that_make_no_sense_are_usage() {
    let folder = Folder::with_model();
    let path = folder.path();
    let run = |more: &[&str], words: &[&str]| {
        refused(&[&["run", &path, "--tokens", "1"], more].concat(), 2, words);
    };
    run(&["-t", "0"], &["threads"]);
    run(&["-b", "0"], &["--batch-size"]);
    run(&["-b", "8", "-ub", "0"], &["--batch-size"]);
    // What is there is listed.
    run(&["--device", "cuda:0"], &["cuda:0", "cpu", "auto"]);
    run(&["--device", "wgpu:99"], &["wgpu:99", "cpu"]);
    run(&["--device", "wgpu:0", "--isa", "scalar"], &["wgpu:0", "--isa"]);
    run(&["--device", "cpu,cuda:99"], &["cuda:99", "cpu", "auto"]);
    run(&["--device", "cpu,auto"], &["cpu,auto", "there are cpu"]);
    run(&["--device", "cpu,cpu"], &["too few layers (1)", "2 devices"]);
    run(&["--tensor-split", "1,1"], &["--tensor-split", "--device is cpu"]);
    run(&["--device", "cpu,cpu", "--tensor-split", "1"], &["--tensor-split", "--device is cpu,cpu"]);
    run(&["--device", "auto", "--tensor-split", "1"], &["--tensor-split", "--device is auto"]);
    run(&["--split-mode", "row"], &["--split-mode", "--device is cpu"]);
    run(&["--device", "auto", "-sm", "layer"], &["--split-mode", "--device is auto"]);
    run(&["--device", "cpu,cpu", "-sm", "row"], &["NVIDIA GPUs alone", "cpu is none"]);
    run(&["--top-p", "2"], &["top-p"]);
    run(&["--temp", "NaN"], &["temp"]);
    run(&["-l", "3*1"], &["--logit-bias"]);
    run(&["-c", "65"], &["65", "64", "--ctx-size"]);
    for args in [
        &["frobnicate"][..],
        &["run", &path, "--frobnicate"],
        &["run", &path, "--tokens", "1", "--isa", "mmx"],
        &["run", &path, "--tokens", "1", "--kernel", "magic"],
        &["run", &path, "--tokens", "1", "-n", "many"],
        &["bench", &path, "-r", "0"],
        &["bench", &path, "-p", "8-4"],
        &["bench", &path, "--pg", "8"],
        &["bench", &path, "-o", "xml"],
    ] {
        let ran = bitnet(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("--help"), "{ran:?}");
    }
}

#[test]
fn ids_and_prompts_must_fit_the_model() {
    let folder = Folder::with_model();
    let (path, out) = (folder.path(), text(&folder.at("out")));
    let long = vec!["1"; tiny::CONTEXT].join(",");
    let run = |tokens: &str, words: &[&str]| {
        refused(&["run", &path, "--tokens", tokens], 2, words);
    };
    run("24", &["24"]);
    run("1,4294967295", &["4294967295"]);
    run("4294967296", &["4294967296"]);
    run("1,-5", &["-5"]);
    run("one", &["one"]);
    run("", &["empty"]);
    run(&long, &["64", "--ctx-size"]);
    refused(&["run", &path, "--tokens", "1,2,3,4", "-c", "4"], 2, &["4 tokens", "--ctx-size"]);
    refused(&["run", &path, &"a ".repeat(500)], 2, &["--ctx-size"]);
    refused(&["run", &path, "--tokens", "1", "-l", "24+1"], 2, &["24"]);
    refused(&["logits", &path, "--tokens", "1,24", "-o", &out], 2, &["24"]);
    refused(&["logits", &path, "--tokens", &format!("{long},1"), "-o", &out], 2, &["65"]);
    refused(&["bench", &path, "-n", "0", "-p", "65"], 2, &["pp65", "64"]);
    refused(&["bench", &path, "-n", "0", "-p", "32", "-d", "33"], 2, &["pp32 @ d33", "65", "64"]);
    refused(&["bench", &path, "-p", "0", "-n", "0"], 2, &["nothing to measure"]);
    refused(&["bench", &path, "-n", "0", "-p", "8", "-b", "0"], 2, &["batch size"]);
    refused(&["detokenize", &path, "1,24"], 2, &["24"]);
    refused_with(&["detokenize", &path, "--lines"], "[x]\n", 2, &["line 1"]);
    refused_with(&["tokenize", &path, "--lines"], "a\n", 2, &["line 1"]);
    assert!(!folder.at("out").exists());
    // A context that just holds them.
    output(&["logits", &path, "--tokens", &long, "-o", &out]);
}

#[test]
fn messages_must_be_messages() {
    let folder = Folder::with_model();
    let path = folder.path();
    refused(&["template", &path, "absent.json"], 2, &["absent.json"]);
    refused(&["template", &path, &path], 2, &[&path]);
    for (text, word) in [("", "JSON"), ("{", "JSON"), ("7", "list of messages"), ("{}", "list of messages")] {
        let file = folder.write("messages.json", text);
        refused(&["template", &path, &file], 2, &[&file, word]);
        refused_with(&["template", &path, "-"], text, 2, &[word]);
    }
    // Messages may hold anything that the template does not look at.
    let file = folder.write("messages.json", r#"[{"role": 7, "content": null}, {}, []]"#);
    output(&["template", &path, &file]);
}

fn logits(model: &str, target: &str) -> [String; 6] {
    ["logits", model, "--tokens", "1,2", "-o", target].map(str::to_owned)
}

fn unwritable(model: &str, target: &str, words: &[&str]) {
    let args = logits(model, target);
    refused(&args.each_ref().map(String::as_str), 1, words);
}

#[test]
fn an_output_is_whole_or_as_it_was() {
    let folder = Folder::with_model();
    let model = folder.path();
    let out = Folder::new();
    let (absent, file) = (text(&out.at("absent/out")), out.write("out", "old"));
    unwritable(&model, &absent, &["absent"]);
    unwritable(&model, &out.path(), &[&out.path(), "directory"]);
    unwritable(&model, &format!("{file}/out"), &[&file]);
    assert_eq!(out.names(), ["out"]);
    // Devices and pipes are written to, not replaced.
    if cfg!(target_os = "linux") {
        unwritable(&model, "/dev/full", &["/dev/full"]);
        unwritable(&model, "/proc/version", &["/proc"]);
        let before = std::fs::metadata("/dev/null").unwrap().file_type();
        output(&logits(&model, "/dev/null").each_ref().map(String::as_str));
        assert_eq!(std::fs::metadata("/dev/null").unwrap().file_type(), before);
    }
    // A disk that fills up, in the shape of a limit on the size of files.
    let ran = limited(&logits(&model, &file));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.lines().count() == 1 && ran.stderr.contains(&file), "{ran:?}");
    assert_eq!(
        (out.names(), std::fs::read_to_string(&file).unwrap().as_str()),
        (vec!["out".to_owned()], "old")
    );
    // Through a link, what it points at is replaced.
    std::os::unix::fs::symlink(&file, out.at("link")).unwrap();
    output(&logits(&model, &text(&out.at("link"))).each_ref().map(String::as_str));
    assert!(std::fs::symlink_metadata(out.at("link")).unwrap().is_symlink());
    assert!(std::fs::read(&file).unwrap().len() > 100);
    assert_eq!(out.names(), ["link", "out"]);
}

/// Runs a command that may write nothing to files.
fn limited(args: &[String]) -> Ran {
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" -q \"$@\"";
    let out =
        Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_bitnet")]).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    let folder = Folder::with_model();
    let script =
        "\"$0\" inspect \"$1\" --tensors | head -n 1; \"$0\" run \"$1\" --tokens 1 --ignore-eos | true";
    let out = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_bitnet"), &folder.path()])
        .output()
        .unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && !stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
}

#[test]
fn input_that_is_no_text_is_usage() {
    let folder = Folder::with_model();
    let script = "printf '\\377\\376' | \"$0\" run \"$1\" -q";
    let out = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_bitnet"), &folder.path()])
        .output()
        .unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(2), &b""[..]));
    assert!(String::from_utf8(out.stderr).unwrap().contains("UTF-8"));
}

#[test]
fn the_environment_has_a_twin_of_every_flag_and_flags_win() {
    let folder = Folder::with_model();
    let path = folder.path();
    let env = [("BITNET_CTX_SIZE", "8"), ("BITNET_MODEL", path.as_str()), ("BITNET_THREADS", "1")];
    let ran = bitnet_with(&["run", "--tokens", "1", "-n", "2"], "", &env);
    assert!(
        ran.code == Some(0) && ran.stderr.contains("context 8") && ran.stderr.contains("1 threads"),
        "{ran:?}"
    );
    let ran = bitnet_with(&["run", "--tokens", "1", "-n", "2", "-c", "16"], "", &env);
    assert!(ran.stderr.contains("context 16"), "{ran:?}");
    let ran = bitnet_with(&["run", "--tokens", "1"], "", &[env[1], ("BITNET_TOP_K", "many")]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

#[test]
fn conversions_that_cannot_be_had_are_refused_and_leave_nothing() {
    let folder = Folder::with_model();
    let (path, out) = (folder.path(), text(&folder.at("out.gguf")));
    let before = folder.names();
    let convert = |more: &[&str], code: i32, words: &[&str]| {
        refused(&[&["convert", &path, &out], more].concat(), code, words);
        assert_eq!(folder.names(), before);
    };
    // The tiny model's rows are too short for blocks of 256.
    convert(&["--to", "tq2_0"], 3, &["TQ2_0", "256"]);
    // Its tokenizer is none that GGUF has a place for; with --strict nothing may be left out or rounded.
    convert(&["--to", "i2_s", "--strict"], 3, &["vocabulary", "no place"]);
    convert(&["--to", "hf-f16", "--embedding", "f16", "--strict"], 3, &["rounded", "--strict"]);
    convert(&["--to", "i2_s", "--embedding", "q6_k"], 2, &["Q6_K", "F16"]);
    convert(&["--to", "hf-f32", "--embedding", "q8_0"], 2, &["Q8_0", "F16"]);
    refused(
        &["quantize", &path, &out, "--method", "absmean", "--calib", "/no/such/file"],
        1,
        &["/no/such/file"],
    );
    refused(&["inspect", &path, "--diff", "/no/such/model"], 3, &["/no/such/model"]);
    convert(&["--to", "tl1"], 2, &["--to tl1 needs --tiles"]);
    let table = folder.write("tiles.ini", "[a]\nm = 64\nk = 32\nbm = 32\nbk = 32\nbmm = 32\n");
    let with_table = ["convert", &path, &out, "--to", "tl1", "--tiles", &table];
    refused(&with_table, 2, &["32 x 32", "table of tiles"]);
    folder.write("tiles.ini", "[a]\nm = 32\nk = many\n");
    refused(&with_table, 2, &["tiles.ini", "line 3"]);
    std::fs::remove_file(&table).unwrap();
    // An output that is there stays as it was.
    refused(&["convert", &path, &path, "--to", "hf-f32"], 1, &["not empty"]);
    refused(&["convert", &path, &path, "--to", "i2_s"], 1, &["directory"]);
    for args in [&["convert", &path, &out][..], &["convert", &path, &out, "--to", "q4_k"]] {
        let ran = bitnet(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("--to"), "{ran:?}");
    }
    if cfg!(target_os = "linux") {
        refused(&["convert", &path, "/dev/full", "--to", "i2_s"], 1, &["/dev/full", "space"]);
    }
}
