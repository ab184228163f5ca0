//! `bitnet eval`: how well a model predicts a text, in llama.cpp's windows, and how far it is from another one.

pub mod divergence;
mod logits_file;
pub mod report;
pub mod windows;

use crate::args::{self, ModelFlags, ModelPath};
use crate::commands::vocabulary;
use crate::failure::Failure;
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use bitnet_formats::Checkpoint;
use bitnet_inference::Model;
use bitnet_model::ModelConfig;
use clap::Args;
use divergence::{Base, Compared, compare};
use logits_file::{Reader, Writer};
use report::{Divergence, Perplexity};
use std::path::{Path, PathBuf};
use windows::{Windows, each_rows};

#[derive(Args)]
#[command(after_help = "\
The text is cut into windows of --ctx-size tokens (512 where it is not given), each begins with the model's own begin token, and
the tokens of its second half are predicted: what llama-perplexity does, so that its numbers and files compare.
With --ppl-stride windows overlap, and the last N tokens of each are predicted.

Without --kl-divergence, --kl-divergence-base writes what the model says of each position; with it, what was written is
compared with what this model says.

Examples:
  bitnet eval model.gguf --ppl wiki.raw
  bitnet eval model.gguf --ppl wiki.raw -c 2048 --chunks 20 --json
  bitnet eval f16.gguf --ppl wiki.raw --kl-divergence-base f16.kld
  bitnet eval model.gguf --kl-divergence --kl-divergence-base f16.kld
  bitnet eval model.gguf --kl-divergence --base f16.gguf --ppl wiki.raw")]
pub struct Eval {
    #[command(flatten)]
    model: ModelPath,
    /// The text (also -f, --file)
    #[arg(short = 'f', long, visible_alias = "file", value_name = "FILE")]
    ppl: Option<PathBuf>,
    /// Begin a window every N tokens, and predict the last N tokens of each
    #[arg(long, visible_alias = "stride", value_name = "N", conflicts_with_all = ["kl_divergence", "kl_divergence_base"])]
    ppl_stride: Option<usize>,
    /// Windows at most [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Compare with --base, or with what --kl-divergence-base holds
    #[arg(long)]
    kl_divergence: bool,
    /// llama.cpp's file of logits: written, or with --kl-divergence read
    #[arg(long, visible_alias = "save-all-logits", value_name = "FILE")]
    kl_divergence_base: Option<PathBuf>,
    /// The model to compare with
    #[arg(long, value_name = "MODEL", requires = "kl_divergence", conflicts_with = "kl_divergence_base")]
    base: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ModelFlags,
}

/// llama-perplexity's context.
pub const CONTEXT: usize = 512;

