//! Every operation against the CPU backend, which equals the specification by `==`: the same bits.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{
    ActivationPrecision, AttentionShape, Backend, BackendError, DenseMatrix, DenseType, KvSpan, KvSpec,
    KvType, Logits, LogitsNeed, Matrix, Purpose, RopeRows, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_cuda::{CudaBackend, OneToken};
use bitnet_memory::Tag;
use bitnet_testkit::conformance::{Answer, answers, assert_same_bits};
use bitnet_testkit::tensors::Noise;
use std::collections::BTreeSet;

const CACHES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

#[test]
fn every_operation_gives_the_bits_of_the_processor() {
    let Some(gpu) = common::backend() else { return };
    let (got, want) = (answers(&gpu, &CACHES), answers(&cpu(), &CACHES));
    assert_eq!(got.len(), want.len());
    for (Answer { name, values, .. }, want) in got.iter().zip(&want) {
        assert_same_bits(name, values, &want.values);
    }
    println!("{}: {} operations", gpu.device().name, want.len());
}

fn dense(values: &[f32], rows: usize) -> Matrix {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Matrix::Dense(DenseMatrix::new(rows, values.len() / rows, DenseType::F32, bytes.into()).unwrap())
}

/// A tensor `[m, values / m]` of these numbers.
fn tensor<B: Backend>(b: &B, values: &[f32], m: usize) -> B::Tensor {
    let w = b.prepare(&[dense(values, m)], ActivationPrecision::Float, Purpose::Product).unwrap();
    let mut out = b.tensor();
    b.embed(&w, &(0..m as u32).collect::<Vec<_>>(), &mut out).unwrap();
    out
}

fn floats(noise: &mut Noise, n: usize) -> Vec<f32> {
    (0..n).map(|_| noise.unit() as f32 * 2.0).collect()
}

/// A layer's shape of a real model, as far as one launch goes: products of every number of tokens that has a kernel of its own,
/// behind a norm and without one, gated and not.
fn layer<B: Backend>(b: &B, tokens: &[usize]) -> Vec<(String, Vec<f32>)> {
    let (hidden, ffn) = (640, 416);
    let mut noise = Noise(5);
    let mut ternary = |rows: usize, cols: usize| {
        let trits: Vec<i8> = (0..rows * cols).map(|_| noise.below(3) as i8 - 1).collect();
        Matrix::Ternary(TernaryMatrix::from_trits(rows, cols, &trits, Scale::Tensor(0.3)).unwrap())
    };
    let int8 = ActivationPrecision::Int8;
    let act = bitnet_core::Activation::Relu2;
    let gate_up =
        b.prepare(&[ternary(ffn, hidden), ternary(ffn, hidden)], int8, Purpose::GateUp(act)).unwrap();
    let down = b.prepare(&[ternary(hidden, ffn)], int8, Purpose::Down(act)).unwrap();
    let (norm, sub_norm) = (floats(&mut noise, hidden), floats(&mut noise, ffn));
    let (norm, sub_norm) = (b.vector(&norm).unwrap(), b.vector(&sub_norm).unwrap());
    let mut answers = Vec::new();
    for &m in tokens {
        let mut take = |name: &str, x: &B::Tensor| {
            let mut values = Vec::new();
            b.download(x, &mut values).unwrap();
            answers.push((format!("{name}, {m} tokens"), values));
        };
        let values = floats(&mut noise, m * hidden);
        let mut h = tensor(b, &values, m);
        let (mut x, mut y, mut wide) = (b.tensor(), b.tensor(), b.tensor());
        b.rms_norm(&h, &norm, 1e-5, &mut x);
        b.gated(&x, &gate_up, act, &mut wide, &mut y);
        // Without a norm the product rounds for itself.
        b.linear(&y, &down, &mut wide);
        take("down of a gate", &wide);
        b.rms_norm(&y, &sub_norm, 1e-5, &mut x);
        b.linear(&x, &down, &mut wide);
        b.add(&mut h, &wide);
        b.rms_norm(&h, &norm, 1e-5, &mut x);
        take("norm of a sum", &x);
        take("the sum", &h);
        // A sum that nothing norms, and one of which rows are kept.
        b.add(&mut h, &x);
        take("another sum", &h);
        b.add(&mut h, &x);
        b.keep_rows(&mut h, &[0]);
        take("the first row of a sum", &h);
    }
    answers
}

#[test]
fn products_of_any_number_of_tokens_give_the_bits_of_the_processor() {
    let Some(gpu) = common::backend() else { return };
    let tokens = [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 130, 257];
    for ((name, got), (_, want)) in layer(&gpu, &tokens).iter().zip(&layer(&cpu(), &tokens)) {
        assert_same_bits(name, got, want);
    }
}

