//! What block formats with f16 scales share: a block of `len` columns is a scale and codes, rows are whole blocks.

use super::codes::ZEROS;
use super::{Packing, PackingError, check};
use bitnet_core::{Scale, TernaryMatrix};
use half::f16;

/// How one block of codes is stored.
pub(super) struct BlockFormat {
    pub(super) packing: &'static Packing,
    /// Columns of a block.
    pub(super) len: usize,
    /// Bytes of a block, the scale included.
    pub(super) bytes: usize,
    /// Where the f16 scale lies; codes take the rest.
    pub(super) scale_at: usize,
    /// From the stored codes of a block to canonical bytes.
    pub(super) decode: fn(&[u8], &mut [u8]),
    /// The reverse.
    pub(super) encode: fn(&[u8], &mut [u8]),
    /// What the shape must be.
    pub(super) need: &'static str,
}

impl BlockFormat {
    pub(super) const fn size(rows: usize, cols: usize, len: usize, bytes: usize) -> Option<usize> {
        if !cols.is_multiple_of(len) {
            return None;
        }
        match (cols / len).checked_mul(bytes) {
            Some(row) => row.checked_mul(rows),
            None => None,
        }
    }

    /// The stored codes of a block: what is left and right of its scale; one of them is empty.
    fn codes<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        if self.scale_at == 0 { &block[2..] } else { &block[..self.scale_at] }
    }

    pub(super) fn unpack(
        &self,
        rows: usize,
        cols: usize,
        data: &[u8],
    ) -> Result<TernaryMatrix, PackingError> {
        check(self.packing, rows, cols, data.len(), self.need)?;
        let stride = TernaryMatrix::row_bytes(cols);
        let groups = cols / self.len;
        let mut canonical = vec![ZEROS; rows * stride];
        let mut scales = Vec::with_capacity(rows * groups);
        if groups > 0 {
            for (row, out) in data.chunks_exact(groups * self.bytes).zip(canonical.chunks_exact_mut(stride)) {
                for (block, out) in row.chunks_exact(self.bytes).zip(out.chunks_mut(self.len / 4)) {
                    let d = f16::from_le_bytes([block[self.scale_at], block[self.scale_at + 1]]).to_f32();
                    if !d.is_finite() {
                        return Err(PackingError::ScaleNotFinite { packing: self.packing.name, value: d });
                    }
                    scales.push(d);
                    (self.decode)(self.codes(block), out);
                }
            }
        }
        super::codes::find_reserved(self.packing.name, cols, &canonical)?;
        let scale = self.merge(cols, &canonical, scales);
        Ok(TernaryMatrix::new(rows, cols, canonical.into(), scale)?)
    }

    /// Gives blocks of zeros the scale of their row, and rows of zeros the scale of a neighbour, since their own says nothing
    /// (ggml writes 0); then keeps as few scales as carry the same bits.
    fn merge(&self, cols: usize, canonical: &[u8], mut scales: Vec<f32>) -> Scale {
        let groups = (cols / self.len).max(1);
        let stride = TernaryMatrix::row_bytes(cols);
        let is_zero = |group: usize| {
            let from = group / groups * stride + group % groups * (self.len / 4);
            canonical[from..from + self.len / 4].iter().all(|b| *b == ZEROS)
        };
        let mut last = (0..scales.len()).find(|g| !is_zero(*g)).map_or(0.0, |g| scales[g]);
        for row in 0..scales.len() / groups {
            let range = row * groups..(row + 1) * groups;
            last = range.clone().find(|g| !is_zero(*g)).map_or(last, |g| scales[g]);
            for g in range {
                if is_zero(g) {
                    scales[g] = last;
                }
            }
        }
        let same = |v: &[f32]| v.windows(2).all(|w| w[0].to_bits() == w[1].to_bits());
        if same(&scales) {
            return Scale::Tensor(scales.first().copied().unwrap_or(0.0));
        }
        if scales.chunks_exact(groups).all(same) {
            return Scale::Rows(scales.chunks_exact(groups).map(|row| row[0]).collect());
        }
        Scale::Groups { size: self.len, values: scales.into() }
    }

    pub(super) fn pack(&self, m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
        let (name, cols) = (self.packing.name, m.cols());
        if !cols.is_multiple_of(self.len) {
            return Err(PackingError::Shape { packing: name, rows: m.rows(), cols, need: self.need });
        }
        let other_groups = PackingError::ScaleKind { packing: name, room: "each of its blocks" };
        // Columns of a block that are known to share a scale: all, or those of a group.
        let part = match m.scale() {
            Scale::Groups { size, .. } if !size.is_multiple_of(self.len) => *size,
            _ => self.len,
        };
        if !self.len.is_multiple_of(part) || !part.is_multiple_of(4) {
            return Err(other_groups);
        }
        for row in 0..m.rows() {
            for (b, codes) in m.row_codes(row)[..cols / 4].chunks_exact(self.len / 4).enumerate() {
                // What multiplies zeros says nothing.
                let parts = codes.chunks_exact(part / 4).enumerate();
                let mut scales = parts
                    .filter(|(_, codes)| codes.iter().any(|c| *c != ZEROS))
                    .map(|(i, _)| m.scale_at(row, b * self.len + i * part));
                let first = scales.next();
                if scales.any(|s| Some(s.to_bits()) != first.map(f32::to_bits)) {
                    return Err(other_groups);
                }
                let scale = first.unwrap_or(0.0);
                let d = f16::from_f32(scale);
                if d.to_f32().to_bits() != scale.to_bits() {
                    return Err(PackingError::ScaleNotExact { packing: name, scale, nearest: d.to_f32() });
                }
                let start = out.len();
                out.resize(start + self.bytes, 0);
                let block = &mut out[start..];
                block[self.scale_at..self.scale_at + 2].copy_from_slice(&d.to_le_bytes());
                let codes_out =
                    if self.scale_at == 0 { &mut block[2..] } else { &mut block[..self.scale_at] };
                (self.encode)(codes, codes_out);
            }
        }
        Ok(())
    }
}
