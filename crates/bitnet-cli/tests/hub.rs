//! Models of the hub, on the command line, against a hub on this machine.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_testkit::hub::{Access, HubServer, Mood, Proxy, Repo, sha256};
use common::{Folder, Ran, bitnet_with, output, text};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// A hub with the tiny model as `org/tiny`, and a home folder.
struct Lab {
    server: HubServer,
    home: Folder,
    model: Folder,
}

impl Lab {
    fn new() -> Self {
        let (server, model) = (HubServer::start(), Folder::with_model());
        server.put("org/tiny", Repo::from_folder(Path::new(&model.path())));
        Self { server, home: Folder::new(), model }
    }

    fn run(&self, args: &[&str], more: &[(&str, &str)]) -> Ran {
        let home = self.home.path();
        bitnet_with(args, "", &[&[("HOME", &*home), ("HF_ENDPOINT", self.server.url())], more].concat())
    }

    fn output(&self, args: &[&str]) -> String {
        let ran = self.run(args, &[]);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran.stdout
    }

    fn refused(&self, args: &[&str], more: &[(&str, &str)], code: i32, words: &[&str]) {
        let ran = self.run(&[args, &["-q"]].concat(), more);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{args:?}: {ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{args:?} does not say {word:?}: {}", ran.stderr);
        }
    }
}

