//! `bitnet tokenizer`: a vocabulary of one's own.

use crate::failure::Failure;
use crate::terminal::Progress;
use bitnet_formats::write_file;
use bitnet_tokenizer::{BpeOptions, TokenizerError};
use bitnet_training::{Skipped, TrainError, texts};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Texts that wait to be counted.
const WAITING: usize = 64;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet tokenizer train train.txt -o vocabulary --vocab-size 280")]
pub struct Tokenizer {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Train a vocabulary on texts
    Train(Train),
}

#[derive(Args)]
#[command(
    long_about = "Train a byte-level BPE on texts and write it as tokenizer.json and tokenizer_config.json, which this program and \
        transformers read and which GGUF files have a place for.\n\n\
        Texts are the files that models are trained on: .txt, .jsonl, .json, .csv and .parquet. Words are cut as Llama 3's are; <|endoftext|> begins and \
        ends every text. The same texts give the same bytes, in any order and with any number of threads.",
    after_help = "\
Examples:
  bitnet tokenizer train books.jsonl talks.jsonl -o vocabulary --vocab-size 8192
  bitnet tokenizer train books.txt -o vocabulary --special '<note>' --json
  bitnet tokenizer train books.txt -o vocabulary --chat-template template.jinja --special '<turn>'"
)]
struct Train {
    /// Files of texts: .txt, .jsonl, .json, .csv, .parquet
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder that gets the tokenizer
    #[arg(short, long, value_name = "DIR", env = "BITNET_TOKENIZER_OUTPUT")]
    output: PathBuf,
    /// Tokens in all, special ones and the 256 bytes among them
    #[arg(long, value_name = "N", default_value_t = 4096, env = "BITNET_VOCAB_SIZE")]
    vocab_size: usize,
    /// A special token besides <|endoftext|> and those of the template; may be given several times
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// A chat template in Jinja; its special tokens are told by --special [default: ChatML with <|im_start|> and <|im_end|>]
    #[arg(long, value_name = "FILE", env = "BITNET_CHAT_TEMPLATE")]
    chat_template: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Tokenizer {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        match self.action {
            Action::Train(train) => train.execute(quiet),
        }
    }
}

impl Train {
    fn execute(self, quiet: bool) -> Result<(), Failure> {
        let template = self.chat_template.as_ref().map(|path| {
            std::fs::read_to_string(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
        });
        let options =
            BpeOptions { size: self.vocab_size, special: self.special, template: template.transpose()? };
        let (sender, receiver) = sync_channel(WAITING);
        let mut progress = Progress::of("reading", "files", 0, quiet);
        let (read, trained) = std::thread::scope(|scope| {
            let files = &self.files;
            let reading = scope.spawn(move || {
                let read = read(files, &sender, &mut |done| progress.at(done, files.len()));
                progress.finish();
                read
            });
            let trained = options.train(receiver.into_iter());
            (reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), trained)
        });
        let read = read?;
        let trained = trained.map_err(|e| match e {
            TokenizerError::Train(why) => Failure::Usage(why),
            e => e.into(),
        })?;
        if read.skipped.count > 0 && !quiet {
            let Skipped { count, first } = &read.skipped;
            eprintln!("warning: {count} rows are no examples:\n  {}", first.join("\n  "));
        }
        let dir = &self.output;
        std::fs::create_dir_all(dir).map_err(|e| Failure::Runtime(format!("{}: {e}", dir.display())))?;
        write_file(&dir.join("tokenizer.json"), &trained.tokenizer)?;
        write_file(&dir.join("tokenizer_config.json"), &trained.config)?;
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(
                out,
                "{}",
                json!({"output": dir, "vocab_size": options.size, "texts": read.texts, "bytes": read.bytes,
                    "skipped": read.skipped.count})
            )?,
            false if quiet => {}
            false => writeln!(out, "{}", dir.display())?,
        }
        Ok(())
    }
}

/// What was read.
#[derive(Default)]
struct Read {
    texts: usize,
    bytes: usize,
    skipped: Skipped,
}

/// Sends the texts of files until nobody takes them any more.
fn read(
    files: &[PathBuf],
    sender: &SyncSender<String>,
    each: &mut dyn FnMut(usize),
) -> Result<Read, Failure> {
    let mut read = Read::default();
    for (i, file) in files.iter().enumerate() {
        let file: &Path = file;
        let (mut count, mut bytes) = (0, 0);
        texts(file, &mut read.skipped, &mut |text| {
            (count, bytes) = (count + 1, bytes + text.len());
            // Whoever took them says why it no longer does.
            let _ = sender.send(text);
            Ok::<(), TrainError>(())
        })?;
        (read.texts, read.bytes) = (read.texts + count, read.bytes + bytes);
        each(i + 1);
    }
    Ok(read)
}
