//! Packed trits as the terms of products on the way back.

use crate::TernaryWeights;
use crate::layout::{PanelScale, TILE, tile2};

/// Neighbouring columns that are unpacked together: those of a block of [`tile2`].
pub(super) const RUN: usize = tile2::COLUMNS;

impl TernaryWeights {
    /// Elements of a row from `first` on: `count` of them, and zeros behind. They are trits, or weights where groups of columns have scales.
    #[inline(always)]
    pub(super) fn run<const N: usize>(&self, row: usize, first: usize, count: usize) -> [f32; N] {
        let mut out = [0.0; N];
        if first.is_multiple_of(RUN) {
            for (i, out) in out[..count].chunks_mut(RUN).enumerate() {
                let (column, len) = (first + i * RUN, out.len());
                let scale = self.group_scale(row, column);
                out.copy_from_slice(&self.block(row, column / RUN).map(|trit| trit * scale)[..len]);
            }
        } else {
            for (out, column) in out[..count].iter_mut().zip(first..) {
                let trit = self.block(row, column / RUN)[column % RUN];
                *out = trit * self.group_scale(row, column);
            }
        }
        out
    }

    /// The trits of a row, `[k]`.
    pub fn trits(&self, row: usize, out: &mut [i8]) {
        for (i, out) in out.chunks_mut(RUN).enumerate() {
            out.iter_mut().zip(self.block(row, i)).for_each(|(out, trit)| *out = trit as i8);
        }
    }

    /// The trits of a row in a block of columns.
    #[inline(always)]
    fn block(&self, row: usize, block: usize) -> [f32; RUN] {
        let at = row / TILE * self.0.tile_bytes + block * tile2::BLOCK + row % TILE * 4;
        let bytes: [u8; 4] = *self.0.codes()[at..].first_chunk().expect("a block has a word for every row");
        let word = u32::from_le_bytes(bytes);
        std::array::from_fn(|c| {
            // Byte `c % 4`, field `c / 4`.
            let code = word >> (8 * (c % 4) + 2 * (c / 4)) & 3;
            code as i32 as f32 - 1.0
        })
    }

    #[inline(always)]
    fn group_scale(&self, row: usize, column: usize) -> f32 {
        match &self.0.scale {
            PanelScale::Rows(_) => 1.0,
            PanelScale::Groups { cols, groups, values } => {
                values[row / TILE * groups + column / cols][row % TILE]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Noise;
    use crate::{CpuTraining, Isa, Side, Store, Target, Terms, Values};
    use bitnet_core::{Scale, TernaryMatrix};

    /// Products with packed trits on either side are those with the same trits as bytes, or with the same weights where groups have scales.
    #[test]
    fn packed_trits_are_the_same_terms() {
        for isa in Isa::available() {
            let ops = CpuTraining::new(Some(isa), Some(2)).unwrap();
            for (rows, cols, group) in [(3, 5, 0), (37, 50, 0), (70, 33, 0), (4100, 20, 0), (40, 96, 32)] {
                let mut noise = Noise((rows * cols) as u32);
                let trits: Vec<i8> = (0..rows * cols).map(|_| (noise.next() % 3) as i8 - 1).collect();
                let scale = match group {
                    0 => Scale::Tensor(0.5),
                    size => {
                        let values = noise.floats(rows * usize::div_ceil(cols, size), 1.0);
                        Scale::Groups { size, values: values.into() }
                    }
                };
                let matrix = TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap();
                let packed = ops.pack(&matrix).unwrap();
                let weights: Vec<f32> = (0..rows * cols)
                    .map(|i| f32::from(trits[i]) * matrix.scale_at(i / cols, i % cols))
                    .collect();
                let plain = if group == 0 { Values::I8(&trits) } else { Values::F32(&weights) };
                for row in [0, rows - 1] {
                    let mut out = vec![0.0; cols];
                    packed.row(row, &mut out);
                    assert_eq!(out, weights[row * cols..][..cols], "{isa}");
                    let mut out = vec![0; cols];
                    packed.trits(row, &mut out);
                    assert_eq!(out, trits[row * cols..][..cols], "{isa}");
                }
                let m = 13;
                let x = noise.floats(m * rows.max(cols), 1.0);
                let factors = noise.floats(rows, 1.0);
                for terms in [Terms::F32, Terms::Bf16] {
                    let run = |values: Values<'_>| {
                        let mut all = Vec::new();
                        let mut product = |(m, n, k), a, b| {
                            let mut c = vec![0.0; m * n];
                            let target = Target { values: &mut c, stride: n, first: 0 };
                            ops.product(terms, (m, n, k), a, b, Store::Set(1.0), target);
                            all.extend(c);
                        };
                        let of = |k| Side::rows(Values::F32(&x), k);
                        let (forward, back) = (Side::rows(values, cols), Side::columns(values, cols));
                        product((m, rows, cols), of(cols), forward);
                        product((m, cols, rows), of(rows), back);
                        product((m, cols, rows), of(rows), back.scaled(&factors));
                        product((rows, m, cols), forward, of(cols));
                        all
                    };
                    assert!(run(Values::Trits(&packed)) == run(plain), "{isa} {terms:?} {rows} {cols}");
                }
            }
        }
    }
}
