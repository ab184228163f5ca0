//! Dense products over rows in the type of the file: head, embedding, dense layers (rule 13 of `docs/numerics.md`).

mod formats;

use crate::Isa;
use crate::kernels::norm::padded;
use crate::memory::{OutOfMemory, Scratch};
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::{DenseMatrix, DenseType};
use formats::{Bf16, F16, F32, Q4_0, Q4_1, Q6K, Q8_0, RowFormat};

/// Rows whose dot products run side by side, to hide the latency of each row's single chain.
const ROWS: usize = 4;
/// Tokens that a row, dequantized once, is multiplied with side by side.
const TOKENS: usize = 4;
/// Rows of one piece of parallel work.
const PIECE: usize = 64;

/// Rows of a matrix.
#[derive(Clone, Copy)]
enum Which<'a> {
    /// From one on.
    From(usize),
    /// These.
    Ids(&'a [u32]),
}

impl Which<'_> {
    #[inline(always)]
    fn row(self, i: usize) -> usize {
        match self {
            Self::From(first) => first + i,
            Self::Ids(ids) => ids[i] as usize,
        }
    }
}

/// `y[rows, m] = w[rows, k] * x[m, k]^T`.
struct Dot<'a> {
    w: &'a DenseMatrix,
    rows: Which<'a>,
    x: &'a [f32],
    m: usize,
    /// Room for [`ROWS`] rows, where there are several tokens.
    room: &'a mut [f32],
    y: &'a mut [f32],
}

impl Dot<'_> {
    /// For one token.
    #[inline(always)]
    fn rows<L: Lanes, R: RowFormat>(self, l: L) {
        let k = self.w.cols();
        for (i, y) in self.y.chunks_mut(ROWS).enumerate() {
            let last = y.len() - 1;
            let mut rows: [&[u8]; ROWS] = [&[]; ROWS];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = self.w.row(self.rows.row(i * ROWS + r.min(last)));
            }
            let steps = self.x.chunks_exact(R::STEP);
            let (blocks, tail) = (k / 16, steps.remainder());
            let mut sum = [l.splat(0.0); ROWS];
            for (step, x) in steps.enumerate() {
                for r in 0..ROWS {
                    sum[r] = R::accumulate(l, rows[r], step, x, sum[r]);
                }
            }
            if !tail.is_empty() {
                let x = l.load(&padded(tail));
                for r in 0..ROWS {
                    sum[r] = l.fma(R::tail(l, rows[r], blocks, tail.len()), x, sum[r]);
                }
            }
            for (y, sum) in y.iter_mut().zip(sum) {
                *y = l.fold(sum);
            }
        }
    }
}

/// Sixteen elements, or the last ones with zeros behind them.
#[inline(always)]
fn block<L: Lanes>(l: L, from: &[f32], at: usize) -> L::F {
    match from[at..].first_chunk::<16>() {
        Some(block) => l.load(block),
        None => l.load(&padded(&from[at..])),
    }
}

/// Sums over `k` for [`ROWS`] rows and `T` tokens: `y[r][t]`.
#[inline(always)]
fn tile<L: Lanes, const T: usize>(l: L, weights: &[f32], x: &[f32], k: usize) -> [[f32; T]; ROWS] {
    let weights: [&[f32]; ROWS] = std::array::from_fn(|r| &weights[r * k..][..k]);
    let tokens: [&[f32]; T] = std::array::from_fn(|t| &x[t * k..][..k]);
    let mut sum = [[l.splat(0.0); T]; ROWS];
    for at in (0..k).step_by(16) {
        let mut x = [l.splat(0.0); T];
        for t in 0..T {
            x[t] = block(l, tokens[t], at);
        }
        for r in 0..ROWS {
            let w = block(l, weights[r], at);
            for t in 0..T {
                sum[r][t] = l.fma(w, x[t], sum[r][t]);
            }
        }
    }
    let mut y = [[0.0; T]; ROWS];
    for r in 0..ROWS {
        for t in 0..T {
            y[r][t] = l.fold(sum[r][t]);
        }
    }
    y
}

