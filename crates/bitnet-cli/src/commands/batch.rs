//! `bitnet batch`: a file of requests, many at once.

use crate::args::{ModelFlags, SamplingFlags};
use crate::commands::serve;
use crate::failure::Failure;
use crate::hub;
use crate::terminal::{Progress, interrupt};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{Call, Keys, Reply, ServeOptions, Server, run_calls};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[derive(Args)]
#[command(after_help = "\
Rows of IN: in a .txt file, a line is a prompt. In a .jsonl file, a line is a string, an object with `prompt` or
`messages` and any field that the server's routes take, or a line of OpenAI's batch format.
Rows of the output: JSON objects with `index`, the row's number, and `text`, `finish_reason` and `usage`, or `error`;
OpenAI's format for rows in that format. They come in the order in which they are done.

Examples:
  bitnet batch model.gguf prompts.txt -o answers.jsonl -n 64 --temp 0
  bitnet batch model.gguf requests.jsonl -o answers.jsonl --resume")]
pub struct Batch {
    /// GGUF file, Hugging Face directory, or safetensors file with its config.json beside it
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The rows: .txt or .jsonl
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where answers go, as JSON lines
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Go on with an output that was begun: rows that are in it are not done again
    #[arg(long)]
    resume: bool,
    /// Lines of a .txt file are what a user says, not texts to continue
    #[arg(long)]
    chat: bool,
    /// Rows at once
    #[arg(long, default_value_t = 16, value_name = "N", env = "BITNET_CONCURRENCY")]
    concurrency: usize,
    #[command(flatten)]
    flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

/// A row that can be asked, and the name that OpenAI's batch format gave it.
struct Row {
    call: Call,
    custom_id: Option<Value>,
}

/// The number of a row that cannot be asked, and why.
type Wrong = (usize, String);

impl Batch {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let answers = self.sampling.options(&self.flags)?;
        if self.concurrency == 0 {
            return Err(Failure::Usage("--concurrency is 0; at least one row has to be done".to_owned()));
        }
        let (rows, wrong) = self.rows()?;
        let (mut output, done) = self.open_output()?;
        let path = hub::locate(&self.model, quiet)?;
        let (mut model, card) = serve::load(&path, None, &self.flags, &self.sampling, None, quiet)?;
        self.sampling.lora.load(&mut model)?;
        answers.sampling.validate(model.config().vocab).map_err(bitnet_inference::GenerateError::from)?;
        let server = Server::new(ServeOptions {
            keys: Keys::default(),
            defaults: answers.into(),
            body_limit: usize::MAX,
            answers_limit: usize::MAX,
            drain: Duration::ZERO,
            ..ServeOptions::default()
        })?;
        server.load(
            model.into_engine(EngineOptions {
                budget: self.flags.batch_size,
                seats: self.concurrency,
                queue: usize::MAX,
                prefix_cache: true,
            }),
            card,
        )?;
        let cancel = interrupt();
        let mut progress = Progress::new("answering", quiet);
        let all = rows.len() + wrong.len();
        let (mut count, mut failed, mut written) = (done.len(), 0, Ok(()));
        for (index, why) in wrong.into_iter().filter(|(index, _)| !done.contains(index)) {
            line(&mut output, &json!({"index": index, "error": {"message": why}}))?;
            (count, failed) = (count + 1, failed + 1);
        }
        let left = || rows.iter().filter(|row| !done.contains(&row.call.row));
        let names: HashMap<usize, &Value> =
            left().filter_map(|row| Some((row.call.row, row.custom_id.as_ref()?))).collect();
        let calls = left().map(|row| row.call.clone());
        run_calls(server, calls, self.concurrency, &mut |reply| {
            failed += usize::from(reply.status != 200);
            written = line(&mut output, &result(&reply, names.get(&reply.row).copied()));
            count += 1;
            progress.at(count, all);
            written.is_ok() && !cancel.load(Ordering::Relaxed)
        })?;
        progress.finish();
        written?;
        if !quiet {
            eprintln!("{count} of {all} rows in {}, {failed} of them errors", self.output.display());
        }
        if count < all { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// The rows, and what is wrong with those that cannot be asked.
    fn rows(&self) -> Result<(Vec<Row>, Vec<Wrong>), Failure> {
        let file = |e: std::io::Error| Failure::Usage(format!("{}: {e}", self.input.display()));
        let text = std::fs::read_to_string(&self.input).map_err(file)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty()).enumerate();
        let (mut rows, mut wrong) = (Vec::new(), Vec::new());
        match self.input.extension().and_then(|e| e.to_str()) {
            Some("txt") => rows.extend(lines.map(|(index, line)| said(index, line, self.chat))),
            Some("jsonl") => {
                for (index, line) in lines {
                    match serde_json::from_str(line)
                        .map_err(|e| format!("not JSON: {e}"))
                        .and_then(|v| row(index, v))
                    {
                        Ok(row) => rows.push(row),
                        Err(why) => wrong.push((index, why)),
                    }
                }
            }
            _ => {
                let path = self.input.display();
                return Err(Failure::Usage(format!("{path} ends neither in .txt nor in .jsonl")));
            }
        }
        Ok((rows, wrong))
    }

