//! Norms, quantization, the loss and lengths.

use super::stream::{Stream, bits};
use super::words;
use crate::driver::Function;
use bitnet_core::{At, BackendError, DeviceNorm};
use bitnet_memory::Tag;

/// Rows whose gradients of a norm's weight are summed together, as the processor sums them.
const PIECE: usize = 64;
/// Elements whose squares are summed together.
const SQUARES: usize = 1 << 15;
/// Lanes of L16, and threads of a block that works on rows.
const LANES: usize = 16;
const THREADS: usize = 256;

/// Launches half a warp a row.
fn run_halves(s: &Stream, kernel: Function, rows: usize, params: &[u64]) {
    s.run(kernel, [rows.div_ceil(THREADS / LANES), 1, 1], THREADS as u32, 0, params);
}

pub(super) fn norm(s: &Stream, norm: DeviceNorm<'_>, y: At<'_>) {
    let DeviceNorm { x, w, sizes: (m, n), eps } = norm;
    let params = [s.floats(y, m * n), s.floats(x, m * n), s.floats(w, n), m as u64, n as u64, bits(eps)];
    run_halves(s, s.kernels.train_norm, m, &params);
}

pub(super) fn norm_backward(
    s: &Stream,
    norm: DeviceNorm<'_>,
    dy: At<'_>,
    add: bool,
    dx: At<'_>,
    dw: Option<At<'_>>,
) {
    let DeviceNorm { x, w, sizes: (m, n), eps } = norm;
    let (x, w, dy, dx) = (s.floats(x, m * n), s.floats(w, n), s.floats(dy, m * n), s.floats(dx, m * n));
    let Some(factors) = s.room(m * 4) else { return };
    let factors = factors.address();
    let params = [dx, factors, x, w, dy, m as u64, n as u64, bits(eps), u64::from(add)];
    run_halves(s, s.kernels.train_norm_back, m, &params);
    let Some(dw) = dw.filter(|_| m > 0) else { return };
    let (dw, pieces, blocks) = (s.floats(dw, n), m.div_ceil(PIECE), n.div_ceil(THREADS));
    let Some(parts) = s.room(pieces * n * 4) else { return };
    let parts = parts.address();
    let params = [parts, factors, x, dy, m as u64, n as u64, PIECE as u64];
    s.run(s.kernels.train_norm_parts, [blocks, pieces, 1], THREADS as u32, 0, &params);
    let params = [dw, parts, pieces as u64, n as u64];
    s.run(s.kernels.train_norm_weight, [blocks, 1, 1], THREADS as u32, 0, &params);
}

/// The address of rows of integers, which are words of four.
fn integers(s: &Stream, codes: At<'_>, rows: usize, cols: usize, stride: usize) -> u64 {
    assert!(
        codes.first.is_multiple_of(16) && stride.is_multiple_of(16),
        "rows of integers begin at multiples of 16"
    );
    assert!(cols <= stride, "rows of integers have room for what is in them");
    s.bytes(codes.memory, codes.first, rows * stride)
}

pub(super) fn quantize(
    s: &Stream,
    x: At<'_>,
    (m, k): (usize, usize),
    codes: At<'_>,
    stride: usize,
    d: At<'_>,
) {
    let params = [
        integers(s, codes, m, k, stride),
        s.floats(d, m),
        s.floats(x, m * k),
        m as u64,
        k as u64,
        stride as u64 / 4,
    ];
    s.run(s.kernels.train_quantize, [m.div_ceil(THREADS / 32), 1, 1], THREADS as u32, 0, &params);
}

pub(super) fn absmean(
    s: &Stream,
    masters: At<'_>,
    (rows, cols): (usize, usize),
    codes: At<'_>,
    stride: usize,
    scale: At<'_>,
) {
    let (w, codes) = (s.floats(masters, rows * cols), integers(s, codes, rows, cols, stride));
    let scale = s.floats(scale, 1);
    // The sums of rows, and behind them what weights are multiplied with.
    let Some(room) = s.room(rows * 8 + 8) else { return };
    let (sums, factor) = (room.address(), room.address() + 8 * rows as u64);
    run_halves(s, s.kernels.train_magnitudes, rows, &[sums, w, rows as u64, cols as u64]);
    let count = (rows * cols).max(1) as f64;
    let params = [scale, factor, sums, rows as u64, count.to_bits()];
    s.run(s.kernels.train_mean, [1, 1, 1], THREADS as u32, 0, &params);
    let (words, all) = (stride / 4, rows * stride / 4);
    let params = [codes, w, factor, cols as u64, words as u64, all as u64];
    s.run_elements(s.kernels.train_trits, all, &params);
}

pub(super) fn cross_entropy(
    s: &Stream,
    logits: At<'_>,
    vocab: usize,
    targets: &[u32],
    weights: &[f32],
    parts: At<'_>,
) {
    let m = targets.len();
    assert_eq!(m, weights.len(), "a target has a weight");
    assert!(targets.iter().all(|target| (*target as usize) < vocab), "targets are inside the vocabulary");
    let (logits, parts) = (s.floats(logits, m * vocab), s.floats(parts, m * 3));
    let weights: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
    let Some(given) = s.given(&words(&[targets, &weights].concat())) else { return };
    let (targets, weights) = (given.address(), given.address() + 4 * m as u64);
    let params = [logits, parts, targets, weights, vocab as u64];
    s.run(s.kernels.train_cross_entropy, [m, 1, 1], THREADS as u32, 0, &params);
}

pub(super) fn length(s: &Stream, x: At<'_>, len: usize) -> Result<f64, BackendError> {
    let pieces = len.div_ceil(SQUARES);
    let room = s.take(pieces * 8, Tag::Scratch, "the length of a gradient")?;
    let params = [room.address(), s.floats(x, len), len as u64, SQUARES as u64];
    run_halves(s, s.kernels.train_squares, pieces, &params);
    let mut sums = vec![0; pieces * 8];
    s.read(&room, 0, &mut sums)?;
    Ok(sums.as_chunks().0.iter().map(|sum| f64::from_le_bytes(*sum)).sum::<f64>().sqrt())
}
