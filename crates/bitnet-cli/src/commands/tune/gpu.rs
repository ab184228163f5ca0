//! `bitnet tune --device cuda:N`: the kernels of one GPU for the shapes of a model.
//!
//! Which kernel is best for a product of many tokens the backend finds out by itself, when it meets the shape: here it meets all
//! of them. Kernels for fixed sizes are compiled, and each is compared with the one that was compiled ahead by what a whole step of
//! one token takes: a kernel alone would find its weights in the GPU's cache, where a step does not.

use super::rates;
use crate::failure::{Failure, chain};
use crate::terminal::Progress;
use bitnet_core::LogitsNeed;
use bitnet_formats::Checkpoint;
use bitnet_inference::cuda::{self, CompileError, FixedKernel};
use bitnet_inference::{Device, DeviceOptions, LoadOptions, Model, OpenOptions};
use bitnet_model::{Rows, StepOutput};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of the steps that are run: one of each magnitude and a half that products are told apart by, up to a step's usual most.
pub const STEPS: [usize; 10] = [24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
/// Tokens that are timed together, and those before them: a step's graph is made when it is met again.
const TIMED: usize = 32;
const WARM: usize = 3;
/// How often, each side of a comparison.
const ROUNDS: usize = 5;
/// What is not faster by as much could be chance.
const WORTH: f64 = 0.99;

/// What was measured.
pub struct Found {
    pub prefill: f64,
    pub decode: f64,
    /// Kernels for fixed sizes that were compared, and what a step of one token takes with each, of what it takes without.
    pub compared: Vec<(FixedKernel, f64)>,
    /// Why none could be compiled.
    pub compiler: Option<CompileError>,
    /// Whether there was time for all.
    pub complete: bool,
}

pub struct GpuTuner<'a> {
    pub checkpoint: &'a Checkpoint,
    pub load: LoadOptions,
    pub number: usize,
    /// Whether kernels are compiled for fixed sizes.
    pub fixes: bool,
    pub deadline: Instant,
    pub progress: &'a mut Progress,
}

impl GpuTuner<'_> {
    /// Measures, and leaves what is best in `kernels`.
    pub fn run(self, kernels: &Arc<cuda::Tuning>) -> Result<Found, Failure> {
        let Self { checkpoint, load, number, fixes, deadline, progress } = self;
        let device = DeviceOptions {
            device: Device::Cuda(number).into(),
            kernels: Some(Arc::clone(kernels)),
            ..DeviceOptions::default()
        };
        let options = OpenOptions { device, load };
        let mut model = Model::from_checkpoint(checkpoint, &options, &mut |_, _| {})?;
        let mut found =
            Found { prefill: 0.0, decode: 0.0, compared: Vec::new(), compiler: None, complete: true };
        let late = || Instant::now() > deadline;
        kernels.observe();
        decode(&mut model)?;
        found.compiler = cuda::compiler().err().filter(|_| fixes);
        let compiles = fixes && found.compiler.is_none();
        let candidates = if compiles { kernels.met() } else { Vec::new() };
        let mut faster = Vec::new();
        for (done, kernel) in candidates.iter().enumerate() {
            progress.at(done, candidates.len());
            if late() {
                found.complete = false;
                break;
            }
            if let Err(e) = kernels.compile(kernel) {
                found.compiler = Some(e);
                break;
            }
            let share = compare(&mut model, kernels, std::slice::from_ref(kernel))?;
            found.compared.push((kernel.clone(), share));
            if share < WORTH {
                faster.push(kernel.clone());
            }
        }
        // Together they must be worth it too, and change nothing.
        if faster.len() > 1 && compare(&mut model, kernels, &faster)? >= WORTH {
            faster.clear();
        }
        if !faster.is_empty() {
            kernels.want(Vec::new());
            let want = logits(&mut model)?;
            kernels.want(faster.clone());
            if logits(&mut model)? != want {
                kernels.want(Vec::new());
                let names = faster.iter().map(FixedKernel::to_string).collect::<Vec<_>>().join("; ");
                return Err(Failure::Runtime(format!(
                    "kernels that NVRTC compiled give other results than those compiled ahead, and are not used: {names}"
                )));
            }
        }
        kernels.want(faster);
        let room = model.capacity();
        for tokens in STEPS.into_iter().filter(|n| *n <= room) {
            if late() {
                found.complete = false;
                break;
            }
            model.rewind(0);
            let prompt = ids(&model, tokens);
            model.step(&prompt, &mut StepOutput::default())?;
        }
        model.rewind(0);
        if let Some((prefill, decode)) = rates(&mut model, (0.0, 0.0))? {
            (found.prefill, found.decode) = (prefill, decode);
        }
        Ok(found)
    }
}

/// Which ids they are does not matter to speed.
fn ids(model: &Model, tokens: usize) -> Vec<u32> {
    let vocab = model.config().vocab.max(1) as u32;
    (0..tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect()
}

/// The time of [`TIMED`] steps of one token.
fn decode(model: &mut Model) -> Result<Duration, Failure> {
    let tokens = ids(model, (WARM + TIMED).min(model.capacity()));
    let mut out = StepOutput { need: LogitsNeed::Top { k: 1, also: Vec::new() }, ..StepOutput::default() };
    model.rewind(0);
    let (warm, timed) = tokens.split_at(WARM.min(tokens.len()));
    warm.iter().try_for_each(|id| model.step(&[*id], &mut out))?;
    let begin = Instant::now();
    timed.iter().try_for_each(|id| model.step(&[*id], &mut out))?;
    Ok(begin.elapsed())
}

/// What a step takes with these kernels, of what it takes without them: the shortest times of both, measured in turn.
fn compare(model: &mut Model, kernels: &cuda::Tuning, with: &[FixedKernel]) -> Result<f64, Failure> {
    let (mut without, mut own) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        kernels.want(Vec::new());
        without = decode(model)?.min(without);
        kernels.want(with.to_vec());
        own = decode(model)?.min(own);
    }
    Ok(own.as_secs_f64() / without.as_secs_f64())
}

/// Bits of all logits of some steps of one token.
fn logits(model: &mut Model) -> Result<Vec<u32>, Failure> {
    let mut out = StepOutput { rows: Rows::All, ..StepOutput::default() };
    let mut bits = Vec::new();
    model.rewind(0);
    for id in ids(model, (2 * WARM).min(model.capacity())) {
        model.step(&[id], &mut out)?;
        bits.extend(out.logits.iter().map(|value| value.to_bits()));
    }
    Ok(bits)
}

/// What is told of a comparison.
pub fn line((kernel, share): &(FixedKernel, f64), used: &[FixedKernel]) -> String {
    let percent = 100.0 * (share - 1.0);
    let used = if used.contains(kernel) { "used" } else { "not used" };
    format!("compiled for {kernel}: a step of one token takes {percent:+.1} %, {used}")
}

/// Why kernels for fixed sizes were not compared.
pub fn no_compiler(why: &CompileError) -> String {
    format!("only kernels that were compiled ahead: {}", chain(why))
}