/// Products of one token with stacks of ternary matrices of these shapes: rows and columns.
fn one_token<B: Backend>(b: &B, shapes: &[(usize, usize)]) -> Vec<Vec<f32>> {
    let mut noise = Noise(13);
    let one = |&(rows, cols): &(usize, usize)| {
        let mut ternary = |rows: usize, scale: Scale| {
            let trits: Vec<i8> = (0..rows * cols).map(|_| noise.below(3) as i8 - 1).collect();
            Matrix::Ternary(TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap())
        };
        let stack = [ternary(rows / 3, Scale::Tensor(0.3)), ternary(rows - rows / 3, Scale::Tensor(0.7))];
        let w = b.prepare(&stack, ActivationPrecision::Int8, Purpose::Product).unwrap();
        let (x, mut y, mut values) = (tensor(b, &floats(&mut noise, cols), 1), b.tensor(), Vec::new());
        b.linear(&x, &w, &mut y);
        b.download(&y, &mut values).unwrap();
        values
    };
    shapes.iter().map(one).collect()
}

/// The columns of real models' matrices, and a sixteenth of their rows; and some that fill up no block.
#[test]
fn both_layouts_of_one_token_give_the_bits_of_the_processor() {
    if common::backend().is_none() {
        return;
    }
    let real = [
        (2560, 2560),
        (3840, 2560),
        (13824, 2560),
        (2560, 6912),
        (3200, 3200),
        (4800, 3200),
        (3200, 10240),
        (20480, 3200),
    ];
    let shapes: Vec<_> = real.map(|(n, k)| (n / 16, k)).into_iter().chain([(77, 331), (3, 16)]).collect();
    let want = one_token(&cpu(), &shapes);
    for layout in [OneToken::Tiles, OneToken::Interleaved] {
        let gpu = CudaBackend::with_layout(0, layout).unwrap();
        for ((got, want), shape) in one_token(&gpu, &shapes).iter().zip(&want).zip(&shapes) {
            assert_same_bits(&format!("{layout:?}, {shape:?}"), got, want);
        }
        // Several tokens and gates, of which one token falls apart where there is no kernel for it.
        for ((name, got), (_, want)) in layer(&gpu, &[1, 3]).iter().zip(&layer(&cpu(), &[1, 3])) {
            assert_same_bits(&format!("{layout:?}, {name}"), got, want);
        }
    }
}

/// Weights are copied while those before them are put in order, through memory that is used again: none gets another's numbers.
#[test]
fn weights_that_are_uploaded_one_behind_the_other_are_whole() {
    let Some(gpu) = common::backend() else { return };
    let (rows, cols) = (48, 640);
    let matrices: Vec<Matrix> = (0..12u8)
        .map(|number| {
            // Trits, floats that go straight to their place, and floats that are spread: nothing has the device run kernels of these
            // before their room is used again.
            let value = f32::from(number) + 1.0;
            match number {
                0 | 1 => {
                    let trits = vec![1; rows * cols];
                    let scale = Scale::Tensor(value);
                    Matrix::Ternary(TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap())
                }
                4.. => {
                    let bytes = value.to_bits().to_le_bytes()[2..].repeat(rows * cols);
                    Matrix::Dense(DenseMatrix::new(rows, cols, DenseType::BF16, bytes.into()).unwrap())
                }
                2 | 3 => dense(&vec![value; rows * cols], rows),
            }
        })
        .collect();
    let prepare = |m| gpu.prepare(&[m], ActivationPrecision::Int8, Purpose::Product).unwrap();
    let weights: Vec<_> = matrices.into_iter().map(prepare).collect();
    for (number, w) in weights.iter().enumerate() {
        let (mut out, mut values) = (gpu.tensor(), Vec::new());
        gpu.embed(w, &(0..rows as u32).collect::<Vec<_>>(), &mut out).unwrap();
        gpu.download(&out, &mut values).unwrap();
        assert_eq!(values, vec![number as f32 + 1.0; rows * cols], "weight {number}");
    }
}

