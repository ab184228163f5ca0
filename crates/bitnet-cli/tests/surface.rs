//! What every command prints, on the reference data.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::golden::{self, ids, json, max_diff};
use bitnet_testkit::tiny;
use common::{Folder, bitnet, bitnet_with, fixture, output, output_of, refused, text};
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn run_gives_the_greedy_tokens_of_the_reference() {
    for model in ["bitnet-packed", "llama-packed"] {
        let greedy = &json(&format!("{model}/reference.json"))["greedy"];
        let (prompt, want) = (ids(&greedy["prompt_ids"]), ids(&greedy["tokens"]));
        let (path, tokens) = (fixture(model), list(&prompt));
        let args = ["run", &path, "--tokens", &tokens, "--temp", "0", "-n", "64", "--json"];
        for more in
            [&["--cache-type", "f32"][..], &["-ctk", "f32", "-ctv", "f32", "--isa", "scalar", "-t", "1"]]
        {
            let object = parse(&output(&[&args, more].concat()));
            // No token is put in front of ids that are given.
            assert_eq!(
                (ids(&object["prompt_tokens"]), ids(&object["tokens"])),
                (prompt.clone(), want.clone())
            );
            assert_eq!(object["finish_reason"], "length");
            assert_eq!(
                (&object["timings"]["prompt_n"], &object["timings"]["predicted_n"]),
                (&json!(prompt.len()), &json!(64))
            );
            for key in ["prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"] {
                assert!(object["timings"][key].as_f64().unwrap() > 0.0, "{key}: {object}");
            }
            assert_eq!(object["timings"]["cache_n"], 0);
            let decoded = parse(&output(&["detokenize", &path, &list(&want), "--json", "--no-special"]));
            assert_eq!(object["text"], decoded["text"]);
        }
    }
}

#[test]
fn run_goes_through_adapters() {
    let expected = json("lora/qvd-r4/expected.json");
    let prompt = ids(&expected["prompts"]["english"]);
    let logits = golden::floats("lora/qvd-r4/expected.safetensors", "logits_unmerged.english");
    let want = golden::argmax(&logits[(prompt.len() - 1) * 512..]) as u32;
    let (path, dir, tokens) = (fixture("bitnet-online"), fixture("lora/qvd-r4"), list(&prompt));
    let first = |more: &[&str]| {
        let args = ["run", &path, "--tokens", &tokens, "--temp", "0", "-n", "1", "--json"];
        ids(&parse(&output(&[&args, more].concat()))["tokens"])
    };
    let scaled = |scale: &str| first(&["--lora-scaled", &format!("{dir}:{scale}")]);
    assert_eq!(first(&["--lora", &dir]), [want]);
    assert_eq!(scaled("1"), [want]);
    assert_eq!(scaled("0"), first(&[]));
    assert_ne!(first(&[]), [want], "the adapter changes the answer");
    refused(&["run", &path, "x", "--lora-scaled", &dir], 2, &["is not of the form DIR:SCALE"]);
    refused(&["run", &path, "x", "--lora", &path], 3, &["adapter_model.safetensors"]);
    refused(&["run", &fixture("llama-packed"), "x", "--lora", &dir], 3, &["shape"]);
}

#[test]
fn run_goes_on_where_a_session_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = text(&folder.path().join("session"));
    let path = fixture("bitnet-packed");
    let run = |more: &[&str]| {
        let args = ["run", &path, "-s", "7", "--ignore-eos", "--json"];
        parse(&output(&[&args, more].concat()))
    };
    let whole = ids(&run(&["--tokens", "500,3,4,5", "-n", "30"])["tokens"]);
    let begun = run(&["--tokens", "500,3,4,5", "-n", "12", "--prompt-cache", &file]);
    assert_eq!(ids(&begun["tokens"]), whole[..12]);
    // Without a prompt it goes on behind what it holds; with one, it begins with what both have in common.
    let copy = format!("{file}.copy");
    std::fs::copy(&file, &copy).unwrap();
    assert_eq!(ids(&run(&["-n", "18", "--session", &copy])["tokens"]), whole[12..]);
    let prompt = list(&[&[500, 3, 4, 5], &whole[..12]].concat());
    let rest = run(&["--tokens", &prompt, "-n", "18", "--session", &file]);
    assert_eq!(ids(&rest["tokens"]), whole[12..]);
    assert_eq!(rest["timings"]["cache_n"], 15);
    refused(&["run", &path, "x", "--prompt-cache", &fixture("README.md")], 3, &["is no session"]);
    refused(&["run", &fixture("llama-packed"), "x", "--prompt-cache", &file], 3, &["another model"]);
}

