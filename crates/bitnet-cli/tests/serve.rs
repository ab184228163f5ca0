//! The server as a process: what it refuses, that it answers, and that it ends when told.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, PATIENCE, begin, bitnet, end, get, post, refused, start};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[test]
fn what_cannot_be_served_is_refused() {
    let folder = Folder::with_model();
    let path = folder.path();
    let serve = |more: &[&str], code: i32, words: &[&str]| {
        refused(&[&["serve", &path, "--port", "0"], more].concat(), code, words);
    };
    serve(&["--host", "0.0.0.0"], 2, &["--api-key"]);
    serve(&["--api-key-file", "/nowhere"], 2, &["--api-key-file"]);
    serve(&["--top-p", "2"], 2, &["top-p"]);
    serve(&["--lora-dir", "/nowhere"], 2, &["--lora-dir", "/nowhere"]);
    serve(&["--parallel", "0"], 2, &["--parallel"]);
    serve(&["--ssl-cert-file", "/nowhere", "--ssl-key-file", "/nowhere"], 2, &["--tls-cert", "/nowhere"]);
    serve(&["--log-level", "x=loud"], 2, &["--log-level"]);
    refused(&["serve", &path, &path, "--port", "0"], 2, &["--alias"]);
    for wrong in [
        &["--rate-limit", "0"][..],
        &["--tls-cert", "/nowhere"],
        &["--otlp-headers", "x"],
        &["--allowed-hosts", "https://gpu.example.org"],
    ] {
        let ran = bitnet(&[&["serve", &path], wrong].concat());
        assert!(ran.code == Some(2) && ran.stderr.contains(wrong[0]), "{ran:?}");
    }
    refused(&["serve", "/nowhere", "--port", "0"], 3, &["/nowhere"]);
}

fn ask(address: &str, headers: &str, model: &str) -> String {
    let body = format!(
        r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 4}}"#
    );
    post(address, "/v1/chat/completions", headers, &body)
}

#[test]
fn it_answers_and_ends_when_told() {
    let folder = Folder::with_model();
    let (server, address, _lines) = start(&[&folder.path(), &folder.path(), "--alias", "tiny,other"]);
    for model in ["tiny", "other"] {
        let reply = ask(&address, "", model);
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"role\":\"assistant\""), "{reply}");
        assert!(reply.contains(&format!("\"model\":\"{model}\"")), "{reply}");
    }
    assert!(ask(&address, "", "absent").starts_with("HTTP/1.1 404"));
    let name = "\r\nhost: gpu.example.org";
    assert!(ask(&address, name, "tiny").starts_with("HTTP/1.1 403"));
    end(server);
    let (server, address, _lines) = start(&[&folder.path(), "--allowed-hosts", "gpu.example.org,::1"]);
    assert!(ask(&address, name, "").starts_with("HTTP/1.1 200"));
    end(server);
}