    /// The output, and the rows that are in it.
    fn open_output(&self) -> Result<(File, HashSet<usize>), Failure> {
        let at = |e: std::io::Error| Failure::Runtime(format!("{}: {e}", self.output.display()));
        if !self.resume {
            let file = File::create_new(&self.output).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Failure::Usage(format!(
                    "{} is there already; --resume goes on with it",
                    self.output.display()
                )),
                _ => at(e),
            })?;
            return Ok((file, HashSet::new()));
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.output);
        let mut file = open.map_err(at)?;
        let (mut done, mut whole) = (HashSet::new(), 0);
        let mut reader = BufReader::new(&file);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            // A line without its end was being written when the program was stopped.
            if reader.read_until(b'\n', &mut bytes).map_err(at)? == 0 || bytes.last() != Some(&b'\n') {
                break;
            }
            let index = serde_json::from_slice::<Value>(&bytes).ok().and_then(|v| v["index"].as_u64());
            let Some(index) = index else {
                let path = self.output.display();
                return Err(Failure::Usage(format!("{path} holds a line that is no answer of a batch")));
            };
            done.insert(index as usize);
            whole += bytes.len() as u64;
        }
        file.set_len(whole).map_err(at)?;
        file.seek(SeekFrom::End(0)).map_err(at)?;
        Ok((file, done))
    }
}

fn line(output: &mut File, object: &Value) -> std::io::Result<()> {
    // One call, so that a program that is stopped leaves at most one line without an end.
    output.write_all(format!("{object}\n").as_bytes())
}

/// A line of text.
fn said(index: usize, text: &str, chat: bool) -> Row {
    let (path, body) = match chat {
        true => ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": text}]})),
        false => ("/v1/completions", json!({"prompt": text})),
    };
    Row { call: Call { row: index, path: path.to_owned(), body }, custom_id: None }
}

/// A line of JSON.
fn row(index: usize, value: Value) -> Result<Row, String> {
    let call = |path: &str, body: Value| Call { row: index, path: path.to_owned(), body };
    match value {
        Value::String(text) => Ok(said(index, &text, false)),
        Value::Object(object) if object.contains_key("body") => {
            let word = |key: &str| object.get(key).and_then(Value::as_str);
            let url = word("url").ok_or("a row with a body has no url")?;
            if word("method").is_some_and(|m| m != "POST") {
                return Err("its method is not POST".to_owned());
            }
            let mut body =
                object.get("body").and_then(Value::as_object).ok_or("its body is no object")?.clone();
            whole(&mut body);
            let custom_id = object.get("custom_id").cloned().or(Some(Value::Null));
            Ok(Row { call: call(url, body.into()), custom_id })
        }
        Value::Object(mut object) => {
            let path = match (object.contains_key("messages"), object.contains_key("prompt")) {
                (true, _) => "/v1/chat/completions",
                (false, true) => "/v1/completions",
                (false, false) => return Err("it has neither prompt nor messages".to_owned()),
            };
            whole(&mut object);
            Ok(Row { call: call(path, object.into()), custom_id: None })
        }
        _ => Err("it is neither a text nor an object".to_owned()),
    }
}

/// Answers come whole, from the model that is there.
fn whole(body: &mut Map<String, Value>) {
    body.remove("model");
    body.remove("stream");
}

/// A row of the output.
fn result(reply: &Reply, custom_id: Option<&Value>) -> Value {
    let body = &reply.body;
    if let Some(custom_id) = custom_id {
        let id = format!("batch_req_{}", reply.row);
        let response = json!({"status_code": reply.status, "request_id": id, "body": body});
        return json!({"index": reply.row, "id": id, "custom_id": custom_id, "response": response, "error": null});
    }
    if reply.status != 200 {
        return json!({"index": reply.row, "error": body["error"]});
    }
    let choice = &body["choices"][0];
    let text = choice.get("text").unwrap_or(&choice["message"]["content"]);
    let mut object = json!({
        "index": reply.row, "text": text, "finish_reason": choice["finish_reason"], "usage": body["usage"],
    });
    if body["choices"].as_array().is_some_and(|choices| choices.len() > 1)
        || choice["message"]["tool_calls"].is_array()
    {
        object["choices"] = body["choices"].clone();
    }
    object
}
