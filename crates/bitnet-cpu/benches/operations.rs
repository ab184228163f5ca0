//! Every operation with every kernel that runs here, at the shapes of BitNet b1.58 2B-4T, with one thread, beside what the
//! machine allows: `cargo bench -p bitnet-cpu --bench operations -- --help`.
//!
//! Counters are bytes of weights or cache that are read, and operations: multiplications and additions of products, elements
//! of the rest. Weights rotate over more than caches hold.

use bitnet_core::{
    Activation, ActivationPrecision, AttentionShape, Backend, DenseMatrix, DenseType, KvSpan, KvSpec, KvType,
    Logits, LogitsNeed, Matrix, Purpose, RopeRows, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions, CpuTensor, CpuWeight, Isa, Kernel, Roofline};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

const HIDDEN: usize = 2560;
const FFN: usize = 6912;
/// Rows of the head: an eighth of the vocabulary.
const HEAD: usize = 16_032;
const PROMPT: usize = 64;
const POSITIONS: usize = 1024;
const SHAPE: AttentionShape = AttentionShape { heads: 20, kv_heads: 5, head_dim: 128 };
/// Bytes that weights rotate over.
const ROTATION: usize = 512 << 20;

fn main() {
    let limit = Roofline::new(1, ROTATION).expect("memory");
    let (reads, ops) = (limit.read_bytes() / 1e9, limit.int8_ops() / 1e9);
    println!("limits of this machine: reads {reads:.1} GB/s, {} {ops:.0} GOPS", limit.instruction());
    drop(limit);
    divan::main();
}

fn backend(options: CpuOptions) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(1), ..options }).expect("what is available can be had")
}

fn with_isa(isa: Isa) -> CpuBackend {
    backend(CpuOptions { isa: Some(isa), ..CpuOptions::default() })
}

/// Pseudo-random numbers.
fn noise() -> impl FnMut() -> u32 {
    let mut state = 1u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

/// A third of the trits is zero.
fn ternary(rows: usize, cols: usize) -> Matrix {
    let mut noise = noise();
    let codes: Vec<u8> = (0..rows * TernaryMatrix::row_bytes(cols))
        .map(|_| (0..4).fold(0, |byte, _| (byte << 2) | ((noise() >> 8) as u8 % 3)))
        .collect();
    Matrix::Ternary(TernaryMatrix::new(rows, cols, codes.into(), Scale::Tensor(0.01)).expect("shape"))
}

fn floats(rows: usize, cols: usize) -> Matrix {
    let mut noise = noise();
    let value = |n: u32| n as f32 / f32::from_bits(0x4b00_0000) - 1.0;
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|_| value(noise()).to_le_bytes()).collect();
    Matrix::Dense(DenseMatrix::new(rows, cols, DenseType::F32, bytes.into()).expect("shape"))
}

/// `HEAD` rows of blocks whose scales are all the same.
fn q6_k() -> Matrix {
    let (block, mut noise) = (210, noise());
    let mut bytes: Vec<u8> = (0..HEAD * HIDDEN / 256 * block).map(|_| noise() as u8).collect();
    for block in bytes.chunks_exact_mut(block) {
        block[192..208].fill(3);
        block[208..].copy_from_slice(&0x1400u16.to_le_bytes());
    }
    Matrix::Dense(DenseMatrix::new(HEAD, HIDDEN, DenseType::Q6_K, bytes.into()).expect("shape"))
}

fn prepare(b: &CpuBackend, stack: &[Matrix], purpose: Purpose) -> CpuWeight {
    b.prepare(stack, ActivationPrecision::Int8, purpose).expect("memory")
}

/// Activations `[m, k]`: rows of an embedding.
fn input(b: &CpuBackend, m: usize, k: usize) -> CpuTensor {
    let table = prepare(b, &[floats(m, k)], Purpose::Product);
    let mut x = b.tensor();
    b.embed(&table, &(0..m as u32).collect::<Vec<_>>(), &mut x).expect("ids are rows");
    x
}

