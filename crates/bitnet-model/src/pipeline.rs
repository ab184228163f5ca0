//! A model whose layers lie on several devices.
//!
//! A [`Stage`] is a [`Transformer`](crate::Transformer) with some of the layers, on a backend of its own, with its part of the cache. Every
//! token goes through all of them, and between two of them only the residual stream moves, of which not one bit changes on the way: where
//! backends agree, the numbers are those of one device. Stages may be of different backends, since what they are asked is host data.

use crate::{Adapter, Decoder, LoadReport, ModelConfig, ModelError, Span, StepOutput};
use bitnet_core::{Logits, OperationTime};
use bitnet_memory::{DeviceMemory, Pool};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// Consecutive layers of a model on a device: the first of them behind the embedding, the last of them before final norm and head.
///
/// A step of the decoder begins with what was received and gives results where the last layer is.
pub trait Stage: Decoder + Any {
    /// Which of the model's layers these are.
    fn layers(&self) -> Range<usize>;
    /// Copies the residual stream behind its last layer, `[tokens, hidden]`, to the host.
    fn send(&self, out: &mut Vec<f32>) -> Result<(), ModelError>;
    /// Takes over what the stage before has left of the step that it has made; the same step is the next one here.
    fn receive(&mut self, before: &dyn Stage) -> Result<(), ModelError>;
}

/// A model as a row of stages.
pub struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
    report: LoadReport,
}

impl Pipeline {
    /// Puts stages of one model, loaded with the same options, behind each other.
    ///
    /// # Panics
    /// They do not have all of its layers, each once and in order.
    pub fn new(stages: Vec<Box<dyn Stage>>) -> Self {
        let end = stages.iter().fold(0, |end, stage| {
            assert_eq!(stage.layers().start, end, "layers follow each other");
            stage.layers().end
        });
        let model = stages.first().expect("a model has stages");
        assert_eq!(end, model.config().layers, "layers of the model");
        let mut report = model.report().clone();
        for more in stages[1..].iter().map(|stage| stage.report()) {
            report.weight_bytes += more.weight_bytes;
            report.mapped_bytes += more.mapped_bytes;
            report.step_bytes += more.step_bytes;
            report.ternary_weights += more.ternary_weights;
            report.dense_weights += more.dense_weights;
        }
        Self { stages, report }
    }

    fn first(&self) -> &dyn Stage {
        &**self.stages.first().expect("a model has stages")
    }

    fn last(&self) -> &dyn Stage {
        &**self.stages.last().expect("a model has stages")
    }

    /// Has one stage after the other make a step.
    fn run(
        &mut self,
        mut step: impl FnMut(&mut dyn Stage) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        for at in 0..self.stages.len() {
            let (before, stages) = self.stages.split_at_mut(at);
            if let Some(before) = before.last() {
                stages[0].receive(&**before)?;
            }
            step(&mut *stages[0])?;
        }
        Ok(())
    }
}

impl Decoder for Pipeline {
    fn config(&self) -> &ModelConfig {
        self.first().config()
    }
    fn report(&self) -> &LoadReport {
        &self.report
    }
    fn memory(&self) -> Vec<Arc<Pool>> {
        let mut pools: Vec<Arc<Pool>> = Vec::new();
        for pool in self.stages.iter().flat_map(|stage| stage.memory()) {
            if !pools.iter().any(|known| Arc::ptr_eq(known, &pool)) {
                pools.push(pool);
            }
        }
        pools
    }
    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        self.stages.iter().flat_map(|stage| stage.device_memory()).collect()
    }
    /// Of all stages together.
    fn profile(&self) -> Result<Vec<OperationTime>, ModelError> {
        let stages = self.stages.iter().map(|stage| stage.profile()).collect::<Result<Vec<_>, _>>()?;
        Ok(OperationTime::joined(stages.into_iter().flatten()))
    }
    fn capacity(&self) -> usize {
        self.first().capacity()
    }
    fn blocks(&self) -> usize {
        self.first().blocks()
    }
    fn copy_block(&mut self, from: u32, to: u32) {
        self.stages.iter_mut().for_each(|stage| stage.copy_block(from, to));
    }
    fn discard_block(&mut self, block: u32) -> usize {
        self.stages.iter_mut().map(|stage| stage.discard_block(block)).sum()
    }
    fn block_bytes(&self) -> usize {
        self.stages.iter().map(|stage| stage.block_bytes()).sum()
    }
    fn save_block(&self, block: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.stages.iter().try_for_each(|stage| stage.save_block(block, out))
    }
    fn load_block(&mut self, block: u32, mut bytes: &[u8]) {
        for stage in &mut self.stages {
            let (own, behind) = bytes.split_at(stage.block_bytes());
            stage.load_block(block, own);
            bytes = behind;
        }
    }

    fn load_adapter(&mut self, id: u32, adapter: &Adapter) -> Result<(), ModelError> {
        let loaded = self.stages.iter_mut().try_for_each(|stage| stage.load_adapter(id, adapter));
        if loaded.is_err() {
            self.unload_adapter(id);
        }
        loaded
    }
    fn unload_adapter(&mut self, id: u32) {
        self.stages.iter_mut().for_each(|stage| stage.unload_adapter(id));
    }

    fn batch(
        &mut self,
        batch: &[Span<'_>],
        out: &mut Logits,
        states: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.run(|stage| stage.batch(batch, out, states))
    }

    fn position(&self) -> usize {
        self.last().position()
    }
    fn rewind(&mut self, position: usize) {
        self.stages.iter_mut().for_each(|stage| stage.rewind(position));
    }
    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError> {
        let ran = self.run(|stage| stage.step(ids, out));
        if ran.is_err() {
            // Stages before the one that failed have gone on.
            self.rewind(self.position());
        }
        ran
    }
}
