//! Rows of weights, and products with them: a launch for each part of a weight.

use crate::CudaBackend;
use crate::backend::row_bytes;
use crate::driver::{Function, Launch};
use crate::gpu::Gpu;
use crate::kernels::Kernels;
use crate::tensor::{CudaTensor, Int8, int8_words};
use crate::tuning::ProductShape;
use crate::weight::{CudaWeight, Form, Part, TILE_COLS, TILE_ROWS};
use bitnet_core::{Activation, ActivationPrecision};
use std::ops::Range;

/// A kernel for products with ternary weights and int8 activations: the rows of a result and the tokens that a block has, its
/// threads, and the bytes that they share.
struct Shape {
    kernel: Function,
    rows: usize,
    tokens: usize,
    threads: u32,
    shared: usize,
}

/// Buffers of 128 columns of activations, one byte each, that a block of many tokens has.
const STAGES: usize = 4;
/// Up to so many tokens, blocks have sixteen rows and all tokens.
const FEW_TOKENS: usize = 16;

/// The kernel for a few tokens.
fn few(k: &Kernels, m: usize, gated: bool) -> Shape {
    let pick = |plain, of_gated| if gated { of_gated } else { plain };
    let (kernel, tokens) = match m {
        1 => (pick(k.gemv, k.gemv_gated), 1),
        2..=8 => (pick(k.few_8, k.few_8_gated), 8),
        _ => (pick(k.few_16, k.few_16_gated), 16),
    };
    Shape { kernel, rows: TILE_ROWS, tokens, threads: 256, shared: 0 }
}

/// The kernels for many tokens; which one is best depends on shapes and devices.
fn many(k: &Kernels, gated: bool) -> Vec<Shape> {
    let of = |(kernel, rows, tokens, threads)| Shape {
        kernel,
        rows,
        tokens,
        threads,
        // A row of the gate comes with one of the up projection.
        shared: STAGES * TILE_COLS * tokens + STAGES * TILE_COLS / 4 * rows * if gated { 2 } else { 1 },
    };
    if gated {
        [
            (k.gemm_32x32_gated, 32, 32, 128),
            (k.gemm_32x64_gated, 32, 64, 128),
            (k.gemm_32x128_gated, 32, 128, 128),
            (k.gemm_64x128_gated, 64, 128, 256),
            (k.gemm_64x128_gated_wide, 64, 128, 128),
        ]
        .map(of)
        .into()
    } else {
        [
            (k.gemm_32x32, 32, 32, 128),
            (k.gemm_32x64, 32, 64, 128),
            (k.gemm_64x64, 64, 64, 128),
            (k.gemm_64x128, 64, 128, 128),
            (k.gemm_128x128, 128, 128, 256),
            (k.gemm_128x128_wide, 128, 128, 128),
        ]
        .map(of)
        .into()
    }
}

/// Bytes that blocks share besides, at most.
const STATIC: usize = 4096;

impl Shape {
    fn launch(&self, rows: usize, m: usize, params: &[u64]) -> (Launch, [usize; 3]) {
        let grid = [rows.div_ceil(self.rows), m.div_ceil(self.tokens), 1];
        (Launch::new(self.kernel, grid, self.threads, self.shared, params), grid)
    }
}

/// The number by which kernels know it.
pub(crate) fn number(act: Activation) -> u64 {
    match act {
        Activation::Relu2 => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
    }
}

impl CudaBackend {
    /// `out [m, cols]` from the rows with these ids.
    pub(crate) fn embed_rows(&self, w: &CudaWeight, ids: u64, m: usize, out: &CudaTensor) {
        let gpu = &self.gpu;
        let grid = [w.cols.div_ceil(128), m, 1];
        for part in &w.parts {
            let [rows, first, cols] = [part.rows, part.first, w.cols].map(|n| n as u64);
            let (data, y) = (part.data.address(), out.address());
            match &part.form {
                Form::Ternary { scales, group_words, .. } => {
                    let tiles = w.cols.div_ceil(TILE_COLS);
                    let group_words = group_words.unwrap_or(tiles * 8).max(1);
                    let scale_rows = part.rows.next_multiple_of(TILE_ROWS);
                    let scales = scales.address();
                    let [tiles, group_words, scale_rows] = [tiles, group_words, scale_rows].map(|n| n as u64);
                    let params = [ids, data, scales, y, rows, first, tiles, cols, group_words, scale_rows];
                    gpu.run(gpu.kernels.embed_ternary, grid, 128, 0, &params);
                }
                Form::Dense { dtype, row_words } => {
                    let params = [ids, data, y, rows, first, *row_words as u64, cols];
                    gpu.run(gpu.kernels.embed(*dtype), grid, 128, 0, &params);
                }
            }
        }
    }

