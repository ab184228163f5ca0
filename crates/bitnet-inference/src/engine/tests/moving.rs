//! Devices that fail and engines that move: no request is lost, and no token is another one.

use super::*;
use crate::{Device, ModelFiles, Placement, SessionError};
use bitnet_core::{BackendError, OperationTime};
use bitnet_cpu::Isa;
use bitnet_memory::{DeviceMemory, Pool};
use bitnet_model::{Adapter, LoadReport, ModelError, Span, StepOutput};
use std::sync::Mutex;

/// A decoder whose device fails in one step, and leaves noise in every block of its cache.
struct Breaking {
    inner: Box<dyn Decoder>,
    /// Steps that it still makes.
    steps: usize,
    failure: Option<BackendError>,
    memory: Vec<Arc<dyn DeviceMemory>>,
}

impl Breaking {
    fn scribble(&mut self) {
        let noise: Vec<u8> = (0..self.block_bytes()).map(|i| (i * 37 % 113) as u8).collect();
        (0..self.blocks() as u32).for_each(|block| self.load_block(block, &noise));
    }
}

impl Decoder for Breaking {
    fn batch(
        &mut self,
        batch: &[Span<'_>],
        out: &mut Logits,
        states: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        if self.steps == 0
            && let Some(failure) = self.failure.take()
        {
            self.scribble();
            return Err(failure.into());
        }
        self.steps = self.steps.saturating_sub(1);
        self.inner.batch(batch, out, states)
    }
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }
    fn memory(&self) -> Vec<Arc<Pool>> {
        self.inner.memory()
    }
    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        self.memory.clone()
    }
    fn profile(&self) -> Result<Vec<OperationTime>, ModelError> {
        self.inner.profile()
    }
    fn report(&self) -> &LoadReport {
        self.inner.report()
    }
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }
    fn blocks(&self) -> usize {
        self.inner.blocks()
    }
    fn copy_block(&mut self, from: u32, to: u32) {
        self.inner.copy_block(from, to);
    }
    fn discard_block(&mut self, block: u32) -> usize {
        self.inner.discard_block(block)
    }
    fn block_bytes(&self) -> usize {
        self.inner.block_bytes()
    }
    fn save_block(&self, block: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.inner.save_block(block, out)
    }
    fn load_block(&mut self, block: u32, bytes: &[u8]) {
        self.inner.load_block(block, bytes);
    }
    fn load_adapter(&mut self, id: u32, adapter: &Adapter) -> Result<(), ModelError> {
        self.inner.load_adapter(id, adapter)
    }
    fn unload_adapter(&mut self, id: u32) {
        self.inner.unload_adapter(id);
    }
    fn position(&self) -> usize {
        self.inner.position()
    }
    fn rewind(&mut self, position: usize) {
        self.inner.rewind(position);
    }
    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError> {
        self.inner.step(ids, out)
    }
}

fn gone() -> BackendError {
    BackendError::Device { device: "cuda:0".to_owned(), why: "it fell off the bus".to_owned() }
}

fn full() -> BackendError {
    BackendError::OutOfMemory { bytes: 1 << 30, what: "activations" }
}

fn breaking(Cache { decoder: inner, blocks }: Cache, steps: usize, failure: BackendError) -> Cache {
    Cache { decoder: Box::new(Breaking { inner, steps, failure: Some(failure), memory: Vec::new() }), blocks }
}

/// An engine whose device has such memory.
pub(super) fn with_device(engine: Engine, memory: Arc<dyn DeviceMemory>) -> Engine {
    let Cache { decoder: inner, blocks } = engine.cache;
    let decoder = Breaking { inner, steps: usize::MAX, failure: None, memory: vec![memory] };
    Engine { cache: Cache { decoder: Box::new(decoder), blocks }, ..engine }
}

/// An engine whose device fails behind so many steps.
fn failing(engine: Engine, steps: usize, failure: BackendError) -> Engine {
    Engine { cache: breaking(engine.cache, steps, failure), ..engine }
}

/// Another device than the one that engines of tests are on, as far as one machine has it: other kernels, another layout of weights.
fn elsewhere() -> DeviceOptions {
    let isa = Isa::available().into_iter().rfind(|isa| *isa != Isa::detect());
    DeviceOptions { isa, threads: Some(2), ..DeviceOptions::default() }
}