#[test]
fn pull_prints_the_path_last_and_nothing_comes_twice() {
    let lab = Lab::new();
    let ran = lab.run(&["pull", "org/tiny"], &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let path = ran.stdout.trim_end();
    let commit = path.rsplit('/').next().unwrap();
    assert_eq!(
        path,
        format!("{}/.cache/huggingface/hub/models--org--tiny/snapshots/{commit}", lab.home.path())
    );
    let (tenths, rest): (Vec<_>, Vec<_>) = ran.stderr.lines().partition(|l| l.starts_with("downloading: "));
    assert!(
        rest.is_empty() && tenths.last().unwrap().starts_with("downloading: 100 % of "),
        "{}",
        ran.stderr
    );
    assert!(
        tenths.len() <= 10 && tenths.iter().all(|t| t.contains("/s, ") && t.ends_with(" left")),
        "{tenths:?}"
    );
    lab.server.seen();
    let json: Value = serde_json::from_str(&lab.output(&["pull", "org/tiny@main", "--json", "-q"])).unwrap();
    assert_eq!((json["path"].as_str(), json["commit"].as_str()), (Some(path), Some(commit)));
    assert!(lab.server.seen().iter().all(|s| s.line.contains("/api/")));
    let fixed = lab.run(&["pull", "org/tiny", "--revision", commit, "--offline"], &[]);
    assert_eq!((fixed.stdout.trim_end(), fixed.stderr.as_str()), (path, ""));
}

#[test]
fn every_command_takes_a_model_of_the_hub() {
    let lab = Lab::new();
    let path = lab.model.path();
    let out = text(&lab.home.at("out.safetensors"));
    let messages = lab.home.write("messages.json", r#"[{"role":"user","content":"a"}]"#);
    let commands: &[&[&str]] = &[
        &["run", "MODEL", "--tokens", "1,2", "--temp", "0", "-n", "4"],
        &["run", "-m", "MODEL", "a", "--temp", "0", "-n", "4"],
        &["inspect", "MODEL"],
        &["logits", "MODEL", "--tokens", "1,2", "-o", &out],
        &["tokenize", "MODEL", "a b"],
        &["detokenize", "MODEL", "1 2"],
        &["template", "MODEL", &messages],
        &["chat", "MODEL", "--temp", "0", "-n", "4"],
    ];
    for model in ["org/tiny", "hf://org/tiny@main"] {
        for command in commands {
            let with = |model: &str| -> Vec<String> {
                command
                    .iter()
                    .map(|a| if *a == "MODEL" { model.to_owned() } else { (*a).to_owned() })
                    .collect()
            };
            let (hub, here) = (with(model), with(&path));
            let borrowed = |args: &[String]| args.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
            let (hub, here) = (borrowed(&hub), borrowed(&here));
            let (hub, here): (Vec<&str>, Vec<&str>) = (hub.split('\n').collect(), here.split('\n').collect());
            // Where it lies is all that may differ.
            let plain = |text: String| {
                text.lines().filter(|l| !l.starts_with("file ")).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(plain(lab.output(&hub)), plain(output(&here)), "{hub:?}");
        }
        // Once it is there, no request is made.
        assert_eq!(lab.server.seen().is_empty(), model.starts_with("hf://"));
    }
}

#[test]
fn a_file_of_several_is_named_by_its_quantization() {
    let lab = Lab::new();
    let bytes = |n: u8| vec![n; 20_000];
    lab.server.put("org/files", Repo::new(&[("m-i2_s.gguf", bytes(1)), ("sub/m-tq2_0.gguf", bytes(2))]));
    lab.refused(&["pull", "org/files"], &[], 2, &["org/files:m-i2_s.gguf", "org/files:sub/m-tq2_0.gguf"]);
    lab.refused(&["run", "org/files:Q8_0", "a"], &[], 2, &["Q8_0", "m-i2_s.gguf"]);
    let path = lab.output(&["pull", "org/files:TQ2_0", "-q"]);
    assert_eq!(sha256(&std::fs::read(path.trim_end()).unwrap()), sha256(&bytes(2)));
    // It is no model, and that is found out by whoever opens it.
    lab.refused(&["inspect", "org/files:I2_S"], &[], 3, &["m-i2_s.gguf"]);
}

#[test]
fn what_the_hub_or_the_network_refuse_is_exit_code_4() {
    let lab = Lab::new();
    lab.server.put(
        "org/secret",
        Repo { access: Access::Private("hf_right".into()), ..Repo::new(&[("a.gguf", vec![0; 9])]) },
    );
    lab.server.put(
        "org/gated",
        Repo { access: Access::Gated("hf_right".into()), ..Repo::new(&[("a.gguf", vec![0; 9])]) },
    );
    lab.refused(&["pull", "org/absent"], &[], 4, &["has no org/absent"]);
    lab.refused(&["pull", "org/secret"], &[], 4, &["org/secret", "private"]);
    lab.refused(
        &["pull", "org/gated"],
        &[("HF_TOKEN", "hf_wrong")],
        4,
        &["org/gated is gated", "accept its terms"],
    );
    lab.refused(&["pull", "org/tiny@v9"], &[], 4, &["org/tiny has no branch, tag or commit \"v9\""]);
    lab.refused(
        &["run", "org/tiny", "a"],
        &[("HF_HUB_OFFLINE", "1")],
        4,
        &["org/tiny", "offline mode is on"],
    );
    lab.refused(
        &["run", "org/tiny", "a"],
        &[("BITNET_OFFLINE", "true")],
        4,
        &["org/tiny", "offline mode is on"],
    );
    lab.server.fault("GET /org/tiny/resolve/", 99, Mood::Damages);
    lab.refused(&["pull", "org/tiny"], &[], 4, &["has the hash", "damaged on the way"]);
    for token in [&[("HF_TOKEN", "hf_right")][..], &[("BITNET_TOKEN", "hf_right")]] {
        assert_eq!(lab.run(&["pull", "org/secret", "-q"], token).code, Some(0));
    }
    assert_eq!(lab.run(&["pull", "org/gated", "--token", "hf_right"], &[]).code, Some(0));
}

#[test]
fn proxies_are_honoured() {
    let lab = Lab::new();
    lab.server.put("org/large", Repo::new(&[("m.gguf", vec![7; 20_000])]));
    let host = lab.server.url().strip_prefix("http://").unwrap().to_owned();
    // "user:pass" in base 64.
    let (open, closed) = (Proxy::start(None), Proxy::start(Some("Basic dXNlcjpwYXNz")));
    let with_password = closed.url().replace("http://", "http://user:pass@");
    for (proxy, variable, url) in [
        (&open, "ALL_PROXY", open.url()),
        (&open, "HTTP_PROXY", open.url()),
        (&closed, "http_proxy", &with_password),
    ] {
        let pulled = lab.run(&["pull", "org/large", "-q"], &[(variable, url)]);
        assert_eq!(pulled.code, Some(0), "{variable}: {pulled:?}");
        let seen = proxy.seen();
        // The hub, and the other port where large files lie.
        assert!(seen.contains(&host) && seen.iter().any(|h| *h != host), "{variable}: {seen:?}");
        lab.output(&["rm", "org/large"]);
    }
    let direct =
        lab.run(&["pull", "org/large", "-q"], &[("ALL_PROXY", open.url()), ("NO_PROXY", "127.0.0.1")]);
    assert_eq!((direct.code, open.seen()), (Some(0), vec![]), "{direct:?}");
}

#[test]
fn references_and_settings_that_make_no_sense_are_usage() {
    let lab = Lab::new();
    lab.refused(&["pull", "nonsense"], &[], 2, &["\"nonsense\"", "org/repo"]);
    lab.refused(&["pull", "org/../x"], &[], 2, &["org/repo"]);
    lab.refused(&["pull", "org/tiny:../../x"], &[], 2, &["org/tiny"]);
    lab.refused(&["pull", "org/tiny@a", "--revision", "b"], &[], 2, &["--revision"]);
    lab.refused(&["pull", "org/tiny", "--endpoint", "ftp://x"], &[], 2, &["ftp://x"]);
    lab.refused(&["pull", "org/tiny"], &[("HOME", "")], 2, &["HF_HOME"]);
    lab.refused(&["pull", "org/tiny", "--include", "nothing*"], &[], 2, &["patterns"]);
    lab.refused(&["run", "./org/tiny", "a"], &[], 3, &["./org/tiny"]);
    assert!(!lab.home.at(".cache").exists() || lab.server.seen().len() < 4);
}

#[test]
fn an_interrupted_pull_leaves_no_file_under_its_name_and_goes_on() {
    let lab = Lab::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()[..1].to_vec()).collect();
    lab.server.put("org/large", Repo::new(&[("m.gguf", bytes.clone())]));
    lab.server.fault("GET /lfs/", 1, Mood::Slow(100_000, Duration::from_millis(100)));
    let (home, url) = (lab.home.path(), lab.server.url().to_owned());
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(["pull", "org/large", "-q"])
        .env_clear()
        .envs([("HOME", &home), ("HF_ENDPOINT", &url)])
        .spawn()
        .unwrap();
    let ranges = format!("{}.bitnet.ranges", sha256(&bytes));
    let blobs = lab.home.at(".cache/huggingface/hub/models--org--large/blobs");
    while !blobs.join(&ranges).exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!blobs.join(sha256(&bytes)).exists() && !blobs.with_file_name("refs").exists());
    lab.server.seen();
    let path = lab.output(&["pull", "org/large", "-q"]);
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), bytes);
    let range = lab.server.seen().into_iter().find(|s| s.line.contains("/lfs/")).unwrap().range.unwrap();
    assert!(!range.starts_with("bytes=0-"), "{range}");
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 1);
}

