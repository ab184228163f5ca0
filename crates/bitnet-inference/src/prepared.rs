//! Weights on a device, and the files from which they can be prepared again on another one.

use crate::device::{DeviceInfo, DeviceOptions, decoder};
use crate::{OpenError, OpenOptions, session};
use bitnet_formats::Checkpoint;
use bitnet_model::{Decoder, ModelConfig};
use std::sync::Arc;

/// What a model is made of, whatever device it is on: tensors in their files' maps, and how they are to be held.
pub(crate) struct Files {
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: OpenOptions,
}

impl Files {
    pub fn new(checkpoint: &Checkpoint, options: &OpenOptions) -> Result<Arc<Self>, OpenError> {
        let config = ModelConfig::read(checkpoint)?;
        Ok(Arc::new(Self { checkpoint: checkpoint.without_header(), config, options: options.clone() }))
    }

    pub fn prepare(
        self: &Arc<Self>,
        device: &DeviceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Weights, OpenError> {
        let load = &self.options.load;
        let tensors = session::sample(&self.checkpoint);
        let (decoder, device) = decoder((&self.checkpoint, &self.config), device, load, progress)?;
        let of = (load, &device);
        let identity = session::identity(&tensors, decoder.config(), decoder.report(), of);
        Ok(Weights { decoder, device, identity, files: Arc::clone(self) })
    }
}

/// A model on a device, with a cache that nobody uses.
pub(crate) struct Weights {
    pub decoder: Box<dyn Decoder>,
    pub device: DeviceInfo,
    /// What model and cache are known by in sessions.
    pub identity: [u8; 32],
    pub files: Arc<Files>,
}

/// The files of an engine's model, and of the one that guesses for it. Cheap to clone and to keep: what is held is their memory maps.
#[derive(Clone)]
pub struct ModelFiles {
    pub(crate) model: Arc<Files>,
    pub(crate) draft: Option<Arc<Files>>,
}

impl ModelFiles {
    /// What the model was opened on.
    pub fn opened_on(&self) -> DeviceOptions {
        self.model.options.device.clone()
    }

    /// Prepares the weights once more, on any device and on any thread; meanwhile the engine goes on where it is, and
    /// [`Engine::move_to`](crate::engine::Engine::move_to) then takes them. `progress` is told how many of how many layers are ready.
    ///
    /// # Errors
    /// The device cannot be used, or has too little memory.
    pub fn prepare(
        &self,
        device: &DeviceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Prepared, OpenError> {
        let model = self.model.prepare(device, progress)?;
        let of_draft = device.for_draft();
        let draft = self.draft.as_ref().map(|draft| draft.prepare(&of_draft, &mut |_, _| {})).transpose()?;
        Ok(Prepared { model, draft })
    }
}

/// The weights of an engine's models on a device that the engine is not on yet.
pub struct Prepared {
    pub(crate) model: Weights,
    pub(crate) draft: Option<Weights>,
}

impl Prepared {
    /// Where they are.
    pub fn device(&self) -> &DeviceInfo {
        &self.model.device
    }
}
