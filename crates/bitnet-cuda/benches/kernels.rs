//! Products with ternary weights of the shapes of real models: microseconds, bytes of weights a second, operations a second. Of one
//! token both layouts are measured, in turn. Besides, norms, attention and the head of the 2B-4T shape.
//!
//! `cargo bench -p bitnet-cuda`, on a machine with an NVIDIA GPU. Each shape has so many weights that no cache holds them, used in
//! turn; a step of many products runs as one graph, several times, and the median counts.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends the program")]

use bitnet_core::{
    ActivationPrecision, AttentionShape, Backend, DenseMatrix, DenseType, KV_BLOCK, KvSpan, KvSpec, KvType,
    Logits, LogitsNeed, Matrix, Purpose, RopeRows, Scale, TernaryMatrix,
};
use bitnet_cuda::{CudaBackend, CudaTensor, OneToken, devices};
use std::time::Instant;

/// Rows and columns.
const SHAPES: [(usize, usize); 8] = [
    (2560, 2560),
    (3840, 2560),
    (13824, 2560),
    (2560, 6912),
    (3200, 3200),
    (4800, 3200),
    (3200, 10240),
    (20480, 3200),
];
const TOKENS: [usize; 8] = [1, 2, 8, 16, 32, 64, 128, 512];
/// Bytes of weights that are used in turn.
const IN_TURN: usize = 192 << 20;

fn noise(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

/// Four codes a byte, none of them 3.
fn ternary(rows: usize, cols: usize, seed: &mut u64) -> Matrix {
    let mut codes = vec![0u8; rows * TernaryMatrix::row_bytes(cols)];
    for byte in &mut codes {
        let n = noise(seed);
        *byte = (0..4).map(|i| ((n / 3u64.pow(i) % 3) as u8) << (2 * i)).sum();
    }
    Matrix::Ternary(TernaryMatrix::new(rows, cols, codes.into(), Scale::Tensor(0.02)).unwrap())
}

/// Seconds that one of `times` takes of what `step` repeats: the median and the least.
fn seconds(times: usize, mut step: impl FnMut(usize)) -> (f64, f64) {
    let mut time = |n| {
        let begin = Instant::now();
        step(n);
        begin.elapsed().as_secs_f64()
    };
    let each = |_| (time(times) - time(0)) / times as f64;
    let mut seconds: Vec<f64> = (0..14).map(each).skip(4).collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], seconds[0])
}

/// Norms and attention of the 2B-4T shape.
fn operations(b: &CudaBackend, seed: &mut u64) {
    println!("operation,tokens,microseconds,least");
    let depths = [0usize, 200, 3900];
    for tokens in [1usize, 16, 64, 512] {
        for cols in [2560, 6912] {
            let h = rows(b, tokens, cols, seed);
            let (norm, mut x) = (b.vector(&vec![1.0; cols]).unwrap(), b.tensor());
            let (median, least) = seconds(200, |n| {
                begin(b, &h.1);
                (0..n).for_each(|_| b.rms_norm(&h.0, &norm, 1e-5, &mut x));
                end(b, &h.1);
            });
            println!("norm of {cols},{tokens},{:.2},{:.2}", median * 1e6, least * 1e6);
        }
        for depth in depths {
            for ty in [KvType::F16, KvType::Q8_0] {
                attention(b, tokens, depth, ty, seed);
            }
        }
    }
}

/// Attention of so many tokens behind so many positions: of one sequence where there are many, else of as many sequences.
fn attention(b: &CudaBackend, tokens: usize, depth: usize, ty: KvType, seed: &mut u64) {
    let shape = AttentionShape { heads: 20, kv_heads: 5, head_dim: 128 };
    let blocks = (depth + tokens).div_ceil(KV_BLOCK);
    let sequences = if tokens == 512 { 1 } else { tokens };
    let each = tokens / sequences;
    let capacity = sequences * blocks * KV_BLOCK;
    let mut kv = b.kv(KvSpec { layers: 1, shape, capacity, key: ty, value: ty }).unwrap();
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|s| (0..blocks).map(|i| (s * blocks + i) as u32).collect()).collect();
    let spans: Vec<KvSpan<'_>> =
        tables.iter().map(|blocks| KvSpan { start: depth, len: each, blocks }).collect();
    let (cos, sin) = (vec![1.0; tokens * 64], vec![0.0; tokens * 64]);
    let (mut qkv, table) = rows(b, tokens, shape.qkv_cols(), seed);
    let mut out = b.tensor();
    for both in [false, true] {
        let (median, least) = seconds(100, |n| {
            begin(b, &table);
            for _ in 0..n {
                if both {
                    let rope = RopeRows { cos: &cos, sin: &sin };
                    b.rope_append(&mut qkv, rope, &mut kv, 0, &spans).unwrap();
                }
                b.attend(&qkv, &kv, 0, &spans, None, &mut out);
            }
            end(b, &table);
        });
        let name = if both { "rope and attention" } else { "attention" };
        println!("{name} at {depth} of {ty:?},{tokens},{:.2},{:.2}", median * 1e6, least * 1e6);
    }
}

