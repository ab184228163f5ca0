//! What the machine allows: bytes read and int8 operations a second, measured with the same pool of threads as products.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::backend::CpuError;
use crate::isa::Isa;
use crate::memory::{Buffer, OutOfMemory};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Lanes};
use bitnet_memory::Tag;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines that a thread reads at a time, at most: 4 MiB.
const PIECE: usize = 1 << 16;

/// Runs of the multiplying loop for each thread: some 20 ms.
const RUNS: usize = 100;

/// Sixteen floats: a cache line on most processors.
type Line = [f32; 16];

/// The instruction with most int8 multiply-adds a second, in a loop without memory.
struct Multiply {
    name: &'static str,
    available: fn() -> bool,
    /// Runs a loop of a fraction of a millisecond and returns how many multiplications and additions those are.
    run: fn() -> u64,
}

/// Best first; the last one runs everywhere.
static MULTIPLY: &[Multiply] = &[
    #[cfg(target_arch = "x86_64")]
    x86::AMX,
    #[cfg(target_arch = "x86_64")]
    x86::AVX512_VNNI,
    #[cfg(target_arch = "x86_64")]
    x86::AVX_VNNI,
    #[cfg(target_arch = "x86_64")]
    x86::AVX512,
    #[cfg(target_arch = "x86_64")]
    x86::AVX2,
    Multiply { name: "scalar multiply-add", available: || true, run: scalar },
];

/// Probes of this machine for one number of threads. They own the bytes that they read, in pages like those of weights.
pub struct Roofline {
    pool: Pool,
    memory: Buffer<Line>,
    multiply: &'static Multiply,
}

impl Roofline {
    /// The most that probes own: more than caches hold.
    pub const MOST_BYTES: usize = 1 << 30;

    /// Starts the threads and fills the memory: `bytes` that each pass reads, [`Roofline::MOST_BYTES`] at most. A pass finds in the caches
    /// what the one before it left there, just as a step of a model does that reads as many bytes of weights.
    pub fn new(threads: usize, bytes: usize) -> Result<Self, CpuError> {
        let pool = Pool::new(threads).map_err(|source| CpuError::Spawn { threads, source })?;
        let multiply = MULTIPLY.iter().find(|m| (m.available)()).expect("the last one runs everywhere");
        let lines = bytes.min(Self::MOST_BYTES).div_ceil(size_of::<Line>()).max(4);
        let memory = pool.memory().zeroed::<Line>(lines, Tag::Scratch);
        let mut memory = memory.map_err(|OutOfMemory { bytes, .. }| CpuError::Memory { bytes })?;
        // Pages that were never written are all one page of zeros.
        let share = memory.len().div_ceil(threads.max(1));
        pool.chunks_mut(&mut memory, share, &|_, lines| lines.fill([1.0; 16]));
        Ok(Self { pool, memory, multiply })
    }

    /// The instruction that [`Roofline::int8_ops`] measures.
    pub fn instruction(&self) -> &'static str {
        self.multiply.name
    }

    /// Bytes that the probes own.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.memory)
    }

    /// Bytes that all threads together read from memory in a second, by one pass.
    pub fn read_bytes(&self) -> f64 {
        let isa = Isa::detect();
        // Also of few lines all threads have some.
        let piece = (self.memory.len() / (4 * self.pool.threads())).clamp(1, PIECE);
        let begin = Instant::now();
        self.pool.ranges(self.memory.len(), piece, &|lines| {
            black_box(simd::dispatch(isa, Sum(&self.memory[lines])));
        });
        self.bytes() as f64 / begin.elapsed().as_secs_f64()
    }

    /// Int8 multiplications and additions that all threads together do in a second.
    pub fn int8_ops(&self) -> f64 {
        let ops = AtomicU64::new(0);
        let begin = Instant::now();
        self.pool.ranges(RUNS * self.pool.threads(), 1, &|runs| {
            ops.fetch_add(runs.map(|_| (self.multiply.run)()).sum(), Ordering::Relaxed);
        });
        ops.into_inner() as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Sums lines from four places at a time: the processor prefetches each of them.
struct Sum<'a>(&'a [Line]);

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let quarter = self.0.len() / 4;
        let (first, rest) = self.0.split_at(quarter);
        let (second, rest) = rest.split_at(quarter);
        let (third, fourth) = rest.split_at(quarter);
        let mut sums = [lanes.splat(0.0); 4];
        for (((a, b), c), d) in first.iter().zip(second).zip(third).zip(fourth) {
            for (sum, line) in sums.iter_mut().zip([a, b, c, d]) {
                *sum = lanes.add(*sum, lanes.load(line));
            }
        }
        let [a, b, c, d] = sums;
        lanes.fold(lanes.add(lanes.add(a, b), lanes.add(c, d)))
    }
}

fn scalar() -> u64 {
    let (a, b) = (black_box([3i8; 4096]), black_box([-5i8; 4096]));
    let mut sum = 0;
    for _ in 0..64 {
        let products = black_box(&a).iter().zip(black_box(&b)).map(|(a, b)| i32::from(*a) * i32::from(*b));
        sum += products.sum::<i32>();
    }
    black_box(sum);
    2 * 4096 * 64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Speeds cannot be tested; that every instruction of the table is one of this processor's can.
    #[test]
    fn every_available_instruction_runs() {
        for m in MULTIPLY.iter().filter(|m| (m.available)()) {
            assert!((m.run)() > 0, "{}", m.name);
        }
        let lines = vec![[1.0; 16]; 8];
        assert_eq!(simd::dispatch(Isa::detect(), Sum(&lines)), 128.0);
    }
}
