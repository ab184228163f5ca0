//! What a run is for, what happens in it, and what it leaves.

use crate::data::{DataSet, Skipped};
use crate::{ProcessMemory, Sample};
use bitnet_inference::Device;
use std::path::PathBuf;
use std::time::Duration;

/// What a model is to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every token of documents.
    Pretrain,
    /// Answers.
    Sft,
    /// The same, by low-rank matrices beside the weights.
    Lora,
    /// Which of two answers is preferred; by the weights, or by low-rank matrices.
    Dpo,
    /// Documents and answers, with weights that become ternary on the way.
    Qat,
    /// The same, and what another model makes of them.
    Distill,
}

impl Kind {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
            Self::Lora => "lora",
            Self::Dpo => "dpo",
            Self::Qat => "qat",
            Self::Distill => "distill",
        }
    }
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Nobody named a device, and this one was taken.
    Device {
        /// Which.
        device: Device,
        /// Why.
        why: String,
    },
    /// A checkpoint that cannot be gone on from; an older one is tried.
    Damaged {
        /// What is wrong with it.
        why: String,
    },
    /// Rows of files that are no examples.
    Skipped(Skipped),
    /// Examples that were longer than a row.
    Dropped(usize),
    /// So many pairs of answers are measured with the model at the start; what comes of it is kept.
    Reference(usize),
    /// The first step follows.
    Begin(Start),
    /// The model that comes out will not be run quite as it is trained.
    RunOtherwise {
        /// In what it differs.
        how: &'static str,
    },
    /// Some steps were taken.
    Steps {
        /// Steps so far.
        step: u64,
        /// Steps of the run.
        steps: u64,
        /// Mean loss of the last one, in nats.
        loss: f64,
        /// Its learning rate.
        rate: f64,
        /// The norm of its gradient, before clipping.
        norm: f64,
        /// Tokens a second since the last such event.
        speed: f64,
        /// How long the rest takes at this speed.
        left: Duration,
        /// Of the last one, where answers are preferred.
        preferences: Option<Preferences>,
        /// What the process holds, where the system says it.
        memory: Option<ProcessMemory>,
    },
    /// What the model goes on with.
    Samples {
        /// Steps so far.
        step: u64,
        /// A text for each prompt.
        samples: Vec<Sample>,
    },
    /// The loss on what is not trained on.
    Validation {
        /// Steps so far.
        step: u64,
        /// Mean loss in nats.
        loss: f64,
        /// Whether none was better.
        best: bool,
        /// Where answers are preferred.
        preferences: Option<Preferences>,
    },
    /// There is a checkpoint.
    Checkpoint(PathBuf),
}

/// What pairs of answers say beside the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preferences {
    /// The share of pairs whose chosen answer gained more on the model at the start than the other one.
    pub accuracy: f64,
    /// The mean of beta times by how much more, in nats.
    pub margin: f64,
}

/// What a run begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Parameters that are trained.
    pub parameters: usize,
    /// Rows of tokens to train on, and to validate on.
    pub rows: (usize, usize),
    /// What is trained on.
    pub train: DataSet,
    /// What is validated on, where that is not a part of it.
    pub validation: Option<DataSet>,
    /// Steps that are taken already.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Threads.
    pub threads: usize,
    /// What each worker computes on.
    pub devices: Vec<String>,
}

impl Start {
    /// What it is computed on, in words.
    pub fn computed_on(&self) -> String {
        let mut devices: Vec<&str> =
            self.devices.iter().map(String::as_str).filter(|d| *d != "cpu").collect();
        let threads = format!("{} threads", self.threads);
        devices.push(&threads);
        devices.join(", ")
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// All steps were taken.
    Done,
    /// Validations got no better.
    Early,
    /// It was asked to; it can be gone on with.
    Interrupted,
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub stopped: Stopped,
    /// Steps taken in all.
    pub step: u64,
    /// The loss of the last step, in nats; `None` when there was none to take.
    pub loss: Option<f64>,
    /// The last validation's.
    pub validation: Option<f64>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// The model or the adapter, unless the run was interrupted.
    pub model: Option<PathBuf>,
}
