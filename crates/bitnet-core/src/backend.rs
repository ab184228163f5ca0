//! The dozen operations that the transformer is written over.

use crate::{KvSpan, KvSpec, Logits, LogitsNeed, Matrix, OperationTime, ShapeError};
use bitnet_memory::{DeviceMemory, OutOfMemory, Pool};
use std::ops::Range;
use std::sync::Arc;

/// How a ternary product treats its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationPrecision {
    /// Per-token absmax int8 (W1.58A8), as BitNet models are trained.
    Int8,
    /// Activations stay f32 (weight-only models).
    Float,
}

/// The nonlinearity of a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(g, 0)^2 * u`.
    Relu2,
    /// `g / (1 + exp(-g)) * u`.
    Silu,
    /// `gelu(g) * u`, by the approximation with tanh.
    Gelu,
}

/// What a weight is for. A backend may choose by it how the weight lies; any of its products gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A product like any other.
    Product,
    /// The stacked projections q, k and v of so many key-value heads, `[qkv_cols, hidden]`. What they give goes through
    /// [`Backend::add_low_rank`] and [`Backend::rms_norm_heads`] to [`Backend::rope_append`] and [`Backend::attend`], and nowhere else.
    Attention {
        /// Key-value heads.
        kv_heads: usize,
    },
    /// The stacked gate and up projections, `[2i, hidden]`, of [`Backend::gated`] with this activation.
    GateUp(Activation),
    /// The projection of what [`Backend::gated`] gave with this activation, normed or not.
    Down(Activation),
    /// Scores for every id of the vocabulary, `[vocab, hidden]`: [`Backend::head`].
    Head,
    /// One of the two matrices of [`Backend::add_low_rank`].
    Adapter,
}

/// Cosines and sines of the positions of one step, each `[m, head_dim/2]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct RopeRows<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Stacked matrices do not fit together.
    #[error("matrices stacked into one product differ in {what}: {a} and {b}")]
    Stack {
        /// What differs.
        what: &'static str,
        /// First value.
        a: usize,
        /// Second value.
        b: usize,
    },
    /// A shape and its data disagree.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The blocks given for a sequence do not hold its positions.
    #[error("the key-value cache has room for {capacity} positions of a sequence, {need} were asked for")]
    CacheFull {
        /// Positions there is room for.
        capacity: usize,
        /// Positions that were needed.
        need: usize,
    },
    /// A row id outside the embedding.
    #[error("id {id} is outside the vocabulary of {rows}")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// A weight holds NaN or infinity.
    #[error("a weight is not finite ({value})")]
    NotFinite {
        /// What was found.
        value: f32,
    },
    /// The host or the device would not give the memory.
    #[error("could not allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// Size of the request.
        bytes: usize,
        /// What it was for.
        what: &'static str,
    },
    /// The device or its driver failed; what the step was to give is lost.
    #[error("{device} failed: {why}")]
    Device {
        /// Name of the device.
        device: String,
        /// What its driver says.
        why: String,
    },
    /// The backend has no way to do this.
    #[error("{backend} cannot do {what}; {hint}")]
    Unsupported {
        /// Name of the backend.
        backend: &'static str,
        /// The request.
        what: String,
        /// What would work.
        hint: &'static str,
    },
}

impl From<OutOfMemory> for BackendError {
    fn from(OutOfMemory { bytes, tag }: OutOfMemory) -> Self {
        Self::OutOfMemory { bytes, what: tag.name() }
    }
}