    /// `out [m, n]` from these rows of `x`, with room for int8 activations where `x` brings none.
    pub(crate) fn linear_rows(
        &self,
        x: &CudaTensor,
        rows: Range<usize>,
        w: &CudaWeight,
        room: &mut Int8,
        out: &mut CudaTensor,
    ) {
        assert_eq!(x.cols, w.cols, "input features");
        let gpu = &self.gpu;
        let int8 = self.int8(x, &rows, w, room);
        out.shape(gpu, rows.len(), w.rows);
        for part in &w.parts {
            match &part.form {
                Form::Ternary { scales, group_words, .. } => {
                    let scales = scales.address();
                    match (int8, group_words) {
                        (Some(int8), None) => self.ternary(int8, w, (part, scales), rows.len(), None, out),
                        _ => per_row(gpu, x, &rows, int8, w, part, scales, *group_words, out),
                    }
                }
                Form::Dense { dtype, row_words } => {
                    let m = rows.len();
                    let (kernel, own_rows, tokens) = gpu.kernels.dense(*dtype, m);
                    let sizes = [part.rows, w.rows, part.first, *row_words, w.cols, rows.start, m];
                    let addresses = [x.address(), part.data.address(), out.address()];
                    let params: Vec<u64> = addresses.into_iter().chain(sizes.map(|n| n as u64)).collect();
                    let grid = [part.rows.div_ceil(own_rows), m.div_ceil(tokens), 1];
                    gpu.run(kernel, grid, 256, 0, &params);
                }
            }
        }
    }

    /// `out[m, i] = act(x * gate^T) * (x * up^T)` in one launch for `w = [gate | up]`, if that is how it can be done.
    pub(crate) fn gated_rows(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        act: Activation,
        room: &mut Int8,
        out: &mut CudaTensor,
    ) -> bool {
        let half = w.rows / 2;
        let [part] = &w.parts[..] else { return false };
        let Form::Ternary { scales, group_words: None, interleaved } = &part.form else { return false };
        // There is no such kernel over the other layout, which one token is to read where it is there.
        let other = x.rows == 1 && interleaved.is_some();
        if w.act != ActivationPrecision::Int8 || !half.is_multiple_of(TILE_ROWS) || other {
            return false;
        }
        assert_eq!(x.cols, w.cols, "input features");
        let Some(int8) = self.int8(x, &(0..x.rows), w, room) else { return false };
        out.shape(&self.gpu, x.rows, half);
        self.ternary(int8, w, (part, scales.address()), x.rows, Some(act), out);
        true
    }

    /// A product of int8 activations with rows that have one scale each; where there is an activation, of both halves of them.
    fn ternary(
        &self,
        (q, tokens): (u64, u64),
        w: &CudaWeight,
        (part, scales): (&Part, u64),
        m: usize,
        act: Option<Activation>,
        out: &CudaTensor,
    ) {
        let (gpu, gated) = (&self.gpu, act.is_some());
        if let (1, Form::Ternary { interleaved: Some(data), .. }) = (m, &part.form) {
            let tiles = w.cols.div_ceil(TILE_COLS);
            let sizes = [part.rows, out.cols, part.first, tiles].map(|n| n as u64);
            let addresses = [q, data.address(), tokens, scales, out.address()];
            let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
            let grid = [part.rows.div_ceil(TILE_ROWS), 1, 1];
            return gpu.run(gpu.kernels.gemv_interleaved, grid, 256, tiles * TILE_COLS, &params);
        }
        let rows = if gated { part.rows / 2 } else { part.rows };
        let up = if gated { rows } else { 0 };
        let sizes = [rows, out.cols, part.first, w.cols.div_ceil(TILE_COLS), m, up].map(|n| n as u64);
        let addresses = [q, part.data.address(), tokens, scales, out.address()];
        let params: Vec<u64> = addresses.into_iter().chain(sizes).chain([act.map_or(0, number)]).collect();
        if m == 1
            && row_bytes(w.cols) <= gpu.driver.max_shared().saturating_sub(STATIC)
            && let Some(norm) = gpu.take_norm(q, out.address())
        {
            let [rows, _, first, tiles, _, up] = sizes;
            let weights = [part.data.address(), scales, out.address()];
            let rest = [rows, first, tiles, up, act.map_or(0, number)];
            let params: Vec<u64> = norm.into_iter().chain(weights).chain(rest).collect();
            let k = &gpu.kernels;
            let kernel = if gated { k.norm_gemv_gated } else { k.norm_gemv };
            let grid = [(rows as usize).div_ceil(TILE_ROWS), 1, 1];
            return gpu.run(kernel, grid, 256, row_bytes(w.cols), &params);
        }
        if m <= FEW_TOKENS {
            let (launch, grid) = few(&gpu.kernels, m, gated).launch(rows, m, &params);
            return gpu.run_launch(launch, grid);
        }
        let launches: Vec<_> =
            many(&gpu.kernels, gated).iter().map(|shape| shape.launch(rows, m, &params)).collect();
        let half_magnitude = (m.next_power_of_two() / 4).max(1);
        let tokens = m.next_multiple_of(half_magnitude);
        let shape = ProductShape { rows, cols: w.cols, tokens, gated };
        let name = |launch: &Launch| gpu.driver.name(launch.function());
        let place = |best: String| launches.iter().position(|(launch, _)| name(launch) == Some(&*best));
        let known = gpu.tuning.best(&shape).and_then(place);
        let best = known.or_else(|| {
            let best = gpu.fastest(&launches.iter().map(|(launch, _)| *launch).collect::<Vec<_>>())?;
            gpu.tuning.set_best(shape, name(&launches[best].0)?);
            Some(best)
        });
        let (launch, grid) = launches[best.unwrap_or(0)];
        gpu.run_launch(launch, grid);
    }