/// Kills a pull at fifty moments of its life. What has a final name is whole each time, and the next pull completes.
#[test]
fn killed_at_any_moment_a_pull_leaves_nothing_half_and_goes_on() {
    let lab = Lab::new();
    let bytes =
        |seed: u32, len: u32| (0..len).map(|n| (n.wrapping_mul(seed) >> 7) as u8).collect::<Vec<u8>>();
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", bytes(2_654_435_761, 400_000)),
        ("tokenizer.json", bytes(40_503, 100_000)),
    ];
    lab.server.put("org/large", Repo::new(&files));
    // A pull takes some forty milliseconds more.
    lab.server.fault("GET /lfs/", usize::MAX, Mood::Slow(10_000, Duration::from_millis(1)));
    let root = lab.home.at(".cache/huggingface/hub/models--org--large");
    let spawn = || {
        let (home, url) = (lab.home.path(), lab.server.url().to_owned());
        let mut pull = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet"));
        pull.args(["pull", "org/large", "-q"]).env_clear().envs([("HOME", &home), ("HF_ENDPOINT", &url)]);
        pull.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let begin = Instant::now();
    assert!(spawn().wait().unwrap().success());
    let life = begin.elapsed();
    let (mut killed, mut in_a_file) = (0, 0);
    for moment in 0..50_u32 {
        std::fs::remove_dir_all(&root).unwrap();
        let mut child = spawn();
        // A low-discrepancy sequence: moments everywhere in a pull's life.
        std::thread::sleep(life.mul_f64(f64::from(moment) * 0.618_034 % 1.0));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        let mut complete = 0;
        for folder in [root.join("blobs"), root.join("snapshots")] {
            for path in below(&folder) {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if name.contains(".bitnet.") {
                    in_a_file += usize::from(name.ends_with(".incomplete"));
                    continue;
                }
                let there = std::fs::read(&path).unwrap();
                let whole = files
                    .iter()
                    .any(|f| f.1 == there && (f.0 == name || path.starts_with(root.join("blobs"))));
                assert!(whole, "moment {moment}: {} is not whole", path.display());
                complete += usize::from(path.starts_with(root.join("snapshots")));
            }
        }
        assert!(!root.join("refs/main").exists() || complete == files.len(), "moment {moment}");
        let snapshot = lab.output(&["pull", "org/large", "-q"]);
        for (name, bytes) in &files {
            let there = std::fs::read(Path::new(snapshot.trim_end()).join(name)).unwrap();
            assert!(there == *bytes, "moment {moment}: {name}");
        }
        let blobs = below(&root.join("blobs"));
        assert_eq!(blobs.len(), files.len(), "moment {moment}: {blobs:?}");
    }
    assert!(killed > 10 && in_a_file > 0, "{killed} pulls were killed, {in_a_file} in the middle of a file");
}

