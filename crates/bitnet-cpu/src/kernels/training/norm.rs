//! The way back through RMSNorm.

use crate::Isa;
use crate::kernels::norm::padded;
use crate::memory::{Buffer, zeros};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};

/// Rows whose contributions to the weight's gradient are summed together. It decides the order of that sum, so it is no matter of threads.
const ROWS: usize = 64;

/// Some rows of a norm.
struct Rows<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    dy: &'a [f32],
    /// Whether gradients are added to those that are there.
    add: bool,
    dx: &'a mut [f32],
    /// `[n]`: the weight's, summed over these rows.
    dw: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { x, w, eps, dy, add, dx, dw } = self;
        let n = w.len();
        let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
        for ((x, dy), dx) in rows {
            let (mut squares, mut along) = (l.splat(0.0), l.splat(0.0));
            for ((x, w), dy) in x.chunks(16).zip(w.chunks(16)).zip(dy.chunks(16)) {
                let (x, w, dy) = (lanes(l, x), lanes(l, w), lanes(l, dy));
                squares = l.add(squares, l.mul(x, x));
                along = l.add(along, l.mul(x, l.mul(w, dy)));
            }
            let r = 1.0 / (l.fold(squares) / n as f32 + eps).sqrt();
            let back = l.splat(r * r * r * (l.fold(along) / n as f32));
            let r = l.splat(r);
            let out = dx.chunks_mut(16).zip(dw.chunks_mut(16));
            for (((x, w), dy), (dx, dw)) in x.chunks(16).zip(w.chunks(16)).zip(dy.chunks(16)).zip(out) {
                let (x, w, dy) = (lanes(l, x), lanes(l, w), lanes(l, dy));
                let d = l.sub(l.mul(r, l.mul(w, dy)), l.mul(x, back));
                let d = if add { l.add(lanes(l, dx), d) } else { d };
                put(l, d, dx);
                let sum = l.add(lanes(l, dw), l.mul(dy, l.mul(x, r)));
                put(l, sum, dw);
            }
        }
    }
}

/// Up to sixteen values, and zeros.
#[inline(always)]
pub(super) fn lanes<L: Lanes>(l: L, x: &[f32]) -> L::F {
    match x.as_array::<16>() {
        Some(x) => l.load(x),
        None => l.load(&padded(x)),
    }
}

/// Stores as many lanes as there is room for.
#[inline(always)]
pub(super) fn put<L: Lanes>(l: L, x: L::F, out: &mut [f32]) {
    match out.as_mut_array::<16>() {
        Some(out) => l.store(x, out),
        None => {
            let mut lanes = [0.0; 16];
            l.store(x, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// What went into a norm `y = x / rms(x) * w`: `x [m, n]`, `w [n]`.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Rows.
    pub x: &'a [f32],
    /// The weight.
    pub w: &'a [f32],
    /// What is added to the mean square.
    pub eps: f32,
}

/// `dx [m, n]` (set, or added to) and `dw [n]` (added to, where it is wanted) from `dy [m, n]`.
pub(crate) fn backward(
    isa: Isa,
    pool: &Pool,
    norm: Norm<'_>,
    dy: &[f32],
    add: bool,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let Norm { x, w, eps } = norm;
    let n = w.len();
    let mut parts: Buffer<f32> = zeros(pool.memory(), x.len().div_ceil(ROWS * n) * n);
    let shares = Shares::new(&mut parts);
    pool.chunks_mut(dx, ROWS * n, &|piece, dx| {
        let from = piece * ROWS * n;
        let (x, dy) = (&x[from..from + dx.len()], &dy[from..from + dx.len()]);
        // SAFETY: a piece is visited once.
        let dw = unsafe { shares.slice(piece * n, n) };
        dispatch(isa, Rows { x, w, eps, dy, add, dx, dw });
    });
    let Some(dw) = dw else { return };
    for part in parts.chunks_exact(n) {
        dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn is_the_slope() {
        let (m, n, eps) = (130, 21, 1e-5);
        let (x, dy, w) = (Noise(1).floats(m * n, 2.0), Noise(2).floats(m * n, 2.0), Noise(3).floats(n, 2.0));
        let value = |x: &[f64], w: &[f64]| -> f64 {
            let rows = x.chunks(n).zip(dy.chunks(n)).map(|(x, dy)| {
                let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
                x.iter().zip(w).zip(dy).map(|((x, w), dy)| x * r * w * f64::from(*dy)).sum::<f64>()
            });
            rows.sum()
        };
        let (to, of) = (Noise(7).floats(m * n, 1.0), Noise(8).floats(n, 1.0));
        let moved = |x: &[f32], along: &[f32], by: f64| -> Vec<f64> {
            x.iter().zip(along).map(|(x, along)| f64::from(*x) + by * f64::from(*along)).collect()
        };
        let at = |a: f64, b: f64| value(&moved(&x, &to, a), &moved(&w, &of, b));
        let h = 1e-6;
        let slopes = [(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), (at(0.0, h) - at(0.0, -h)) / (2.0 * h)];
        let first = std::cell::RefCell::new(None);
        for_each_isa_and_pool(|isa, pool| {
            let (mut dx, mut dw) = (vec![1.0; m * n], vec![2.0; n]);
            let norm = Norm { x: &x, w: &w, eps: eps as f32 };
            backward(isa, pool, norm, &dy, true, &mut dx, Some(&mut dw));
            let along = |d: &[f32], less: f32, to: &[f32]| -> f64 {
                d.iter().zip(to).map(|(d, to)| f64::from(d - less) * f64::from(*to)).sum()
            };
            for (slope, got) in slopes.iter().zip([along(&dx, 1.0, &to), along(&dw, 2.0, &of)]) {
                assert!((slope - got).abs() < 1e-4 * slope.abs().max(1.0), "{isa}: {slope} {got}");
            }
            let mut first = first.borrow_mut();
            assert_eq!(first.get_or_insert_with(|| (dx.clone(), dw.clone())), &(dx, dw), "{isa}");
        });
    }
}
