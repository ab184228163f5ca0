//! Rows of weights, and products with them: a dispatch for each part of a weight.

use crate::WgpuBackend;
use crate::kernel::{DenseTokens, Kernel};
use crate::memory::Part;
use crate::tensor::WgpuTensor;
use crate::weight::{DENSE_ROWS, Form, TILE_ROWS, VECTOR_CODES, WgpuWeight};
use bitnet_core::{ActivationPrecision, TernaryMatrix};
use std::ops::Range;

/// Up to so many tokens, a ternary product reads the weights anew for each.
const GEMV_TOKENS: usize = 4;
/// Tokens that a workgroup of the other kernel multiplies.
const GEMM_TOKENS: usize = 32;

/// Sizes are below 2^32, since bindings are.
pub(crate) fn word(n: usize) -> u32 {
    n as u32
}

impl WgpuBackend {
    /// `out [m, cols]` from the rows with these ids.
    pub(crate) fn embed_rows(&self, w: &WgpuWeight, ids: Part<'_>, m: usize, out: &WgpuTensor) {
        let gpu = &self.gpu;
        let groups = [w.cols.div_ceil(64), m, 1];
        for part in &w.parts {
            match &part.form {
                Form::Ternary { scales, group_words } => {
                    let blocks = 4 * TernaryMatrix::row_bytes(w.cols) / VECTOR_CODES;
                    let group_words = group_words.unwrap_or(4 * blocks).max(1);
                    let padded = part.rows.next_multiple_of(TILE_ROWS);
                    let shape = [w.cols, blocks, part.rows, m, w.cols, part.first];
                    let params: Vec<u32> =
                        shape.into_iter().chain([group_words, padded, 0]).map(word).collect();
                    let buffers = [ids, part.data.all(), scales.all(), out.part(gpu)];
                    gpu.run(Kernel::EmbedTernary, &buffers, &params, groups);
                }
                Form::Dense { dtype, row_words } => {
                    let params = [w.cols, *row_words, part.rows, m, 0, w.cols, part.first].map(word);
                    let buffers = [ids, part.data.all(), out.part(gpu)];
                    gpu.run(Kernel::EmbedDense(*dtype), &buffers, &params, groups);
                }
            }
        }
    }

    /// `out [m, n]` from these rows of `x`, with room for int8 activations and for what turns products with them into reals.
    pub(crate) fn linear_rows(
        &self,
        x: &WgpuTensor,
        rows: Range<usize>,
        w: &WgpuWeight,
        (quantized, tokens): &mut (WgpuTensor, WgpuTensor),
        out: &mut WgpuTensor,
    ) {
        assert_eq!(x.cols, w.cols, "input features");
        let (gpu, m) = (&self.gpu, rows.len());
        let int8 = w.act == ActivationPrecision::Int8;
        // A word has four codes of a row.
        let words = TernaryMatrix::row_bytes(w.cols);
        if int8 && w.parts.iter().any(|part| matches!(part.form, Form::Ternary { .. })) {
            quantized.shape(gpu, m, words);
            tokens.shape(gpu, m, 2);
            let buffers = [x.part(gpu), quantized.part(gpu), tokens.part(gpu)];
            let params = [w.cols, words, rows.start].map(word);
            gpu.run(Kernel::Quantize(gpu.fold()), &buffers, &params, [m, 1, 1]);
        }
        out.shape(gpu, m, w.rows);
        for part in &w.parts {
            match &part.form {
                Form::Ternary { scales, group_words } => {
                    let tiles = part.rows.div_ceil(TILE_ROWS);
                    let kernel = match (int8, group_words) {
                        (false, _) => Kernel::FloatGemv,
                        (true, Some(_)) => Kernel::Grouped,
                        (true, None) if m <= GEMV_TOKENS => Kernel::Gemv,
                        (true, None) => Kernel::Gemm,
                    };
                    let input = if int8 { quantized.part(gpu) } else { x.part(gpu) };
                    let mut buffers = vec![input, part.data.all(), scales.all(), out.part(gpu)];
                    if int8 {
                        buffers.push(tokens.part(gpu));
                    }
                    let blocks = 4 * words / VECTOR_CODES;
                    let group_words = group_words.unwrap_or(4 * blocks).max(1);
                    let shape = [w.cols, blocks, part.rows, m, w.rows, part.first];
                    let params = [group_words, tiles * TILE_ROWS, rows.start];
                    let params: Vec<u32> = shape.into_iter().chain(params).map(word).collect();
                    let groups = if kernel == Kernel::Gemm { m.div_ceil(GEMM_TOKENS) } else { m };
                    gpu.run(kernel, &buffers, &params, [tiles, groups, 1]);
                }
                Form::Dense { dtype, row_words } => {
                    let tokens = if m == 1 { DenseTokens::One } else { DenseTokens::Four };
                    let buffers = [x.part(gpu), part.data.all(), out.part(gpu)];
                    let params = [w.cols, *row_words, part.rows, m, rows.start, w.rows, part.first].map(word);
                    let groups = [part.rows.div_ceil(DENSE_ROWS), m.div_ceil(tokens as usize), 1];
                    gpu.run(Kernel::Dense(*dtype, tokens), &buffers, &params, groups);
                }
            }
        }
    }
}
