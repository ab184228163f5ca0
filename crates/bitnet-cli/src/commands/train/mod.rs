//! `bitnet train`: a model from data.

mod display;
mod lines;
mod report;

use crate::failure::Failure;
use crate::hub::{self, Located};
use crate::terminal::interrupt;
use bitnet_training::{Event, KINDS, Kind, Outcome, RunConfig, Stopped, example, run};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[derive(Args)]
#[command(
    long_about = "Train a ternary model: from scratch on documents (pretrain), or an existing one to answer, all of it (sft) or by \
        a small adapter (lora), or which of two answers is preferred (dpo), or make a dense one ternary while it learns on (qat), \
        from a teacher too (distill).\n\n\
        A TOML file says all; --example prints one that explains every key. Weights are ternary and activations int8 in every step, unless \
        it says otherwise, as they will be when the model is run, and gradients go straight through both. The output folder gets metrics.jsonl, checkpoints, \
        and the model, a Hugging Face directory, or the adapter as peft saves it (beside which the model stays packed as its file has it, a GGUF file too); a checkpoint of a model can be run, too.\n\n\
        A run that was interrupted or killed goes on with --resume from its newest checkpoint, to the same bits as one in one go. The \
        number of threads changes no bit.\n\n\
        On a terminal the run is drawn, and q or ctrl-c ends it behind the present step, with a checkpoint; elsewhere, and with --plain, it is \
        told in lines. The output folder has metrics.jsonl, event files for TensorBoard (tensorboard --logdir), and at the end report.html, \
        which shows all of it.",
    after_help = "\
Examples:
  bitnet train --example pretrain > pretrain.toml
  bitnet train pretrain -c pretrain.toml --set train.steps=2
  bitnet train pretrain --resume run --set train.steps=3
  bitnet run run/model \"ships at\"
  bitnet convert run/model trained.gguf --to i2_s
  bitnet train --example qat > qat.toml
  bitnet train qat -c qat.toml --set train.steps=2 --set quantize.ramp=1
  bitnet train --example distill > distill.toml
  bitnet train distill -c distill.toml --set distill.teacher=model --set train.steps=2
  bitnet train --example lora > lora.toml
  bitnet train lora -c lora.toml --set train.steps=2
  bitnet run model --lora run-lora/adapter \"ships at\"
  bitnet merge model run-lora/adapter merged-lora
  bitnet train --example dpo > dpo.toml
  bitnet train dpo -c dpo.toml --set train.steps=2"
)]
pub struct Train {
    /// What the model is to learn
    #[arg(value_enum, required_unless_present = "example")]
    kind: Option<KindName>,
    /// The run's settings, TOML; with --resume those that it was begun with, unless given
    #[arg(short, long, value_name = "FILE", env = "BITNET_TRAIN_CONFIG", required_unless_present_any = ["example", "resume"])]
    config: Option<PathBuf>,
    /// A setting instead of the file's: a dotted key and a TOML value; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where it is computed, instead of the file's `device`: cpu; cuda:N, an NVIDIA GPU; wgpu:N, a GPU through Vulkan, Metal or DirectX 12
    /// (`doctor` lists them); auto: the best of them; several, each with a worker: cuda:0,cuda:1
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', env = "BITNET_DEVICE")]
    device: Vec<String>,
    /// Go on with the run in this output folder
    #[arg(long, value_name = "DIR", env = "BITNET_TRAIN_RESUME")]
    resume: Option<PathBuf>,
    /// Print a commented configuration of this kind and do nothing else
    #[arg(long, value_name = "KIND", value_parser = KINDS)]
    example: Option<String>,
    /// Tell of the run in lines also on a terminal, where it is drawn otherwise
    #[arg(long, env = "BITNET_TRAIN_PLAIN")]
    plain: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    /// Documents, from the first word to the last
    Pretrain,
    /// Answers: conversations, or prompts and completions
    Sft,
    /// The same by small matrices beside the weights, an adapter as peft saves it
    Lora,
    /// Which of two answers is preferred: direct preference optimization, of the weights or of an adapter
    Dpo,
    /// Documents and answers, while the weights of a dense model become ternary
    Qat,
    /// The same, and what another model makes of them
    Distill,
}