#[test]
fn embed_gives_a_vector_of_length_one_for_each_text() {
    let path = fixture("bitnet-packed");
    let numbers = |line: &str| -> Vec<f32> { line.split(' ').map(|n| n.parse().unwrap()).collect() };
    let one = numbers(output(&["embed", &path, "ships at night"]).trim_end());
    assert_eq!(one.len(), 128);
    assert!((one.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    let folder = tempfile::tempdir().unwrap();
    let file = text(&folder.path().join("texts.txt"));
    std::fs::write(&file, "ships at night\n\nand by day\n").unwrap();
    let object = parse(&output(&["embed", &path, &file, "--json"]));
    let vector =
        |at: usize| -> Vec<f32> { serde_json::from_value(object["data"][at]["embedding"].clone()).unwrap() };
    assert_eq!((object["data"].as_array().unwrap().len(), vector(0)), (2, one.clone()));
    for (flags, same) in [
        (&["--pooling", "last", "--embd-normalize", "2", "-t", "2"][..], true),
        (&["--pooling", "mean"], false),
        (&["--pooling", "cls"], false),
        (&["--embd-normalize", "-1"], false),
    ] {
        let got = output_of(&[&["embed", &path], flags].concat(), "ships at night\n");
        assert_eq!(numbers(got.trim_end()) == one, same, "{flags:?}");
    }
    for args in [&["-m", &path, "ships at night"][..], &["-m", &path, "-p", "ships at night"]] {
        assert_eq!(numbers(output(&[&["embed"], args].concat()).trim_end()), one, "{args:?}");
    }
    let ids = output(&["tokenize", &path, "ships at night"]);
    assert_eq!(numbers(output(&["embed", &path, "--tokens", &ids]).trim_end()), one);
    refused(&["embed", &path, "--tokens", "99999"], 2, &["99999"]);
    refused(&["embed", &path, "x", "--embd-normalize", "3"], 2, &["--embd-normalize 3"]);
}

#[test]
fn a_model_that_guesses_and_banned_strings() {
    let (path, other) = (fixture("bitnet-packed"), fixture("llama-packed"));
    let args = ["run", &path, "--tokens", "5,6,7,8", "-s", "3", "-n", "40", "--ignore-eos", "--json"];
    let run = |more: &[&str]| parse(&output(&[&args[..], more].concat()));
    let plain = run(&[]);
    for draft in [&path, &other] {
        let drafted = run(&["-md", draft, "--draft-max", "3"]);
        assert_eq!(drafted["tokens"], plain["tokens"], "{draft}");
        assert!(drafted["timings"]["draft_n"].as_u64() > Some(20), "{drafted}");
    }
    let ran = bitnet(&["run", &path, "--tokens", "5,6,7,8", "-n", "40", "--ignore-eos", "-md", &path]);
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.contains("guesses right, ") && last.ends_with(" tokens a step"), "{last}");
    let text = plain["text"].as_str().unwrap();
    let banned: String = text.chars().skip(5).take(3).collect();
    let without = run(&["--banned-string", &banned]);
    assert!(!without["text"].as_str().unwrap().contains(&banned), "{banned:?} in {without}");
    refused(&["run", &path, "x", "--spec", "draft"], 2, &["--draft-model"]);
    refused(&["run", &path, "x", "--spec", "ngram", "-md", &other], 2, &["--spec draft"]);
}

#[test]
fn run_streams_the_text_and_ends_with_the_speeds() {
    let path = fixture("bitnet-packed");
    let args = ["run", &path, "ships at night", "-s", "7", "-n", "20"];
    let ran = bitnet(&args);
    assert_eq!(ran.code, Some(0));
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.starts_with("prompt: ") && last.matches(" tokens/s").count() == 2, "{last}");
    assert!(ran.stderr.contains("BitNetForCausalLM (safetensors)"), "{}", ran.stderr);
    let object = parse(&output(&[&args[..], &["--json"]].concat()));
    assert_eq!(ran.stdout, format!("{}\n", object["text"].as_str().unwrap()));
    assert_eq!(object["seed"], 7);
    assert_eq!(object["prompt_tokens"][0], 500, "a text begins with its BOS");
    let quiet = bitnet_with(&["run", &path, "-q", "-n", "20"], "ships at night\n", &[("BITNET_SEED", "7")]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), (ran.stdout.as_str(), ""));
    // The model and the prompt by name.
    for named in [&["-m", &path, "-p", "ships at night"][..], &["-m", &path, "ships at night"]] {
        assert_eq!(output(&[&["run", "-s", "7", "-n", "20"], named].concat()), ran.stdout);
    }
}

