//! An opened model: weights on a device, and a tokenizer.

use crate::device::{DeviceInfo, DeviceOptions};
use crate::engine::{Engine, EngineOptions, Pools, Takeover};
use crate::prepared::Files;
use crate::{GenerateError, GenerateOptions, Generation, OpenError, Pooling, vocabulary};
use bitnet_core::OperationTime;
use bitnet_formats::Checkpoint;
use bitnet_model::{LoadOptions, LoadReport, ModelConfig, StepOutput};
use bitnet_tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// How a model is to be opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Where it runs.
    pub device: DeviceOptions,
    /// How its weights and cache are held.
    pub load: LoadOptions,
}

/// A model that makes one answer at a time.
pub struct Model {
    pub(crate) engine: Engine,
}

impl Model {
    /// Opens a Hugging Face directory or a GGUF file; `progress` is told how many of how many layers are ready.
    pub fn open(
        path: &Path,
        options: &OpenOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, OpenError> {
        Self::from_checkpoint(&bitnet_formats::open(path)?, options, progress)
    }

    /// Opens a checkpoint whose headers are read already.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        options: &OpenOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, OpenError> {
        // A vocabulary of 128000 tokens takes as long to read as a good part of the weights.
        let (tokenizer, weights) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| vocabulary::tokenizer(checkpoint));
            let files = Files::new(checkpoint, options);
            (tokenizer.join(), files.and_then(|files| files.prepare(&options.device, progress)))
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.map(Arc::new);
        let mut engine = Engine::new(weights?, tokenizer, EngineOptions::default());
        engine.set_pooling(Pooling::of(checkpoint)?);
        Ok(Self { engine })
    }

    /// Moves the model to another device: its weights are prepared there from its files, which are still open, and then answers are made
    /// there. `progress` is told how many of how many layers are ready. [`SharedModel::move_to`](crate::SharedModel::move_to) and
    /// [`Engine::move_to`] do it while answers are being made.
    ///
    /// ```no_run
    /// # use bitnet_inference::{Device, DeviceOptions, Model};
    /// # fn example(model: &mut Model) -> Result<(), Box<dyn std::error::Error>> {
    /// model.move_to(&DeviceOptions { device: Device::Cuda(0).into(), ..Default::default() }, &mut |_, _| {})?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The device cannot be used, or has too little memory; the model then stays where it is.
    pub fn move_to(
        &mut self,
        device: &DeviceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), OpenError> {
        let prepared = self.engine.files().prepare(device, progress)?;
        self.engine.move_to(prepared)
    }

    /// Has another device take over when this one fails in the middle of answers: [`Engine::set_fallback`].
    pub fn set_fallback(&mut self, device: DeviceOptions, tell: impl FnMut(&Takeover) + Send + 'static) {
        self.engine.set_fallback(device, tell);
    }

    /// The engine, to make many answers at once.
    pub fn into_engine(self, options: EngineOptions) -> Engine {
        self.engine.with_options(options)
    }

    /// Lets a smaller model of the same vocabulary guess tokens ahead, for answers that want it ([`GenerateOptions::draft`]).
    ///
    /// # Errors
    /// The vocabularies differ.
    pub fn set_draft(&mut self, draft: Self) -> Result<(), OpenError> {
        self.engine.set_draft(draft.engine)
    }

    /// Loads an adapter, which then acts on answers that do not choose adapters; see [`Engine::load_adapter`].
    ///
    /// # Errors
    /// The files are damaged, or are no adapter of this model.
    pub fn load_adapter(&mut self, path: &Path, scale: f32) -> Result<u32, OpenError> {
        self.engine.load_adapter(path, scale)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.engine.config()
    }

    /// What loading took.
    pub fn report(&self) -> &LoadReport {
        self.engine.decoder().report()
    }

    /// Where it runs.
    pub fn device(&self) -> &DeviceInfo {
        self.engine.device()
    }

    /// Where its memory comes from.
    pub fn pools(&self) -> Pools {
        self.engine.pools()
    }

    /// What its devices have spent on each kind of operation, as [`Engine::profile`] says.
    pub fn profile(&self) -> Result<Vec<OperationTime>, GenerateError> {
        self.engine.profile()
    }

    /// Positions of the cache.
    pub fn capacity(&self) -> usize {
        self.engine.capacity()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.engine.tokenizer()
    }

    /// Ids of a text, with what the model expects in front of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        let tokenizer = self.tokenizer().ok_or(GenerateError::NoTokenizer)?;
        Ok(tokenizer.encode(text, true)?)
    }

    /// Ids that end a text: those of the configuration and the vocabulary's own end tokens.
    pub fn end_ids(&self) -> Vec<u32> {
        self.engine.end_ids().to_vec()
    }

    /// Which states the model's vectors are made of, as far as its files say.
    pub fn pooling(&self) -> Option<Pooling> {
        self.engine.pooling()
    }

    /// Continues a prompt. What the cache holds of it already is not computed again, which changes no bit.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Generation<'_>, GenerateError> {
        Generation::new(self, prompt, options)
    }

    /// Runs ids from the beginning of a sequence in steps of `batch` that are asked for what `out` asks for, and gives every
    /// step's output to `each`.
    pub fn evaluate(
        &mut self,
        ids: &[u32],
        batch: usize,
        mut out: StepOutput,
        each: &mut dyn FnMut(&StepOutput),
    ) -> Result<(), GenerateError> {
        self.engine.check(ids, 0)?;
        self.rewind(0);
        for ids in ids.chunks(batch.max(1)) {
            self.step(ids, &mut out)?;
            each(&out);
        }
        Ok(())
    }

    /// Runs ids behind those before, outside the engine.
    pub fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), GenerateError> {
        Ok(self.engine.lend().step(ids, out)?)
    }

    /// Tokens that the next step goes on behind.
    pub fn position(&self) -> usize {
        self.engine.decoder().position()
    }

    /// Forgets the tokens from `position` on.
    pub fn rewind(&mut self, position: usize) {
        self.engine.lend().rewind(position);
    }
}
