//! An opened model: weights on a device, tokenizer, and the tokens its cache holds.

use crate::device::{DeviceInfo, DeviceOptions, decoder};
use crate::{GenerateError, GenerateOptions, Generation, OpenError, vocabulary};
use bitnet_formats::Checkpoint;
use bitnet_model::{Decoder, LoadOptions, LoadReport, ModelConfig, StepOutput};
use bitnet_tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// How a model is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Where it runs.
    pub device: DeviceOptions,
    /// How its weights and cache are held.
    pub load: LoadOptions,
}

/// A model with the cache of one sequence.
pub struct Model {
    pub(crate) decoder: Box<dyn Decoder>,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    device: DeviceInfo,
    /// Ids whose keys and values are in the cache.
    pub(crate) cached: Vec<u32>,
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
        let (tokenizer, decoder) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| vocabulary::tokenizer(checkpoint));
            let decoder = decoder(checkpoint, &options.device, &options.load, progress);
            (tokenizer.join(), decoder)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.map(Arc::new);
        let (decoder, device) = decoder?;
        Ok(Self { decoder, tokenizer, device, cached: Vec::new() })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// What loading took.
    pub fn report(&self) -> &LoadReport {
        self.decoder.report()
    }

    /// Where it runs.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// Positions of the cache.
    pub fn capacity(&self) -> usize {
        self.decoder.capacity()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Ids of a text, with what the model expects in front of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(GenerateError::NoTokenizer)?;
        Ok(tokenizer.encode(text, true)?)
    }

    /// Ids that end a text: those of the configuration and the vocabulary's own end tokens.
    pub fn end_ids(&self) -> Vec<u32> {
        let mut ids = self.config().eos.clone();
        for id in self.tokenizer.iter().flat_map(|t| t.end_tokens()) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
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
        self.check(ids, 0)?;
        self.clear();
        for ids in ids.chunks(batch.max(1)) {
            self.step(ids, &mut out)?;
            each(&out);
        }
        Ok(())
    }

    /// Runs ids behind what is in the cache.
    pub fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), GenerateError> {
        self.decoder.step(ids, out)?;
        self.cached.extend(ids);
        Ok(())
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.cached.len()
    }

    /// Forgets the tokens from `position` on.
    pub fn rewind(&mut self, position: usize) {
        self.decoder.rewind(position);
        self.cached.truncate(position);
    }

    /// Empties the cache.
    pub fn clear(&mut self) {
        self.rewind(0);
    }

    /// Refuses a prompt that is empty, holds an unknown id, or leaves no room for `answer` tokens.
    pub(crate) fn check(&self, ids: &[u32], answer: usize) -> Result<(), GenerateError> {
        let vocab = self.config().vocab;
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(GenerateError::UnknownId { id: *id, vocab });
        }
        if ids.len() + answer > self.capacity() {
            return Err(GenerateError::PromptTooLong { tokens: ids.len(), capacity: self.capacity() });
        }
        Ok(())
    }
}
