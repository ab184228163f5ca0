//! What the machine allows a row: its bytes at the rate of memory, its int8 operations at that of the best instruction.

use super::Setup;
use super::test::{Sizes, Test};
use crate::failure::Failure;
use bitnet_core::KvType;
use bitnet_cpu::Roofline;
use bitnet_inference::Model;

/// Passes over memory whose mean is one reading, at least, and what they read together.
const PASSES: usize = 4;
const READ_BYTES: usize = 256 << 20;

/// The probes that run between repetitions, with as many threads as the model.
pub struct Probes(Roofline);

/// A reading: bytes and int8 operations a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub read_bytes: f64,
    pub int8_ops: f64,
}

/// The limit of a row.
#[derive(Debug)]
pub struct Limit {
    pub instruction: &'static str,
    /// One reading before each repetition.
    pub rates: Vec<Rates>,
    /// Memory of the probes.
    pub probe_bytes: u64,
    /// Bytes that one step of an answer reads, in the middle of it: weights, head, keys and values.
    pub step_bytes: f64,
    /// Tokens a second, the mean of what every reading allows.
    pub tokens_per_second: f64,
}

impl Limit {
    /// The mean of a rate.
    pub fn mean(&self, of: impl Fn(&Rates) -> f64) -> f64 {
        self.rates.iter().map(of).sum::<f64>() / self.rates.len() as f64
    }
}

impl Probes {
    /// For a model on the CPU: a pass of theirs reads as much as a step does of its weights.
    pub fn new(model: &Model) -> Result<Self, Failure> {
        let roofline = Roofline::new(model.device().threads, model.report().step_bytes);
        roofline.map(Self).map_err(|e| Failure::Runtime(crate::failure::chain(&e)))
    }

    pub fn measure(&self) -> Rates {
        let passes = (READ_BYTES / self.0.bytes()).max(PASSES);
        let read_bytes = (0..passes).map(|_| self.0.read_bytes()).sum::<f64>() / passes as f64;
        Rates { read_bytes, int8_ops: self.0.int8_ops() }
    }

    pub fn limit(&self, model: &Model, test: Test, sizes: Sizes, setup: &Setup, rates: Vec<Rates>) -> Limit {
        let (config, report) = (model.config(), model.report());
        let size = |t: super::CacheType| KvType::from(t).head_bytes(config.shape.head_dim);
        let heads = config.layers * config.shape.kv_heads;
        let position = (heads * (size(setup.key) + size(setup.value))) as f64;
        let step = |at: usize, m: usize| {
            let bytes = report.step_bytes as f64 + position * (at + m) as f64;
            (bytes, (m as u64 * 2 * report.ternary_weights) as f64)
        };
        // Reading and multiplying can overlap, so a step takes as long as the slower of them.
        let seconds = |rates: &Rates| {
            let steps = test.steps(sizes).map(|(at, m)| step(at, m));
            steps.map(|(bytes, ops)| (bytes / rates.read_bytes).max(ops / rates.int8_ops)).sum::<f64>()
        };
        let allowed = rates.iter().map(|rates| test.tokens() as f64 / seconds(rates)).sum::<f64>();
        Limit {
            instruction: self.0.instruction(),
            tokens_per_second: allowed / rates.len() as f64,
            probe_bytes: self.0.bytes() as u64,
            step_bytes: step(test.depth + test.prompt + test.answer / 2, 1).0,
            rates,
        }
    }
}
