//! From one device to another: because somebody asks for it, or because a device has failed.
//!
//! Keys and values stay behind. Answers in the making wait until they are computed again from their ids, as those do whose blocks were
//! needed, so that where two devices have the same bits (CUDA's are the processor's), an answer does not show that it has moved.

use super::Engine;
use super::cache::{Cache, Place};
use super::draft::Draft;
use super::sequence::Sequence;
use crate::prepared::{ModelFiles, Prepared};
use crate::{DeviceInfo, DeviceOptions, GenerateError, OpenError, Placement};
use bitnet_model::ModelError;
use std::fmt;
use std::sync::Arc;

/// Where an engine goes on when its device fails, and who is told.
pub(super) struct Fallback {
    pub device: DeviceOptions,
    pub tell: Box<dyn FnMut(&Takeover) + Send>,
}

/// A device has failed in the middle of answers, and another one takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The one that failed.
    pub from: Placement,
    /// The one that goes on.
    pub to: Placement,
    /// How it failed.
    pub why: String,
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; the {} takes over from {}", self.why, self.to, self.from)
    }
}

impl Engine {
    /// What the engine runs on.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// The files of its models, from which weights can be prepared on another device while it goes on.
    pub fn files(&self) -> ModelFiles {
        let draft = self.draft.as_ref().map(|draft| Arc::clone(&draft.files));
        ModelFiles { model: Arc::clone(&self.files), draft }
    }

    /// Goes on with weights that [`ModelFiles::prepare`] made of its own files. Nothing is lost of requests: those that run are
    /// computed again from their ids. Prefixes are forgotten.
    ///
    /// # Errors
    /// They are another model's, or the device has no room for an adapter; the engine then stays where it is.
    pub fn move_to(&mut self, prepared: Prepared) -> Result<(), OpenError> {
        let Prepared { mut model, draft } = prepared;
        if !Arc::ptr_eq(&model.files, &self.files) {
            return Err(OpenError::OtherModel);
        }
        for (id, adapter) in &self.adapters.held {
            model.decoder.load_adapter(*id, adapter)?;
        }
        for mut sequence in self.vacate() {
            sequence.preempted = true;
            self.stats.preempted += 1;
            self.queue.push(sequence);
        }
        let keep = self.options.prefix_cache;
        self.cache = Cache::new(model.decoder, keep);
        (self.device, self.identity) = (model.device, model.identity);
        if let Some(draft) =
            draft.filter(|draft| self.files().draft.is_some_and(|f| Arc::ptr_eq(&f, &draft.files)))
        {
            self.draft = Some(Draft::new(draft.decoder, draft.files, keep));
        }
        // Its steps begin small again.
        self.largest_step = 0;
        self.watch_devices();
        Ok(())
    }

    /// Has another device take over when the present one fails in the middle of answers, and `tell` told before it begins to load: once,
    /// since there is no third one. Without it, and where loading fails too, the answers that run end with an error.
    pub fn set_fallback(&mut self, device: DeviceOptions, tell: impl FnMut(&Takeover) + Send + 'static) {
        self.fallback = Some(Fallback { device, tell: Box::new(tell) });
    }

    /// Has somebody else told when a device takes over.
    pub fn tell_takeover(&mut self, tell: impl FnMut(&Takeover) + Send + 'static) {
        if let Some(fallback) = &mut self.fallback {
            fallback.tell = Box::new(tell);
        }
    }

    /// A step has failed. If that is the device's fault, what its caches hold may be anything.
    pub(super) fn step_failed(&mut self, error: ModelError) {
        if !error.is_of_device() {
            return self.fail_all(error.into());
        }
        let outcome = match self.fallback.take() {
            Some(fallback) => self.take_over(fallback, error),
            None => Err(error.into()),
        };
        if let Err(error) = outcome {
            self.running = self.vacate();
            self.fail_all(error);
        }
    }

    fn take_over(&mut self, mut fallback: Fallback, error: ModelError) -> Result<(), GenerateError> {
        let why = error.to_string();
        let (from, to) = (self.device.device.clone(), fallback.device.device.clone());
        (fallback.tell)(&Takeover { from, to, why: why.clone() });
        let prepared = self.files().prepare(&fallback.device, &mut |_, _| {});
        let moved = prepared.and_then(|prepared| self.move_to(prepared));
        moved.map_err(|source| GenerateError::Takeover { why, source: Box::new(source) })?;
        self.stats.takeovers += 1;
        Ok(())
    }

    /// Takes all that run out of the caches, which then hold nothing.
    fn vacate(&mut self) -> Vec<Sequence> {
        let mut running = std::mem::take(&mut self.running);
        for sequence in &mut running {
            sequence.drop_guesses();
            (sequence.place, sequence.draft) = (Place::default(), Place::default());
        }
        self.cache.blocks.clear();
        if let Some(draft) = &mut self.draft {
            draft.cache.blocks.clear();
        }
        running
    }
}