#[test]
fn an_answer_ends_at_its_end_token_unless_told_otherwise() {
    let path = fixture("bitnet-packed");
    let args = ["run", &path, "--tokens", "500,1", "-s", "1", "-n", "40", "--json"];
    // A bias makes the end of text certain.
    let ended = parse(&output(&[&args[..], &["-l", "501+100"]].concat()));
    assert_eq!(
        (&ended["tokens"], &ended["finish_reason"], &ended["text"]),
        (&json!([501]), &json!("stop"), &json!(""))
    );
    let banned = parse(&output(&[&args[..], &["-l", "501+100", "--ignore-eos"]].concat()));
    assert_eq!((ids(&banned["tokens"]).len(), &banned["finish_reason"]), (40, &json!("length")));
    assert!(ids(&banned["tokens"]).iter().all(|id| *id != 501 && *id != 509));
    // A stop string ends it before itself.
    let all = parse(&output(&args));
    let all = all["text"].as_str().unwrap();
    let stop: String = all.chars().skip(8).take(3).collect();
    let stopped = parse(&output(&[&args[..], &["--stop", &stop]].concat()));
    assert_eq!(stopped["text"].as_str().unwrap(), &all[..all.find(&stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn logits_and_hidden_states_are_those_of_the_reference() {
    let folder = Folder::new();
    let file = text(&folder.at("out.safetensors"));
    let prompt = golden::prompts("bitnet-packed").into_iter().find(|p| p.name == "strict0").unwrap();
    let path = fixture("bitnet-packed");
    let args = ["logits", &path, "--tokens", &list(&prompt.ids), "-o", &file, "--cache-type", "f32"];
    output(&args);
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names(), ["logits"]);
    output(&[&args[..], &["--hidden", "-b", "2"]].concat());
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let names = [
        ("logits", "logits.strict0", 512),
        ("hidden.embed", "hidden.strict0.embed", 128),
        ("hidden.layer0", "hidden.strict0.layer0", 128),
        ("hidden.layer1", "hidden.strict0.layer1", 128),
        ("hidden.final_norm", "hidden.strict0.final_norm", 128),
    ];
    assert_eq!(tensors.len(), names.len());
    for (name, reference, width) in names {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(
            (tensor.dtype(), tensor.shape()),
            (safetensors::Dtype::F32, &[prompt.ids.len(), width][..])
        );
        let got: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let want = golden::floats("bitnet-packed/reference.safetensors", reference);
        assert!(max_diff(&got, &want) <= 2e-4, "{name}");
    }
    // A text has its BOS in front.
    output(&["logits", &path, "Hi", "-o", &file]);
    let bytes = std::fs::read(&file).unwrap();
    let ids = parse(&output(&["tokenize", &path, "Hi", "--json"]));
    let rows = ids["ids"].as_array().unwrap().len();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().shape(), [rows, 512]);
    assert_eq!(folder.names(), ["out.safetensors"]);
}

#[test]
fn text_becomes_ids_and_ids_become_text() {
    let path = fixture("bitnet-packed");
    let file = fixture("bitnet-packed/tokenizer.json");
    let prompt = json("bitnet-packed/reference.json")["prompts"][2].clone();
    let (sentence, want) = (prompt["text"].as_str().unwrap(), ids(&prompt["ids"]));
    let plain = output(&["tokenize", &path, sentence]);
    assert_eq!(plain, format!("{}\n", list(&want).replace(',', " ")));
    let object = parse(&output(&["tokenize", &file, sentence, "--json"]));
    assert_eq!((ids(&object["ids"]), object["pieces"].as_array().unwrap().len()), (want.clone(), want.len()));
    let bare = parse(&output_of(&["tokenize", &path, "--json", "--no-special"], sentence));
    assert_eq!(ids(&bare["ids"]), want[1..]);
    let lines =
        output_of(&["tokenize", &path, "--lines"], &format!("{}\n\"\"\n\"a\\nb\"\n", json!(sentence)));
    let lines: Vec<Value> = lines.lines().map(parse).collect();
    assert_eq!((lines.len(), ids(&lines[0]["ids"])), (3, want.clone()));
    assert_eq!(output_of(&["detokenize", &path, "--no-special"], &plain), format!("{sentence}\n"));
    let back =
        output_of(&["detokenize", &file, "--lines", "--no-special"], &format!("{}\n[]\n", json!(want)));
    assert_eq!(back.lines().map(parse).collect::<Vec<_>>(), [json!({"text": sentence}), json!({"text": ""})]);
}

#[test]
fn a_template_renders_messages() {
    let folder = Folder::with_model();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let file = folder.write("messages.json", messages.to_string());
    let whole = "user: hi</s>assistant: ";
    assert_eq!(output(&["template", &folder.path(), &file]), whole);
    let gguf = folder.write("model.gguf", tiny::gguf().bytes());
    assert_eq!(output_of(&["template", &gguf, "-"], &json!({"messages": messages}).to_string()), whole);
    assert_eq!(output(&["template", &gguf, &file, "--no-generation-prompt"]), "user: hi</s>");
}

#[test]
fn inspect_says_what_a_model_is_made_of() {
    let folder = Folder::new();
    let mut bare = tiny::gguf();
    bare.remove("tokenizer.ggml.model");
    for (path, format, projections, packed) in [
        (fixture("bitnet-packed"), "Hugging Face safetensors", 14, "HF packed"),
        (fixture("gguf/bitnet-online-i2_s.gguf"), "GGUF version 3", 14, "I2_S"),
        (folder.write("bare.gguf", bare.bytes()), "GGUF version 3", 7, "I2_S"),
    ] {
        let object = parse(&output(&["inspect", &path, "--json"]));
        assert_eq!(
            (&object["format"], &object["types"][packed]["tensors"]),
            (&json!(format), &json!(projections))
        );
        let bits = object["types"][packed]["bits_per_weight"].as_f64().unwrap();
        assert!((2.0..2.2).contains(&bits), "{bits}");
        assert_eq!(object["tokenizer"].is_null(), path.ends_with("bare.gguf"));
        let page = output(&["inspect", &path, "--tensors"]);
        for tensor in object["tensors"].as_array().unwrap() {
            assert!(page.contains(tensor["name"].as_str().unwrap()), "{page}");
        }
        for word in [format, object["architecture"].as_str().unwrap(), "bits each", packed, "tokenizer"] {
            assert!(page.contains(word), "{word}: {page}");
        }
        let template = object["chat_template"].as_str().unwrap_or("no chat template");
        assert!(page.contains(template), "{page}");
    }
}

#[test]
fn inspect_lists_what_a_file_has_beside_the_model() {
    let folder = Folder::new();
    let graph = text(&folder.at("graph"));
    output(&["convert", &fixture("bitnet-packed"), &graph, "--to", "onnx", "-q"]);
    let object = parse(&output(&["inspect", &graph, "--json"]));
    assert_eq!(object["format"], "Hugging Face ONNX");
    let others = object["other_tensors"].as_array().unwrap();
    assert!(!others.is_empty());
    let (short, long) = (output(&["inspect", &graph]), output(&["inspect", &graph, "--tensors"]));
    let count = format!("beside the model: {} tensors, ", others.len());
    assert!(short.contains(&count) && long.contains(&count), "{short}");
    for tensor in others {
        let line = format!("\n{} ", tensor["name"].as_str().unwrap());
        assert!(long.contains(&line) && !short.contains(&line), "{line} {long}");
    }
    let plain = output(&["inspect", &fixture("bitnet-packed"), "--tensors"]);
    assert!(!plain.contains("beside the model"), "{plain}");
}

/// A model without a tokenizer, which speed does not need.
fn bare_model(folder: &Folder) -> String {
    let mut file = tiny::gguf();
    file.remove("tokenizer.ggml.model");
    folder.write("model.gguf", file.bytes())
}

#[test]
fn bench_prints_the_rows_of_llama_bench() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let args = ["bench", &path, "-p", "8-16*2", "-n", "4", "-pg", "8,2", "-d", "0,5", "-r", "2", "-t", "1"];
    let tests = ["pp8", "pp8 @ d5", "pp16", "pp16 @ d5", "tg4", "tg4 @ d5", "pp8+tg2", "pp8+tg2 @ d5"];
    let page = output(&args);
    let rows: Vec<Vec<&str>> = page
        .lines()
        .take_while(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let names = ["model", "size", "params", "backend", "kernel", "threads", "test", "t/s"];
    assert_eq!(rows[0][..8], names);
    assert_eq!(rows[0].get(8), cfg!(target_os = "linux").then_some(&"peak memory"));
    assert_eq!(rows[2..].iter().map(|r| r[6]).collect::<Vec<_>>(), tests);
    assert!(rows[2..].iter().all(|r| r[7].contains(" ± ")), "{page}");
    assert!(page.contains("loaded in") && page.contains("first token of pp8 "), "{page}");
    let rows = parse(&output(&[&args[..], &["-o", "json"]].concat()));
    let rows = rows.as_array().unwrap();
    let named = |row: &Value| (row["n_prompt"].clone(), row["n_gen"].clone(), row["n_depth"].clone());
    assert_eq!(named(&rows[7]), (json!(8), json!(2), json!(5)));
    for (row, test) in rows.iter().zip(tests) {
        assert_eq!(
            (&row["test"], &row["n_threads"], &row["type_k"]),
            (&json!(test), &json!(1), &json!("f16"))
        );
        for name in ["samples_ts", "samples_ns"] {
            assert_eq!(row[name].as_array().unwrap().len(), 2);
        }
        for name in ["avg_ts", "avg_ns", "first_token_ns", "load_ns", "model_size", "model_n_params"] {
            assert!(row[name].as_f64().unwrap() > 0.0, "{name}: {row}");
        }
        assert!(row["first_token_ns"].as_u64() <= row["avg_ns"].as_u64(), "{row}");
    }
}

#[test]
fn bench_tells_what_memory_is_for() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let args = |level| ["bench", &path, "-p", "8", "-n", "2", "-r", "1", "-t", "1", level];
    let rows = parse(&output(&[&args("--memory")[..], &["-o", "json"]].concat()));
    let memory = &rows[1]["memory"]["host"];
    let tags = memory["tags"].as_array().unwrap();
    let of =
        |tag: &str| tags.iter().find(|t| t["tag"] == tag).unwrap_or_else(|| panic!("no {tag}: {memory}"));
    for tag in ["weights", "kv", "activations", "scratch"] {
        let count = |name: &str| of(tag)[name].as_u64().unwrap();
        assert!(0 < count("asked_bytes") && count("asked_bytes") <= count("peak_bytes"), "{tag}: {memory}");
        assert!(0 < count("taken") && count("source_requests") <= count("taken"), "{tag}: {memory}");
    }
    // The first row's answer comes in steps like those of the second.
    let asked = |row: &Value| row["memory"]["host"]["source_requests"].as_u64().unwrap();
    assert!(asked(&rows[0]) <= asked(&rows[1]));
    let page = output(&args("--memory=detailed"));
    for words in ["memory of host: ", "| weights ", "| activations ", "| from the system |", "| to "] {
        assert!(page.contains(words), "{words:?} is missing: {page}");
    }
    let page = output(&args("--memory=off"));
    assert!(page.contains("memory of host: ") && !page.contains("| weights"), "{page}");
    assert_eq!(bitnet(&args("--memory=much")).code, Some(2));
}

#[test]
fn bench_says_where_there_is_no_profile() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    refused(
        &["bench", &path, "-p", "8", "-n", "2", "--device", "cpu", "--profile"],
        2,
        &["--profile", "cpu", "wgpu:0"],
    );
    refused(
        &["bench", &path, "-p", "8", "-n", "2", "--device", "cpu", "--profile", "--concurrency", "1"],
        2,
        &["cpu"],
    );
}

