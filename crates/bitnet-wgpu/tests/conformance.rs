//! Every operation against the CPU backend, which equals the specification by `==`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{
    ActivationPrecision, Backend, BackendError, DenseMatrix, DenseType, KvSpec, KvType, Logits, LogitsNeed,
    Matrix, Purpose,
};
use bitnet_core::{AttentionShape, Scale, TernaryMatrix};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_memory::Tag;
use bitnet_testkit::conformance::{answers, compare};

const CACHES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

#[test]
fn every_operation_is_as_near_as_rule_17_asks() {
    let Some(gpu) = common::backend() else { return };
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let worst = compare(&answers(&gpu, &CACHES), &answers(&cpu, &CACHES));
    println!("{}: the farthest is off by {worst:.1e} of its row's largest", gpu.adapter().name);
}

/// What one adapter computes does not depend on what was computed before, nor on when commands are sent off.
#[test]
fn the_same_question_has_the_same_answer() {
    let Some(gpu) = common::backend() else { return };
    let (first, second) = (answers(&gpu, &[KvType::F16]), answers(&gpu, &[KvType::F16]));
    for (a, b) in first.iter().zip(&second) {
        assert!(a.values.iter().map(|v| v.to_bits()).eq(b.values.iter().map(|v| v.to_bits())), "{}", a.name);
    }
}

/// A table larger than a binding of many adapters (128 MiB) is cut; rows at the cut are found, and products go over it.
#[test]
fn a_table_larger_than_a_binding_is_cut() {
    let Some(gpu) = common::backend() else { return };
    let (rows, cols) = (70_000, 1024);
    // Row r is all 2^(r mod 8), in F16.
    let row = |r: usize| (0x3c00 + 0x400 * (r as u16 % 8)).to_le_bytes().repeat(cols);
    let data: Vec<u8> = (0..rows).flat_map(row).collect();
    let table = Matrix::Dense(DenseMatrix::new(rows, cols, DenseType::F16, data.into()).unwrap());
    let w = gpu.prepare(&[table], ActivationPrecision::Int8, Purpose::Head).unwrap();
    let ids = [0, 65_535, 65_536, 65_537, 69_999];
    let (mut x, mut values) = (gpu.tensor(), Vec::new());
    gpu.embed(&w, &ids, &mut x).unwrap();
    gpu.download(&x, &mut values).unwrap();
    for (id, row) in ids.iter().zip(values.chunks(cols)) {
        assert!(row.iter().all(|v| *v == 2f32.powi(*id as i32 % 8)), "{id}");
    }
    gpu.keep_rows(&mut x, &[1, 2]);
    let mut logits = Logits::default();
    gpu.head(&x, &w, &[LogitsNeed::All, LogitsNeed::All], &mut logits).unwrap();
    for (id, (_, logits)) in ids[1..3].iter().zip(logits.rows()) {
        assert_eq!(logits.len(), rows);
        for (r, got) in logits.iter().enumerate() {
            let want = cols as f32 * 2f32.powi(*id as i32 % 8) * 2f32.powi(r as i32 % 8);
            assert_eq!(*got, want, "row {r} with {id}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = common::backend() else { return };
    let dense = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Matrix::Dense(DenseMatrix::new(1, values.len(), DenseType::F32, bytes.into()).unwrap())
    };
    let prepare = |m: Matrix| gpu.prepare(&[m], ActivationPrecision::Int8, Purpose::Product);
    assert!(matches!(prepare(dense(&[0.0, f32::NAN])), Err(BackendError::NotFinite { .. })));
    assert!(matches!(gpu.vector(&[f32::INFINITY]), Err(BackendError::NotFinite { .. })));
    let both = [dense(&[1.0]), dense(&[1.0, 2.0])];
    let stacked = gpu.prepare(&both, ActivationPrecision::Int8, Purpose::Product);
    assert!(matches!(stacked, Err(BackendError::Stack { a: 1, b: 2, .. })));
    let odd_groups = Scale::Groups { size: 10, values: vec![1.0; 2].into() };
    let grouped = TernaryMatrix::from_trits(1, 20, &[1; 20], odd_groups).unwrap();
    assert!(matches!(prepare(Matrix::Ternary(grouped)), Err(BackendError::Unsupported { .. })));

    let w = prepare(dense(&[1.0, 2.0])).unwrap();
    let mut out = gpu.tensor();
    assert!(matches!(gpu.embed(&w, &[1], &mut out), Err(BackendError::IdOutOfRange { id: 1, rows: 1 })));
    // A step that was refused leaves nothing behind.
    gpu.embed(&w, &[0, 0], &mut out).unwrap();
    let mut values = Vec::new();
    gpu.download(&out, &mut values).unwrap();
    assert_eq!(values, [1.0, 2.0, 1.0, 2.0]);

    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 64 };
    let spec = KvSpec { layers: 1, shape, capacity: 64, key: KvType::F16, value: KvType::F16 };
    let refused = |spec: KvSpec| matches!(gpu.kv(spec), Err(BackendError::Unsupported { .. }));
    let narrow = AttentionShape { head_dim: 62, ..shape };
    assert!(refused(KvSpec { value: KvType::Q8_0, shape: narrow, ..spec }));
    assert!(refused(KvSpec { shape: AttentionShape { head_dim: 1024, ..shape }, ..spec }));
    // More than any adapter has in one piece.
    assert!(refused(KvSpec { capacity: usize::MAX / 1024, ..spec }));
    assert!(gpu.kv(spec).is_ok() && gpu.kv(KvSpec { shape: narrow, ..spec }).is_ok());
}

#[test]
fn memory_is_counted_by_what_it_is_for_and_used_again() {
    let Some(gpu) = common::backend() else { return };
    let counted = gpu.device_memory().remove(0);
    let used = |tag: Tag| counted.snapshot().tags.iter().find(|t| t.tag == tag).map_or(0, |t| t.asked_bytes);
    let bytes: Vec<u8> = (0..64 * 500).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let table = Matrix::Dense(DenseMatrix::new(500, 64, DenseType::F32, bytes.into()).unwrap());
    let w = gpu.prepare(&[table], ActivationPrecision::Float, Purpose::Product).unwrap();
    let norm = gpu.vector(&[1.0; 64]).unwrap();
    assert_eq!(used(Tag::Weights), gpu.weight_bytes(&w).0 + 4 * 64);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 32 };
    let spec = KvSpec { layers: 3, shape, capacity: 256, key: KvType::F16, value: KvType::F32 };
    let kv = gpu.kv(spec).unwrap();
    assert_eq!(used(Tag::Kv), 4 * gpu.block_bytes(&kv));
    let step = || {
        let (mut x, mut y, mut out) = (gpu.tensor(), gpu.tensor(), Vec::new());
        gpu.embed(&w, &[0, 5, 9], &mut x).unwrap();
        gpu.rms_norm(&x, &norm, 1e-5, &mut y);
        assert_eq!(used(Tag::Activations), 2 * 4 * 3 * 64);
        gpu.download(&y, &mut out).unwrap();
        out
    };
    let want = step();
    let asked = counted.snapshot().source_requests;
    (0..5).for_each(|_| assert_eq!(step(), want));
    assert_eq!(counted.snapshot().source_requests, asked, "what was dropped is used again");
    drop((w, norm, kv));
    assert_eq!([Tag::Weights, Tag::Kv, Tag::Activations].map(used), [0; 3]);
}

