//! The operations of training on a device with memory of its own.

use crate::{Activation, AttentionShape, BackendError};
use bitnet_memory::Tag;
use std::any::Any;
use std::fmt;
use std::ops::Range;

/// How the terms of a product are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terms {
    /// As they are (rule 18 of `docs/numerics.md`).
    #[default]
    F32,
    /// Rounded to bf16 (rule 19).
    Bf16,
}

/// Memory of a device. Dropped, it goes back to whoever gave it.
pub struct Memory {
    bytes: usize,
    held: Box<dyn Any + Send + Sync>,
}

impl Memory {
    /// What a device holds, and its size.
    pub fn new(bytes: usize, held: impl Any + Send + Sync) -> Self {
        Self { bytes, held: Box::new(held) }
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the device holds; `None` where it is another device's.
    pub fn held<T: Any>(&self) -> Option<&T> {
        self.held.downcast_ref()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes)
    }
}

/// Elements of a device's memory from some element on.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The memory.
    pub memory: &'a Memory,
    /// The first element, in elements of its type.
    pub first: usize,
}

impl<'a> At<'a> {
    /// All of it.
    pub fn start(memory: &'a Memory) -> Self {
        Self { memory, first: 0 }
    }

    /// From `count` elements further on.
    pub fn skip(self, count: usize) -> Self {
        Self { first: self.first + count, ..self }
    }
}

/// Elements of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub enum DeviceValues<'a> {
    /// As they are.
    F32(At<'a>),
    /// Integers. The first one's place and the stride are multiples of 16.
    I8(At<'a>),
    /// Trits in the canonical form ([`crate::TernaryMatrix`]): `code = trit + 1`, four a byte, lowest bits first. The stride is in trits, a multiple
    /// of 128, and a matrix begins at byte `first`.
    Trits(At<'a>),
}

/// One side of a product: vectors of length `k`, which are rows or columns of what is stored.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSide<'a> {
    /// What is stored.
    pub values: DeviceValues<'a>,
    /// Elements from one row of what is stored to the next.
    pub stride: usize,
    /// Whether vectors are columns of it: element `p` of vector `i` is at `p * stride + i`, and not at `i * stride + p`.
    pub columns: bool,
    /// `[k]`: what element `p` of every vector is multiplied with, in f32, before it is rounded.
    pub factors: Option<At<'a>>,
}

/// A multiplier.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// Known on the host.
    Value(f32),
    /// One element of the device's memory.
    One(At<'a>),
    /// One for each row of the result (`m` of them).
    Rows(At<'a>),
    /// One for each column of the result (`n` of them).
    Columns(At<'a>),
}

/// What becomes of the sum of a product.
#[derive(Clone, Copy, Debug)]
pub enum DeviceStore<'a> {
    /// It takes the element's place: `sum * (rows * scale)` where both are given, the product of the two first, as rule 5 says.
    Set {
        /// One for each row.
        rows: Option<At<'a>>,
        /// Another one.
        scale: Factor<'a>,
    },
    /// Times a factor it is added: `c + sum * scale`.
    Add {
        /// The factor.
        scale: Factor<'a>,
    },
    /// It goes on from the element, which an earlier product set with a factor of 1.
    Continue,
}

/// `c[i, j] = sum over p of a[i, p] * b[j, p]` for `m` times `n` elements and `k` terms.
///
/// Where both sides are integers (int8 or trits, without factors) the sum is exact, whatever the terms are to be. `a` is never [`DeviceValues::Trits`].
/// Columns `first..first + n` of the rows of `c` are written, and no others.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// How terms are multiplied where they are not integers.
    pub terms: Terms,
    /// `(m, n, k)`; any of them may be 0. With `k` of 0, sums are 0.
    pub sizes: (usize, usize, usize),
    /// The left side.
    pub a: DeviceSide<'a>,
    /// The right side.
    pub b: DeviceSide<'a>,
    /// What becomes of sums.
    pub store: DeviceStore<'a>,
    /// Where they go; it is the memory of neither side. It begins at column 0 of the first row.
    pub c: At<'a>,
    /// Elements of a row of `c`.
    pub stride: usize,
    /// The first column that is written.
    pub first: usize,
}

/// Sequences side by side in rows of `qkv`, and how their heads lie.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// Rotated queries and keys, and values: `[m, qkv_cols]`.
    pub qkv: At<'a>,
    /// All rows, those outside of every span included.
    pub rows: usize,
    /// How heads lie in a row.
    pub shape: AttentionShape,
    /// Rows of each sequence, ascending and disjoint; its first row is position 0.
    pub spans: &'a [Range<usize>],
}