impl From<KindName> for Kind {
    fn from(kind: KindName) -> Self {
        match kind {
            KindName::Pretrain => Self::Pretrain,
            KindName::Sft => Self::Sft,
            KindName::Lora => Self::Lora,
            KindName::Dpo => Self::Dpo,
            KindName::Qat => Self::Qat,
            KindName::Distill => Self::Distill,
        }
    }
}

impl Train {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if let Some(text) = self.example.as_deref().and_then(example) {
            out.write_all(text.as_bytes())?;
            return Ok(());
        }
        let kind = Kind::from(self.kind.ok_or_else(|| Failure::Usage("which kind of run?".to_owned()))?);
        let mut changes = self.set.clone();
        if !self.device.is_empty() {
            changes.push(format!("device={:?}", self.device));
        }
        let mut config = match (&self.config, &self.resume) {
            (Some(path), _) => RunConfig::read(path, kind, &changes)?,
            (None, Some(dir)) => RunConfig::read(&dir.join("config.toml"), kind, &changes)?,
            (None, None) => return Err(Failure::Usage("--config says what to do".to_owned())),
        };
        if let Some(dir) = &self.resume {
            config.output.clone_from(dir);
        }
        let _held = [fetch(&mut config.data.train, quiet)?, fetch(&mut config.data.validation, quiet)?];
        let stop = interrupt();
        let mut watch = Watch::new(&config, &stop, quiet, self.plain);
        let mut begin = None;
        let outcome = run(&config, self.resume.is_some(), &stop, &mut |event| {
            watch.event(&event);
            if let Event::Begin(start) = event {
                begin = Some(start);
            }
        });
        watch.finish();
        let outcome = outcome?;
        if let Some(start) = &begin {
            report::write(&config, start, &outcome)?;
        }
        if self.json {
            writeln!(out, "{}", object(&outcome))?;
        } else if let (Some(model), false) = (&outcome.model, quiet) {
            writeln!(out, "{}", model.display())?;
        }
        if outcome.stopped == Stopped::Interrupted {
            if !quiet {
                let at = outcome.step;
                eprintln!("interrupted behind step {at}; --resume {} goes on", config.output.display());
            }
            return Err(Failure::Interrupted);
        }
        Ok(())
    }
}

/// How a run is watched.
enum Watch {
    Not,
    Lines,
    Display(display::Display),
}

impl Watch {
    fn new(config: &RunConfig, stop: &Arc<AtomicBool>, quiet: bool, plain: bool) -> Self {
        if quiet {
            return Self::Not;
        }
        let title = format!("bitnet train {}: {}", config.kind.name(), config.output.display());
        let display = if plain { None } else { display::Display::open(title, Arc::clone(stop)) };
        display.map_or(Self::Lines, Self::Display)
    }

    fn event(&mut self, event: &Event) {
        match self {
            Self::Not => {}
            Self::Lines => eprintln!("{}", lines::line(event)),
            Self::Display(display) => display.event(event),
        }
    }

    fn finish(self) {
        if let Self::Display(display) = self {
            display.close();
        }
    }
}

/// Fetches files of the hub, and puts their places for their addresses; the cache holds them for as long as what is returned lives.
fn fetch(files: &mut [PathBuf], quiet: bool) -> Result<Vec<Located>, Failure> {
    let addresses = files.iter_mut().filter(|f| f.to_str().is_some_and(|f| f.starts_with("hf://")));
    let fetch = |file: &mut PathBuf| {
        let located = hub::locate(file, quiet)?;
        file.clone_from(&located.to_path_buf());
        Ok(located)
    };
    addresses.map(fetch).collect()
}

/// Bytes in MiB.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn object(outcome: &Outcome) -> serde_json::Value {
    let stopped = match outcome.stopped {
        Stopped::Done => "done",
        Stopped::Early => "early",
        Stopped::Interrupted => "interrupted",
    };
    json!({
        "stopped": stopped,
        "step": outcome.step,
        "loss": outcome.loss,
        "validation_loss": outcome.validation,
        "checkpoint": outcome.checkpoint,
        "model": outcome.model,
    })
}