/// What an operation cannot have fails the step that asked for it, and no later one.
#[test]
fn a_failure_is_told_where_the_step_is_read() {
    let Some(gpu) = common::backend() else { return };
    let bytes: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let table = Matrix::Dense(DenseMatrix::new(1, 2, DenseType::F32, bytes.into()).unwrap());
    let table = gpu.prepare(&[table], ActivationPrecision::Int8, Purpose::Product).unwrap();
    let wide = TernaryMatrix::from_trits(1 << 20, 2, &vec![1; 2 << 20], Scale::Tensor(1.0)).unwrap();
    let wide = gpu.prepare(&[Matrix::Ternary(wide)], ActivationPrecision::Int8, Purpose::Product).unwrap();
    let (mut x, mut y, mut values) = (gpu.tensor(), gpu.tensor(), Vec::new());
    // Products of a size that no binding has.
    gpu.embed(&table, &[0; 60_000], &mut x).unwrap();
    gpu.linear(&x, &wide, &mut y);
    assert!(matches!(gpu.download(&y, &mut values), Err(BackendError::Unsupported { .. })));
    gpu.embed(&table, &[0], &mut x).unwrap();
    gpu.linear(&x, &wide, &mut y);
    gpu.download(&y, &mut values).unwrap();
    assert_eq!(values.len(), 1 << 20);
    assert!(values.iter().all(|v| (v - 3.0).abs() < 0.02), "{}", values[0]);
}