#[test]
fn bench_has_the_forms_of_llama_bench() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let form = |name: &str| {
        output(&["bench", &path, "-p", "8", "-n", "2", "-r", "1", "-ctk", "f16,f32", "-o", name])
    };
    let lines: Vec<Value> = form("jsonl").lines().map(parse).collect();
    let keys: Vec<&str> = lines.iter().map(|row| row["type_k"].as_str().unwrap()).collect();
    assert_eq!(keys, ["f16", "f16", "f32", "f32"]);
    let csv = form("csv");
    let csv: Vec<&str> = csv.lines().collect();
    assert_eq!(csv.len(), 5);
    assert!(csv[0].contains(",avg_ts,") && csv[1].contains("\"pp8\""), "{csv:?}");
    let fields = csv[0].split(',').count();
    assert!(csv[1..].iter().all(|row| row.split("\",\"").count() == fields), "{csv:?}");
    let sql = form("sql");
    assert!(
        sql.starts_with("CREATE TABLE IF NOT EXISTS") && sql.matches("INSERT INTO").count() == 4,
        "{sql}"
    );
}

#[test]
fn bench_answers_many_at_once() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let args = ["bench", &path, "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--concurrency", "1,3"];
    let rows = parse(&output(&[&args[..], &["-o", "json"]].concat()));
    let names: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp8+tg4 x1", "pp8+tg4 x3"]);
    for row in rows.as_array().unwrap() {
        let of = |name: &str| row[name].as_f64().unwrap();
        // Of twelve tokens, four are the answer's.
        assert!((of("avg_ts") / of("avg_answer_ts") - 3.0).abs() < 1e-6, "{row}");
        for name in ["first_token", "between_tokens"] {
            let (median, worst) = (of(&format!("{name}_p50_ns")), of(&format!("{name}_p99_ns")));
            assert!(0.0 < median && median <= worst && worst <= 2.0 * of("avg_ns"), "{row}");
        }
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
    }
    let page = output(&args);
    assert!(page.contains("| pp8+tg4 x3 |") && page.contains("first token p50 / p99 ms"), "{page}");
    refused(&["bench", &path, "-n", "0", "--concurrency", "2"], 2, &["--concurrency"]);
    refused(&["bench", &path, "-p", "64", "-n", "9", "--concurrency", "2"], 2, &["73", "64"]);
}

