//! What every backend is asked: the same operations on the same numbers, so that one can be compared with another.

use crate::tensors::Noise;
use bitnet_core::{
    Activation, ActivationPrecision, AttentionShape, Backend, DenseMatrix, DenseType, KV_BLOCK, KvSpan,
    KvSpec, KvType, Logits, LogitsNeed, Matrix, Purpose, RopeRows, Scale, TernaryMatrix,
};

/// How near two backends have to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// To the last bit.
    Exact,
    /// Within the bound of rule 17 of `docs/numerics.md`, of the largest magnitude of a row.
    Near,
}

/// The result of one operation.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The operation and what is special about it.
    pub name: String,
    /// Columns of `values`.
    pub cols: usize,
    /// Row-major.
    pub values: Vec<f32>,
    /// How near another backend's must come.
    pub agreement: Agreement,
}

/// Requires the very same bits, and names the first element that has others.
///
/// # Panics
/// One differs, or there are more of one than of the other.
pub fn assert_same_bits(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}");
    let off = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = off {
        panic!("{name}, element {at} of {}: {:e} for {:e}", got.len(), got[at], want[at]);
    }
}

/// Rule 17 of `docs/numerics.md`: what floats of a backend without the defined order may be off, of the largest magnitude of a row.
pub const NEAR: f32 = 1.0 / 131_072.0;

/// Compares a backend's answers with another's, and gives the largest difference of those that need not be equal.
///
/// # Panics
/// When one is farther off than it may be.
pub fn compare(got: &[Answer], want: &[Answer]) -> f32 {
    assert_eq!(got.len(), want.len());
    let mut worst = 0.0f32;
    for (got, want) in got.iter().zip(want) {
        let name = &want.name;
        assert_eq!((&got.name, got.cols, got.values.len()), (name, want.cols, want.values.len()));
        assert!(want.values.iter().any(|v| *v != 0.0), "{name}: zeros say nothing");
        if want.agreement == Agreement::Exact {
            assert_eq!(got.values, want.values, "{name}");
            continue;
        }
        for (row, (got, want)) in got.values.chunks(got.cols).zip(want.values.chunks(want.cols)).enumerate() {
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (col, (got, want)) in got.iter().zip(want).enumerate() {
                let off = (got - want).abs() / largest.max(f32::MIN_POSITIVE);
                assert!(off <= NEAR, "{name}, row {row} column {col}: {got} for {want}, off by {off}");
                worst = worst.max(off);
            }
        }
    }
    worst
}

/// All operations, asked of a backend that caches keys and values in these types.
pub fn answers<B: Backend>(b: &B, caches: &[KvType]) -> Vec<Answer> {
    let mut asked = Asked { b, noise: Noise(11), answers: Vec::new() };
    asked.embeddings();
    asked.ternary_products();
    asked.dense_products();
    asked.norms();
    asked.elementwise();
    asked.low_rank();
    asked.head();
    for key in caches {
        for value in caches {
            asked.attention(*key, *value);
        }
    }
    asked.answers
}

const DENSE: [DenseType; 7] = [
    DenseType::F32,
    DenseType::F16,
    DenseType::BF16,
    DenseType::Q8_0,
    DenseType::Q4_0,
    DenseType::Q6_K,
    DenseType::Q4_1,
];

struct Asked<'a, B: Backend> {
    b: &'a B,
    noise: Noise,
    answers: Vec<Answer>,
}

