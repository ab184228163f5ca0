//! Everything but products.

use super::{Asked, LEAD, LEAD_BYTES, bytes, floats, read, read_bytes};
use bitnet_core::{
    Activation, AdamStep, At, AttentionShape, ColumnsOf, DeviceNorm, Memory, Sequences, SgdStep, Terms,
};
use std::ops::Range;

fn at(memory: &Memory) -> At<'_> {
    At { memory, first: LEAD }
}

const SIZES: [(usize, usize); 6] = [(1, 1), (3, 17), (65, 21), (130, 100), (2, 2560), (0, 8)];

impl Asked<'_> {
    pub(super) fn elements(&mut self) {
        let near = self.near.elements;
        for len in [0, 1, 37, 5000] {
            let (x, y) = (self.floats(len, 3.0), self.floats(len, 3.0));
            for (a, b) in [(0.3, -1.7), (1.0, 1.0), (0.0, 2.0), (-0.5, 0.0), (0.0, 0.0)] {
                for into in 0..3 {
                    self.case(&format!("mix of {len} by {a} and {b}, into {into}"), near, &|device| {
                        let kept = [&x, &y, &vec![0.5; len]].map(|values| floats(device, values));
                        device.mix(at(&kept[0]), a, at(&kept[1]), b, at(&kept[into]), len);
                        kept.iter().map(|memory| read(device, memory)).collect()
                    });
                }
            }
            self.case("fill", 0.0, &|device| {
                let to = floats(device, &x);
                device.fill(at(&to), len, -2.5);
                vec![read(device, &to)]
            });
        }
        // A factor of 0 leaves out what is no number.
        self.case("mix of what is no number", 0.0, &|device| {
            let (x, y) = (floats(device, &[f32::NAN, f32::INFINITY]), floats(device, &[1.0, 2.0]));
            let to = floats(device, &[0.0; 2]);
            device.mix(at(&x), 0.0, at(&y), 3.0, at(&to), 2);
            vec![read(device, &to)]
        });
        let (table, to) = (self.floats(9 * 40, 1.0), self.floats(11 * 50, 1.0));
        for (first, into, rows, count) in
            [(0, 0, 9, 40), (3, 11, 9, 30), (39, 49, 1, 1), (5, 7, 0, 3), (0, 0, 3, 0)]
        {
            self.case("columns", 0.0, &|device| {
                let (from, to) = (floats(device, &table), floats(device, &to));
                let of = |memory, stride, first| ColumnsOf { at: at(memory), stride, first };
                device.columns(of(&from, 40, first), of(&to, 50, into), rows, count);
                vec![read(device, &to)]
            });
        }
        let ids = [3, 0, 3, 7, 3, 8, 0, 3, 1];
        for n in [1, 5, 33, 300] {
            let (table, rows) = (self.floats(9 * n, 1.0), self.floats(ids.len() * n, 1.0));
            for ids in [&ids[..], &[], &[8], &[2; 9]] {
                self.case("gather", 0.0, &|device| {
                    let (table, to) = (floats(device, &table), floats(device, &rows));
                    device.gather(at(&table), ids, n, at(&to));
                    vec![read(device, &to)]
                });
                self.case("scatter", near, &|device| {
                    let (table, from) = (floats(device, &table), floats(device, &rows));
                    device.scatter(at(&from), ids, n, at(&table));
                    vec![read(device, &table)]
                });
            }
        }
    }

    pub(super) fn rows(&mut self) {
        let near = self.near.norms;
        for (m, n) in SIZES {
            let (x, w, dy) = (self.floats(m * n, 2.0), self.floats(n, 1.5), self.floats(m * n, 1.0));
            let (before, dw) = (self.floats(m * n, 1.0), self.floats(n, 1.0));
            self.case(&format!("norm of {m} x {n}"), near, &|device| {
                let [x, w, y] = [&x, &w, &before].map(|values| floats(device, values));
                device.norm(DeviceNorm { x: at(&x), w: at(&w), sizes: (m, n), eps: 1e-5 }, at(&y));
                vec![read(device, &y)]
            });
            for (add, wanted) in [(false, true), (true, true), (true, false), (false, false)] {
                self.case(&format!("way back through a norm of {m} x {n}"), near, &|device| {
                    let [x, w, dy] = [&x, &w, &dy].map(|values| floats(device, values));
                    let [dx, dw] = [&before, &dw].map(|values| floats(device, values));
                    let norm = DeviceNorm { x: at(&x), w: at(&w), sizes: (m, n), eps: 1e-5 };
                    device.norm_backward(norm, at(&dy), add, at(&dx), wanted.then(|| at(&dw)));
                    vec![read(device, &dx), read(device, &dw)]
                });
            }
        }
        for len in [0, 1, 100, (1 << 15) + 7, 100_003] {
            let x = self.floats(len, 1e-3);
            self.case(&format!("length of {len}"), near, &|device| {
                let x = floats(device, &x);
                let length = device.length(at(&x), len).unwrap();
                // Both halves of a double.
                let high = length as f32;
                vec![vec![high, (length - f64::from(high)) as f32 * f32::from(near == 0.0)]]
            });
        }
    }

    pub(super) fn codes(&mut self) {
        let near = self.near;
        for (m, n) in SIZES {
            let mut x = self.floats(m * n, 4.0);
            // Ties of the largest magnitude, and a row of zeros.
            if let [first, ..] = &mut x[..] {
                *first = 127.0;
            }
            if m > 2 {
                x[n..2 * n].fill(0.0);
            }
            let stride = n.next_multiple_of(16) + 32;
            let room = vec![9; m * stride];
            let factors = self.floats(m, 1.0);
            self.whole(&format!("codes of {m} x {n}"), near.codes, &|device| {
                let (x, codes, d) = (floats(device, &x), bytes(device, &room), floats(device, &factors));
                let to = At { memory: &codes, first: LEAD_BYTES };
                device.quantize(at(&x), (m, n), to, stride, at(&d));
                vec![read_bytes(device, &codes)]
            });
            self.case(&format!("factors of codes of {m} x {n}"), near.norms, &|device| {
                let (x, codes, d) = (floats(device, &x), bytes(device, &room), floats(device, &factors));
                let to = At { memory: &codes, first: LEAD_BYTES };
                device.quantize(at(&x), (m, n), to, stride, at(&d));
                vec![read(device, &d)]
            });
            for size in [1.0, 1e-7] {
                let w = self.floats(m * n, size);
                self.whole(&format!("trits of {m} x {n}"), near.codes, &|device| {
                    let (w, codes, scale) =
                        (floats(device, &w), bytes(device, &room), floats(device, &[1.0]));
                    let to = At { memory: &codes, first: LEAD_BYTES };
                    device.absmean(at(&w), (m, n), to, stride, at(&scale));
                    vec![read_bytes(device, &codes)]
                });
                self.case(&format!("scale of trits of {m} x {n}"), near.norms, &|device| {
                    let (w, codes, scale) =
                        (floats(device, &w), bytes(device, &room), floats(device, &[1.0]));
                    let to = At { memory: &codes, first: LEAD_BYTES };
                    device.absmean(at(&w), (m, n), to, stride, at(&scale));
                    vec![read(device, &scale)]
                });
            }
        }
    }

    pub(super) fn gates(&mut self) {
        let near = self.near.gates;
        for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
            for (m, n) in [(1, 1), (3, 17), (40, 130), (0, 4)] {
                let (x, dout) = (self.floats(m * 2 * n, 6.0), self.floats(m * n, 1.0));
                self.case(&format!("{act:?} of {m} x {n}"), near, &|device| {
                    let (x, out) = (floats(device, &x), floats(device, &dout));
                    device.gate(at(&x), (m, n), act, at(&out));
                    vec![read(device, &out)]
                });
                self.case(&format!("way back through {act:?} of {m} x {n}"), near, &|device| {
                    let (given, dout, out) = (floats(device, &x), floats(device, &dout), floats(device, &x));
                    device.gate_backward(at(&given), at(&dout), (m, n), act, at(&out));
                    vec![read(device, &out)]
                });
            }
        }
    }

    pub(super) fn losses(&mut self) {
        for (m, vocab) in [(1, 1), (3, 16), (5, 37), (4, 5003), (0, 10)] {
            let logits = self.floats(m * vocab, 12.0);
            let targets: Vec<u32> = (0..m).map(|_| self.noise.below(vocab as u32)).collect();
            let mut weights = self.floats(m, 1.0);
            if let [first, ..] = &mut weights[..] {
                *first = 0.0;
            }
            self.case(&format!("cross-entropy of {m} x {vocab}"), self.near.losses, &|device| {
                let (logits, parts) = (floats(device, &logits), floats(device, &vec![1.0; m * 3]));
                device.cross_entropy(at(&logits), vocab, &targets, &weights, at(&parts));
                vec![read(device, &logits), read(device, &parts)]
            });
        }
    }

    #[allow(clippy::single_range_in_vec_init, reason = "a sequence alone is a case too")]
    pub(super) fn attention(&mut self) {
        let near = self.near;
        let of = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
        let cases: [(AttentionShape, usize, &[Range<usize>]); 9] = [
            (of(1, 1, 2), 1, &[0..1]),
            (of(2, 1, 8), 70, &[0..70]),
            // Rows outside of every span, one of them empty.
            (of(4, 2, 20), 60, &[3..10, 10..11, 15..15, 20..58]),
            (of(3, 3, 64), 70, &[0..67]),
            (of(2, 2, 128), 40, &[1..39]),
            // Several segments, and a last one of one position.
            (of(2, 1, 16), 530, &[0..257, 257..530]),
            (of(1, 1, 6), 600, &[2..600]),
            // Large heads.
            (of(2, 1, 150), 300, &[0..290]),
            (of(1, 1, 260), 40, &[0..40]),
        ];
        for (shape, rows, spans) in cases {
            let (cols, wide) = (shape.qkv_cols(), shape.heads * shape.head_dim);
            let qkv = self.floats(rows * cols, 2.0);
            let dout = self.floats(rows * wide, 1.0);
            let name = format!("attention of {shape:?}, {spans:?}");
            let sums = vec![1.0; rows * shape.heads * 2];
            self.case(&name, near.attention, &|device| {
                let [qkv, out, sums] = [&qkv, &dout, &sums].map(|values| floats(device, values));
                device.attend(Sequences { qkv: at(&qkv), rows, shape, spans }, at(&out), at(&sums));
                vec![read(device, &out), read(device, &sums)]
            });
            for (terms, near) in [(Terms::F32, near.attention), (Terms::Bf16, near.attention_bf16)] {
                self.case(&format!("way back, {terms:?}, through {name}"), near, &|device| {
                    let [given, out, sums] = [&qkv, &dout, &sums].map(|values| floats(device, values));
                    let sequences = Sequences { qkv: at(&given), rows, shape, spans };
                    device.attend(sequences, at(&out), at(&sums));
                    let (slopes, dqkv) = (floats(device, &dout), floats(device, &qkv));
                    let gave = (at(&out), at(&sums));
                    device.attend_backward(sequences, gave, at(&slopes), terms, at(&dqkv));
                    // Rows outside of every span have no meaning.
                    let got = read(device, &dqkv);
                    spans.iter().map(|s| got[LEAD..][s.start * cols..s.end * cols].to_vec()).collect()
                });
            }
            if shape.head_dim % 2 == 0 {
                let half = shape.head_dim / 2;
                let positions: Vec<u32> = (0..rows).map(|_| self.noise.below(50)).collect();
                let angles = self.floats(50 * half, 3.0);
                let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
                for back in [false, true] {
                    self.case(&format!("rotation of {shape:?}"), near.elements, &|device| {
                        let [qkv, cos, sin] = [&qkv, &cos, &sin].map(|values| floats(device, values));
                        device.rotate(at(&qkv), shape, &positions, at(&cos), at(&sin), back);
                        vec![read(device, &qkv)]
                    });
                }
            }
        }
    }

    pub(super) fn steps(&mut self) {
        let near = self.near.elements;
        for len in [0, 1, 1000] {
            let (p, gradient) = (self.floats(len, 1.0), self.floats(len, 0.1));
            let (m, mut v) = (self.floats(len, 0.1), self.floats(len, 0.01));
            v.iter_mut().for_each(|v| *v = v.abs());
            for (pull, keep) in [(0.0, 0.999), (0.01, 1.0)] {
                self.case(&format!("Adam of {len}"), near, &|device| {
                    let kept = [&p, &gradient, &m, &v].map(|values| floats(device, values));
                    device.adam(&AdamStep {
                        p: at(&kept[0]),
                        gradient: at(&kept[1]),
                        m: at(&kept[2]),
                        v: at(&kept[3]),
                        len,
                        scale: 0.75,
                        pull,
                        keep,
                        step: 1e-3,
                        root: 0.3,
                        first: (0.9, 0.1),
                        second: (0.999, 0.001),
                        eps: 1e-8,
                    });
                    kept.iter().map(|memory| read(device, memory)).collect()
                });
            }
            for nesterov in [false, true] {
                self.case(&format!("SGD of {len}"), near, &|device| {
                    let kept = [&p, &gradient, &m].map(|values| floats(device, values));
                    device.sgd(&SgdStep {
                        p: at(&kept[0]),
                        gradient: at(&kept[1]),
                        buffer: at(&kept[2]),
                        len,
                        scale: 0.75,
                        momentum: 0.9,
                        keep: 0.999,
                        rate: 1e-2,
                        nesterov,
                    });
                    kept.iter().map(|memory| read(device, memory)).collect()
                });
            }
        }
    }
}
