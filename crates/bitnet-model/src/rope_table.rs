//! Angles of rotation, computed once for each position.

use crate::Rope;
use bitnet_core::{KvSpan, RopeRows};
use bitnet_memory::{Buffer, OutOfMemory, Pool, Tag};
use bitnet_quant::spec::rope_angles;

/// Cosines and sines of all positions, `[positions, head_dim/2]`, as far as they were seen, and those of a step.
pub(crate) struct RopeTable {
    inverse: Vec<f32>,
    /// What cosines and sines are multiplied with.
    factor: f32,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
    /// Positions that are filled in.
    seen: usize,
    /// Room for one position.
    row: (Vec<f32>, Vec<f32>),
    step: (Buffer<f32>, Buffer<f32>),
}

impl RopeTable {
    pub(crate) fn new(
        memory: &Pool,
        rope: &Rope,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self, OutOfMemory> {
        let inverse = rope.inverse_frequencies(head_dim);
        let half = inverse.len();
        // Pages of positions that are not seen are not touched.
        let table = || memory.buffer(positions * half, Tag::Other);
        Ok(Self {
            factor: rope.attention_factor(),
            cos: table()?,
            sin: table()?,
            seen: 0,
            row: (Vec::with_capacity(half), Vec::with_capacity(half)),
            step: Default::default(),
            inverse,
        })
    }

    /// Those of the tokens of some spans.
    pub(crate) fn rows(&mut self, memory: &Pool, spans: &[KvSpan<'_>]) -> Result<RopeRows<'_>, OutOfMemory> {
        let half = self.inverse.len();
        let end = spans.iter().map(KvSpan::end).max().unwrap_or(0);
        while self.seen < end {
            let (cos, sin) = &mut self.row;
            cos.clear();
            sin.clear();
            rope_angles(self.seen as u32, &self.inverse, self.factor, cos, sin);
            self.cos[self.seen * half..][..half].copy_from_slice(cos);
            self.sin[self.seen * half..][..half].copy_from_slice(sin);
            self.seen += 1;
        }
        let range = |span: &KvSpan<'_>| span.start * half..span.end() * half;
        if let [span] = spans {
            return Ok(RopeRows { cos: &self.cos[range(span)], sin: &self.sin[range(span)] });
        }
        let (cos, sin) = &mut self.step;
        let tokens: usize = spans.iter().map(|span| span.len).sum();
        memory.fit(cos, tokens * half)?;
        memory.fit(sin, tokens * half)?;
        let mut at = 0;
        for span in spans {
            let (from, to) = (range(span), at..at + span.len * half);
            cos[to.clone()].copy_from_slice(&self.cos[from.clone()]);
            sin[to.clone()].copy_from_slice(&self.sin[from]);
            at = to.end;
        }
        Ok(RopeRows { cos, sin })
    }
}