/// Attention of long sequences, of steps of one token and of many, with several segments.
fn attention<B: Backend>(b: &B, shape: AttentionShape, ty: KvType, window: Option<usize>) -> Vec<Vec<f32>> {
    let mut noise = Noise(9);
    let spec = KvSpec { layers: 1, shape, capacity: 64 * 24, key: ty, value: ty };
    let mut kv = b.kv(spec).unwrap();
    let blocks = [(0..12).map(|i| 2 * i).collect::<Vec<u32>>(), (0..12).map(|i| 2 * i + 1).collect()];
    let mut answers = Vec::new();
    for lengths in [[300, 9], [1, 1], [230, 1], [1, 400], [1, 2]] {
        let starts = answers_so_far(&answers, shape);
        let m: usize = lengths.iter().sum();
        let values = floats(&mut noise, m * shape.qkv_cols());
        let angles = floats(&mut noise, 2 * m * shape.head_dim / 2);
        let (cos, sin) = angles.split_at(m * shape.head_dim / 2);
        let mut qkv = tensor(b, &values, m);
        let span = |i: usize| KvSpan { start: starts[i], len: lengths[i], blocks: &blocks[i] };
        let spans = [span(0), span(1)];
        b.rope_append(&mut qkv, RopeRows { cos, sin }, &mut kv, 0, &spans).unwrap();
        let mut out = b.tensor();
        b.attend(&qkv, &kv, 0, &spans, window, &mut out);
        let mut values = Vec::new();
        b.download(&out, &mut values).unwrap();
        answers.push((lengths, values));
    }
    answers.into_iter().map(|(_, values)| values).collect()
}

fn answers_so_far(answers: &[([usize; 2], Vec<f32>)], _: AttentionShape) -> [usize; 2] {
    answers.iter().fold([0, 0], |[a, b], ([c, d], _)| [a + c, b + d])
}

#[test]
fn attention_over_long_sequences_gives_the_bits_of_the_processor() {
    let Some(gpu) = common::backend() else { return };
    let cpu = cpu();
    for (heads, kv_heads, head_dim) in [(4, 1, 128), (3, 3, 64), (10, 2, 32), (2, 1, 80)] {
        let shape = AttentionShape { heads, kv_heads, head_dim };
        for (ty, window) in [
            (KvType::F16, None),
            (KvType::F16, Some(70)),
            (KvType::F32, None),
            (KvType::Q8_0, None),
            (KvType::Q8_0, Some(70)),
        ] {
            let (got, want) = (attention(&gpu, shape, ty, window), attention(&cpu, shape, ty, window));
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_same_bits(&format!("{shape:?}, {ty:?}, {window:?}, step {step}"), got, want);
            }
        }
    }
}

/// The largest logits are found, screened or not, and what is given is exact.
#[test]
fn the_largest_logits_are_found() {
    let Some(gpu) = common::backend() else { return };
    let (vocab, hidden) = (9000, 192);
    let mut noise = Noise(3);
    let table = floats(&mut noise, vocab * hidden);
    let halves: Vec<u8> = table.iter().flat_map(|v| v.to_bits().to_le_bytes()[2..].to_vec()).collect();
    let halves = Matrix::Dense(DenseMatrix::new(vocab, hidden, DenseType::BF16, halves.into()).unwrap());
    // Every row is there twice: of equal logits the lower id is the larger one.
    let twice: Vec<f32> = table.iter().cycle().take(vocab / 2 * hidden).copied().collect();
    let twice = [&twice[..], &twice[..]].concat();
    for (matrix, purpose) in [
        (dense(&twice, vocab), Purpose::Head),
        (dense(&twice, vocab), Purpose::Product),
        (dense(&table, vocab), Purpose::Head),
        (dense(&table, vocab), Purpose::Product),
        (halves, Purpose::Head),
    ] {
        let w = gpu.prepare(&[matrix], ActivationPrecision::Int8, purpose).unwrap();
        for m in [1, 3, 9, 70] {
            let x = floats(&mut noise, m * hidden);
            let head = |needs: &[LogitsNeed]| {
                let (x, mut out) = (tensor(&gpu, &x, m), Logits::default());
                gpu.head(&x, &w, needs, &mut out).unwrap();
                out
            };
            let full = head(&vec![LogitsNeed::All; m]);
            for (k, also) in [(1, vec![]), (40, vec![8999, 0, 8999]), (300, vec![]), (9000, vec![])] {
                let some = head(&vec![LogitsNeed::Top { k, also: also.clone() }; m]);
                for ((ids, values), (_, full)) in some.rows().zip(full.rows()) {
                    let mut best: Vec<usize> = (0..vocab).collect();
                    best.sort_by(|a, b| full[*b].total_cmp(&full[*a]).then(a.cmp(b)));
                    if ids.is_empty() {
                        assert_eq!(values, full);
                        assert!(k > 300, "{m} {k}: nothing is left out");
                        continue;
                    }
                    let wanted = best[..k].iter().map(|id| *id as u32).chain(also.iter().copied());
                    let wanted: Vec<u32> = wanted.collect::<BTreeSet<_>>().into_iter().collect();
                    assert_eq!(ids, wanted, "{m} {k}: what was asked for, and nothing else");
                    let same = |(id, v): (&u32, &f32)| v.to_bits() == full[*id as usize].to_bits();
                    assert!(ids.iter().zip(values).all(same), "{m} {k}");
                }
            }
        }
    }
}

