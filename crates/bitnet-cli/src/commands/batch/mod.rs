//! `bitnet batch`: a file of requests, many at once.

mod input;
mod journal;
mod parquet;
mod table;

use crate::args::{self, ModelFlags, SamplingFlags};
use crate::commands::serve::{self, Source};
use crate::failure::Failure;
use crate::hub;
use crate::terminal::{Progress, interrupt};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{Keys, Reply, ServeOptions, Server, run_calls};
use clap::Args;
use input::Input;
use journal::Journal;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[derive(Args)]
#[command(
    allow_missing_positional = true,
    after_help = "\
Rows of IN, by the end of its name:
  .txt      a line is a prompt
  .jsonl    a line is a string, an object with `prompt` or `messages` and any field that the server's routes take, or a
            line of OpenAI's batch format
  .csv      the column `prompt`, `messages` (JSON) or `text`, or the one that --column names; the first line has the names
  .parquet  the same columns; `messages` may be a list of structures

Rows of OUT, by the end of its name:
  .jsonl    objects with `index`, the row's number, and `text`, `finish_reason` and `usage`, or `error`; OpenAI's format for
            rows in that format; in the order in which they are done
  .csv, .parquet, .md
            the columns of IN, then answer, finish_reason, prompt_tokens, completion_tokens and error; in the order of IN.
            Until all rows are done, they are in OUT.part.jsonl

A row that cannot be answered gets its error, and the others go on. With --resume a batch that was stopped or killed goes on
where it was: rows that are in OUT are not done again.

Examples:
  bitnet batch model.gguf prompts.txt -o answers.jsonl -n 64 --temp 0
  bitnet batch model.gguf questions.csv -o answers.parquet --column question --chat
  bitnet batch model.gguf requests.jsonl -o results.jsonl --resume"
)]
pub struct Batch {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    path: Option<PathBuf>,
    /// The model, by name [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "path")]
    model: Option<PathBuf>,
    /// The rows: .txt, .jsonl, .csv or .parquet
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where answers go: .jsonl, .csv, .parquet or .md [default: JSON lines on standard output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Go on with an output that was begun: rows that are in it are not done again
    #[arg(long, requires = "output")]
    resume: bool,
    /// Prompts are what a user says, not texts to continue
    #[arg(long)]
    chat: bool,
    /// The column of a table that holds the prompts
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Rows at once
    #[arg(long, default_value_t = 16, value_name = "N", env = "BITNET_CONCURRENCY")]
    concurrency: usize,
    #[command(flatten)]
    flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
}

/// The form of an output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Jsonl,
    Csv,
    Parquet,
    Markdown,
}

fn form(output: &Path) -> Result<Form, Failure> {
    match output.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => Ok(Form::Jsonl),
        Some("csv") => Ok(Form::Csv),
        Some("parquet") => Ok(Form::Parquet),
        Some("md") => Ok(Form::Markdown),
        _ => {
            let path = output.display();
            Err(Failure::Usage(format!("{path} ends in none of .jsonl, .csv, .parquet and .md")))
        }
    }
}

impl Batch {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        self.sampling.options(&self.flags)?;
        if self.concurrency == 0 {
            return Err(Failure::Usage("--concurrency is 0; at least one row has to be done".to_owned()));
        }
        let path = args::named(self.path.clone().or_else(|| self.model.clone()));
        let form = self.output.as_deref().map_or(Ok(Form::Jsonl), form)?;
        let input = Input::read(&self.input, self.column.as_deref(), self.chat)?;
        if form != Form::Jsonl {
            table::check(&input)?;
        }
        let mut journal = match &self.output {
            None => Journal::to_standard_output(),
            Some(output) => match Journal::open(output, form == Form::Jsonl, self.resume, input.len())? {
                Some(journal) => journal,
                None => {
                    if !quiet {
                        eprintln!("{} is whole; nothing is left to do", output.display());
                    }
                    return Ok(());
                }
            },
        };
        let path = hub::locate(&path, quiet)?;
        let source = Source {
            id: serve::name(&path),
            path,
            draft: self.sampling.draft_model(quiet)?.map(Arc::new),
            engine: EngineOptions {
                budget: self.flags.batch_size,
                seats: self.concurrency,
                queue: usize::MAX,
                prefix_cache: true,
                take_turns: false,
            },
            flags: self.flags,
            sampling: self.sampling,
            cache: None,
            quiet,
        };
        let server = Server::new(ServeOptions {
            keys: Keys::default(),
            body_limit: usize::MAX,
            answers_limit: usize::MAX,
            drain: Duration::ZERO,
            ..ServeOptions::default()
        })?;
        server.load(source.open()?)?;
        let cancel = interrupt();
        // Rows on a terminal show themselves how far it is.
        let shown = self.output.is_none() && std::io::stdout().is_terminal();
        let mut progress = Progress::of("answering", "rows", journal.done().len(), quiet || shown);
        let all = input.len();
        let (mut failed, mut written) = (0, Ok(()));
        for (index, why) in &input.wrong {
            if !journal.done().contains(index) {
                journal.add(*index, &json!({"index": index, "error": {"message": why}}))?;
                failed += 1;
            }
        }
        let left: Vec<_> = input.rows.iter().filter(|row| !journal.done().contains(&row.call.row)).collect();
        let names: HashMap<usize, &Value> =
            left.iter().filter_map(|row| Some((row.call.row, row.custom_id.as_ref()?))).collect();
        let calls = left.iter().map(|row| row.call.clone()).collect::<Vec<_>>();
        run_calls(server, calls, self.concurrency, &mut |reply| {
            failed += usize::from(reply.status != 200);
            written = journal.add(reply.row, &result(&reply, names.get(&reply.row).copied()));
            progress.at(journal.done().len(), all);
            written.is_ok() && !cancel.load(Ordering::Relaxed)
        })?;
        progress.finish();
        written?;
        let count = journal.done().len();
        let place = self.output.as_deref().map_or_else(String::new, |o| format!(" in {}", o.display()));
        if count < all {
            if !quiet {
                let resume = if self.output.is_some() { "; --resume goes on" } else { "" };
                eprintln!("{count} of {all} rows are done{resume}");
            }
            return Err(Failure::Interrupted);
        }
        if let (Some(output), false) = (&self.output, form == Form::Jsonl) {
            let answers = journal.answers()?;
            let table = table::Table::new(&input, &answers);
            let written = replace(output, |file| match form {
                Form::Csv => table.csv(file),
                Form::Parquet => parquet::write(&table, file),
                Form::Jsonl | Form::Markdown => table.markdown(file),
            });
            written.map_err(|e| Failure::Runtime(format!("{} cannot be written: {e}", output.display())))?;
            // Had the program been stopped before this, the next one would write the same table again.
            journal.remove()?;
        }
        if !quiet {
            eprintln!("{count} rows{place}, {failed} of them errors");
        }
        Ok(())
    }
}

/// Writes a file that is whole, or as it was before.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".batch-").suffix(".part").tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file_mut().flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
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
