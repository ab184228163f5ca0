//! RMSNorm (rule 3 of `docs/numerics.md`).

use crate::Isa;
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};

struct RmsNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (blocks, tail) = self.x.as_chunks::<16>();
        let mut sum = l.splat(0.0);
        for x in blocks {
            let x = l.load(x);
            sum = l.fma(x, x, sum);
        }
        if !tail.is_empty() {
            let x = l.load(&padded(tail));
            sum = l.fma(x, x, sum);
        }
        let r = 1.0 / (l.fold(sum) / self.x.len() as f32 + self.eps).sqrt();
        let (w_blocks, w_tail) = self.w.as_chunks::<16>();
        let (y_blocks, y_tail) = self.y.as_chunks_mut::<16>();
        for ((x, w), y) in blocks.iter().zip(w_blocks).zip(y_blocks) {
            l.store(l.mul(l.mul(l.load(x), l.splat(r)), l.load(w)), y);
        }
        for ((x, w), y) in tail.iter().zip(w_tail).zip(y_tail) {
            *y = (x * r) * w;
        }
    }
}

/// Up to sixteen values, padded with zeros.
#[inline(always)]
pub(crate) fn padded(tail: &[f32]) -> [f32; 16] {
    let mut out = [0.0; 16];
    out[..tail.len()].copy_from_slice(tail);
    out
}

/// `y[m, n] = x / rms(x) * w[n]`, row by row.
pub(crate) fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let n = w.len();
    pool.chunks_mut(y, n, &|row, y| {
        dispatch(isa, RmsNorm { x: &x[row * n..(row + 1) * n], w, eps, y });
    });
}

/// RMSNorm of heads `first..first + count` of every row of `x [m, cols]`, in place; `w` is `[head_dim]`.
pub(crate) fn rms_norm_heads(
    isa: Isa,
    pool: &Pool,
    x: &mut [f32],
    cols: usize,
    heads: (usize, usize),
    w: &[f32],
    eps: f32,
) {
    let (first, count) = heads;
    let d = w.len();
    pool.chunks_mut(x, cols, &|_, row| {
        let mut copy = vec![0.0; d];
        for head in row[first * d..(first + count) * d].chunks_exact_mut(d) {
            copy.copy_from_slice(head);
            dispatch(isa, RmsNorm { x: &copy, w, eps, y: head });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn equals_the_specification() {
        for_each_isa_and_pool(|isa, pool| {
            for n in [1, 15, 16, 17, 100, 2560] {
                let (m, mut noise) = (3, Noise(n as u32));
                let (x, w) = (noise.floats(m * n, 3.0), noise.floats(n, 1.0));
                let (mut got, mut want) = (vec![0.0; m * n], vec![0.0; m * n]);
                rms_norm(isa, pool, &x, &w, 1e-5, &mut got);
                for (x, y) in x.chunks(n).zip(want.chunks_mut(n)) {
                    bitnet_quant::spec::rms_norm(x, &w, 1e-5, y);
                }
                assert_eq!(got, want, "{isa} {n}");

                let cols = 4 * n;
                let mut rows = noise.floats(m * cols, 2.0);
                let before = rows.clone();
                rms_norm_heads(isa, pool, &mut rows, cols, (1, 2), &w, 1e-6);
                for (i, (got, x)) in rows.chunks(n).zip(before.chunks(n)).enumerate() {
                    let mut want = x.to_vec();
                    if (1..3).contains(&(i % 4)) {
                        bitnet_quant::spec::rms_norm(x, &w, 1e-6, &mut want);
                    }
                    assert_eq!(got, want, "{isa} head {i}");
                }
            }
        });
    }
}
