//! The `bitnet` command: flags in, library calls, results on stdout, everything else on stderr.
#![forbid(unsafe_code)]
#![allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "comments on flags are help texts, where brackets are around what may be left out and addresses stand as they are"
)]

mod args;
mod commands;
mod config;
mod device;
mod downloads;
mod failure;
mod folders;
mod html;
mod hub;
mod logs;
mod lora;
mod markdown;
mod shipped;
mod stages;
mod terminal;
mod tuning;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use commands::{
    batch, bench, cache, chat, completions, convert, detokenize, doctor, embed, eval, inspect, logits, ls,
    merge, pull, quantize, rm, run, serve, show, template, tokenize, tokenizer, train, tune,
};
use failure::Failure;
use std::process::ExitCode;

/// Run 1.58-bit (ternary) language models: the same bits on every instruction set, thread count and batch size.
#[derive(Parser)]
#[command(name = "bitnet", version, max_term_width = 110, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print results only, no progress and no timings
    #[arg(short, long, global = true, env = "BITNET_QUIET")]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  bitnet run \"The capital of France is\"
  bitnet chat
  bitnet run model.gguf --temp 0 -n 64 --json \"Once upon a time\"
  bitnet chat model.gguf --system \"You answer in one sentence.\"
  bitnet pull microsoft/bitnet-b1.58-2B-4T-gguf
  bitnet serve model.gguf --port 8080
  bitnet inspect model.gguf --tensors
  bitnet bench model.gguf

Exit codes: 0 done, 1 run-time failure, 2 usage, 3 model or format, 4 network, 130 interrupted.";

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", config::HELP)
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt; without one on a terminal, chat
    Run(run::Run),
    /// Chat on the terminal with the model's own template
    Chat(chat::Chat),
    /// Answer a file of requests, many at once
    Batch(batch::Batch),
    /// Serve OpenAI's API over HTTP, many requests at once
    Serve(Box<serve::Serve>),
    /// Texts as vectors
    Embed(embed::Embed),
    /// Architecture, shapes, tensor types, bits per weight, tokenizer and template of a model
    Inspect(inspect::Inspect),
    /// A model in another format
    Convert(convert::Convert),
    /// A ternary model of one that is not, and what that does to it
    Quantize(quantize::Quantize),
    /// Train a model: pre-training from scratch, fine-tuning on answers
    Train(train::Train),
    /// Add a LoRA adapter to the weights of its model
    Merge(merge::Merge),
    /// Write exact logits of a sequence to a safetensors file
    Logits(logits::Logits),
    /// Fetch a model of the Hugging Face hub into the cache
    Pull(pull::Pull),
    /// Models in the cache
    Ls(ls::Ls),
    /// A model's origin, licence, metadata, tensors and template
    Show(show::Show),
    /// Remove a model from the cache
    Rm(rm::Rm),
    /// How full the cache is; making room in it
    Cache(cache::Cache),
    /// Measure prefill and generation speed
    Bench(bench::Bench),
    /// Perplexity of a text, and how far a model is from another one
    Eval(eval::Eval),
    /// Find the fastest kernel and number of threads for a model on this machine, and save them
    Tune(tune::Tune),
    /// CPU features, the kernels in use, and a self-test of every kernel
    Doctor(doctor::Doctor),
    /// Ids of a text
    Tokenize(tokenize::Tokenize),
    /// Make a vocabulary
    Tokenizer(tokenizer::Tokenizer),
    /// Text of ids
    Detokenize(detokenize::Detokenize),
    /// Render a conversation with the model's chat template
    Template(template::Template),
    /// Completions of commands and flags for a shell
    Completions(completions::Completions),
    /// Write manual pages
    Man(completions::Man),
}

/// The tokenizers library answers some vocabularies that contradict themselves with panics, and the one for Parquet some
/// damaged files. They are caught and become errors; the panic's own message would be a second one.
fn quiet_caught_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let caught = info
            .location()
            .is_some_and(|l| l.file().contains("/tokenizers-") || l.file().contains("/parquet-"));
        if !caught {
            report(info);
        }
    }));
}

fn main() -> ExitCode {
    quiet_caught_panics();
    match config::read(Cli::command()) {
        Err(failure) => end(Err(failure)),
        Ok(mut command) => {
            let words = args::spell_out(std::env::args_os());
            let matches = command.try_get_matches_from_mut(words).unwrap_or_else(|e| e.exit());
            end(Cli::from_arg_matches(&matches).map_or_else(|e| e.format(&mut command).exit(), Cli::execute))
        }
    }
}

impl Cli {
    fn execute(self) -> Result<(), Failure> {
        let quiet = self.quiet;
        match self.command {
            Command::Run(c) => c.execute(quiet),
            Command::Chat(c) => c.execute(quiet),
            Command::Embed(c) => c.execute(quiet),
            Command::Inspect(c) => c.execute(quiet),
            Command::Batch(c) => c.execute(quiet),
            Command::Serve(c) => c.execute(quiet),
            Command::Convert(c) => c.execute(quiet),
            Command::Quantize(c) => c.execute(quiet),
            Command::Train(c) => c.execute(quiet),
            Command::Merge(c) => c.execute(quiet),
            Command::Logits(c) => c.execute(quiet),
            Command::Pull(c) => c.execute(quiet),
            Command::Ls(c) => c.execute(),
            Command::Show(c) => c.execute(quiet),
            Command::Rm(c) => c.execute(),
            Command::Cache(c) => c.execute(quiet),
            Command::Bench(c) => c.execute(quiet),
            Command::Eval(c) => c.execute(quiet),
            Command::Tune(c) => c.execute(quiet),
            Command::Doctor(c) => c.execute(),
            Command::Tokenize(c) => c.execute(quiet),
            Command::Tokenizer(c) => c.execute(quiet),
            Command::Detokenize(c) => c.execute(quiet),
            Command::Template(c) => c.execute(quiet),
            Command::Completions(c) => c.execute(),
            Command::Man(c) => c.execute(quiet),
        }
    }
}

/// Says what went wrong, and with which exit code.
fn end(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message().is_empty() {
                eprintln!("error: {}", failure.message());
            }
            failure.code()
        }
    }
}