/// As many copies as the rotation holds, and the bytes of one.
fn rotation(b: &CpuBackend, stack: &[Matrix], purpose: Purpose) -> (Vec<CpuWeight>, usize) {
    let first = prepare(b, stack, purpose);
    let bytes = b.weight_bytes(&first).0;
    let more = (1..ROTATION / bytes).map(|_| prepare(b, stack, purpose));
    (std::iter::once(first).chain(more).collect(), bytes)
}

mod ternary_products {
    use super::*;

    #[divan::bench(args = Kernel::available(), sample_count = 50, max_time = 2)]
    fn one_token(bencher: Bencher<'_, '_>, kernel: Kernel) {
        products(bencher, kernel, 1);
    }

    #[divan::bench(args = Kernel::available(), sample_count = 20, max_time = 2)]
    fn prompt(bencher: Bencher<'_, '_>, kernel: Kernel) {
        products(bencher, kernel, PROMPT);
    }

    fn products(bencher: Bencher<'_, '_>, kernel: Kernel, m: usize) {
        let b = backend(CpuOptions { kernel: Some(kernel), ..CpuOptions::default() });
        let stack = [ternary(2 * FFN, HIDDEN)];
        let (weights, bytes) = rotation(&b, &stack, Purpose::Product);
        let (x, mut out) = (input(&b, m, HIDDEN), b.tensor());
        let mut weights = weights.iter().cycle();
        bencher
            .counter(BytesCount::new(bytes))
            .counter(ItemsCount::new(2 * m * 2 * FFN * HIDDEN))
            .bench_local(|| b.linear(&x, weights.next().expect("a cycle"), &mut out));
    }
}

/// Gate and up of one token, half of the gates closed: products of ReLU squared that leave out rows.
#[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
fn gate_and_up_that_skip(bencher: Bencher<'_, '_>, isa: Isa) {
    let b = with_isa(isa);
    let stack = [ternary(FFN, HIDDEN), ternary(FFN, HIDDEN)];
    let (weights, bytes) = rotation(&b, &stack, Purpose::GateUp(Activation::Relu2));
    let (x, mut wide, mut out) = (input(&b, 1, HIDDEN), b.tensor(), b.tensor());
    let mut weights = weights.iter().cycle();
    bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(4 * FFN * HIDDEN)).bench_local(|| {
        b.gated(&x, weights.next().expect("a cycle"), Activation::Relu2, &mut wide, &mut out);
    });
}

mod head {
    use super::*;

    fn measure(bencher: Bencher<'_, '_>, isa: Isa, m: usize, need: &LogitsNeed) {
        let b = with_isa(isa);
        let (weights, bytes) = rotation(&b, &[q6_k()], Purpose::Head);
        let (x, mut logits) = (input(&b, m, HIDDEN), Logits::default());
        let needs = vec![need.clone(); m];
        let mut weights = weights.iter().cycle();
        bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(2 * m * HEAD * HIDDEN)).bench_local(
            || b.head(&x, weights.next().expect("a cycle"), &needs, &mut logits).expect("it has room"),
        );
    }

    #[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
    fn every_row(bencher: Bencher<'_, '_>, isa: Isa) {
        measure(bencher, isa, 1, &LogitsNeed::All);
    }

    #[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
    fn certified_top_40(bencher: Bencher<'_, '_>, isa: Isa) {
        measure(bencher, isa, 1, &LogitsNeed::Top { k: 40, also: Vec::new() });
    }

    #[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
    fn every_row_of_16_tokens(bencher: Bencher<'_, '_>, isa: Isa) {
        measure(bencher, isa, 16, &LogitsNeed::All);
    }

    #[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
    fn certified_top_40_of_16_tokens(bencher: Bencher<'_, '_>, isa: Isa) {
        measure(bencher, isa, 16, &LogitsNeed::Top { k: 40, also: Vec::new() });
    }
}

