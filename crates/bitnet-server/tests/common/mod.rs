//! A server over a small model, and a client that knows just enough HTTP.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; tests fail by panicking")]

use bitnet_inference::engine::{EngineOptions, Request};
use bitnet_inference::{DeviceOptions, LoadOptions, Model, OpenOptions};
use bitnet_server::{Keys, ModelCard, Opened, Running, ServeOptions, Server, serve};
use bitnet_testkit::golden;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub const MODEL: &str = "tiny";

pub fn options() -> ServeOptions {
    ServeOptions {
        keys: Keys::default(),
        body_limit: 1 << 20,
        answers_limit: 64,
        drain: Duration::from_secs(60),
        ..ServeOptions::default()
    }
}

pub fn load(server: &Server, engine: EngineOptions) {
    server.load(open(MODEL, engine)).unwrap();
}

/// A small model under a name.
pub fn open(id: &str, engine: EngineOptions) -> Opened {
    let open = OpenOptions {
        device: DeviceOptions { threads: Some(1), ..DeviceOptions::default() },
        load: LoadOptions { cache: Some(8192), ..LoadOptions::default() },
    };
    let path = golden::fixtures().join("bitnet-packed");
    let mut model = Model::open(&path, &open, &mut |_, _| {}).unwrap();
    model.load_adapter(&golden::fixtures().join("lora/qvd-r4"), 0.0).unwrap();
    let card =
        ModelCard { id: id.to_owned(), created: 1, context: 512, params: 2, size: 3, ftype: "U8".to_owned() };
    let defaults = Request { max_tokens: Some(16), ..Request::default() };
    Opened { engine: model.into_engine(engine), card, defaults }
}

/// A server on a free port.
pub fn start(options: ServeOptions, engine: EngineOptions) -> (Running, Client) {
    let server = Server::new(options).unwrap();
    load(&server, engine);
    listen(server)
}

pub fn listen(server: Arc<Server>) -> (Running, Client) {
    let running = serve(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let client = Client { address: running.address(), headers: Vec::new() };
    (running, client)
}

#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub headers: Vec<(String, String)>,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Sized(BufReader<TcpStream>, usize),
    Chunked(BufReader<TcpStream>),
}

impl Client {
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let own = [("host".to_owned(), self.address.to_string())];
        let own = own.iter().filter(|_| self.headers.iter().all(|(name, _)| name != "host"));
        let headers: String =
            own.chain(&self.headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A server may refuse a body before it has read it.
        let _ = stream.write_all(body);
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            match line.trim().split_once(": ") {
                Some((k, v)) => headers.push((k.to_lowercase(), v.to_owned())),
                None => break,
            }
        }
        let length = headers.iter().find(|(k, _)| k == "content-length").map(|(_, v)| v.parse().unwrap());
        let body = match length {
            Some(length) => Body::Sized(reader, length),
            None => Body::Chunked(reader),
        };
        Reply { status, headers, body }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, body.to_string().as_bytes())
    }

    /// Sends what must succeed, and gives the JSON of the reply.
    pub fn json(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        let status = reply.status;
        let text = reply.text();
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The value of a line of the metrics; 0 where there is none.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The next piece of the body; `None` at its end.
    pub fn piece(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        match &mut self.body {
            Body::Sized(reader, length) => {
                bytes.resize(std::mem::take(length), 0);
                reader.read_exact(&mut bytes).unwrap();
            }
            Body::Chunked(reader) => {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
                bytes.resize(length, 0);
                reader.read_exact(&mut bytes).unwrap();
                reader.read_line(&mut line).unwrap();
            }
        }
        (!bytes.is_empty()).then(|| String::from_utf8(bytes).unwrap())
    }

    pub fn text(mut self) -> String {
        let mut text = String::new();
        while let Some(piece) = self.piece() {
            text += &piece;
        }
        text
    }

    /// The error of a reply: its status, type, code and parameter.
    pub fn error(self) -> (u16, String, Option<String>, Option<String>) {
        let status = self.status;
        let text = self.text();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
        let word = |key: &str| value["error"][key].as_str().map(str::to_owned);
        assert!(!word("message").unwrap().is_empty());
        (status, word("type").unwrap(), word("code"), word("param"))
    }

    /// The chunks of a stream, whose last line must be `[DONE]`.
    pub fn chunks(self) -> Vec<Value> {
        assert_eq!(self.status, 200);
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let text = self.text();
        let mut data: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}
