//! The server as a process: what it refuses, that it answers, and that it ends when told.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, refused};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

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
    serve(&["--parallel", "0"], 2, &["--parallel"]);
    refused(&["serve", "/nowhere", "--port", "0"], 3, &["/nowhere"]);
}

#[test]
fn it_answers_and_ends_when_told() {
    let folder = Folder::with_model();
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(["serve", &folder.path(), "--port", "0", "--alias", "tiny"])
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let address = lines.find_map(|l| Some(l.strip_prefix("listening on http://")?.to_owned())).unwrap();
    lines.find(|l| l == "ready").unwrap();
    let mut stream = TcpStream::connect(&address).unwrap();
    let body = r#"{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"role\":\"assistant\""), "{reply}");
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(told.success() && child.wait().unwrap().success(), "it ends in order");
}
