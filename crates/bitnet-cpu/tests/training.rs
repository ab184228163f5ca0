//! What devices that train are compared with computes the bits of the processor: the plain device of the test kit beside the kernels here.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{
    Activation, At, AttentionShape, DeviceNorm, DeviceSide, DeviceStore, DeviceValues, Factor, Memory,
    Product, Sequences, Terms, TrainingDevice,
};
use bitnet_cpu::{CpuTraining, Norm, Side, Store, Target, Values};
use bitnet_memory::Tag;
use bitnet_testkit::tensors::Noise;
use bitnet_testkit::training::Plain;

static PLAIN: Plain = Plain::new();

fn put(values: &[f32]) -> Memory {
    let memory = PLAIN.memory(values.len() * 4, Tag::Activations).unwrap();
    PLAIN.upload(&memory, 0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    memory
}

fn read(memory: &Memory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes()];
    PLAIN.download(memory, 0, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn floats(noise: &mut Noise, len: usize, size: f64) -> Vec<f32> {
    (0..len).map(|_| (noise.unit() * size) as f32).collect()
}

fn cpu() -> CpuTraining {
    CpuTraining::new(None, Some(2)).unwrap()
}

#[test]
fn products() {
    let (cpu, mut noise) = (cpu(), Noise(1));
    for terms in [Terms::F32, Terms::Bf16] {
        for (m, n, k) in [(3, 5, 7), (37, 50, 70), (2, 3, 8201)] {
            let (a, b) = (floats(&mut noise, m * k, 1.0), floats(&mut noise, k * n, 1.0));
            let (factors, rows) = (floats(&mut noise, k, 1.0), floats(&mut noise, m, 1.0));
            let before = floats(&mut noise, m * n, 1.0);
            for which in 0..3 {
                let mut want = before.clone();
                let target = Target { values: &mut want, stride: n, first: 0 };
                let (own, store) = (
                    [Store::SetRows(&rows, 0.3), Store::Add(0.7), Store::Continue][which],
                    [Some(&rows), None, None][which].map(|rows| put(rows)),
                );
                let x = Side::rows(Values::F32(&a), k);
                let y = Side::columns(Values::F32(&b), n).scaled(&factors);
                cpu.product(terms, (m, n, k), x, y, own, target);
                let held = [&a, &b, &factors, &before].map(|values| put(values));
                let side = |i: usize, stride, columns, factors| DeviceSide {
                    values: DeviceValues::F32(At::start(&held[i])),
                    stride,
                    columns,
                    factors,
                };
                PLAIN.product(&Product {
                    terms,
                    sizes: (m, n, k),
                    a: side(0, k, false, None),
                    b: side(1, n, true, Some(At::start(&held[2]))),
                    store: match which {
                        0 => DeviceStore::Set {
                            rows: store.as_ref().map(At::start),
                            scale: Factor::Value(0.3),
                        },
                        1 => DeviceStore::Add { scale: Factor::Value(0.7) },
                        _ => DeviceStore::Continue,
                    },
                    c: At::start(&held[3]),
                    stride: n,
                    first: 0,
                });
                assert!(read(&held[3]) == want, "{terms:?} {m} {n} {k} {which}");
            }
        }
    }
}

#[test]
fn rows() {
    let (cpu, mut noise) = (cpu(), Noise(2));
    for (m, n) in [(3, 17), (130, 100)] {
        let (x, dy) = (floats(&mut noise, m * n, 2.0), floats(&mut noise, m * n, 1.0));
        let (w, before) = (floats(&mut noise, n, 1.0), floats(&mut noise, m * n, 1.0));
        let (mut y, mut dx, mut dw) = (vec![0.0; m * n], before.clone(), w.clone());
        cpu.rms_norm(&x, &w, 1e-5, &mut y);
        cpu.rms_norm_backward(Norm { x: &x, w: &w, eps: 1e-5 }, &dy, true, &mut dx, Some(&mut dw));
        let held = [&x, &w, &dy, &before, &before, &w].map(|values| put(values));
        let at = |i: usize| At::start(&held[i]);
        let norm = DeviceNorm { x: at(0), w: at(1), sizes: (m, n), eps: 1e-5 };
        PLAIN.norm(norm, at(3));
        PLAIN.norm_backward(norm, at(2), true, at(4), Some(at(5)));
        assert!((read(&held[3]), read(&held[4]), read(&held[5])) == (y, dx, dw), "{m} {n}");

        let targets: Vec<u32> = (0..m).map(|_| noise.below(n as u32)).collect();
        let weights = floats(&mut noise, m, 1.0);
        let (mut want, logits, parts) = (x.clone(), put(&x), put(&vec![0.0; m * 3]));
        let mut of = vec![0.0; m * 3];
        cpu.cross_entropy(&mut want, &targets, &weights, &mut of);
        PLAIN.cross_entropy(At::start(&logits), n, &targets, &weights, At::start(&parts));
        assert!((read(&logits), read(&parts)) == (want, of), "{m} {n}");
    }
    for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
        let (m, n) = (5, 37);
        let (x, d) = (floats(&mut noise, m * 2 * n, 6.0), floats(&mut noise, m * n, 1.0));
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * 2 * n]);
        cpu.gate(&x, n, act, &mut y);
        cpu.gate_backward(&x, &d, n, act, &mut dx);
        let held = [&x, &d, &d, &x].map(|values| put(values));
        let at = |i: usize| At::start(&held[i]);
        PLAIN.gate(at(0), (m, n), act, at(2));
        PLAIN.gate_backward(at(0), at(1), (m, n), act, at(3));
        assert!((read(&held[2]), read(&held[3])) == (y, dx), "{act:?}");
    }
}

#[test]
fn attention() {
    let (cpu, mut noise) = (cpu(), Noise(3));
    let spans = [3..262, 270..340, 345..900];
    for (heads, kv_heads, head_dim) in [(2, 1, 16), (3, 3, 10)] {
        let (shape, rows) = (AttentionShape { heads, kv_heads, head_dim }, 901);
        let (cols, wide) = (shape.qkv_cols(), heads * head_dim);
        let (qkv, dout) = (floats(&mut noise, rows * cols, 2.0), floats(&mut noise, rows * wide, 1.0));
        let (mut out, mut sums) = (vec![0.0; rows * wide], vec![0.0; rows * heads * 2]);
        let held = [&qkv, &out, &sums, &dout].map(|values| put(values));
        let at = |i: usize| At::start(&held[i]);
        cpu.attend(&qkv, shape, &spans, &mut out, &mut sums);
        let sequences = Sequences { qkv: at(0), rows, shape, spans: &spans };
        PLAIN.attend(sequences, at(1), at(2));
        assert!(read(&held[1]) == out && read(&held[2]) == sums);
        for terms in [Terms::F32, Terms::Bf16] {
            let (mut want, got) = (vec![0.0; rows * cols], put(&vec![0.0; rows * cols]));
            cpu.attend_backward(&qkv, shape, &spans, (&out, &sums), &dout, terms, &mut want);
            PLAIN.attend_backward(sequences, (at(1), at(2)), at(3), terms, At::start(&got));
            assert!(read(&got) == want, "{terms:?}");
        }
    }
}