/// A device that can run the transformer.
///
/// Shapes: `m` tokens of one step, `n` output features, `k` input features. Tensors are f32, row-major `[m, n]`, and a
/// caller may reuse an output tensor of another size: operations resize it. Every float result follows the one defined
/// order of operations of `docs/numerics.md`, so it does not depend on threads, batching or instruction set; that page says how
/// near to it a backend stays whose device has no such order.
///
/// A backend may only record what it is asked for, until results are copied to the host ([`Backend::head`],
/// [`Backend::download`], [`Backend::save_block`]) or the next step begins ([`Backend::embed`], [`Backend::upload`]); what went wrong until then is
/// the error there.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Activations, `[m, n]` f32.
    type Tensor: Send;
    /// A norm weight, `[n]` f32.
    type Vector: Send + Sync;
    /// Prepared matrices, `[n, k]`.
    type Weight: Send + Sync;
    /// The blocks of keys and values of all sequences, all layers.
    type Kv: Send;

    /// Where memory of the host comes from that belongs to its results and to who uses it.
    fn memory(&self) -> &Arc<Pool>;
    /// Memory of the devices that it runs on, where that is not the host's and their drivers tell.
    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        Vec::new()
    }
    /// What the device has spent on each kind of operation since this was last called, the longest first. The first call begins to measure, and from
    /// then on steps take longer, with the same results.
    ///
    /// # Errors
    /// The device does not measure its operations, or what it was asked before failed.
    fn profile(&self) -> Result<Vec<OperationTime>, BackendError>;
    /// An empty tensor, to be filled by an operation.
    fn tensor(&self) -> Self::Tensor;
    /// Uploads a norm weight.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, BackendError>;
    /// Stacks matrices by rows (q, k, v become one product) and puts them into the backend's own layout.
    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<Self::Weight, BackendError>;
    /// Bytes that a prepared weight occupies, and how many of them are still in the file's own memory map.
    fn weight_bytes(&self, w: &Self::Weight) -> (usize, usize);
    /// An empty cache.
    fn kv(&self, spec: KvSpec) -> Result<Self::Kv, BackendError>;
    /// Copies the keys and values of a block into another one.
    fn copy_block(&self, kv: &mut Self::Kv, from: u32, to: u32);

    /// Gives the memory of a block, whose keys and values nobody needs, back to the system until the block is written again; tells how
    /// many bytes. None where a cache's memory cannot be given back in parts.
    fn discard_block(&self, _kv: &mut Self::Kv, _block: u32) -> usize {
        0
    }

    /// Bytes of a block as [`Backend::save_block`] gives them.
    fn block_bytes(&self, kv: &Self::Kv) -> usize;
    /// Appends the keys and values of a block, in an order that only the same backend with the same cache types knows.
    fn save_block(&self, kv: &Self::Kv, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError>;
    /// Fills a block with as many bytes as [`Backend::block_bytes`] says.
    fn load_block(&self, kv: &mut Self::Kv, block: u32, bytes: &[u8]);

    /// `out[i] = w[ids[i]]`, dequantized.
    fn embed(&self, w: &Self::Weight, ids: &[u32], out: &mut Self::Tensor) -> Result<(), BackendError>;
    /// `out = x / rms(x) * w` for every row; `out` may not alias `x`.
    fn rms_norm(&self, x: &Self::Tensor, w: &Self::Vector, eps: f32, out: &mut Self::Tensor);
    /// RMSNorm of `count` neighbouring heads of every row in place, beginning with head `first` (rows are heads of
    /// `head_dim` elements, `w` is `[head_dim]`).
    fn rms_norm_heads(
        &self,
        x: &mut Self::Tensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &Self::Vector,
        eps: f32,
    );
    /// `out[m, n] = x[m, k] * w[n, k]^T`, with the activation precision the weight was prepared for.
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, out: &mut Self::Tensor);
    /// `y[t, first + j] = fma(b_j . (a x_t), scale, y[t, first + j])` for tokens `t` of `rows`: `a` is `[r, k]`, `b` is `[n, r]`, both
    /// dense and prepared for [`Purpose::Adapter`], `x [m, k]`, `y [m, cols]`, and `j` runs over `n`.
    fn add_low_rank(
        &self,
        x: &Self::Tensor,
        rows: Range<usize>,
        ab: (&Self::Weight, &Self::Weight),
        scale: f32,
        y: &mut Self::Tensor,
        first: usize,
    );
    /// Rotates q and k of the stacked rows `qkv [m, qkv_cols]` (half-split pairs `i, i + d/2`), writes k and v of the positions
    /// of `spans`, which have `m` tokens in all, into `layer` of the cache, and leaves the rotated q in `qkv`.
    fn rope_append(
        &self,
        qkv: &mut Self::Tensor,
        rope: RopeRows<'_>,
        kv: &mut Self::Kv,
        layer: usize,
        spans: &[KvSpan<'_>],
    ) -> Result<(), BackendError>;
    /// Causal attention of the `m` queries of `spans`, each over its own sequence: `out [m, heads * head_dim]`. With a window, a
    /// query sees so many positions, its own among them.
    fn attend(
        &self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut Self::Tensor,
    );
    /// `out[m, i] = act(gate) * up` from stacked rows `[gate | up]`, `[m, 2i]`.
    fn gate(&self, gate_up: &Self::Tensor, act: Activation, out: &mut Self::Tensor);
    /// `out[m, i] = act(x * gate^T) * (x * up^T)` for the stacked `w = [gate | up]`, `[2i, hidden]`; `wide` is room for
    /// `[m, 2i]`.
    fn gated(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        act: Activation,
        wide: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) {
        self.linear(x, w, wide);
        self.gate(wide, act, out);
    }
    /// Rows of `parts`, all of `m` rows, one behind the other: `out [m, sum of their columns]`.
    fn join(&self, parts: &[Self::Tensor], out: &mut Self::Tensor);
    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Tensor, factor: f32);
    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// The logits `x [m, hidden] * w^T` that the tokens' `needs` ask for, or more of them.
    fn head(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError>;
    /// Keeps the rows of these ascending numbers and drops the others.
    fn keep_rows(&self, x: &mut Self::Tensor, rows: &[usize]);
    /// Gives a tensor these elements, whole rows of `cols` columns; begins a step, as [`Backend::embed`] does.
    fn upload(&self, values: &[f32], cols: usize, out: &mut Self::Tensor) -> Result<(), BackendError>;
    /// Copies a tensor to the host, row-major. With [`Backend::upload`], that is how a tensor moves to another backend: not one bit of
    /// it changes.
    fn download(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<(), BackendError>;
    /// Copies a tensor of another backend of the same kind without the host, and begins a step, as [`Backend::upload`] does; false, and
    /// nothing is done, where there is no such way. What goes wrong on the other device until results are read is an error there or here.
    fn receive(
        &self,
        _from: &Self,
        _x: &Self::Tensor,
        _out: &mut Self::Tensor,
    ) -> Result<bool, BackendError> {
        Ok(false)
    }
}
