//! HTTP/1.1, as much as the hub's clients need.

use super::Mood;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|h| h.0.eq_ignore_ascii_case(name)).map(|h| h.1.as_str())
    }

    fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => return Ok(Some(Self { method, path, headers })),
            }
        }
    }
}

pub(super) enum Body {
    Text(String),
    File(Arc<Vec<u8>>),
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
    pub(super) moods: Vec<Mood>,
}

impl Answer {
    pub(super) fn json(value: &Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Text(value.to_string()), moods: Vec::new() }
            .with("Content-Type", "application/json")
    }

    pub(super) fn file(bytes: Arc<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::File(bytes), moods: Vec::new() }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let answer = Self { status, ..Self::json(&json!({"error": message})) };
        match code {
            "" => answer,
            code => answer.with("X-Error-Code", code).with("X-Error-Message", message),
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|h| h.0 != name);
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn spoil(&mut self, mood: &Mood) {
        match mood {
            Mood::Status(status, headers) => {
                *self = Self {
                    status: *status,
                    headers: headers.clone(),
                    body: Body::Text(String::new()),
                    moods: Vec::new(),
                };
            }
            Mood::Says(text) => self.body = Body::Text(text.clone()),
            Mood::Header(name, value) => {
                self.headers.retain(|h| h.0 != *name);
                self.headers.push((name, value.clone()));
            }
            Mood::Damages => {
                if let Body::File(bytes) = &self.body {
                    self.body = Body::File(Arc::new(bytes.iter().map(|b| b ^ 1).collect()));
                }
            }
            mood => self.moods.push(mood.clone()),
        }
    }

    /// Sends it; `false` where the connection ends.
    fn send(self, request: &Request, to: &mut TcpStream) -> Result<bool> {
        let whole = self.moods.iter().any(|m| matches!(m, Mood::Whole));
        let (mut status, mut headers) = (self.status, self.headers);
        let (bytes, is_file) = match self.body {
            Body::Text(text) => (Arc::new(text.into_bytes()), false),
            Body::File(bytes) => (bytes, true),
        };
        let size = bytes.len();
        let (mut first, mut end) = (0, size);
        if let Some(range) = request.header("range").filter(|_| is_file && !whole && status == 200) {
            let (from, to) =
                range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
            first = from.parse().unwrap_or(0);
            end = to.parse().map_or(size, |last: usize| (last + 1).min(size));
            if first >= end {
                (status, first, end) = (416, 0, 0);
                headers.push(("Content-Range", format!("bytes */{size}")));
            } else {
                status = 206;
                headers.push(("Content-Range", format!("bytes {first}-{}/{size}", end - 1)));
            }
        }
        if is_file && !whole {
            headers.push(("Accept-Ranges", "bytes".to_owned()));
        }
        let body = &bytes[first..end];
        let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        to.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            return Ok(true);
        }
        let (mut chunk, mut pause, mut limit) = (body.len().max(1), Duration::ZERO, body.len());
        for mood in &self.moods {
            match mood {
                Mood::Drops(after) => limit = limit.min(*after),
                Mood::Slow(bytes, time) => (chunk, pause) = (*bytes, *time),
                _ => {}
            }
        }
        for part in body[..limit].chunks(chunk) {
            to.write_all(part)?;
            thread::sleep(pause);
        }
        Ok(limit == body.len())
    }
}

/// Answers every connection of a listener on a thread of its own.
pub(super) fn serve(listener: TcpListener, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                // A client that leaves ends its connection.
                let _ = converse(stream, &*answer);
            });
        }
    });
}

fn converse(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Answer) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = Request::read(&mut reader)? {
        if !answer(&request).send(&request, &mut stream)? {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}