/// Steps that repeat become graphs; what they compute stays the same.
#[test]
fn a_step_that_repeats_gives_the_same_bits() {
    let Some(gpu) = common::backend() else { return };
    let first = layer(&gpu, &[1, 3]);
    for _ in 0..3 {
        for ((name, got), (_, want)) in layer(&gpu, &[1, 3]).iter().zip(&first) {
            assert_same_bits(name, got, want);
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = common::backend() else { return };
    let prepare = |m: Matrix| gpu.prepare(&[m], ActivationPrecision::Int8, Purpose::Product);
    assert!(matches!(prepare(dense(&[0.0, f32::NAN], 1)), Err(BackendError::NotFinite { .. })));
    assert!(matches!(gpu.vector(&[f32::INFINITY]), Err(BackendError::NotFinite { .. })));
    let both = [dense(&[1.0], 1), dense(&[1.0, 2.0], 1)];
    let stacked = gpu.prepare(&both, ActivationPrecision::Int8, Purpose::Product);
    assert!(matches!(stacked, Err(BackendError::Stack { a: 1, b: 2, .. })));
    let odd_groups = Scale::Groups { size: 10, values: vec![1.0; 2].into() };
    let grouped = TernaryMatrix::from_trits(1, 20, &[1; 20], odd_groups).unwrap();
    assert!(matches!(prepare(Matrix::Ternary(grouped)), Err(BackendError::Unsupported { .. })));

    let w = prepare(dense(&[1.0, 2.0], 1)).unwrap();
    let mut out = gpu.tensor();
    assert!(matches!(gpu.embed(&w, &[1], &mut out), Err(BackendError::IdOutOfRange { id: 1, rows: 1 })));
    // A step that was refused leaves nothing behind.
    gpu.embed(&w, &[0, 0], &mut out).unwrap();
    let mut values = Vec::new();
    gpu.download(&out, &mut values).unwrap();
    assert_eq!(values, [1.0, 2.0, 1.0, 2.0]);

    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 64 };
    let spec = KvSpec { layers: 1, shape, capacity: 64, key: KvType::F16, value: KvType::F16 };
    let of = |spec: KvSpec| gpu.kv(spec).map(drop);
    let odd = AttentionShape { head_dim: 66, ..shape };
    assert!(matches!(of(KvSpec { shape: odd, ..spec }), Err(BackendError::Unsupported { .. })));
    // More than any GPU has.
    assert!(matches!(of(KvSpec { capacity: 1 << 40, ..spec }), Err(BackendError::OutOfMemory { .. })));
    assert!(of(spec).is_ok());
}

#[test]
fn memory_is_counted_by_what_it_is_for_and_used_again() {
    let Some(gpu) = common::backend() else { return };
    let used = |tag: Tag| {
        gpu.device_memory()[0].snapshot().tags.iter().find(|t| t.tag == tag).map_or(0, |t| t.asked_bytes)
    };
    let values = floats(&mut Noise(3), 64 * 500);
    let w = gpu.prepare(&[dense(&values, 64)], ActivationPrecision::Float, Purpose::Product).unwrap();
    assert_eq!(used(Tag::Weights), gpu.weight_bytes(&w).0);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 32 };
    let spec = KvSpec { layers: 3, shape, capacity: 256, key: KvType::F16, value: KvType::F32 };
    let kv = gpu.kv(spec).unwrap();
    assert_eq!(used(Tag::Kv), 4 * gpu.block_bytes(&kv));
    let step = || {
        let (mut x, mut out) = (gpu.tensor(), Vec::new());
        gpu.embed(&w, &[0, 5, 9], &mut x).unwrap();
        // What the step before had goes back when this one has run.
        assert!([1, 2].map(|steps| steps * 4 * 3 * 500).contains(&used(Tag::Activations)));
        gpu.download(&x, &mut out).unwrap();
    };
    step();
    let asked = gpu.device_memory()[0].snapshot().source_requests;
    (0..5).for_each(|_| step());
    assert_eq!(gpu.device_memory()[0].snapshot().source_requests, asked, "what was dropped is used again");
    drop((w, kv));
    let x = tensor(&gpu, &[1.0, 2.0], 2);
    gpu.download(&x, &mut Vec::new()).unwrap();
    assert_eq!((used(Tag::Weights), used(Tag::Kv)), (0, 0), "and comes back once what used it has run");
}