#[test]
fn eval_gives_the_perplexity_of_its_windows() {
    let folder = Folder::new();
    let path = fixture("bitnet-packed");
    let words = "ships at night, and the wind that never sleeps; ".repeat(8);
    let file = folder.write("text.txt", &words);
    let args = ["eval", &path, "--ppl", &file, "-c", "32"];
    let object = parse(&output(&[&args[..], &["--json"]].concat()));
    // The definition: each window begins with BOS; of its second half every token is predicted.
    let ids = ids(&parse(&output(&["tokenize", &path, &words, "--json"]))["ids"]);
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    for window in ids.chunks_exact(32) {
        let mut window = window.to_vec();
        window[0] = 500;
        let out = text(&folder.at("out.safetensors"));
        output(&["logits", &path, "--tokens", &list(&window), "-o", &out]);
        let bytes = std::fs::read(&out).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor("logits").unwrap().data().to_vec();
        let logits: Vec<f64> =
            data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
        for at in 16..31 {
            let row = &logits[at * 512..][..512];
            let nll = row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[window[at + 1] as usize];
            (sum, squares, count) = (sum + nll, squares + nll * nll, count + 1.0);
        }
    }
    let mean: f64 = sum / count;
    let error = ((squares / count - mean * mean) / (count - 1.0)).sqrt() * mean.exp();
    let near = |key: &str, want: f64| {
        let got = object[key].as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 1e-5, "{key}: {got}, not {want}");
    };
    near("tokens", count);
    near("ppl", mean.exp());
    near("ppl_error", error);
    let bits = sum / std::f64::consts::LN_2 / object["bytes"].as_f64().unwrap();
    near("bits_per_byte", bits);
    let ran = bitnet(&args);
    let final_line = format!("Final estimate: PPL = {:.4} +/- ", mean.exp());
    assert!(ran.stdout.starts_with(&final_line) && ran.stderr.contains("[2] "), "{ran:?}");
    let some = parse(&output(&[&args[..], &["--json", "--chunks", "1"]].concat()));
    assert_eq!(some["tokens"], 15);
    // Overlapping windows of 32 + 8 / 2 tokens predict eight each.
    let strided = parse(&output(&[&args[..], &["--json", "--ppl-stride", "8"]].concat()));
    assert_eq!(strided["tokens"], (ids.len() - 36).div_ceil(8) * 8);
    refused(&["eval", &path, "--ppl", &file, "-c", "4096"], 2, &["4096", "512"]);
    refused(&["eval", &path, "--ppl", &folder.write("short.txt", "a"), "-c", "32"], 2, &["too few"]);
    refused(&["eval", &path], 2, &["--ppl"]);
}

#[test]
fn eval_tells_how_far_a_model_is_from_another() {
    let folder = Folder::new();
    let (path, other) = (fixture("bitnet-packed"), fixture("bitnet-online"));
    let file = folder.write("text.txt", "ships at night, and the wind that never sleeps; ".repeat(8));
    let stored = text(&folder.at("logits.kld"));
    let ppl = |model: &str, more: &[&str]| {
        let args = ["eval", model, "--ppl", &file, "-c", "32", "--json"];
        parse(&output(&[&args[..], more].concat()))
    };
    let base = ppl(&path, &["--kl-divergence-base", &stored]);
    let read = |model: &str| {
        parse(&output(&["eval", model, "--kl-divergence", "--kl-divergence-base", &stored, "--json"]))
    };
    let number = |object: &Value, key: &str| object.pointer(key).and_then(Value::as_f64).unwrap();
    // A model is no distance from itself, but for the sixteen bits of the file.
    let same = read(&path);
    assert!(number(&same, "/kld/max").abs() < 1e-5 && number(&same, "/same_top") == 1.0, "{same}");
    assert!((number(&same, "/base_ppl") / number(&base, "/ppl") - 1.0).abs() < 1e-4, "{same}");
    assert_eq!(same["tokens"], base["tokens"]);
    // Another one is as far by a file as by the model itself.
    let (by_file, by_model) = (read(&other), ppl(&other, &["--kl-divergence", "--base", &path]));
    assert_eq!(number(&by_model, "/ppl"), number(&ppl(&other, &[]), "/ppl"));
    for key in ["/kld/mean", "/kld/median", "/kld/p99", "/p_difference/rms"] {
        let (a, b) = (number(&by_file, key), number(&by_model, key));
        assert!(a > 0.0 && (a / b - 1.0).abs() < 1e-2, "{key}: {a}, {b}");
    }
    let page = output(&["eval", &other, "--kl-divergence", "--kl-divergence-base", &stored]);
    for words in ["Mean PPL(Q) ", "Mean     KLD: ", "99.9%    KLD: ", "RMS       Δp: ", "Same top p  : "] {
        assert!(page.contains(words), "{words:?} is not in {page}");
    }
    // A file that lies or is cut off is refused.
    let bytes = std::fs::read(&stored).unwrap();
    let bad = |bytes: &[u8]| {
        let file = folder.write("bad.kld", bytes);
        refused(&["eval", &path, "--kl-divergence", "--kl-divergence-base", &file], 2, &["bad.kld"]);
    };
    for len in [0, 7, 8, 19, 20, bytes.len() / 2, bytes.len() - 1] {
        bad(&bytes[..len]);
    }
    for at in [8, 12, 16] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        bad(&bytes);
    }
    refused(&["eval", &path, "--kl-divergence"], 2, &["--base", "--kl-divergence-base"]);
}