/// An engine that goes on elsewhere, and what it has told of that.
fn with_fallback(mut engine: Engine) -> (Engine, Arc<Mutex<Vec<Takeover>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    engine.set_fallback(elsewhere(), move |takeover| heard.lock().unwrap().push(takeover.clone()));
    (engine, told)
}

const TOGETHER: EngineOptions =
    EngineOptions { budget: 48, seats: 12, queue: 1000, prefix_cache: true, take_turns: false };

/// What each request gets that nothing happens to.
fn undisturbed(count: usize) -> (Arc<Forms>, Answers) {
    let mut engine = engine(8192, TOGETHER, None);
    let forms = Arc::clone(engine.forms().unwrap());
    let want = run(&mut engine, &requests(&forms, count, 0), false);
    (forms, want)
}

fn assert_has(got: &Answers, want: &Answers, what: &str) {
    for (key, want) in want {
        assert_eq!(got.get(key), Some(want), "{what}, request and choice {key:?}");
    }
}

#[test]
fn another_device_takes_over_and_no_request_is_lost() {
    let (forms, want) = undisturbed(24);
    for (steps, failure, ahead, draft, cache) in [
        (0, gone(), 0, None, 8192),
        (7, full(), 0, None, 8192),
        (23, gone(), 4, None, 576),
        (40, gone(), 4, Some("llama-packed"), 8192),
    ] {
        let name = format!("{failure} behind {steps} steps, {ahead} guesses of {draft:?}");
        let (mut engine, told) = with_fallback(failing(engine(cache, TOGETHER, draft), steps, failure));
        assert_has(&run(&mut engine, &requests(&forms, 24, ahead), true), &want, &name);
        let told = std::mem::take(&mut *told.lock().unwrap());
        assert_eq!((told.len(), engine.stats().takeovers), (1, 1), "{name}");
        let said = told[0].to_string();
        assert!(said.ends_with("; the cpu takes over from cpu"), "{said}");
        assert_eq!(engine.device().threads, 2, "{name}");
        assert_has(&run(&mut engine, &requests(&forms, 24, ahead), true), &want, &name);
    }
}

#[test]
fn the_device_of_a_model_that_guesses_may_fail_too() {
    let (forms, want) = undisturbed(24);
    let (mut engine, told) = with_fallback(engine(8192, TOGETHER, Some("bitnet-packed")));
    let mut draft = engine.draft.take().unwrap();
    draft.cache = breaking(draft.cache, 5, gone());
    engine.draft = Some(draft);
    assert_has(&run(&mut engine, &requests(&forms, 24, 4), true), &want, "a draft's device");
    assert_eq!((told.lock().unwrap().len(), engine.stats().takeovers), (1, 1));
    assert!(engine.stats().accepted > 0, "it guesses on");
}

/// Steps until all is done, and gives the errors of requests.
fn errors(engine: &mut Engine) -> Vec<Arc<GenerateError>> {
    let (mut events, mut steps) = (Vec::new(), 0);
    while !engine.is_idle() {
        engine.step(&mut events);
        steps += 1;
        assert!(steps < 10_000, "it goes on for ever");
    }
    let failed = |event: Event| match event.news {
        News::Failed(e) => Some(e),
        _ => None,
    };
    events.into_iter().filter_map(failed).collect()
}

#[test]
fn without_another_device_running_requests_end_with_the_error_and_later_ones_are_right() {
    let (forms, want) = undisturbed(24);
    let asked = requests(&forms, 24, 0);
    for failure in [gone(), full()] {
        let said = failure.to_string();
        let mut engine = failing(engine(8192, TOGETHER, None), 6, failure);
        asked.iter().for_each(|request| assert!(engine.submit(request).is_ok()));
        let errors = errors(&mut engine);
        assert!((1..=12).contains(&errors.len()), "those that ran: {}", errors.len());
        for e in errors {
            assert!(matches!(&*e, GenerateError::Model(e) if e.is_of_device()), "{e}");
            assert_eq!(e.to_string(), said);
        }
        // Nothing that the device has left behind is found.
        assert_has(&run(&mut engine, &asked, true), &want, &said);
    }
}