/// The limit of its address space is set while it runs, so that the test need not know what a start takes.
#[test]
#[cfg(target_os = "linux")]
fn without_address_space_it_refuses_and_lives() {
    let folder = Folder::with_model();
    let (server, address, lines) = start(&[&folder.path(), "--alias", "tiny"]);
    // It tells of every request, of which there are many; a pipe that nobody reads would end that.
    std::thread::spawn(move || lines.for_each(drop));
    let is_answered = |reply: &str| reply.starts_with("HTTP/1.1 200");
    assert!(is_answered(&ask(&address, "", "tiny")));
    let pid = server.0.id().to_string();
    let limit = |bytes: &str| {
        let told = Command::new("prlimit").args(["--pid", &pid, &format!("--as={bytes}:")]).status();
        told.expect("prlimit of util-linux is installed").success()
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mapped = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
    let mapped_bytes = mapped.trim().parse::<u64>().unwrap() * 1024;
    assert!(limit(&(mapped_bytes + mapped_bytes / 100).to_string()));
    let begin = Instant::now();
    let refused = loop {
        let reply = ask(&address, "", "tiny");
        if !is_answered(&reply) {
            break reply;
        }
        assert!(begin.elapsed() < PATIENCE, "nothing is refused");
    };
    for words in ["HTTP/1.1 503", "retry-after: 1", "memory_short", "address space", "ulimit -v"] {
        assert!(refused.contains(words), "{words:?} is missing: {refused}");
    }
    let metrics = get(&address, "/metrics");
    for line in [
        "bitnet_memory_pressure 3",
        "bitnet_memory_used_bytes{limit=\"address space\"} ",
        "bitnet_memory_pool_bytes{model_name=\"tiny\",memory=\"host\",tag=\"weights\"} ",
        "bitnet_memory_pool_source_requests_total{model_name=\"tiny\",memory=\"host\",tag=\"kv\"} ",
    ] {
        assert!(metrics.contains(line), "{line:?} is missing: {metrics}");
    }
    assert!(limit("unlimited"));
    while !is_answered(&ask(&address, "", "tiny")) {
        assert!(begin.elapsed() < PATIENCE, "it does not come back");
    }
    end(server);
}

/// A hub's cache whose reference is a pipe that nobody writes into keeps whoever looks for the model for ever.
#[test]
fn a_model_that_has_not_come_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let refs = folder.path().join("hub/models--org--repo/refs");
    std::fs::create_dir_all(&refs).unwrap();
    assert!(Command::new("mkfifo").arg(refs.join("main")).status().unwrap().success());
    let env = [("HF_HOME", folder.path()), ("HF_HUB_OFFLINE", Path::new("1"))];
    let (server, address, mut lines) = begin(&["org/repo"], &env);
    assert!(ask(&address, "", "").starts_with("HTTP/1.1 503"));
    end(server);
    assert!(!lines.any(|line| line == "ready"));
}

#[test]
fn what_requests_and_flags_leave_open_the_model_says() {
    let folder = Folder::with_model();
    folder.write("generation_config.json", r#"{"temperature": 0.0, "top_k": 7, "top_p": 0.9}"#);
    let text = |address: &str, sampling: &str| {
        let reply = post(
            address,
            "/v1/completions",
            "",
            &format!(r#"{{"prompt": "the", "max_tokens": 24, "ignore_eos": true, "seed": {sampling}}}"#),
        );
        let body = reply.split_once("\r\n\r\n").unwrap().1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {reply}"));
        body["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
    };
    let (server, address, _lines) = start(&[&folder.path()]);
    let greedy = text(&address, "1");
    assert_eq!(greedy, text(&address, r#"2, "temperature": 0"#), "the model says greedy");
    let drawn = text(&address, r#"1, "temperature": 5, "min_p": 0"#);
    assert_ne!(drawn, greedy, "a request says otherwise");
    end(server);
    let (server, address, _lines) = start(&[&folder.path(), "--temp", "5", "--min-p", "0"]);
    assert_eq!(text(&address, "1"), drawn, "flags say otherwise, and leave the rest to the model");
    assert_ne!(text(&address, r#"1, "top_k": 0, "top_p": 1"#), drawn);
    end(server);
}

#[test]
fn logs_are_objects_and_never_hold_a_key() {
    let folder = Folder::with_model();
    let (right, wrong) = ("right-key-of-the-test", "wrong-key-of-the-test");
    let (server, address, lines) =
        start(&[&folder.path(), "--api-key", right, "--log-format", "json", "--log-level", "trace"]);
    let lines = std::thread::spawn(move || lines.collect::<Vec<String>>());
    let id = "\r\nx-request-id: mine-3";
    assert!(ask(&address, &format!("{id}\r\nauthorization: Bearer {right}"), "").starts_with("HTTP/1.1 200"));
    assert!(ask(&address, &format!("\r\nx-api-key: {wrong}"), "").starts_with("HTTP/1.1 401"));
    end(server);
    let lines = lines.join().unwrap();
    let requests: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .filter(|line| line["message"] == "request")
        .collect();
    let statuses: Vec<_> = requests.iter().map(|line| line["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(200), Some(401)]);
    assert_eq!((&requests[0]["id"], &requests[0]["level"]), (&"mine-3".into(), &"INFO".into()));
    let all = lines.concat();
    assert!(!all.contains(right) && !all.contains(wrong), "no key is logged");
}