impl Eval {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        match (self.kl_divergence, &self.base, &self.kl_divergence_base) {
            (true, Some(base), _) => self.against_model(base, quiet),
            (true, None, Some(file)) => self.against_file(file, quiet),
            (true, None, None) => Err(Failure::Usage(
                "--kl-divergence compares with --base MODEL or with --kl-divergence-base FILE".to_owned(),
            )),
            (false, ..) => self.perplexity(quiet),
        }
    }

    fn perplexity(&self, quiet: bool) -> Result<(), Failure> {
        let text = self.text()?;
        let window = self.window()?;
        let path = self.model.locate(quiet)?;
        let mut model = self.load(&path, window, quiet)?;
        let windows = Windows::new(&model, &path, &text, window, self.ppl_stride, self.chunks)?;
        let vocab = model.config().vocab;
        let threads = model.device().threads;
        let mut writer = match &self.kl_divergence_base {
            Some(file) => Some(Writer::create(file, &windows, vocab)?),
            None => None,
        };
        let bytes = windows.bytes(&model);
        let mut total = Perplexity::default();
        let mut running = Running::new(windows.len(), quiet);
        for at in 0..windows.len() {
            let (ids, from) = windows.get(at);
            let mut written = Ok(());
            each_rows(&mut model, &ids, from, self.flags.batch_size, false, &mut |position, out| {
                let (logits, next) = (&out.logits[..], &ids[position + 1..]);
                let nlls = divergence::rows(logits, vocab, threads, |row, logits| {
                    divergence::nll(logits, next[row])
                });
                nlls.into_iter().for_each(|nll| total.add(nll));
                if let (Some(writer), Ok(())) = (&mut writer, &written) {
                    written = writer.rows(logits, vocab, threads);
                }
            })?;
            written?;
            running.window(at, total.value());
        }
        running.finish();
        if let Some(writer) = writer {
            writer.finish()?;
        }
        total.print(bytes, self.json)
    }

    fn against_file(&self, file: &Path, quiet: bool) -> Result<(), Failure> {
        let mut reader = Reader::open(file)?;
        let path = self.model.locate(quiet)?;
        let mut model = self.load(&path, reader.window, quiet)?;
        let vocab = model.config().vocab;
        if reader.vocab != vocab {
            return Err(Failure::Usage(format!(
                "{} is of a model with {} tokens; this one has {vocab}",
                file.display(),
                reader.vocab
            )));
        }
        let windows = reader.windows(&model, &path, self.chunks)?;
        let threads = model.device().threads;
        let mut all = Divergence::default();
        let mut running = Running::new(windows.len(), quiet);
        for at in 0..windows.len() {
            let (ids, from) = windows.get(at);
            let base = reader.window_rows()?;
            each_rows(&mut model, &ids, from, self.flags.batch_size, false, &mut |position, out| {
                let next = &ids[position + 1..];
                all.extend(divergence::rows(&out.logits, vocab, threads, |row, logits| {
                    compare(logits, Base::Stored(base.row(position - from + row)), next[row])
                }));
            })?;
            running.window(at, all.mean());
        }
        running.finish();
        all.print(self.json)
    }

    fn against_model(&self, base: &Path, quiet: bool) -> Result<(), Failure> {
        let text = self.text()?;
        let window = self.window()?;
        let path = self.model.locate(quiet)?;
        let base_path = hub::locate(base, quiet)?;
        let mut model = self.load(&path, window, quiet)?;
        let mut base = self.load(&base_path, window, quiet)?;
        let vocab = model.config().vocab;
        if base.config().vocab != vocab {
            return Err(Failure::Usage(format!(
                "--base has a vocabulary of {} tokens, the model one of {vocab}",
                base.config().vocab
            )));
        }
        let windows = Windows::new(&model, &path, &text, window, None, self.chunks)?;
        let threads = model.device().threads;
        let mut all = Divergence::default();
        let mut running = Running::new(windows.len(), quiet);
        for at in 0..windows.len() {
            let (ids, from) = windows.get(at);
            let mut wanted: Vec<f32> = Vec::new();
            each_rows(&mut base, &ids, from, self.flags.batch_size, false, &mut |_, out| {
                wanted.extend_from_slice(&out.logits);
            })?;
            each_rows(&mut model, &ids, from, self.flags.batch_size, false, &mut |position, out| {
                let next = &ids[position + 1..];
                let compared: Vec<Compared> = divergence::rows(&out.logits, vocab, threads, |row, logits| {
                    let of = position - from + row;
                    compare(logits, Base::Logits(&wanted[of * vocab..][..vocab]), next[row])
                });
                all.extend(compared);
            })?;
            running.window(at, all.mean());
        }
        running.finish();
        all.print(self.json)
    }

    fn text(&self) -> Result<String, Failure> {
        let Some(path) = &self.ppl else {
            return Err(Failure::Usage("--ppl names the text to predict".to_owned()));
        };
        std::fs::read_to_string(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
    }

    /// Tokens of a window. llama.cpp makes it longer by half a stride.
    fn window(&self) -> Result<usize, Failure> {
        let asked = self.flags.load()?.context.unwrap_or(CONTEXT);
        let stride = self.ppl_stride.unwrap_or(0);
        let window = asked + stride / 2;
        if window < 4 || self.ppl_stride == Some(0) || stride + 1 >= window {
            return Err(Failure::Usage(format!(
                "a window of {window} tokens and a stride of {stride} predict nothing; --ctx-size takes more"
            )));
        }
        Ok(window)
    }

    fn load(&self, path: &Path, window: usize, quiet: bool) -> Result<Model, Failure> {
        let checkpoint: Checkpoint = shipped::open(path)?;
        let config = ModelConfig::read(&checkpoint).map_err(Failure::at(path))?;
        if window > config.context {
            return Err(Failure::Usage(format!(
                "windows of {window} tokens do not fit the model's context of {}; --ctx-size takes less",
                config.context
            )));
        }
        let mut opening = self.flags.options(&checkpoint, quiet)?;
        opening.options.load.context = Some(window);
        let (model, _) = args::load(path, &checkpoint, opening, &self.flags.tuning, quiet)?;
        if model.tokenizer().is_none() {
            return Err(vocabulary::absent(path));
        }
        Ok(model)
    }
}

/// What is told while it runs: the figure so far, as llama-perplexity does.
struct Running {
    progress: Progress,
    quiet: bool,
    windows: usize,
}

impl Running {
    fn new(windows: usize, quiet: bool) -> Self {
        Self { progress: Progress::of("evaluating", "windows", 0, quiet), quiet, windows }
    }

    fn window(&mut self, at: usize, value: f64) {
        if !self.quiet {
            self.progress.say(&format!("[{}] {value:.4}", at + 1));
        }
        self.progress.at(at + 1, self.windows);
    }

    fn finish(self) {
        self.progress.finish();
    }
}
