//! What an operation is recorded with: its operands as parts of buffers, and its kernels.

use super::shader::{Shader, THREADS};
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::memory::{Buffer, Given, Part};
use crate::product::word;
use bitnet_core::{At, BackendError, Memory};
use bitnet_memory::Tag;

/// Workgroups that a dispatch may have in one dimension.
pub(super) const MAX_GROUPS: usize = 65_535;

/// Dispatches after which commands are sent off, so that the device begins while more are recorded, and no driver takes it for hung.
pub(super) const SUBMISSION: usize = 256;

/// One operation.
pub(super) struct Recording<'a> {
    pub(super) gpu: &'a Gpu,
    /// Dispatches since commands were last sent off; those that take long count for several.
    pub(super) work: &'a mut usize,
}

/// What a kernel sees of a buffer, and the first element of it that is meant.
#[derive(Clone)]
pub(super) struct Operand<'m> {
    pub(super) part: Part<'m>,
    pub(super) first: u32,
}

impl<'m> Operand<'m> {
    /// All of a buffer.
    pub(super) fn all(buffer: &'m Buffer) -> Self {
        Self { part: buffer.all(), first: 0 }
    }

    /// What the host gives.
    pub(super) fn given(given: &'m Given) -> Self {
        Self { part: given.part(), first: 0 }
    }
}

impl<'a> Recording<'a> {
    /// Elements of four bytes.
    pub(super) fn floats<'m>(&self, at: At<'m>, len: usize) -> Result<Operand<'m>, BackendError> {
        let bytes = self.bytes(At { first: at.first * 4, ..at }, len * 4)?;
        Ok(Operand { first: bytes.first / 4, ..bytes })
    }

    /// Bytes, whose first one is meant.
    pub(super) fn bytes<'m>(&self, at: At<'m>, len: usize) -> Result<Operand<'m>, BackendError> {
        let buffer = self.buffer(at.memory, at.first, len)?;
        let offset = at.first / self.gpu.alignment() * self.gpu.alignment();
        let size = at.first + len - offset;
        if size > self.gpu.max_binding() {
            return Err(BackendError::Unsupported {
                backend: "wgpu",
                what: format!("an operand of {size} bytes: {} are the most", self.gpu.max_binding()),
                hint: "a smaller batch, or a smaller model, would do",
            });
        }
        Ok(Operand { part: buffer.part(offset, size), first: word(at.first - offset) })
    }

    /// The buffer of this memory, which has these bytes.
    pub(super) fn buffer<'m>(
        &self,
        memory: &'m Memory,
        first: usize,
        len: usize,
    ) -> Result<&'m Buffer, BackendError> {
        let end = first.saturating_add(len);
        if end > memory.bytes() {
            let what = format!("bytes {first} to {end} of a memory of {}", memory.bytes());
            return Err(self.wrong(&what));
        }
        let own = memory.held::<Buffer>().filter(|buffer| buffer.is_of(self.gpu.number()));
        own.ok_or_else(|| self.wrong("the memory of another device"))
    }

    fn wrong(&self, what: &str) -> BackendError {
        BackendError::Device {
            device: self.gpu.name().to_owned(),
            why: format!("an operation was given {what}"),
        }
    }

    /// Elements of four bytes that an operand may have, wherever it begins.
    pub(super) fn most(&self) -> usize {
        (self.gpu.max_binding() - self.gpu.alignment()) / 4
    }

    /// Runs of single elements: the first of each and their number.
    pub(super) fn pieces(&self, len: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let most = self.most();
        (0..len).step_by(most).map(move |first| (first, most.min(len - first)))
    }

    /// Memory for what one kernel leaves for the next.
    pub(super) fn scratch(&self, bytes: usize) -> Result<Buffer, BackendError> {
        self.gpu.large(Tag::Scratch, bytes, "an operation of training")
    }

    /// Sends off what is recorded when that is much. Whoever calls it is done with what it uploaded.
    pub(super) fn send_when_much(&mut self) {
        if *self.work >= SUBMISSION {
            self.gpu.submit();
            *self.work = 0;
        }
    }

    /// Words that the host gives to a kernel.
    pub(super) fn give(&self, words: &[u32]) -> Given {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.gpu.give(&bytes)
    }

    /// Stands for an operand that there is none of.
    pub(super) fn nothing(&self) -> Operand<'a> {
        Operand { part: self.gpu.nothing(), first: 0 }
    }

    /// Records a kernel whose operands are bound in their order.
    pub(super) fn run(
        &mut self,
        shader: Shader,
        operands: &[&Operand<'_>],
        params: &[u32],
        groups: [usize; 3],
    ) {
        let numbered: Vec<_> = (0..).zip(operands.iter().copied()).collect();
        self.run_bound(shader, &numbered, params, groups);
    }

    /// The same with the number of each operand's binding.
    pub(super) fn run_bound(
        &mut self,
        shader: Shader,
        operands: &[(u32, &Operand<'_>)],
        params: &[u32],
        groups: [usize; 3],
    ) {
        let bindings: Vec<_> = operands.iter().map(|(at, operand)| (*at, operand.part)).collect();
        self.gpu.run_bound(Kernel::Training(shader), &bindings, params, groups);
        *self.work += 1;
    }
}

/// Workgroups for single elements, which threads take in strides.
pub(super) fn strided(n: usize) -> [usize; 3] {
    [n.div_ceil(THREADS).min(MAX_GROUPS), 1, 1]
}

/// A workgroup for each row.
pub(super) fn a_row_each(rows: usize) -> [usize; 3] {
    let across = rows.clamp(1, MAX_GROUPS);
    [across, rows.div_ceil(across), 1]
}
