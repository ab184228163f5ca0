//! Runs the command as a user does.

#![cfg(unix)]
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; tests fail by panicking")]

use bitnet_testkit::{golden, tiny};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What takes longer than this hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Address space a command may ask for, in KiB: many times what the tiny models need, and far less than what a header that
/// lies could claim.
const ADDRESS_SPACE: u32 = 1 << 20;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `bitnet` with arguments, text on its standard input, and environment variables, in a bounded address space.
pub fn bitnet_with(args: &[&str], input: &str, env: &[(&str, &str)]) -> Ran {
    let mut command = Command::new("sh");
    // macOS has no such limit.
    let limited =
        format!("ulimit -v {ADDRESS_SPACE} || test $(uname) != Linux || exit 99; exec \"$0\" \"$@\"");
    command.args(["-c", &limited]);
    command
        .arg(env!("CARGO_BIN_EXE_bitnet"))
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        // Mesa's drivers complain where it is missing.
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        // Otherwise the C library sets address space aside for every thread.
        .env("MALLOC_ARENA_MAX", "1")
        .envs(env.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever does not read its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let begin = Instant::now();
    let (code, stdout, stderr) = thread::scope(|scope| {
        let read = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let stdout = scope.spawn(move || read(&mut out));
        let stderr = scope.spawn(move || read(&mut err));
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(2));
        };
        (status.code(), stdout.join().unwrap(), stderr.join().unwrap())
    });
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    Ran { code, stdout, stderr }
}

pub fn bitnet(args: &[&str]) -> Ran {
    bitnet_with(args, "", &[])
}

/// Runs a command that must succeed and returns its standard output.
pub fn output(args: &[&str]) -> String {
    output_of(args, "")
}

/// The same with text on its standard input.
pub fn output_of(args: &[&str], input: &str) -> String {
    let ran = bitnet_with(args, input, &[]);
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    ran.stdout
}

/// Runs a command that must refuse: nothing on standard output, on standard error one line, which holds all of `words`.
pub fn refused(args: &[&str], code: i32, words: &[&str]) {
    refused_with(args, "", code, words);
}

/// The same with text on its standard input.
pub fn refused_with(args: &[&str], input: &str, code: i32, words: &[&str]) {
    let args = [args, &["-q"]].concat();
    let ran = bitnet_with(&args, input, &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{args:?}: {ran:?}");
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{args:?}: {ran:?}");
    for word in words {
        assert!(ran.stderr.contains(word), "{args:?} does not say {word:?}: {}", ran.stderr);
    }
}

/// A file or directory of the reference data.
pub fn fixture(name: &str) -> String {
    text(&golden::fixtures().join(name))
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Waits for the end of a program.
pub fn ended(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        let status = child.try_wait().unwrap();
        if status.is_some() || Instant::now() >= until {
            return status;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A folder for a test's files.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With the tiny Hugging Face model in it.
    pub fn with_model() -> Self {
        let folder = Self::new();
        tiny::directory(folder.0.path());
        folder
    }

    pub fn path(&self) -> String {
        text(self.0.path())
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.at(name), bytes).unwrap();
        text(&self.at(name))
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A test that fails leaves no server behind.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server, and the lines of its standard error behind `ready`.
pub fn start(args: &[&str]) -> (Server, String, impl Iterator<Item = String> + use<>) {
    let (server, address, mut lines) = begin(args, &[]);
    lines.find(|l| l == "ready").unwrap();
    (server, address, lines)
}

/// A server that listens and may still be loading, and the lines of its standard error behind its address.
pub fn begin(args: &[&str], env: &[(&str, &Path)]) -> (Server, String, impl Iterator<Item = String> + use<>) {
    let child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args([&["serve", "--port", "0"], args].concat())
        .env_clear()
        .envs(env.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Server(child);
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let address = lines.find_map(|l| Some(l.strip_prefix("listening on http://")?.to_owned())).unwrap();
    (server, address, lines)
}

pub fn post(address: &str, path: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close{headers}");
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

pub fn end(mut server: Server) {
    let told = Command::new("kill").args(["-TERM", &server.0.id().to_string()]).status().unwrap();
    assert!(told.success());
    let status = ended(&mut server.0, Instant::now() + PATIENCE);
    assert!(status.expect("it ends when told").success(), "it ends in order");
}

/// The words of a command that pre-trains: the example, made small, on a few rows of a small language, which are written first.
pub fn training(folder: &Folder, run: &str) -> Vec<String> {
    let words = ["ships", "at", "night", "sail", "home", "from", "the", "sea"];
    let line = |i: usize| -> String {
        (0..30).map(|j| words[(i + j * (i % 3 + 1)) % 8]).flat_map(|w| [w, " "]).collect()
    };
    folder.write(
        "train.jsonl",
        (0..40).map(|i| format!("{{\"text\": \"{}\"}}\n", line(i))).collect::<String>(),
    );
    let file = folder.write("pretrain.toml", output(&["train", "--example", "pretrain"]));
    let mut args: Vec<String> = ["train", "pretrain", "--json", "-c", &file].map(str::to_owned).to_vec();
    for change in [
        format!("output={}", text(&folder.at(run))),
        format!("model.tokenizer={}", fixture("bitnet-online")),
        format!("data.train={}", text(&folder.at("train.jsonl"))),
        "model.hidden_size=64".to_owned(),
        "model.intermediate_size=128".to_owned(),
        "model.num_hidden_layers=2".to_owned(),
        "model.num_attention_heads=2".to_owned(),
        "train.steps=40".to_owned(),
        "train.rate=5e-3".to_owned(),
        "train.batch=2".to_owned(),
        "train.log_every=1".to_owned(),
        "train.checkpoint_every=5".to_owned(),
        "train.validate_every=20".to_owned(),
        "data.sequence=64".to_owned(),
    ] {
        args.extend(["--set".to_owned(), change]);
    }
    args
}
