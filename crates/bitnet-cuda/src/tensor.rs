//! Activations on the GPU.

use crate::gpu::Gpu;
use crate::memory::Buffer;
use bitnet_core::TernaryMatrix;
use bitnet_memory::Tag;

/// Activations `[rows, cols]`, row-major, and behind a norm their int8 form too. Buffers are as large as the largest shape so
/// far.
#[derive(Default)]
pub struct CudaTensor {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    floats: Option<Buffer>,
    /// What a tensor of one row held before: a kernel that does the work of two may still read that while this is written.
    before: Option<Buffer>,
    int8: Int8,
    /// Whether `int8` is what rule 4 makes of the floats.
    pub(crate) quantized: bool,
    /// Cosines and sines that queries in here are to be rotated by, for the attention that does it.
    pub(crate) rope: Option<(u64, u64)>,
}

/// Int8 activations: words of four columns each, in the kernels' order, and what turns products with them into reals.
#[derive(Default)]
pub(crate) struct Int8 {
    words: Option<Buffer>,
    tokens: Option<Buffer>,
}

/// Words that a row of int8 activations has.
pub(crate) fn int8_words(cols: usize) -> usize {
    // Four activations a word, as four codes are a byte.
    TernaryMatrix::row_bytes(cols)
}

fn grow(buffer: &mut Option<Buffer>, gpu: &Gpu, bytes: usize) {
    if buffer.as_ref().is_none_or(|b| b.bytes() < bytes) {
        *buffer = None;
        *buffer = gpu.storage_for(Tag::Activations, bytes, "activations").map_err(|e| gpu.fail(e)).ok();
    }
}

fn address(buffer: &Option<Buffer>) -> u64 {
    // Where there is no memory, the step has failed and nothing is run.
    buffer.as_ref().map_or(0, Buffer::address)
}

impl Int8 {
    /// Room for `rows` tokens of `cols` columns.
    pub(crate) fn shape(&mut self, gpu: &Gpu, rows: usize, cols: usize) {
        grow(&mut self.words, gpu, rows * int8_words(cols) * 4);
        grow(&mut self.tokens, gpu, rows * 8);
    }

    /// Addresses of the words and of the tokens.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (address(&self.words), address(&self.tokens))
    }
}

impl CudaTensor {
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Gives the tensor a shape; what it held is undefined. Where there is no memory, the step fails.
    pub(crate) fn shape(&mut self, gpu: &Gpu, rows: usize, cols: usize) {
        gpu.overwritten(self.address());
        if rows == 1 {
            std::mem::swap(&mut self.floats, &mut self.before);
        }
        grow(&mut self.floats, gpu, rows * cols * 4);
        (self.rows, self.cols, self.quantized) = (rows, cols, false);
    }

    /// Gives the tensor room for a sum of what it holds and something else: other room, where it has one row.
    pub(crate) fn sum_into(&mut self, gpu: &Gpu) {
        if self.rows == 1 {
            self.shape(gpu, self.rows, self.cols);
        }
        self.quantized = false;
    }

    /// The same, with room for the int8 form, which is there once the recorded commands have run.
    pub(crate) fn shape_quantized(&mut self, gpu: &Gpu, rows: usize, cols: usize) {
        self.shape(gpu, rows, cols);
        self.int8.shape(gpu, rows, cols);
        self.quantized = true;
    }

    /// Where the elements begin.
    pub(crate) fn address(&self) -> u64 {
        address(&self.floats)
    }

    pub(crate) fn int8(&self) -> &Int8 {
        &self.int8
    }

    pub(crate) fn buffer(&self) -> Option<&Buffer> {
        self.floats.as_ref()
    }
}