fn below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn models_are_listed_shown_and_removed() {
    let lab = Lab::new();
    let json = |args: &[&str]| serde_json::from_str::<Value>(&lab.output(args)).unwrap();
    assert_eq!(json(&["ls", "--json"]), serde_json::json!([]));
    let path = lab.output(&["pull", "org/tiny", "-q"]);
    let commit = path.trim_end().rsplit('/').next().unwrap();
    let list = json(&["ls", "--json"]);
    assert_eq!(
        (&list[0]["repo"], &list[0]["refs"][0], &list[0]["commit"]),
        (&"org/tiny".into(), &"main".into(), &commit.into())
    );
    assert_eq!(list[0]["path"], path.trim_end());
    let table = lab.output(&["ls"]);
    assert!(table.lines().count() == 2 && table.contains("org/tiny  main "), "{table}");

    let shown = json(&["show", "org/tiny", "--json"]);
    assert_eq!((&shown["repository"], &shown["commit"]), (&"org/tiny".into(), &commit.into()));
    assert_eq!(
        shown["metadata"]["model_type"],
        json(&["show", path.trim_end(), "--json"])["metadata"]["model_type"]
    );
    let inspected = json(&["inspect", "org/tiny", "--json"]);
    assert!(inspected.as_object().unwrap().iter().all(|(key, value)| shown[key] == *value));
    let text = lab.output(&["show", "org/tiny"]);
    for word in ["repository     org/tiny", "licence        not stated", "\nmetadata:\n", "\ntensor ", "bits"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }

    let stats = json(&["cache", "stats", "--json"]);
    assert_eq!(
        (&stats["repos"], &stats["snapshots"], &stats["size_bytes"]),
        (&1.into(), &1.into(), &list[0]["size_bytes"])
    );
    assert!(lab.output(&["cache", "stats"]).contains("1 repositories, 1 snapshots"));
    assert_eq!(json(&["cache", "prune", "--max-size", "1GB", "--json"])["removed"], serde_json::json!([]));
    let would = lab.output(&["cache", "prune", "--max-size", "1k", "--dry-run"]);
    assert!(would.starts_with(&format!("would remove org/tiny@{commit}\n")), "{would}");
    assert_eq!(
        json(&["cache", "prune", "--max-size", "1k", "--json"])["removed"][0],
        format!("org/tiny@{commit}")
    );
    lab.refused(&["rm", "org/tiny"], &[], 1, &["org/tiny is not in the cache"]);
    let many = lab.run(&["cache", "prune", "--max-size", "many"], &[]);
    assert!(many.code == Some(2) && many.stderr.contains("20GB"), "{many:?}");
    lab.output(&["pull", "org/tiny", "-q"]);
    assert!(lab.output(&["rm", "org/tiny"]).starts_with("removed org/tiny: "));
    assert_eq!(json(&["ls", "--json"]), serde_json::json!([]));
}

#[test]
fn licences_stand_in_model_cards_and_files() {
    let card = |text: &str| {
        let model = Folder::with_model();
        model.write("README.md", text);
        let shown: Value = serde_json::from_str(&output(&["show", &model.path(), "--json"])).unwrap();
        shown["licence"].as_str().map(str::to_owned)
    };
    assert_eq!(card("---\nlanguage: en\nlicense: mit\n---\n# Model").as_deref(), Some("mit"));
    assert_eq!(card("---\nlicense: other\nlicense_name: falcon-llm\n---\n").as_deref(), Some("falcon-llm"));
    assert_eq!(card("# Model\nlicense: mit\n"), None);
    assert_eq!(card("---\ntags: x\n---\nlicense: mit\n"), None);
}

#[test]
fn a_converted_model_says_where_it_is_from() {
    let lab = Lab::new();
    let out = text(&lab.home.at("model.gguf"));
    lab.output(&["convert", "org/tiny", &out, "--to", "i2_s", "-q"]);
    let shown: Value = serde_json::from_str(&lab.output(&["show", &out, "--json"])).unwrap();
    assert_eq!(shown["metadata"]["general.source.repo_url"], "https://huggingface.co/org/tiny");
}

#[test]
fn a_model_that_runs_is_not_removed() {
    let lab = Lab::new();
    lab.output(&["pull", "org/tiny", "-q"]);
    let (home, url) = (lab.home.path(), lab.server.url().to_owned());
    let mut chat = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(["chat", "org/tiny", "-n", "1"])
        .env_clear()
        .envs([("HOME", &home), ("HF_ENDPOINT", &url)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line says that the model is loaded.
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(chat.stderr.take().unwrap()), &mut line)
        .unwrap();
    lab.refused(&["rm", "org/tiny"], &[], 1, &["org/tiny@", "in use"]);
    let pruned = lab.run(&["cache", "prune", "--max-size", "0"], &[]);
    assert!(pruned.stderr.contains("stays: a running program uses it"), "{pruned:?}");
    drop(chat.stdin.take());
    chat.wait().unwrap();
    lab.output(&["rm", "org/tiny"]);
}
