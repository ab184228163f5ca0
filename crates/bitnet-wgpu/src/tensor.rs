//! Activations on the GPU.

use crate::gpu::Gpu;
use crate::memory::{Buffer, Part};
use bitnet_memory::Tag;

/// Activations `[rows, cols]`, row-major. The buffer is as large as the largest shape so far.
#[derive(Default)]
pub struct WgpuTensor {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    buffer: Option<Buffer>,
}

impl WgpuTensor {
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Gives the tensor a shape; what it held is undefined. Where there is no memory, the step fails.
    pub(crate) fn shape(&mut self, gpu: &Gpu, rows: usize, cols: usize) {
        let bytes = rows * cols * size_of::<f32>();
        if self.buffer.as_ref().is_none_or(|b| b.bytes() < bytes) {
            // The old one is given back first; commands that use it still hold it.
            self.buffer = None;
            self.buffer = gpu.storage(Tag::Activations, bytes, "activations").map_err(|e| gpu.fail(e)).ok();
        }
        (self.rows, self.cols) = (rows, cols);
    }

    /// Where the elements lie; nothing where the step has failed.
    pub(crate) fn part<'a>(&'a self, gpu: &'a Gpu) -> Part<'a> {
        self.buffer.as_ref().map_or(gpu.nothing(), Buffer::all)
    }
}
