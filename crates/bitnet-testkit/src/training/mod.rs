//! What every device that trains is asked: each operation, on shapes that fit no tile, beside the same operation in the order of
//! `docs/numerics.md` ([`Plain`]).

mod asked;
mod order;
mod plain;
mod products;

pub use plain::Plain;

use crate::tensors::Noise;
use bitnet_core::{BackendError, Memory, TrainingDevice};
use bitnet_memory::Tag;

/// How far results may be off, of the largest magnitude in what an operation gives; 0 asks for the same numbers.
///
/// Products of integers, copies and gathered rows are the same everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nearness {
    /// Products with f32 terms.
    pub products: f32,
    /// Products with terms of bf16, whose sums hardware has an order of its own for.
    pub products_bf16: f32,
    /// What is computed for an element by itself: sums of two, optimizers, rotations.
    pub elements: f32,
    /// Norms, their way back, absmean's scale, and lengths.
    pub norms: f32,
    /// How far an integer of quantized activations or weights may be off where a number lies on the boundary of two.
    pub codes: f32,
    /// Gates and their way back.
    pub gates: f32,
    /// Cross-entropy and its gradient.
    pub losses: f32,
    /// Attention, and its way back with f32 terms.
    pub attention: f32,
    /// The way back through attention with terms of bf16.
    pub attention_bf16: f32,
}

impl Nearness {
    /// The same numbers everywhere.
    pub const EXACT: Self = Self {
        products: 0.0,
        products_bf16: 0.0,
        elements: 0.0,
        norms: 0.0,
        codes: 0.0,
        gates: 0.0,
        losses: 0.0,
        attention: 0.0,
        attention_bf16: 0.0,
    };
}

/// Asks a device for everything, and compares.
///
/// # Panics
/// Something is farther off than it may be, is written where it should not be, or differs the second time.
pub fn conformance(device: &dyn TrainingDevice, near: Nearness) {
    let mut asked = Asked { device, near, noise: Noise(23), cases: 0, worst: (0.0, String::new()) };
    asked.memory();
    asked.products();
    asked.integers();
    asked.elements();
    asked.rows();
    asked.codes();
    asked.gates();
    asked.losses();
    asked.attention();
    asked.steps();
    let failure = device.failure();
    assert!(failure.is_none(), "{}: {failure:?}", device.name());
    let (worst, name) = &asked.worst;
    println!("{}: {} cases; {worst:e} of what may be off at most: {name}", device.name(), asked.cases);
}

/// A device, and how near it must come.
struct Asked<'a> {
    device: &'a dyn TrainingDevice,
    near: Nearness,
    noise: Noise,
    cases: usize,
    /// The largest share of what it may be off that a result is off, and which one.
    worst: (f32, String),
}

/// What a case does with a device: what it gives is compared.
type Case<'a> = &'a dyn Fn(&dyn TrainingDevice) -> Vec<Vec<f32>>;

