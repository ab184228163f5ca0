//! What adapters add to products (rule 15 of `docs/numerics.md`).

use crate::Isa;
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};

/// `y += x * scale`, each element by fma.
struct AddScaled<'a> {
    x: &'a [f32],
    scale: f32,
    y: &'a mut [f32],
}

impl Kernel for AddScaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, x_tail) = self.x.as_chunks::<16>();
        let (y, y_tail) = self.y.as_chunks_mut::<16>();
        let scale = l.splat(self.scale);
        for (x, y) in x.iter().zip(y) {
            l.store(l.fma(l.load(x), scale, l.load(y)), y);
        }
        for (x, y) in x_tail.iter().zip(y_tail) {
            *y = x.mul_add(self.scale, *y);
        }
    }
}

/// `y[t, first + j] += x[t, j] * scale` for the rows of `x [m, n]`; `y` is `[m, cols]` with `cols` and `first` beside it.
pub(crate) fn add_scaled(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    n: usize,
    scale: f32,
    (y, cols, first): (&mut [f32], usize, usize),
) {
    pool.chunks_mut(y, cols, &|t, y| {
        let (x, y) = (&x[t * n..][..n], &mut y[first..first + n]);
        dispatch(isa, AddScaled { x, scale, y });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dense::dense_linear;
    use crate::memory::alone;
    use crate::testing::{Noise, for_each_isa_and_pool};
    use bitnet_core::{DenseMatrix, DenseType};
    use bitnet_quant::spec;

    #[test]
    fn equals_the_specification() {
        let dense = |values: &[f32], rows: usize| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            DenseMatrix::new(rows, values.len() / rows, DenseType::F32, bytes.into()).unwrap()
        };
        for_each_isa_and_pool(|isa, pool| {
            for (m, n, k, r) in [(1, 70, 33, 4), (3, 16, 100, 1), (5, 37, 48, 17)] {
                let mut noise = Noise((m * n) as u32);
                let (a, b) = (noise.floats(r * k, 1.0), noise.floats(n * r, 1.0));
                let (x, cols, first) = (noise.floats(m * k, 2.0), n + 9, 5);
                let mut want = noise.floats(m * cols, 3.0);
                let mut got = want.clone();
                for (x, y) in x.chunks(k).zip(want.chunks_mut(cols)) {
                    spec::add_low_rank(&a, &b, 0.3, x, &mut y[first..first + n]);
                }
                let (mut inner, mut sum) = (vec![0.0; m * r], vec![0.0; m * n]);
                alone(pool.memory(), |scratch| {
                    dense_linear(isa, pool, &dense(&a, r), &x, m, scratch, &mut inner)?;
                    dense_linear(isa, pool, &dense(&b, n), &inner, m, scratch, &mut sum)
                });
                add_scaled(isa, pool, &sum, n, 0.3, (&mut got, cols, first));
                assert_eq!(got, want, "{isa} {m} {n} {k} {r}");
            }
        });
    }
}