/// One layer's attention behind `POSITIONS` positions in f16.
#[divan::bench(args = Isa::available(), sample_count = 50, max_time = 2)]
fn attention(bencher: Bencher<'_, '_>, isa: Isa) {
    let b = with_isa(isa);
    let layers = 64;
    let spec = KvSpec { layers, shape: SHAPE, capacity: POSITIONS + 1, key: KvType::F16, value: KvType::F16 };
    let mut kv = b.kv(spec).expect("memory");
    let half = SHAPE.head_dim / 2;
    let (cos, sin) = (vec![1.0; POSITIONS * half], vec![0.0; POSITIONS * half]);
    let blocks: Vec<u32> = (0..spec.blocks() as u32).collect();
    let span = |start, len| [KvSpan { start, len, blocks: &blocks }];
    let mut qkv = input(&b, POSITIONS, SHAPE.qkv_cols());
    let (mut token, mut out) = (input(&b, 1, SHAPE.qkv_cols()), b.tensor());
    for layer in 0..layers {
        let rope = RopeRows { cos: &cos, sin: &sin };
        b.rope_append(&mut qkv, rope, &mut kv, layer, &span(0, POSITIONS)).expect("it fits");
        let rope = RopeRows { cos: &cos[..half], sin: &sin[..half] };
        b.rope_append(&mut token, rope, &mut kv, layer, &span(POSITIONS, 1)).expect("it fits");
    }
    let width = SHAPE.kv_heads * SHAPE.head_dim;
    let mut layer = (0..layers).cycle();
    bencher
        .counter(BytesCount::new((POSITIONS + 1) * width * 2 * 2))
        .counter(ItemsCount::new((POSITIONS + 1) * SHAPE.heads * SHAPE.head_dim * 2 * 2))
        .bench_local(|| {
            b.attend(&token, &kv, layer.next().expect("a cycle"), &span(POSITIONS, 1), None, &mut out);
        });
}

#[divan::bench(args = Isa::available())]
fn rms_norm(bencher: Bencher<'_, '_>, isa: Isa) {
    let b = with_isa(isa);
    let (x, w, mut out) =
        (input(&b, 1, HIDDEN), b.vector(&[1.0; HIDDEN]).expect("a few kilobytes"), b.tensor());
    bencher.counter(ItemsCount::new(HIDDEN)).bench_local(|| b.rms_norm(&x, &w, 1e-5, &mut out));
}

#[divan::bench(args = Isa::available())]
fn rope_and_append(bencher: Bencher<'_, '_>, isa: Isa) {
    let b = with_isa(isa);
    let spec = KvSpec { layers: 1, shape: SHAPE, capacity: 16, key: KvType::F16, value: KvType::F16 };
    let (mut kv, mut qkv) = (b.kv(spec).expect("memory"), input(&b, 1, SHAPE.qkv_cols()));
    let (cos, sin) = (vec![0.6; SHAPE.head_dim / 2], vec![0.8; SHAPE.head_dim / 2]);
    let span = [KvSpan { start: 0, len: 1, blocks: &[0] }];
    bencher.counter(ItemsCount::new(SHAPE.qkv_cols())).bench_local(|| {
        let rope = RopeRows { cos: &cos, sin: &sin };
        b.rope_append(&mut qkv, rope, &mut kv, 0, &span).expect("it fits");
    });
}

#[divan::bench(args = Isa::available())]
fn gate_of_relu_squared(bencher: Bencher<'_, '_>, isa: Isa) {
    gate(bencher, isa, Activation::Relu2);
}

#[divan::bench(args = Isa::available())]
fn gate_of_silu(bencher: Bencher<'_, '_>, isa: Isa) {
    gate(bencher, isa, Activation::Silu);
}

fn gate(bencher: Bencher<'_, '_>, isa: Isa, activation: Activation) {
    let b = with_isa(isa);
    let (x, mut out) = (input(&b, 1, 2 * FFN), b.tensor());
    bencher.counter(ItemsCount::new(FFN)).bench_local(|| b.gate(&x, activation, &mut out));
}