impl Asked<'_> {
    /// Runs a case here and there, and here once more.
    fn case(&mut self, name: &str, near: f32, case: Case<'_>) {
        self.compare(name, case, &|want| near * want.iter().fold(0.0f32, |m, v| m.max(v.abs())));
    }

    /// The same where results are integers, of which each may be off by so much.
    fn whole(&mut self, name: &str, off: f32, case: Case<'_>) {
        self.compare(name, case, &|_| off);
    }

    fn compare(&mut self, name: &str, case: Case<'_>, allowed: &dyn Fn(&[f32]) -> f32) {
        self.cases += 1;
        let (got, again, want) = (case(self.device), case(self.device), case(&Plain::new()));
        assert_eq!(got.len(), want.len(), "{name}");
        for (part, ((got, again), want)) in got.iter().zip(&again).zip(&want).enumerate() {
            assert_eq!(got.len(), want.len(), "{name}, result {part}");
            let allowed = allowed(want);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let off = (got - want).abs();
                assert!(
                    got == want || off <= allowed,
                    "{name}, result {part}, element {i}: {got:e} for {want:e}, off by {off:e} of {allowed:e}"
                );
                if got != want && off / allowed > self.worst.0 {
                    self.worst = (off / allowed, name.to_owned());
                }
            }
            assert!(got.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}, twice");
        }
    }

    /// Random numbers up to a size.
    fn floats(&mut self, len: usize, size: f64) -> Vec<f32> {
        (0..len).map(|_| (self.noise.unit() * size) as f32).collect()
    }

    /// Memory is given, may be empty, and where there is not enough that is an error and nothing more.
    fn memory(&mut self) {
        let device = self.device;
        let empty = device.memory(0, Tag::Activations).unwrap();
        assert_eq!(empty.bytes(), 0);
        device.upload(&empty, 0, &[]);
        device.download(&empty, 0, &mut []).unwrap();
        let outcome = device.memory(1 << 50, Tag::Activations);
        assert!(matches!(outcome, Err(BackendError::OutOfMemory { bytes, .. }) if bytes == 1 << 50));
        assert!(device.failure().is_none(), "what was told is told again");
        let memory = device.memory(24, Tag::Activations).unwrap();
        device.upload(&memory, 0, &[7; 24]);
        device.upload(&memory, 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut got = [0; 16];
        device.download(&memory, 4, &mut got).unwrap();
        assert_eq!(got, [7, 7, 7, 7, 1, 2, 3, 4, 5, 6, 7, 8, 7, 7, 7, 7]);
        // What went back may be given again, once nobody needs what was in it.
        for _ in 0..40 {
            let memory = device.memory(1 << 16, Tag::Activations).unwrap();
            device.upload(&memory, 0, &[1; 16]);
        }
        let many: Vec<Memory> = (1..20).map(|i| device.memory(i * 100, Tag::Activations).unwrap()).collect();
        many.iter().enumerate().for_each(|(i, memory)| device.upload(memory, 0, &[i as u8; 4]));
        for (i, memory) in many.iter().enumerate() {
            let mut got = [0; 4];
            device.download(memory, 0, &mut got).unwrap();
            assert_eq!(got, [i as u8; 4]);
        }
    }
}

/// Elements before what an operation is given, so that nothing begins where memory does.
const LEAD: usize = 3;
/// Bytes before what is integers, which begin at a multiple of 16.
const LEAD_BYTES: usize = 16;
/// Elements behind it.
const TAIL: usize = 5;

/// Numbers on a device, with others before and behind.
fn floats(device: &dyn TrainingDevice, values: &[f32]) -> Memory {
    let all: Vec<f32> = [&[7.0; LEAD], values, &[-9.0; TAIL]].concat();
    let memory = device.memory(all.len() * 4, Tag::Activations).unwrap();
    device.upload(&memory, 0, &all.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    memory
}

/// Bytes on a device, with others before and behind.
fn bytes(device: &dyn TrainingDevice, values: &[u8]) -> Memory {
    let mut all: Vec<u8> = [&[0x55; LEAD_BYTES], values, &[0x55; 16]].concat();
    all.resize(all.len().next_multiple_of(4), 0x55);
    let memory = device.memory(all.len(), Tag::Activations).unwrap();
    device.upload(&memory, 0, &all);
    memory
}

/// All that is in memory of numbers, what is before and behind them included.
fn read(device: &dyn TrainingDevice, memory: &Memory) -> Vec<f32> {
    let mut out = vec![0; memory.bytes()];
    device.download(memory, 0, &mut out).unwrap();
    out.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// All bytes, as signed integers.
fn read_bytes(device: &dyn TrainingDevice, memory: &Memory) -> Vec<f32> {
    let mut out = vec![0; memory.bytes()];
    device.download(memory, 0, &mut out).unwrap();
    out.iter().map(|b| f32::from(*b as i8)).collect()
}