    /// Addresses of int8 activations of these rows, where the weight asks for them.
    fn int8(
        &self,
        x: &CudaTensor,
        rows: &Range<usize>,
        w: &CudaWeight,
        room: &mut Int8,
    ) -> Option<(u64, u64)> {
        let ternary = |part: &Part| matches!(part.form, Form::Ternary { .. });
        if w.act != ActivationPrecision::Int8 || !w.parts.iter().any(ternary) {
            return None;
        }
        Some(self.int8_of(x, rows, room))
    }

    /// Addresses of the words and of the tokens of int8 activations of these rows; `room` is for those that are not there yet.
    pub(crate) fn int8_of(&self, x: &CudaTensor, rows: &Range<usize>, room: &mut Int8) -> (u64, u64) {
        let words = int8_words(x.cols);
        if x.quantized {
            let (q, tokens) = x.int8().addresses();
            return (q + (4 * words * rows.start) as u64, tokens + (8 * rows.start) as u64);
        }
        room.shape(&self.gpu, rows.len(), x.cols);
        let (q, tokens) = room.addresses();
        let params = [x.address(), q, tokens, x.cols as u64, words as u64, rows.start as u64];
        let (kernel, threads) = self.gpu.kernels.quantization(rows.len());
        self.gpu.run(kernel, [rows.len(), 1, 1], threads, row_bytes(x.cols), &params);
        (q, tokens)
    }
}

/// A product in which rows have several scales, or activations are floats: a block has sixteen rows and one token.
#[expect(clippy::too_many_arguments, reason = "what a launch is made of")]
fn per_row(
    gpu: &Gpu,
    x: &CudaTensor,
    rows: &Range<usize>,
    int8: Option<(u64, u64)>,
    w: &CudaWeight,
    part: &Part,
    scales: u64,
    group_words: Option<usize>,
    out: &CudaTensor,
) {
    let tiles = w.cols.div_ceil(TILE_COLS);
    let words = w.cols.div_ceil(16);
    let group_words = group_words.unwrap_or(words).max(1);
    let scale_rows = part.rows.next_multiple_of(TILE_ROWS);
    let grid = [part.rows.div_ceil(TILE_ROWS), rows.len(), 1];
    let sizes = [part.rows, out.cols, part.first, tiles, w.cols, group_words, scale_rows].map(|n| n as u64);
    let data = part.data.address();
    match int8 {
        Some((q, tokens)) => {
            let addresses = [q, data, tokens, scales, out.address()];
            let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
            let shared = words.div_ceil(group_words) * TILE_ROWS * 4;
            gpu.run(gpu.kernels.grouped, grid, 256, shared, &params);
        }
        None => {
            let addresses = [x.address(), data, scales, out.address()];
            let params: Vec<u64> = addresses.into_iter().chain(sizes).chain([rows.start as u64]).collect();
            gpu.run(gpu.kernels.ternary_floats, grid, 256, 0, &params);
        }
    }
}

#[cfg(test)]
mod tests;