#[test]
fn a_device_that_cannot_take_over_is_told_with_the_error() {
    let mut engine = failing(engine(8192, TOGETHER, None), 3, gone());
    let missing = DeviceOptions { device: Device::Cuda(99).into(), ..DeviceOptions::default() };
    engine.set_fallback(missing, |_| {});
    let (forms, want) = undisturbed(12);
    let asked = requests(&forms, 12, 0);
    asked.iter().for_each(|request| assert!(engine.submit(request).is_ok()));
    for e in errors(&mut engine) {
        let GenerateError::Takeover { why, source } = &*e else { panic!("{e}") };
        assert!(
            why.contains("fell off the bus") && source.to_string().contains("cuda:99"),
            "{why}: {source}"
        );
    }
    assert_eq!(engine.stats().takeovers, 0);
    assert_has(&run(&mut engine, &asked, true), &want, "later");
}

#[test]
fn prompts_whose_vectors_are_lost_together_get_the_one_error() {
    let engine = failing(engine(8192, EngineOptions::default(), None), 0, gone());
    let mut model = Model { engine };
    let options = EmbedOptions { pooling: Pooling::Last, normalize: false };
    let error = model.embed(&[vec![3; 9], vec![4; 9], vec![5; 9]], options).unwrap_err();
    assert!(matches!(&error, GenerateError::Model(e) if e.is_of_device()), "{error}");
    assert_eq!(model.embed(&[vec![3; 9]], options).unwrap().len(), 1);
}

#[test]
fn an_engine_moves_in_the_middle_of_answers() {
    let (forms, want) = undisturbed(24);
    let home = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
    // Prompts are computed in fewer steps than there are between two moves.
    let options = EngineOptions { budget: 512, ..TOGETHER };
    for draft in [None, Some("llama-packed")] {
        let mut engine = engine(8192, options, draft);
        // One that is unloaded while requests go through it moves along.
        let number: BTreeMap<RequestId, usize> = requests(&forms, 24, 4)
            .iter()
            .enumerate()
            .map(|(i, request)| (engine.submit(request).unwrap(), i))
            .collect();
        let (mut answers, mut steps) = (Answers::new(), 0);
        while !engine.is_idle() {
            let mut events = Vec::new();
            engine.step(&mut events);
            collect(&mut answers, &number, events);
            steps += 1;
            assert!(steps < 10_000, "it goes on for ever");
            if steps % 11 == 0 {
                let two = || elsewhere().on(Placement::of(vec![Device::Cpu; 2]).unwrap());
                let to = vec![home.clone(), elsewhere(), two()].swap_remove(steps / 11 % 3);
                let prepared = engine.files().prepare(&to, &mut |_, _| {}).unwrap();
                assert_eq!(prepared.device().threads, to.threads.unwrap());
                engine.move_to(prepared).unwrap();
            }
            if steps == 15 {
                engine.unload_adapter(1).unwrap();
            }
        }
        assert!(steps > 33, "it moved a few times");
        assert_has(&answers, &want, "on the move");
        assert!(engine.adapters.held.len() == 1 && engine.adapters.leaving.is_empty());
    }
}

#[test]
fn weights_of_another_model_are_refused() {
    let mut engine = engine(1024, TOGETHER, None);
    let other: ModelFiles = model("llama-packed", 1024).engine.files();
    let prepared = other.prepare(&elsewhere(), &mut |_, _| {}).unwrap();
    assert!(matches!(engine.move_to(prepared), Err(OpenError::OtherModel)));
    assert_eq!(engine.device().threads, 1, "it stays where it is");
}

#[test]
fn a_session_is_one_of_the_device_that_the_model_has_moved_to() {
    let dir = tempfile::tempdir().unwrap();
    let ids = (3..80).collect::<Vec<u32>>();
    let saved = |name: &str, to: &DeviceOptions| {
        let mut moved = model("bitnet-packed", 512);
        moved.move_to(to, &mut |_, _| {}).unwrap();
        let options = GenerateOptions { max_tokens: Some(1), ..Default::default() };
        moved.generate(&ids, options).unwrap().for_each(drop);
        let path = dir.path().join(name);
        moved.save_session(&path, &ids).unwrap();
        (moved, path)
    };
    let (mut one, of_one) = saved("one", &elsewhere());
    let two = elsewhere().on(Placement::of(vec![Device::Cpu; 2]).unwrap());
    let (mut two, of_two) = saved("two", &two);
    assert_eq!(model("bitnet-packed", 512).load_session(&of_one).unwrap(), ids);
    // Two caches of the processor's have an order of their own.
    assert_eq!(two.load_session(&of_two).unwrap(), ids);
    assert!(matches!(one.load_session(&of_two), Err(SessionError::Other { .. })));
    assert!(matches!(two.load_session(&of_one), Err(SessionError::Other { .. })));
}