/// What a norm `y = x / rms(x) * w` is of.
#[derive(Clone, Copy, Debug)]
pub struct DeviceNorm<'a> {
    /// Rows, `[m, n]`.
    pub x: At<'a>,
    /// The weight, `[n]`.
    pub w: At<'a>,
    /// `(m, n)`.
    pub sizes: (usize, usize),
    /// What is added to the mean square.
    pub eps: f32,
}

/// A step of Adam: `g = gradient * scale + pull * p`, `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) (g g)`,
/// `p = p * keep - step * (m / (sqrt(v) / root + eps))`, each operation rounded by itself.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the formula names them")]
pub struct AdamStep<'a> {
    pub p: At<'a>,
    pub gradient: At<'a>,
    pub m: At<'a>,
    pub v: At<'a>,
    pub len: usize,
    pub scale: f32,
    pub pull: f32,
    pub keep: f32,
    pub step: f32,
    pub root: f32,
    /// `b1` and `1 - b1`, each rounded from double precision.
    pub first: (f32, f32),
    /// `b2` and `1 - b2`.
    pub second: (f32, f32),
    pub eps: f32,
}

/// A step of SGD: `g = gradient * scale`, `buffer = momentum * buffer + g`, `p = p * keep - rate * along`, where `along` is the buffer, or
/// `g + momentum * buffer` with Nesterov's look ahead.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the formula names them")]
pub struct SgdStep<'a> {
    pub p: At<'a>,
    pub gradient: At<'a>,
    pub buffer: At<'a>,
    pub len: usize,
    pub scale: f32,
    pub momentum: f32,
    pub keep: f32,
    pub rate: f32,
    pub nesterov: bool,
}

/// A matrix of which some columns are meant.
#[derive(Clone, Copy, Debug)]
pub struct ColumnsOf<'a> {
    /// Where its first row begins.
    pub at: At<'a>,
    /// Elements of a row.
    pub stride: usize,
    /// The first column that is meant.
    pub first: usize,
}

/// A device that computes what training consists of.
///
/// Matrices are f32 and row-major unless something else is said; `m` tokens, `n` output and `k` input features. An operation may only be
/// recorded when its method returns; operations take effect in the order in which they are asked for, whatever thread asks. What goes
/// wrong is kept, and everything that is computed from there on has no meaning: [`TrainingDevice::failure`] tells, and so does whatever
/// copies to the host. No operation reads memory that it writes, but where it is said to work in place.
///
/// Each formula is that of the CPU (`docs/numerics.md`); how near a device comes to its bits is told there too. Results are the same each time.
pub trait TrainingDevice: Send + Sync + fmt::Debug {
    /// `cuda:0` or the like.
    fn name(&self) -> &str;

    /// Memory without meaning in it, for this. Its size may be 0.
    ///
    /// # Errors
    /// There is not enough.
    fn memory(&self, bytes: usize, tag: Tag) -> Result<Memory, BackendError>;

    /// Copies bytes to the device, `from` bytes behind the memory's beginning; `from` and the length are multiples of 4.
    fn upload(&self, memory: &Memory, from: usize, bytes: &[u8]);

