//! The rules that all commands share: where results go, which setting wins, what help texts show.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, Ran, bitnet, bitnet_with, fixture, output, refused, text};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// `-q --json` leaves one JSON text on standard output, and nothing on standard error.
#[test]
fn every_command_that_prints_data_prints_json() {
    let folder = Folder::new();
    let (model, other) = (fixture("bitnet-packed"), fixture("bitnet-online"));
    let at = |name: &str| text(&folder.at(name));
    let messages = folder.write("messages.json", r#"[{"role": "user", "content": "hi"}]"#);
    let words = folder.write("text.txt", "ships at night, ".repeat(40));
    let (logits, gguf, ternary) = (at("logits.safetensors"), at("model.gguf"), at("ternary.gguf"));
    let (tuning, vocabulary) = (at("tuning.json"), at("vocabulary"));
    let (adapter, merged) = (fixture("lora/qvd-r4"), at("merged"));
    let commands: &[&[&str]] = &[
        &["run", &model, "--tokens", "1,2", "-n", "2"],
        &["inspect", &model],
        &["inspect", &model, "--diff", &other],
        &["inspect", &model, "--hist"],
        &["show", &model],
        &["tokenize", &model, "hi"],
        &["detokenize", &model, "1,2"],
        &["template", &model, &messages],
        &["tokenizer", "train", &words, "-o", &vocabulary, "--vocab-size", "262"],
        &["logits", &model, "--tokens", "1,2", "-o", &logits],
        &["convert", &model, &gguf, "--to", "i2_s"],
        &["quantize", &other, &ternary, "--method", "absmean"],
        &["merge", &other, &adapter, &merged],
        &["eval", &model, "--ppl", &words, "-c", "16"],
        &["bench", &model, "-p", "4", "-n", "2", "-r", "1"],
        &["tune", &model, "--seconds", "1", "--tuning", &tuning],
        &["doctor", "--offline"],
        &["ls"],
        &["cache", "stats"],
        &["cache", "prune"],
    ];
    for args in commands {
        let cache = at("hub");
        let ran = bitnet_with(&[args, &["--json", "-q"][..]].concat(), "", &[("HF_HUB_CACHE", &cache)]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}: {ran:?}");
        let json: Result<Value, _> = serde_json::from_str(&ran.stdout);
        assert!(json.is_ok(), "{args:?}: {ran:?}");
    }
}

/// A run whose line at its start tells the context.
fn context(env: &[(&str, &str)], args: &[&str]) -> String {
    let model = fixture("bitnet-packed");
    let ran = bitnet_with(&[&["run", &model, "--tokens", "1", "-n", "1"], args].concat(), "", env);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let at = ran.stderr.find("context ").unwrap() + "context ".len();
    ran.stderr[at..].split(',').next().unwrap().to_owned()
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_model() {
    let folder = Folder::new();
    let general = folder.write("general.toml", "ctx-size = 40\n");
    let special =
        folder.write("special.toml", "ctx_size = 40\n[run]\nctx_size = 50\n[chat]\nctx-size = 60\n");
    for (file, variable, flag, want) in [
        (None, None, None, "512"),
        (Some(&general), None, None, "40"),
        (Some(&special), None, None, "50"),
        (Some(&special), Some("70"), None, "70"),
        (Some(&special), Some("70"), Some("80"), "80"),
        (None, Some("70"), Some("80"), "80"),
        (None, None, Some("80"), "80"),
    ] {
        let file = file.map(|file| ("BITNET_CONFIG", file.as_str()));
        let env: Vec<_> = file.into_iter().chain(variable.map(|v| ("BITNET_CTX_SIZE", v))).collect();
        let args = flag.map_or_else(Vec::new, |flag| vec!["-c", flag]);
        assert_eq!(context(&env, &args), want, "{env:?} {args:?}");
    }
    // Where the file is found.
    let home = Folder::new();
    std::fs::create_dir_all(home.at(".config/bitnet")).unwrap();
    home.write(".config/bitnet/bitnet.toml", "ctx-size = 33");
    assert_eq!(context(&[("HOME", &home.path())], &[]), "33");
    assert_eq!(context(&[("XDG_CONFIG_HOME", &text(&home.at(".config")))], &[]), "33");
}

#[test]
fn a_model_says_how_it_is_sampled_where_nobody_else_does() {
    let folder = Folder::new();
    let settings = folder.write("bitnet.toml", "temp = 0.3\n");
    let talk = |model: &str, env: &[(&str, &str)], args: &[&str]| {
        let args = [&["run", model, "--tokens", "500,1", "-n", "30", "--seed", "4", "-q"], args].concat();
        let ran = bitnet_with(&args, "", env);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    let (model, all) = (fixture("bitnet-packed"), ["--temp", "0.6", "--top-p", "0.9"]);
    let own = talk(&model, &[], &[]);
    assert_eq!(own, talk(&model, &[], &all));
    assert_ne!(own, talk(&model, &[], &["--temp", "0.8", "--top-p", "0.95"]));
    let file = [("BITNET_CONFIG", settings.as_str())];
    assert_eq!(talk(&model, &file, &[]), talk(&model, &[], &["--temp", "0.3"]));
    // The same in its other format.
    let gguf = text(&folder.at("model.gguf"));
    output(&["convert", &model, &gguf, "--to", "i2_s", "-q"]);
    assert_eq!(talk(&gguf, &[], &[]), own);
}

#[test]
fn a_file_of_settings_that_is_wrong_is_refused() {
    let folder = Folder::new();
    for (text, words) in [
        ("ctx-size = ", ["bitnet.toml", ""]),
        ("frobnicate = 1", ["bitnet.toml", "frobnicate"]),
        ("[run]\nhost = 'x'", ["[run]", "host"]),
        ("[aliases]\na = 1", ["alias", "a"]),
    ] {
        let file = folder.write("bitnet.toml", text);
        let ran = bitnet_with(&["doctor", "--offline"], "", &[("BITNET_CONFIG", &file)]);
        assert_eq!((ran.code, ran.stderr.lines().count()), (Some(2), 1), "{ran:?}");
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{ran:?}");
    }
    let ran = bitnet_with(&["doctor", "--offline"], "", &[("BITNET_CONFIG", "/no/such/file")]);
    assert!(ran.code == Some(2) && ran.stderr.contains("/no/such/file"), "{ran:?}");
    // A value of the wrong kind is an error of the flag.
    let file = folder.write("bitnet.toml", "threads = 'many'");
    let model = fixture("bitnet-packed");
    let ran = bitnet_with(&["run", &model, "--tokens", "1"], "", &[("BITNET_CONFIG", &file)]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--threads"), "{ran:?}");
}

#[test]
fn models_have_names_and_one_word_is_a_model_or_a_prompt() {
    let folder = Folder::new();
    let (model, other) = (fixture("bitnet-packed"), fixture("llama-packed"));
    let file = folder.write("bitnet.toml", format!("model = '{model}'\n[aliases]\nother = '{other}'\n"));
    let env = [("BITNET_CONFIG", file.as_str())];
    let run = |env: &[(&str, &str)], args: &[&str]| -> Ran {
        let ran = bitnet_with(&[&["run", "-n", "1"], args].concat(), "from the input", env);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran
    };
    // The architecture of the model, and whether the prompt was the word or the input.
    for (env, args, name) in [
        (&env[..], &["ships at night"][..], "BitNet"),
        (&env, &["other"], "Llama"),
        (&env, &["other", "ships at night"], "Llama"),
        (&env, &["-m", "other", "ships at night"], "Llama"),
        (&env, &[&other], "Llama"),
        (&env, &[], "BitNet"),
        (&[env[0], ("BITNET_MODEL", other.as_str())], &["ships at night"], "Llama"),
        (&[env[0], ("BITNET_MODEL", "other")], &[&model], "BitNet"),
        (&[], &[&model], "BitNet"),
    ] {
        let ran = run(env, args);
        assert!(ran.stderr.contains(&format!(": {name}")), "{args:?}: {ran:?}");
    }
    let said = |args: &[&str]| {
        let ran = bitnet_with(&[&["run", "--json", "-n", "1"], args].concat(), "from the input", &env);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["prompt_tokens"].clone()
    };
    assert_eq!(said(&["ships"]), said(&[&model, "ships"]));
    assert_eq!(said(&["other"]), said(&["other", "from the input"]));
    // What is called like a file is one, and other words are a model's name only where a text would make no sense.
    refused(&["run", "nowhere.gguf"], 3, &["nowhere.gguf"]);
    refused(&["inspect", "nowhere"], 3, &["nowhere", "alias", "org/repo", "bitnet ls"]);
    refused(&["pull"], 2, &["no model is named", "BITNET_MODEL", "bitnet.toml"]);
    // The first message of a conversation.
    let chat = |args: &[&str], input: &str| {
        bitnet_with(&[&["chat", "-q", "--temp", "0", "-n", "4"], args].concat(), input, &env).stdout
    };
    assert_eq!(chat(&["hello"], ""), chat(&[], "hello\n"));
}

#[test]
fn flags_are_set_by_variables_that_say_yes_and_no() {
    let model = fixture("bitnet-packed");
    let quiet = |value: &str| {
        let ran = bitnet_with(&["run", &model, "--tokens", "1", "-n", "1"], "", &[("BITNET_QUIET", value)]);
        (ran.code, ran.stderr.is_empty())
    };
    for (value, want) in [("1", true), ("yes", true), ("true", true), ("0", false), ("off", false)] {
        assert_eq!(quiet(value), (Some(0), want), "{value}");
    }
    assert_eq!(quiet("maybe").0, Some(2));
}

#[test]
fn shells_and_readers_are_told_of_every_command() {
    let folder = Folder::new();
    let pages = text(&folder.at("pages"));
    output(&["man", &pages]);
    let names = commands();
    assert!(names.len() > 15 && names.contains(&"chat".to_owned()), "{names:?}");
    for name in &names {
        let page = std::fs::read_to_string(folder.at(&format!("pages/bitnet-{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains("Examples:"), "{name}");
    }
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output(&["completions", shell]);
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell} does not know {name}");
        }
        assert!(script.contains("top-k"), "{shell}");
    }
    // What bash makes of the script.
    let script = folder.write("bitnet.bash", output(&["completions", "bash"]));
    let complete =
        "source $0; COMP_WORDS=(bitnet cha); COMP_CWORD=1; _bitnet bitnet cha bitnet; echo ${COMPREPLY[@]}";
    if let Ok(out) = Command::new("bash").args(["-c", complete, &script]).output() {
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "chat", "{out:?}");
    }
}

/// Names of all commands.
fn commands() -> Vec<String> {
    let page = output(&["--help"]);
    let list = page.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.trim().is_empty());
    let names = list.filter(|l| l.starts_with("  ") && !l.starts_with("   ")).map(str::trim);
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}

/// What stands under `Examples:` in a help text.
fn examples(command: &str) -> Vec<String> {
    let page = output(&["help", command]);
    let list = page.lines().skip_while(|l| *l != "Examples:").skip(1).take_while(|l| l.starts_with("  "));
    list.map(|l| l.trim().to_owned()).collect()
}

/// What the examples speak of.
fn stage(folder: &Folder) {
    let link = |name: &str, to: &str| std::os::unix::fs::symlink(fixture(to), folder.at(name)).unwrap();
    link("model-directory", "bitnet-packed");
    link("bitnet-b1.58-2B-4T-bf16", "bitnet-online");
    link("Falcon3-1B-Instruct-1.58bit", "bitnet-packed-k256");
    link("Llama-3.2-1B", "bitnet-online");
    link("f16.gguf", "gguf/bitnet-online-i2_s.gguf");
    link("tokenizer.json", "bitnet-packed/tokenizer.json");
    link("tokenizer", "bitnet-packed");
    link("adapter", "lora/qvd-r4");
    link("model", "bitnet-online");
    folder.write("train.jsonl", "{\"prompt\": \"ships\", \"completion\": \" at night\"}\n".repeat(8));
    let pair = "{\"prompt\": \"ships\", \"chosen\": \" at night\", \"rejected\": \" at sea\"}\n";
    folder.write("pairs.jsonl", pair.repeat(8));
    link("model.gguf", "gguf/bitnet-online-i2_s.gguf");
    let words = "ships at night, and the wind that never sleeps; ".repeat(80);
    for name in ["wiki.txt", "wiki.raw", "text.txt", "train.txt"] {
        folder.write(name, &words);
    }
    folder.write("prompts.txt", "one\ntwo\n");
    folder.write("texts.txt", "one\ntwo\n");
    folder.write("questions.csv", "id,question\n1,why?\n");
    folder.write("requests.jsonl", "\"one\"\n");
    folder.write("messages.json", r#"[{"role": "user", "content": "hi"}]"#);
    folder.write("talk.json", r#"[{"role": "user", "content": "hi"}]"#);
}

/// Needs the hub, serves for ever, measures for a minute, or writes where all programs are.
const ELSEWHERE: [&str; 10] = [
    "bitnet serve",
    "bitnet pull",
    "bitnet rm",
    "bitnet ls",
    "bitnet cache",
    "org/repo",
    "microsoft/",
    "--seconds 60",
    "--device cuda",
    "/usr/",
];

#[test]
fn the_examples_of_every_help_text_run() {
    let folder = Folder::new();
    stage(&folder);
    let program = Path::new(env!("CARGO_BIN_EXE_bitnet")).parent().unwrap();
    let path = format!("{}:/usr/bin:/bin", program.display());
    let mut ran = 0;
    for command in commands() {
        let examples = examples(&command);
        assert!(!examples.is_empty(), "`bitnet help {command}` shows no example");
        for example in examples {
            if !example.contains("bitnet ") {
                continue;
            }
            // What is for other programs, and a comment in columns.
            let line = example.split(" | jq").next().unwrap().split(" > ~").next().unwrap();
            let line = line.split(" && man").next().unwrap().split("     ").next().unwrap();
            // Ids of the real vocabulary, sizes of the real context.
            let line = line.replace("128000,791,6864", "1,2,3").replace("128000,9906,1917", "1,2,3");
            let line =
                line.replace("-c 2048", "-c 64").replace("-p 128,512", "-p 8").replace("-d 0,4096", "-d 0,4");
            // At least it has to be understood.
            let help = if ELSEWHERE.iter().any(|e| example.contains(e)) { " --help" } else { "" };
            let line = line.trim_end().to_owned() + help;
            let small = [
                ("BITNET_CTX_SIZE", "256"),
                ("BITNET_PREDICT", "8"),
                ("BITNET_N_PROMPT", "16"),
                ("BITNET_N_GEN", "4"),
                ("BITNET_SECONDS", "1"),
                ("HF_HUB_OFFLINE", "1"),
            ];
            let mut shell = Command::new("sh");
            shell.args(["-c", &line]).current_dir(folder.path()).env_clear().env("PATH", &path);
            let out = shell
                .envs(small)
                .env("HOME", folder.path())
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
            ran += 1;
        }
    }
    assert!(ran > 30, "{ran} examples ran");
}

#[test]
fn an_unknown_word_is_answered_with_what_it_may_have_been() {
    for (args, words) in
        [(&["chta"][..], "chat"), (&["run", "--top_k", "4"], "--top-k"), (&["bench", "-o", "jason"], "json")]
    {
        let ran = bitnet(args);
        assert!(ran.code == Some(2) && ran.stderr.contains(words), "{args:?}: {ran:?}");
    }
}