impl Dot<'_> {
    #[inline(always)]
    fn product<L: Lanes, R: RowFormat>(self, l: L) {
        match self.m {
            1 => self.rows::<L, R>(l),
            _ => self.tiles::<L, R>(l),
        }
    }

    /// For several tokens, rows are dequantized once.
    #[inline(always)]
    fn tiles<L: Lanes, R: RowFormat>(self, l: L) {
        let Self { w, rows, x, m, room, y } = self;
        let k = w.cols();
        let weights = &mut room[..ROWS * k];
        for (i, y) in y.chunks_mut(ROWS * m).enumerate() {
            let last = y.len() / m - 1;
            for (r, out) in weights.chunks_exact_mut(k).enumerate() {
                Row { w, row: rows.row(i * ROWS + r.min(last)), out }.values::<L, R>(l);
            }
            let mut t = 0;
            if L::REGISTERS >= 32 {
                while t + TOKENS <= m {
                    put(y, m, t, &tile::<L, TOKENS>(l, weights, &x[t * k..], k));
                    t += TOKENS;
                }
            }
            for t in t..m {
                put(y, m, t, &tile::<L, 1>(l, weights, &x[t * k..], k));
            }
        }
    }
}

/// Writes the sums of tokens from `t` on into rows of `m`.
fn put<const T: usize>(y: &mut [f32], m: usize, t: usize, sums: &[[f32; T]; ROWS]) {
    for (y, sums) in y.chunks_exact_mut(m).zip(sums) {
        y[t..t + T].copy_from_slice(sums);
    }
}

impl Kernel for Dot<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.w.dtype() {
            DenseType::F32 => self.product::<L, F32>(l),
            DenseType::F16 => self.product::<L, F16>(l),
            DenseType::BF16 => self.product::<L, Bf16>(l),
            DenseType::Q8_0 => self.product::<L, Q8_0>(l),
            DenseType::Q4_0 => self.product::<L, Q4_0>(l),
            DenseType::Q4_1 => self.product::<L, Q4_1>(l),
            DenseType::Q6_K => self.product::<L, Q6K>(l),
        }
    }
}

/// `y[m, n] = x[m, k] * w[n, k]^T`.
pub(crate) fn dense_linear(
    isa: Isa,
    pool: &Pool,
    w: &DenseMatrix,
    x: &[f32],
    m: usize,
    scratch: &Scratch<'_>,
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let n = w.rows();
    let rows = |i: usize| Which::From(i * PIECE);
    if m == 1 {
        pool.chunks_mut(y, PIECE, &|i, y| dispatch(isa, Dot { w, rows: rows(i), x, m, room: &mut [], y }));
        return Ok(());
    }
    // Each row of weights is read once for all tokens, so the product comes out transposed.
    let transposed = scratch.buffer(n * m)?;
    let room = scratch.buffer::<f32>((ROWS * w.cols()).next_multiple_of(16) * pool.threads())?;
    pool.chunks_with(room, transposed, PIECE * m, &|room, i, y| {
        dispatch(isa, Dot { w, rows: rows(i), x, m, room, y })
    });
    pool.chunks_mut(y, n, &|t, y| {
        for (row, y) in y.iter_mut().enumerate() {
            *y = transposed[row * m + t];
        }
    });
    Ok(())
}

/// `y[i] = w[ids[i], k] * x[k]`, for single rows of one token.
pub(crate) fn dense_rows(isa: Isa, pool: &Pool, w: &DenseMatrix, ids: &[u32], x: &[f32], y: &mut [f32]) {
    pool.chunks_mut(y, ROWS, &|i, y| {
        let rows = Which::Ids(&ids[i * ROWS..][..y.len()]);
        dispatch(isa, Dot { w, rows, x, m: 1, room: &mut [], y });
    });
}

/// The values of one row.
struct Row<'a> {
    w: &'a DenseMatrix,
    row: usize,
    out: &'a mut [f32],
}