    /// Copies bytes to the host; the same multiples.
    ///
    /// # Errors
    /// Something went wrong on the device since the last failure was told.
    fn download(&self, memory: &Memory, from: usize, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// What went wrong since the last call. It waits for nothing.
    fn failure(&self) -> Option<BackendError>;

    /// A product of two matrices.
    fn product(&self, product: &Product<'_>);

    /// `to = a * x + b * y` for `len` elements, each operation rounded by itself; a factor of 0 leaves its term out, whatever is in it.
    /// `to` may be the place of `x` or of `y`.
    fn mix(&self, x: At<'_>, a: f32, y: At<'_>, b: f32, to: At<'_>, len: usize);

    /// Every element becomes this one.
    fn fill(&self, to: At<'_>, len: usize, value: f32);

    /// Copies `count` columns of `rows` rows.
    fn columns(&self, from: ColumnsOf<'_>, to: ColumnsOf<'_>, rows: usize, count: usize);

    /// Row `ids[i]` of `table [_, n]` becomes row `i` of `to`.
    fn gather(&self, table: At<'_>, ids: &[u32], n: usize, to: At<'_>);

    /// Row `i` of `from [ids, n]` is added to row `ids[i]` of `table`: rows of the same id in their order.
    fn scatter(&self, from: At<'_>, ids: &[u32], n: usize, table: At<'_>);

    /// Rule 3.
    fn norm(&self, norm: DeviceNorm<'_>, y: At<'_>);

    /// `dx [m, n]`, set or added to, and `dw [n]`, added to where it is wanted, from `dy [m, n]`.
    fn norm_backward(&self, norm: DeviceNorm<'_>, dy: At<'_>, add: bool, dx: At<'_>, dw: Option<At<'_>>);

    /// Rule 4: codes `[m, stride]` of int8, zero behind a row's own `k`, and `d [m]`, f32. The stride is a multiple of 16.
    fn quantize(&self, x: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, d: At<'_>);

    /// Rule 7 of master weights `[rows, cols]`: trits as int8 `[rows, stride]`, zero behind a row's own, and the scale, one f32.
    fn absmean(&self, masters: At<'_>, sizes: (usize, usize), codes: At<'_>, stride: usize, scale: At<'_>);

    /// Turns the heads of queries and keys in rows of `qkv` by the angles of their positions, in place; back where `back` says so. `cos` and `sin`
    /// are `[positions, head_dim / 2]`; `positions` has one for each row (rule 8).
    fn rotate(
        &self,
        qkv: At<'_>,
        shape: AttentionShape,
        positions: &[u32],
        cos: At<'_>,
        sin: At<'_>,
        back: bool,
    );

    /// `out [m, heads * head_dim]` of causal attention (rules 10 and 11, keys and values in f32), and `sums [m, heads, 2]`: the largest score of a
    /// query, and the sum of its weights. Rows outside of every span are left as they are.
    fn attend(&self, sequences: Sequences<'_>, out: At<'_>, sums: At<'_>);

    /// `dqkv [m, qkv_cols]` from `dout`, with what [`TrainingDevice::attend`] gave. `terms` are those of all products but the scores.
    fn attend_backward(
        &self,
        sequences: Sequences<'_>,
        gave: (At<'_>, At<'_>),
        dout: At<'_>,
        terms: Terms,
        dqkv: At<'_>,
    );

    /// `out [m, n] = act(gate) * up` from rows `[gate | up]` of `gate_up [m, 2 n]`.
    fn gate(&self, gate_up: At<'_>, sizes: (usize, usize), act: Activation, out: At<'_>);

    /// The gradients of `gate_up` from those of what it gave.
    fn gate_backward(
        &self,
        gate_up: At<'_>,
        dout: At<'_>,
        sizes: (usize, usize),
        act: Activation,
        out: At<'_>,
    );

    /// Rows of `logits [m, vocab]` become gradients: `softmax * weight`, less the weight at the target. `parts [m, 3]` gets each row's largest
    /// logit, the sum of `exp(logit - largest)`, and the target's logit.
    fn cross_entropy(&self, logits: At<'_>, vocab: usize, targets: &[u32], weights: &[f32], parts: At<'_>);

    /// The square root of the sum of squares, for a gradient's norm.
    ///
    /// # Errors
    /// As of [`TrainingDevice::download`].
    fn length(&self, x: At<'_>, len: usize) -> Result<f64, BackendError>;

    /// A step of Adam, in place.
    fn adam(&self, step: &AdamStep<'_>);

    /// A step of SGD, in place.
    fn sgd(&self, step: &SgdStep<'_>);
}