/// A head of the 2B-4T shape, from states to logits on the host: of greedy sampling, of the 40 best, and all of them.
fn head(b: &CudaBackend, seed: &mut u64) {
    let (vocab, hidden) = (128_256, 2560);
    // F16 from -2 to 2, no two neighbours alike.
    let mut bytes = vec![0u8; 2 * vocab * hidden];
    for pair in bytes.chunks_exact_mut(4) {
        let n = noise(seed) as u32;
        pair.copy_from_slice(&(n & 0xbfff_bfff).to_le_bytes());
    }
    let matrix = Matrix::Dense(DenseMatrix::new(vocab, hidden, DenseType::F16, bytes.into()).unwrap());
    let w = b.prepare(&[matrix], ActivationPrecision::Int8, Purpose::Head).unwrap();
    for tokens in [1, 64] {
        let (x, _) = rows(b, tokens, hidden, seed);
        let needs = [
            ("greedy", LogitsNeed::Top { k: 1, also: Vec::new() }),
            ("the 40 best", LogitsNeed::Top { k: 40, also: Vec::new() }),
            ("all", LogitsNeed::All),
        ];
        for (name, need) in needs {
            let (needs, mut out) = (vec![need; tokens], Logits::default());
            let (median, least) =
                seconds(4, |n| (0..n).for_each(|_| b.head(&x, &w, &needs, &mut out).unwrap()));
            println!("head {name},{tokens},{:.2},{:.2}", median * 1e6, least * 1e6);
        }
    }
}

type Weight = <CudaBackend as Backend>::Weight;

/// A tensor of random numbers, and the table that its rows come from.
fn rows(b: &CudaBackend, m: usize, cols: usize, seed: &mut u64) -> (CudaTensor, Weight) {
    let values = (0..m * cols).flat_map(|_| (noise(seed) as f32 / (1u64 << 31) as f32 - 0.5).to_le_bytes());
    let table = DenseMatrix::new(m, cols, DenseType::F32, values.collect::<Vec<u8>>().into()).unwrap();
    let table = b.prepare(&[Matrix::Dense(table)], ActivationPrecision::Int8, Purpose::Product).unwrap();
    let mut x = b.tensor();
    b.embed(&table, &(0..m as u32).collect::<Vec<_>>(), &mut x).unwrap();
    (x, table)
}

/// Begins a step.
fn begin(b: &CudaBackend, table: &Weight) {
    b.embed(table, &[0], &mut b.tensor()).unwrap();
}

/// Ends it with something small to read.
fn end(b: &CudaBackend, table: &Weight) {
    let (mut one, mut gone) = (b.tensor(), Vec::new());
    b.embed(table, &[0], &mut one).unwrap();
    b.download(&one, &mut gone).unwrap();
}

fn main() {
    if let Err(why) = devices() {
        println!("not run: {why}");
        return;
    }
    let b = CudaBackend::new(0).unwrap();
    println!("{}", b.device().name);
    let (mut seed, act) = (1u64, ActivationPrecision::Int8);
    operations(&b, &mut seed);
    head(&b, &mut seed);
    let interleaved = CudaBackend::with_layout(0, OneToken::Interleaved).unwrap();
    println!("rows,cols,tokens,layout,microseconds,least,gigabytes_a_second,teraops_a_second");
    for (rows, cols) in SHAPES {
        let copies = (IN_TURN / (rows * cols / 4)).clamp(2, 128);
        let matrices: Vec<_> = (0..copies).map(|_| ternary(rows, cols, &mut seed)).collect();
        let prepare = |b: &CudaBackend| -> Vec<Weight> {
            let one = |m| b.prepare(std::slice::from_ref(m), act, Purpose::Product).unwrap();
            matrices.iter().map(one).collect()
        };
        let weights = prepare(&b);
        for tokens in TOKENS {
            product(&b, "tiles", &weights, (rows, cols, tokens), &mut seed);
            if tokens == 1 {
                let weights = prepare(&interleaved);
                product(&interleaved, "interleaved", &weights, (rows, cols, tokens), &mut seed);
            }
        }
    }
}

/// A product of so many tokens with weights of so many rows and columns, in turn.
fn product(
    b: &CudaBackend,
    layout: &str,
    weights: &[Weight],
    (rows, cols, tokens): (usize, usize, usize),
    seed: &mut u64,
) {
    let norm = b.vector(&vec![1.0; cols]).unwrap();
    let (h, table) = self::rows(b, tokens, cols, seed);
    let (mut x, mut y) = (b.tensor(), b.tensor());
    let (median, least) = seconds(2 * weights.len(), |n| {
        begin(b, &table);
        b.rms_norm(&h, &norm, 1e-5, &mut x);
        (0..n).for_each(|i| b.linear(&x, &weights[i % weights.len()], &mut y));
        end(b, &table);
    });
    let bytes = (rows * cols / 4) as f64;
    let ops = 2.0 * (rows * cols * tokens) as f64;
    println!(
        "{rows},{cols},{tokens},{layout},{:.2},{:.2},{:.0},{:.1}",
        median * 1e6,
        least * 1e6,
        bytes / median / 1e9,
        ops / median / 1e12
    );
}
