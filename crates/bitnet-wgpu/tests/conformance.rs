//! Every operation against the CPU backend, which equals the specification by `==`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_core::{
    ActivationPrecision, Backend, BackendError, DenseMatrix, DenseType, KvSpan, KvSpec, KvType, Logits,
    LogitsNeed, Matrix, Purpose, RopeRows,
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

/// In q8_0 each 32 elements of a head have a scale, also the ones that are left: numbers that are integers times a power of two, another one for
/// each scale, come back as they were.
#[test]
fn a_cache_of_integers_has_a_scale_for_each_32_elements() {
    let Some(gpu) = common::backend() else { return };
    for head_dim in [4usize, 32, 36, 80, 128] {
        let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim };
        let spec = KvSpec { layers: 1, shape, capacity: 64, key: KvType::Q8_0, value: KvType::Q8_0 };
        let mut kv = gpu.kv(spec).unwrap();
        // Each scale's first element is the largest that there is; scales lie from 2^-20 to 2^4.
        let element = |e: usize| {
            let scale = 2f32.powi([-3, 4, -20, 0][(e / head_dim + e % head_dim / 32) % 4]);
            let q = if (e % head_dim).is_multiple_of(32) { -127 } else { (e * 37 % 255) as i32 - 127 };
            q as f32 * scale
        };
        let values: Vec<f32> = (0..2 * head_dim).map(element).collect();
        let row = [&vec![1.0; 2 * head_dim], &values, &values].map(Vec::as_slice).concat();
        let (mut qkv, mut out, mut got) = (gpu.tensor(), gpu.tensor(), Vec::new());
        gpu.upload(&row, row.len(), &mut qkv).unwrap();
        let (cos, sin) = (vec![1.0; head_dim / 2], vec![0.0; head_dim / 2]);
        let spans = [KvSpan { start: 0, len: 1, blocks: &[0] }];
        gpu.rope_append(&mut qkv, RopeRows { cos: &cos, sin: &sin }, &mut kv, 0, &spans).unwrap();
        // A single position has all of the weight.
        gpu.attend(&qkv, &kv, 0, &spans, None, &mut out);
        gpu.download(&out, &mut got).unwrap();
        for (e, (got, want)) in got.iter().zip(&values).enumerate() {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{head_dim}, {e}: {got} is not {want}");
        }
    }
}

/// The largest logits are found on the adapter: of equal ones the lower ids, whatever the signs, in as many runs as it takes, for several tokens
/// with needs of their own.
#[test]
fn the_largest_logits_are_those_of_a_sort() {
    let Some(gpu) = common::backend() else { return };
    for vocab in [3usize, 300, 4096, 4097, 70_000] {
        // Products with a single column: many are alike, and both zeros are among them.
        let weights: Vec<f32> = (0..vocab as u32)
            .map(|id| ((id.wrapping_mul(2_654_435_761) >> 20) as f32 - 2048.0) / 64.0)
            .collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
        let table = Matrix::Dense(DenseMatrix::new(vocab, 1, DenseType::F32, bytes.into()).unwrap());
        let w = gpu.prepare(&[table], ActivationPrecision::Int8, Purpose::Head).unwrap();
        let inputs = [1.0f32, -1.0, 0.0, 3.5e-3];
        let mut x = gpu.tensor();
        gpu.upload(&inputs, 1, &mut x).unwrap();
        let mut all = Logits::default();
        gpu.head(&x, &w, &vec![LogitsNeed::All; 4], &mut all).unwrap();
        for (k, also) in
            [(0, vec![]), (1, vec![]), (1, vec![0, 2]), (40, vec![1]), (255, vec![2; 30]), (1000, vec![])]
        {
            // Tokens that need other numbers of logits, the last of them none besides.
            let need = |t: usize| LogitsNeed::Top {
                k: k / (t + 1),
                also: if t < 3 { also.clone() } else { vec![] },
            };
            let needs: Vec<LogitsNeed> = (0..4).map(need).collect();
            let mut some = Logits::default();
            gpu.head(&x, &w, &needs, &mut some).unwrap();
            assert!(k + also.len() >= vocab || some.ids.len() <= 4 * (k.max(1) + also.len()), "{vocab}, {k}");
            for (t, ((_, all), (ids, values))) in all.rows().zip(some.rows()).enumerate() {
                assert!(ids.is_sorted_by(|a, b| a < b));
                let get = |id: u32| match ids {
                    [] => Some(values[id as usize]),
                    ids => ids.binary_search(&id).ok().map(|at| values[at]),
                };
                let mut sorted: Vec<u32> = (0..vocab as u32).collect();
                sorted
                    .sort_by(|a, b| all[*b as usize].partial_cmp(&all[*a as usize]).unwrap().then(a.cmp(b)));
                let LogitsNeed::Top { k, also } = &needs[t] else { unreachable!() };
                for id in sorted.iter().take(*k).chain(also) {
                    let got = get(*id).map(f32::to_bits);
                    assert_eq!(got, Some(all[*id as usize].to_bits()), "{vocab}, {k}: token {t}, id {id}");
                }
            }
        }
    }
}

/// Each kernel is counted once, however many there are, and gives what it gave; who asks again is told what came since.
#[test]
fn a_profile_counts_every_kernel() {
    let Some(gpu) = common::backend() else { return };
    let bytes: Vec<u8> = (0..64).flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect();
    let table = Matrix::Dense(DenseMatrix::new(1, 64, DenseType::F32, bytes.into()).unwrap());
    let w = gpu.prepare(&[table], ActivationPrecision::Float, Purpose::Product).unwrap();
    let norm = gpu.vector(&[1.0; 64]).unwrap();
    let norms = |times: usize| {
        let (mut x, mut y, mut out) = (gpu.tensor(), gpu.tensor(), Vec::new());
        gpu.embed(&w, &[0, 0], &mut x).unwrap();
        (0..times).for_each(|_| gpu.rms_norm(&x, &norm, 1e-5, &mut y));
        gpu.download(&y, &mut out).unwrap();
        out
    };
    let want = norms(1);
    match gpu.profile() {
        Ok(first) => assert_eq!(first, []),
        Err(e) => {
            assert!(matches!(&e, BackendError::Unsupported { .. }), "{e}");
            return println!("not run: {e}");
        }
    }
    // More of them than a set of timestamps has places for.
    for times in [3usize, 5000] {
        assert_eq!(norms(times), want);
        let spent = gpu.profile().unwrap();
        assert!(spent.is_sorted_by(|a, b| a.time >= b.time), "{spent:?}");
        let mut counts: Vec<(&str, u64)> = spent.iter().map(|o| (&*o.name, o.count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [("EmbedDense(F32)", 1), ("Norm", times as u64)]);
    }
    assert_eq!(gpu.profile().unwrap(), []);
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