impl<B: Backend> Asked<'_, B> {
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.noise.unit() as f32 * 2.0).collect()
    }

    /// Activations that are whole multiples of an int8 step, so that no backend rounds one the other way.
    fn steps(&mut self, m: usize, k: usize, step: f32) -> Vec<f32> {
        let mut row = || -> Vec<f32> {
            let mut row: Vec<f32> = (0..k).map(|_| (self.noise.below(255) as f32 - 127.0) * step).collect();
            row[0] = 127.0 * step;
            row
        };
        (0..m).flat_map(|_| row()).collect()
    }

    fn ternary(&mut self, rows: usize, cols: usize, scale: Scale) -> Matrix {
        let trits: Vec<i8> = (0..rows * cols).map(|_| self.noise.below(3) as i8 - 1).collect();
        Matrix::Ternary(TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap())
    }

    fn dense(&mut self, rows: usize, cols: usize, dtype: DenseType) -> Matrix {
        let (values, len) = dtype.block();
        let mut data = Vec::new();
        for _ in 0..rows * cols / values {
            let mut block: Vec<u8> = (0..len).map(|_| self.noise.below(256) as u8).collect();
            let float = self.floats(1)[0];
            // An f16 from 0.5 to 2, of either sign.
            let half = (0x3800 | (self.noise.below(0x800) as u16) | ((self.noise.below(2) as u16) << 15))
                .to_le_bytes();
            match dtype {
                DenseType::F32 => block.copy_from_slice(&float.to_le_bytes()),
                DenseType::F16 => block.copy_from_slice(&half),
                DenseType::BF16 => block.copy_from_slice(&float.to_le_bytes()[2..]),
                DenseType::Q8_0 | DenseType::Q4_0 => block[..2].copy_from_slice(&half),
                DenseType::Q4_1 => block[..4].copy_from_slice(&[half, half].concat()),
                DenseType::Q6_K => block[208..].copy_from_slice(&half),
            }
            data.extend(block);
        }
        Matrix::Dense(DenseMatrix::new(rows, cols, dtype, data.into()).unwrap())
    }

    fn prepare(&self, stacked: &[Matrix], act: ActivationPrecision, purpose: Purpose) -> B::Weight {
        self.b.prepare(stacked, act, purpose).unwrap()
    }

    /// A tensor `[m, values / m]` of these numbers: rows of an embedding.
    fn tensor(&self, values: &[f32], m: usize) -> B::Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let rows = DenseMatrix::new(m, values.len() / m, DenseType::F32, bytes.into()).unwrap();
        let w = self.prepare(&[Matrix::Dense(rows)], ActivationPrecision::Float, Purpose::Product);
        let (mut out, ids) = (self.b.tensor(), (0..m as u32).collect::<Vec<_>>());
        self.b.embed(&w, &ids, &mut out).unwrap();
        out
    }

    fn take(&mut self, name: &str, cols: usize, x: &B::Tensor, agreement: Agreement) {
        let mut values = Vec::new();
        self.b.download(x, &mut values).unwrap();
        self.answers.push(Answer { name: name.to_owned(), cols, values, agreement });
    }

    fn embeddings(&mut self) {
        let ids = [3, 0, 36, 36, 17];
        let groups = self.floats(37 * 4).into();
        let mut tables: Vec<(String, usize, Matrix)> = vec![
            ("a scale".to_owned(), 203, self.ternary(37, 203, Scale::Tensor(0.37))),
            (
                "group scales".to_owned(),
                256,
                self.ternary(37, 256, Scale::Groups { size: 64, values: groups }),
            ),
        ];
        for dtype in DENSE {
            let cols = if dtype.block().0 == 1 { 203 } else { 512 };
            tables.push((dtype.name().to_owned(), cols, self.dense(37, cols, dtype)));
        }
        for (name, cols, table) in tables {
            let w = self.prepare(&[table], ActivationPrecision::Int8, Purpose::Product);
            let mut out = self.b.tensor();
            self.b.embed(&w, &ids, &mut out).unwrap();
            self.take(&format!("embedding, {name}"), cols, &out, Agreement::Exact);
        }
    }

    fn product(&mut self, name: &str, w: &B::Weight, n: usize, x: (&[f32], usize), agreement: Agreement) {
        let (x, mut out) = (self.tensor(x.0, x.1), self.b.tensor());
        self.b.linear(&x, w, &mut out);
        self.take(name, n, &out, agreement);
    }

    fn ternary_products(&mut self) {
        let (n, k) = (77, 331);
        for m in [1, 2, 5, 33, 70] {
            // One a step, and a scale of one: what comes out is the integer.
            let w = [self.ternary(n, k, Scale::Tensor(1.0))];
            let w = self.prepare(&w, ActivationPrecision::Int8, Purpose::Product);
            let x = self.steps(m, k, 1.0);
            self.product(&format!("integers of {m} tokens"), &w, n, (&x, m), Agreement::Exact);
            let rows = self.floats(20).into();
            let stack =
                [self.ternary(20, k, Scale::Rows(rows)), self.ternary(n - 20, k, Scale::Tensor(0.37))];
            let w = self.prepare(&stack, ActivationPrecision::Int8, Purpose::Product);
            let x = self.steps(m, k, 0.0123);
            self.product(&format!("ternary stack, {m} tokens"), &w, n, (&x, m), Agreement::Near);
        }
        for (size, k) in [(16usize, 304usize), (32, 320), (64, 331), (128, 256)] {
            let groups = self.floats(n * k.div_ceil(size)).into();
            let w = [self.ternary(n, k, Scale::Groups { size, values: groups })];
            let int8 = self.prepare(&w, ActivationPrecision::Int8, Purpose::Product);
            let float = self.prepare(&w, ActivationPrecision::Float, Purpose::Product);
            let (steps, floats) = (self.steps(3, k, 0.01), self.floats(3 * k));
            self.product(&format!("groups of {size}, int8"), &int8, n, (&steps, 3), Agreement::Near);
            self.product(&format!("groups of {size}, floats"), &float, n, (&floats, 3), Agreement::Near);
        }
        let w = [self.ternary(n, k, Scale::Tensor(0.3)), self.dense(3, k, DenseType::F32)];
        let w = self.prepare(&w, ActivationPrecision::Float, Purpose::Product);
        let x = self.floats(5 * k);
        self.product("ternary and dense stacked, floats", &w, n + 3, (&x, 5), Agreement::Near);
        let gate_up = [self.ternary(n, k, Scale::Tensor(0.3)), self.ternary(n, k, Scale::Tensor(0.2))];
        for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
            let w = self.prepare(&gate_up, ActivationPrecision::Int8, Purpose::GateUp(act));
            for m in [1, 6] {
                let x = self.steps(m, k, 0.001);
                let x = self.tensor(&x, m);
                let (mut wide, mut out) = (self.b.tensor(), self.b.tensor());
                self.b.gated(&x, &w, act, &mut wide, &mut out);
                self.take(&format!("gated product, {act:?}, {m} tokens"), n, &out, Agreement::Near);
            }
        }
    }

    fn dense_products(&mut self) {
        for dtype in DENSE {
            let (n, k) = (37, if dtype.block().0 == 1 { 203 } else { 512 });
            let w = [self.dense(n, k, dtype)];
            let w = self.prepare(&w, ActivationPrecision::Int8, Purpose::Product);
            for m in [1, 2, 9] {
                let x = self.floats(m * k);
                let name = format!("dense product, {}, {m} tokens", dtype.name());
                self.product(&name, &w, n, (&x, m), Agreement::Near);
            }
        }
    }

    fn norms(&mut self) {
        let (m, n) = (3, 700);
        let (x, w) = (self.floats(m * n), self.floats(n));
        let (x, w) = (self.tensor(&x, m), self.b.vector(&w).unwrap());
        let mut out = self.b.tensor();
        self.b.rms_norm(&x, &w, 1e-5, &mut out);
        self.take("norm", n, &out, Agreement::Near);
        let w = self.floats(20);
        let w = self.b.vector(&w).unwrap();
        let mut x = x;
        self.b.rms_norm_heads(&mut x, 2, 5, 20, &w, 1e-6);
        self.take("norm of heads", n, &x, Agreement::Near);
    }

    fn elementwise(&mut self) {
        let (m, n) = (5, 150);
        let (x, y) = (self.floats(m * n), self.floats(m * n));
        let (mut x, y) = (self.tensor(&x, m), self.tensor(&y, m));
        self.b.add(&mut x, &y);
        self.take("sum", n, &x, Agreement::Exact);
        self.b.scale(&mut x, 1.7);
        self.take("multiple", n, &x, Agreement::Exact);
        let mut joined = self.b.tensor();
        let z = self.floats(m * 7);
        let z = self.tensor(&z, m);
        self.b.join(&[y, z, x], &mut joined);
        self.take("joined rows", 2 * n + 7, &joined, Agreement::Exact);
        for rows in [&[0, 1, 2][..], &[1, 3, 4], &[4]] {
            let values = self.floats(m * n);
            let mut x = self.tensor(&values, m);
            self.b.keep_rows(&mut x, rows);
            self.take("kept rows", n, &x, Agreement::Exact);
        }
        for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
            let wide = self.floats(m * n).iter().map(|v| v * 6.0).collect::<Vec<_>>();
            let (wide, mut out) = (self.tensor(&wide, m), self.b.tensor());
            self.b.gate(&wide, act, &mut out);
            self.take(&format!("gate, {act:?}"), n / 2, &out, Agreement::Near);
        }
    }

    fn low_rank(&mut self) {
        let (m, n, k) = (6, 40, 77);
        for r in [1, 4] {
            let (a, c) = ([self.dense(r, k, DenseType::F32)], [self.dense(n, r, DenseType::BF16)]);
            let a = self.prepare(&a, ActivationPrecision::Float, Purpose::Adapter);
            let c = self.prepare(&c, ActivationPrecision::Float, Purpose::Adapter);
            let (x, y) = (self.floats(m * k), self.floats(m * 50));
            let (x, mut y) = (self.tensor(&x, m), self.tensor(&y, m));
            self.b.add_low_rank(&x, 2..5, (&a, &c), 0.3, &mut y, 7);
            self.take(&format!("low-rank addition of rank {r}"), 50, &y, Agreement::Near);
        }
    }

    fn head(&mut self) {
        let (m, n, k) = (3, 301, 256);
        let w = [self.dense(n, k, DenseType::Q6_K)];
        let w = self.prepare(&w, ActivationPrecision::Int8, Purpose::Head);
        let x = self.floats(m * k);
        let (x, mut out) = (self.tensor(&x, m), Logits::default());
        self.b.head(&x, &w, &vec![LogitsNeed::All; m], &mut out).unwrap();
        assert!(out.rows().all(|(ids, values)| ids.is_empty() && values.len() == n));
        let name = "head".to_owned();
        self.answers.push(Answer { name, cols: n, values: out.values.to_vec(), agreement: Agreement::Near });
    }

    /// Two sequences over more than one segment, in blocks that lie among each other, in steps of several sizes; with a window;
    /// and again from a copy of a block.
    fn attention(&mut self, key: KvType, value: KvType) {
        // Heads with several scales, the last of which fewer elements share.
        let head_dim = if [key, value].contains(&KvType::Q8_0) { 72 } else { 24 };
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim };
        let spec = KvSpec { layers: 2, shape, capacity: 12 * KV_BLOCK, key, value };
        let mut kv = self.b.kv(spec).unwrap();
        let (long, short): (&[u32], &[u32]) = (&[3, 0, 7, 1, 9], &[4, 2]);
        let half = shape.head_dim / 2;
        let steps: [&[(usize, usize, &[u32])]; 5] = [
            &[(0, 40, long)],
            &[(40, 225, long), (0, 1, short)],
            &[(1, 69, short)],
            &[(265, 1, long), (70, 1, short)],
            &[(266, 30, long)],
        ];
        for (number, step) in steps.iter().enumerate() {
            let spans: Vec<KvSpan<'_>> =
                step.iter().map(|&(start, len, blocks)| KvSpan { start, len, blocks }).collect();
            let m: usize = spans.iter().map(|s| s.len).sum();
            let qkv = self.floats(m * shape.qkv_cols());
            let (cos, sin) = if key == KvType::F32 {
                (self.floats(m * half), self.floats(m * half))
            } else {
                self.quarter_turns(m * half)
            };
            let mut qkv = self.tensor(&qkv, m);
            let layer = number % 2;
            // Both layers get the keys, so that each is whole.
            let mut other = self.tensor_of(&qkv, m);
            self.b.rope_append(&mut qkv, RopeRows { cos: &cos, sin: &sin }, &mut kv, layer, &spans).unwrap();
            self.b
                .rope_append(&mut other, RopeRows { cos: &cos, sin: &sin }, &mut kv, 1 - layer, &spans)
                .unwrap();
            let mut out = self.b.tensor();
            for window in [None, Some(5), Some(300)] {
                self.b.attend(&qkv, &kv, layer, &spans, window, &mut out);
                let name = format!("attention, {key:?} and {value:?}, step {number}, window {window:?}");
                self.take(&name, shape.heads * shape.head_dim, &out, Agreement::Near);
            }
            if number == 4 {
                let mut block = Vec::new();
                self.b.save_block(&kv, 9, &mut block).unwrap();
                assert_eq!(block.len(), self.b.block_bytes(&kv));
                self.b.copy_block(&mut kv, 7, 11);
                self.b.load_block(&mut kv, 10, &block);
                let moved = [KvSpan { blocks: &[3, 0, 11, 1, 10], ..spans[0] }];
                self.b.attend(&qkv, &kv, layer, &moved, None, &mut out);
                self.take(
                    "attention over copied blocks",
                    shape.heads * shape.head_dim,
                    &out,
                    Agreement::Near,
                );
            }
        }
    }

    /// Cosines and sines of quarter turns: the rotated numbers are exact, so that all backends round the same ones for the cache.
    fn quarter_turns(&mut self, len: usize) -> (Vec<f32>, Vec<f32>) {
        let turns: Vec<usize> = (0..len).map(|_| self.noise.below(4) as usize).collect();
        let of = |quarter: [f32; 4]| turns.iter().map(|turn| quarter[*turn]).collect();
        (of([1.0, 0.0, -1.0, 0.0]), of([0.0, 1.0, 0.0, -1.0]))
    }

    /// The same numbers in a tensor of their own.
    fn tensor_of(&self, x: &B::Tensor, m: usize) -> B::Tensor {
        let mut values = Vec::new();
        self.b.download(x, &mut values).unwrap();
        let mut out = self.b.tensor();
        self.b.upload(&values, values.len() / m, &mut out).unwrap();
        out
    }
}