#[test]
fn bench_measures_what_the_machine_allows() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let args = ["bench", &path, "-p", "8", "-n", "2", "-r", "1", "-t", "1", "--roofline"];
    let rows = parse(&output(&[&args[..], &["-o", "json"]].concat()));
    for row in rows.as_array().unwrap() {
        for name in ["step_bytes", "read_bytes_per_s", "int8_ops_per_s", "limit_ts", "limit_share"] {
            assert!(row[name].as_f64().unwrap() > 0.0, "{name}: {row}");
        }
        let share = row["avg_ts"].as_f64().unwrap() / row["limit_ts"].as_f64().unwrap();
        assert!((share / row["limit_share"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["samples_read_bytes_per_s"].as_array().unwrap().len(), 1);
    }
    let page = output(&args);
    assert!(page.contains("| share |") && page.contains("limits with 1 thread: reads "), "{page}");
}

#[test]
fn what_tune_finds_is_used() {
    let folder = Folder::new();
    let path = bare_model(&folder);
    let file = text(&folder.at("tuning.json"));
    let object = parse(&output(&["tune", &path, "--tuning", &file, "--json", "--seconds", "2"]));
    assert_eq!(object["file"], json!(file));
    let best = &object["choices"][0];
    assert!(best["prefill"].as_f64().unwrap() > 0.0 && best["decode"].as_f64().unwrap() > 0.0, "{object}");
    let bench = |more: &[&str]| {
        let args = ["bench", &path, "-p", "0", "-n", "1", "-r", "1", "-o", "json", "--tuning", &file];
        parse(&output(&[&args[..], more].concat()))[0].clone()
    };
    let row = bench(&[]);
    assert_eq!((&row["kernel"], &row["n_threads"]), (&best["kernel"], &best["threads"]));
    assert_eq!((&row["tuned"], &row["skips"]), (&json!(true), &best["skip"]));
    // What the command line says holds.
    let row = bench(&["--kernel", "tile2-scalar", "-t", "1"]);
    assert_eq!((&row["kernel"], &row["tuned"]), (&json!("tile2-scalar"), &json!(false)));
    let page = output(&["doctor", "--offline", "--tuning", &file]);
    assert!(page.contains("tuned models     1") && page.contains(best["kernel"].as_str().unwrap()), "{page}");
    // A file that cannot be used is warned of and changes nothing.
    std::fs::write(folder.at("tuning.json"), "{").unwrap();
    let ran = bitnet_with(&["run", &path, "--tokens", "1", "-n", "2", "--tuning", &file], "", &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.starts_with("warning: ") && ran.stderr.contains("damaged"), "{ran:?}");
}

#[test]
fn doctor_finds_every_kernel_right() {
    let page = output(&["doctor", "--offline"]);
    assert!(page.contains("ok: ") && !page.contains("WRONG"), "{page}");
    // Nobody listens there.
    let folder = Folder::new();
    let args = ["doctor", "--json", "--endpoint", "http://127.0.0.1:1", "--cache-dir", &folder.path()];
    let object = parse(&output(&args));
    assert_eq!((&object["failed"], &object["hub"]["reachable"]), (&json!(0), &json!(false)));
    assert!(object["hub"]["error"].as_str().unwrap().contains("127.0.0.1:1"), "{object}");
    // The tests run commands in a bounded address space.
    if cfg!(target_os = "linux") {
        let memory = object["memory"].as_array().unwrap();
        let limit = |kind: &str| memory.iter().find(|m| m["limit"] == *kind).unwrap();
        assert_eq!(limit("address space")["bytes"], json!(1 << 30));
        assert!(limit("machine memory")["used"].as_u64() > Some(0), "{object}");
        assert!(page.contains("left (address space)"), "{page}");
    }
    let kernels = object["kernels"].as_object().unwrap();
    let passed = |k: &Value| k["passed"].as_object().unwrap().values().any(|v| *v == json!(true));
    assert!(kernels.len() > 5 && kernels.values().all(passed), "{object}");
}

#[test]
fn what_is_measured_of_devices_is_kept() {
    let folder = Folder::new();
    let file = text(&folder.at("tuning.json"));
    let doctor = |more: &[&str]| output(&[&["doctor", "--offline", "--tuning", &file], more].concat());
    assert!(doctor(&[]).contains("measured         nothing"));
    let found = parse(&doctor(&["--measure", "--json"]));
    let cpu = &found["speeds"]["cpu"]["speed"];
    assert!(["read", "int8", "float"].iter().all(|of| cpu[of].as_f64().unwrap() > 1e6), "{found}");
    assert_eq!(parse(&doctor(&["--json"]))["speeds"], found["speeds"]);
    assert!(doctor(&[]).contains("measured         cpu ("));
    // `tune` leaves it there.
    output(&["tune", &bare_model(&folder), "--tuning", &file, "--json", "--seconds", "1"]);
    assert_eq!(parse(&doctor(&["--json"]))["speeds"], found["speeds"]);
}

#[test]
fn a_device_that_was_left_open_is_told() {
    let path = fixture("bitnet-packed");
    let args = ["run", &path, "--tokens", "1", "-n", "2", "--device", "auto", "--isa", "scalar"];
    let ran = bitnet_with(&args, "", &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.starts_with("device: cpu (--isa and --kernel choose among its kernels)"), "{ran:?}");
    refused(&[&args[..], &["--require-device"]].concat(), 1, &["--require-device: cpu would be taken"]);
}

#[test]
fn layers_lie_on_the_devices_of_a_list() {
    let path = fixture("bitnet-packed");
    let args = ["run", &path, "--tokens", "1,2,3", "-n", "9", "--temp", "0", "--ignore-eos", "-t", "1"];
    let one = bitnet_with(&args, "", &[]);
    let two = bitnet_with(&[&args[..], &["--device", "cpu,cpu", "-ts", "1,1"]].concat(), "", &[]);
    assert_eq!((two.code, &two.stdout), (Some(0), &one.stdout), "{two:?}");
    assert!(two.stderr.contains("cpu (1 of 2 layers), cpu (1 of 2 layers)"), "{two:?}");
    let bench =
        ["bench", &path, "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", "jsonl", "--device", "cpu,cpu"];
    let rows: Vec<_> = output(&bench).lines().map(parse).collect();
    assert!(rows.iter().all(|row| row["backends"] == "CPU,CPU" && row["split_mode"] == "layer"), "{rows:?}");
}

#[test]
fn chat_answers_line_by_line() {
    let path = fixture("bitnet-packed");
    let args = ["chat", &path, "--temp", "0", "-n", "6", "--system", "Be brief."];
    let chat = |input: &str| {
        let ran = bitnet_with(&args, input, &[]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran
    };
    let prompt = |ran: &common::Ran| -> Vec<String> {
        ran.stderr
            .lines()
            .filter(|l| l.starts_with("prompt: "))
            .map(|l| l.split(',').next().unwrap().to_owned())
            .collect()
    };
    let first = chat("hello\n");
    assert_eq!(prompt(&first).len(), 1);
    // The same again is the same answer, and what follows /exit is not read.
    let again = chat("hello\n/regen\n/clear\nhello\n/exit\nhello\n");
    assert_eq!(again.stdout, first.stdout.repeat(3));
    // Another system prompt is another conversation; the first one had more tokens.
    let other = chat("/system\nhello\n");
    assert_ne!(prompt(&other), prompt(&first));
    // Nothing to answer yet, and a command that does not exist.
    let lost = chat("/regen\n/what\n\n");
    assert!(lost.stdout.is_empty() && lost.stderr.contains("no message") && lost.stderr.contains("/help"));
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let model = fixture("bitnet-packed");
    let run = |flag: &str, form: &str| {
        let out = output(&["run", &model, "--tokens", "5,6", "-n", "100", "--seed", "3", "-q", flag, form]);
        out.strip_suffix('\n').unwrap().to_owned()
    };
    assert!(["\"yes\"", "\"no\""].contains(&run("--json-schema", r#"{"enum": ["yes", "no"]}"#).as_str()));
    assert!(["yes", "no"].contains(&run("--grammar", r#"root ::= "yes" | "no""#).as_str()));
    for (flag, form) in
        [("--json-schema", "{"), ("--grammar", "root ::= \""), ("--grammar", "start: nowhere")]
    {
        refused(&["run", &model, "--tokens", "5,6", flag, form], 2, &[flag.trim_start_matches('-')]);
    }
    let guessed =
        |spec: &str| output(&["run", &model, "--tokens", "5,6,7,5,6,7,5,6", "--temp", "0", "--spec", spec]);
    assert_eq!(guessed("ngram"), guessed("none"));
}

#[test]
fn convert_prints_one_table_and_what_was_verified() {
    let folder = Folder::new();
    let out = text(&folder.at("model.gguf"));
    let printed = output(&["convert", &fixture("bitnet-online"), &out, "--to", "Q2_0", "--verify"]);
    for words in [
        "projections  Q2_0_G64         14         393216",
        "2.250",
        "rounded: scales of 14 tensors, by up to ",
        "Gate                2          98304        0",
        "logits of 32 tokens: up to ",
    ] {
        assert!(printed.contains(words), "{words:?} is not in {printed}");
    }
    assert_eq!(printed.lines().last(), Some(out.as_str()));
    let back = text(&folder.at("back"));
    let object = parse(&output(&[
        "convert",
        &out,
        &back,
        "--to",
        "hf-autobitlinear",
        "--strict",
        "--verify",
        "--json",
    ]));
    assert_eq!((&object["rounded"], &object["left_out"]), (&json!([]), &json!([])));
    assert_eq!(object["verified"]["logits"]["same"], true);
    assert_eq!(object["verified"]["tensors"]["Gate"]["trits_differ"], 0);
    assert_eq!(object["classes"][2]["type"], "HF packed");
    assert_eq!(folder.names(), ["back", "model.gguf"]);
    let diff = |a: &str, b: &str| output(&["inspect", a, "--diff", b]);
    assert_eq!(diff(&out, &back), "no differences\n");
    let found = diff(&out, &fixture("bitnet-packed"));
    for words in ["blk.0.attn_q.weight: 1 of 1 scales, by up to ", "blk.1.ffn_down.weight: "] {
        assert!(found.contains(words), "{words:?} is not in {found}");
    }
    let found = parse(&output(&[
        "inspect",
        &fixture("bitnet-packed"),
        "--diff",
        &fixture("bitnet-online"),
        "--json",
    ]));
    assert_eq!(found["metadata"][0]["key"], "config.quantization_config.quantization_mode");
    assert_eq!(found["tensors"]["model.layers.0.mlp.up_proj.weight"]["scales_differ"], 1);
    // The converted model is a model.
    let tokens = ["--tokens", "1,2,3", "--temp", "0", "-n", "8", "--json", "--act", "int8"];
    let run = |path: &str| parse(&output(&[&["run", path][..], &tokens].concat()))["tokens"].clone();
    assert_eq!(run(&out), run(&back));
}

#[test]
fn quantize_says_what_is_left_of_the_model() {
    let folder = Folder::new();
    let (out, text_file) =
        (text(&folder.at("model.gguf")), folder.write("text", "ships at night, ".repeat(30)));
    let args = ["quantize", &fixture("bitnet-online"), &out, "--method", "absmean", "--calib", &text_file];
    let printed = output(&args);
    for words in [
        "projection ",
        "blk.1.ffn_down.weight ",
        "projections  I2_S ",
        "layer ",
        "perplexity of ",
        "KL divergence ",
    ] {
        assert!(printed.contains(words), "{words:?} is not in {printed}");
    }
    let object = parse(&output(&[&args[..], &["--json", "--to", "f32"]].concat()));
    let layers = object["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 14);
    assert!(layers.iter().all(|l| l["cosine"].as_f64().unwrap() > 0.8 && l["zeros"].as_f64().unwrap() > 0.2));
    let calibration = &object["calibration"];
    // Master weights are made ternary when they are run, so nothing is lost here.
    let divergence = &calibration["divergence"];
    assert_eq!((&divergence["ppl"], &divergence["same_top"]), (&divergence["base_ppl"], &json!(1.0)));
    assert!(
        divergence["kld"]["mean"].as_f64().unwrap().abs() < 1e-9 && divergence["tokens"].as_u64() > Some(20)
    );
    assert_eq!(calibration["states"].as_array().unwrap().len(), 2);
    assert!(calibration["states"].as_array().unwrap().iter().all(|s| s["mse"] == 0.0));
    // A dense parent: what is lost grows from layer to layer, and both kinds of report say it.
    let (dense, page, file) =
        (text(&folder.at("dense")), text(&folder.at("q.html")), text(&folder.at("q.json")));
    dense_copy(&fixture("llama-packed"), &dense);
    for report in [&page, &file] {
        let args = [
            "quantize", &dense, &out, "--method", "absmean", "--calib", &text_file, "--report", report, "-q",
        ];
        output(&args);
    }
    let object = parse(&std::fs::read_to_string(&file).unwrap());
    let divergence = &object["calibration"]["divergence"];
    assert!(divergence["kld"]["mean"].as_f64().unwrap() > 0.01, "{divergence}");
    assert!(divergence["ppl"] != divergence["base_ppl"] && divergence["same_top"].as_f64() < Some(1.0));
    let states = object["calibration"]["states"].as_array().unwrap();
    assert!(states.len() == 2 && states.iter().all(|s| s["mse"].as_f64() > Some(0.01)), "{states:?}");
    let page = std::fs::read_to_string(&page).unwrap();
    for words in
        ["KL divergence from the parent", "blk.1.ffn_down.weight", "States behind each layer", "<svg"]
    {
        assert!(page.contains(words), "{words:?} is not in the page");
    }
    let ran = bitnet(&["quantize", &dense, &out, "--method", "absmean", "--report", "q.txt"]);
    assert!(ran.code == Some(2) && ran.stderr.contains(".html nor .json"), "{ran:?}");
    refused(&["quantize", &out, &out, "--method", "absmean"], 2, &["ternary already"]);
}

/// A dense Llama: another one's weights without the word about quantization, each of them moved by a little of its own.
fn dense_copy(from: &str, to: &str) {
    output(&["convert", from, to, "--to", "hf-f32", "-q"]);
    let config = std::path::Path::new(to).join("config.json");
    let mut object = parse(&std::fs::read_to_string(&config).unwrap());
    object.as_object_mut().unwrap().remove("quantization_config");
    std::fs::write(&config, object.to_string()).unwrap();
    let weights = std::path::Path::new(to).join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // Trits and their scales become floats of many sizes.
    let dense = file.tensors().into_iter().filter(|(name, _)| !name.ends_with("weight_scale"));
    let dense: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = dense
        .map(|(name, tensor)| {
            let floats = tensor.data().as_chunks::<4>().0.iter().enumerate();
            let moved = floats
                .flat_map(|(i, v)| (f32::from_le_bytes(*v) * (1.0 + 0.3 * (i as f32).sin())).to_le_bytes());
            let float = tensor.dtype() == safetensors::Dtype::F32 && tensor.shape().len() == 2;
            let bytes = if float { moved.collect() } else { tensor.data().to_vec() };
            (name, tensor.dtype(), tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views = dense.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
        (name, view.unwrap())
    });
    std::fs::write(weights, safetensors::serialize(views, None).unwrap()).unwrap();
}