impl Row<'_> {
    #[inline(always)]
    fn values<L: Lanes, R: RowFormat>(self, l: L) {
        let (bytes, blocks) = (self.w.row(self.row), self.out.len() / 16);
        let mut steps = self.out.chunks_exact_mut(R::STEP);
        for (step, out) in (&mut steps).enumerate() {
            R::weights(l, bytes, step, out);
        }
        let tail = steps.into_remainder();
        if !tail.is_empty() {
            let mut last = [0.0; 16];
            l.store(R::tail(l, bytes, blocks, tail.len()), &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.w.dtype() {
            DenseType::F32 => self.values::<L, F32>(l),
            DenseType::F16 => self.values::<L, F16>(l),
            DenseType::BF16 => self.values::<L, Bf16>(l),
            DenseType::Q8_0 => self.values::<L, Q8_0>(l),
            DenseType::Q4_0 => self.values::<L, Q4_0>(l),
            DenseType::Q4_1 => self.values::<L, Q4_1>(l),
            DenseType::Q6_K => self.values::<L, Q6K>(l),
        }
    }
}

/// One row, dequantized: `out [k]`.
pub(crate) fn row(isa: Isa, w: &DenseMatrix, row: usize, out: &mut [f32]) {
    dispatch(isa, Row { w, row, out });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::alone;
    use crate::testing::{Noise, for_each_isa_and_pool};
    use bitnet_quant::{dense::dequantize_row, spec};

    /// Random bytes make valid blocks of every type once the scales are finite.
    fn random(dtype: DenseType, n: usize, k: usize) -> DenseMatrix {
        let mut noise = Noise(n as u32 + k as u32);
        let (values, block) = dtype.block();
        let mut data = Vec::new();
        for _ in 0..n * k / values {
            let mut bytes: Vec<u8> = (0..block).map(|_| noise.next() as u8).collect();
            let small = half::f16::from_f32(noise.floats(1, 0.1)[0]).to_le_bytes();
            match dtype {
                DenseType::F32 => bytes.copy_from_slice(&noise.floats(1, 1.0)[0].to_le_bytes()),
                DenseType::F16 => bytes.copy_from_slice(&small),
                DenseType::BF16 => bytes.copy_from_slice(&noise.floats(1, 1.0)[0].to_le_bytes()[2..]),
                DenseType::Q8_0 | DenseType::Q4_0 => bytes[..2].copy_from_slice(&small),
                DenseType::Q4_1 => bytes[..4].copy_from_slice(&[small, small].concat()),
                DenseType::Q6_K => bytes[208..].copy_from_slice(&small),
            }
            data.extend(bytes);
        }
        DenseMatrix::new(n, k, dtype, data.into()).unwrap()
    }

    #[test]
    fn equals_dequantized_rows_and_l16() {
        use DenseType::{BF16, F16, F32, Q4_0, Q4_1, Q6_K, Q8_0};
        for_each_isa_and_pool(|isa, pool| {
            for (dtype, k) in [
                (F32, 100),
                (F32, 7),
                (F16, 130),
                (BF16, 96),
                (Q8_0, 96),
                (Q4_0, 160),
                (Q4_1, 96),
                (Q6_K, 768),
            ] {
                for (n, m) in [(1, 1), (70, 1), (67, 3), (66, 9)] {
                    let w = random(dtype, n, k);
                    let x = Noise(9).floats(m * k, 2.0);
                    let mut got = vec![f32::NAN; m * n];
                    alone(pool.memory(), |scratch| dense_linear(isa, pool, &w, &x, m, scratch, &mut got));
                    for (i, got) in got.iter().enumerate() {
                        let (t, row) = (i / n, i % n);
                        let mut weights = vec![0.0; k];
                        dequantize_row(dtype, w.row(row), &mut weights);
                        let want = spec::dense_dot(&weights, &x[t * k..][..k]);
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa} {dtype:?} {n} x {k}");
                    }
                }
            }
        });
    }
}
