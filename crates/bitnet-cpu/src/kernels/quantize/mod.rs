//! Per-token int8 activations (rule 4 of `docs/numerics.md`).

use crate::Isa;
use crate::kernels::norm::padded;
use crate::memory::{Buffer, OutOfMemory, Scratch, at_least};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};

/// Int8 activations of `m` tokens.
#[derive(Clone, Copy)]
pub(crate) struct Int8<'a> {
    /// `[m, stride]`, every token padded with zeros.
    pub(crate) q: &'a [i8],
    /// Elements a token takes in `q`.
    pub(crate) stride: usize,
    /// `[m]`: what an integer is multiplied with to be real again.
    pub(crate) d: &'a [f32],
    /// `[m]`: sums of the integers.
    pub(crate) sums: &'a [i32],
}

/// The same in memory of its own, which is kept for the next ones.
#[derive(Default)]
pub(crate) struct Quantized {
    /// What an earlier product left lies behind the tokens.
    pub(crate) q: Buffer<i8>,
    pub(crate) stride: usize,
    /// Elements of a token that are its own.
    pub(crate) k: usize,
    pub(crate) d: Buffer<f32>,
    pub(crate) sums: Buffer<i32>,
}

impl Quantized {
    pub(crate) fn int8(&self) -> Int8<'_> {
        Int8 { q: &self.q, stride: self.stride, d: &self.d, sums: &self.sums }
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    q: &'a mut [i8],
}

impl Kernel for QuantizeRow<'_> {
    /// What [`Int8`] has of a token as `d` and in `sums`.
    type Output = (f32, i32);
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> (f32, i32) {
        let (blocks, tail) = self.x.as_chunks::<16>();
        let last = padded(tail);
        let zero = l.splat(0.0);
        let mut max = zero;
        for x in blocks.iter().chain([&last]) {
            let x = l.load(x);
            max = l.max(l.max(x, l.sub(zero, x)), max);
        }
        let mut lanes = [0.0; 16];
        l.store(max, &mut lanes);
        let absmax = lanes.iter().fold(bitnet_quant::spec::ACT_FLOOR, |m, v| if *v > m { *v } else { m });
        let s = 127.0 / absmax;
        for (x, q) in blocks.iter().chain([&last]).zip(self.q.chunks_mut(16)) {
            let z = l.round(l.mul(l.load(x), l.splat(s)));
            let z = l.min(l.max(z, l.splat(-128.0)), l.splat(127.0));
            match q.first_chunk_mut() {
                Some(q) => l.store_i8(z, q),
                None => {
                    let mut whole = [0; 16];
                    l.store_i8(z, &mut whole);
                    q.copy_from_slice(&whole[..q.len()]);
                }
            }
        }
        (1.0 / s, self.q.iter().map(|q| i32::from(*q)).sum())
    }
}

/// Quantizes `x [m, k]` for an operation.
pub(crate) fn int8<'s>(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    k: usize,
    scratch: &'s Scratch<'_>,
) -> Result<Int8<'s>, OutOfMemory> {
    let (m, stride) = (x.len() / k, stride(k));
    let (q, d, sums) = (scratch.buffer(m * stride)?, scratch.buffer(m)?, scratch.buffer(m)?);
    fill(pool, (stride, k), (&mut *q, &mut *d, &mut *sums), &|t, q| {
        dispatch(isa, QuantizeRow { x: &x[t * k..(t + 1) * k], q })
    });
    Ok(Int8 { q, stride, d, sums })
}

/// Quantizes `x [m, k]` into `out`, whose memory is reused.
pub(crate) fn quantize(isa: Isa, pool: &Pool, x: &[f32], k: usize, out: &mut Quantized) {
    rows(pool, (x.len() / k, k), out, &|t, q| dispatch(isa, QuantizeRow { x: &x[t * k..(t + 1) * k], q }));
}

/// Sets the integers of a token, and gives what [`Int8`] has of it as `d` and in `sums`.
type Row<'a> = &'a (dyn Fn(usize, &mut [i8]) -> (f32, i32) + Sync);

/// Fills `m` tokens of `k` elements by a rule.
pub(crate) fn rows(pool: &Pool, (m, k): (usize, usize), out: &mut Quantized, f: Row<'_>) {
    (out.stride, out.k) = (stride(k), k);
    let memory = pool.memory();
    let q = at_least(memory, &mut out.q, m * out.stride);
    let (d, sums) = (at_least(memory, &mut out.d, m), at_least(memory, &mut out.sums, m));
    fill(pool, (out.stride, k), (q, d, sums), f);
}

/// Elements that a token of `k` takes: with room for the columns of padding that any layout has.
fn stride(k: usize) -> usize {
    (k.div_ceil(64) + 1) * 64
}

/// Fills tokens of `k` elements by a rule; what is left of `q` is zero.
fn fill(
    pool: &Pool,
    (stride, k): (usize, usize),
    (q, d, sums): (&mut [i8], &mut [f32], &mut [i32]),
    f: Row<'_>,
) {
    let (d, sums) = (Shares::new(d), Shares::new(sums));
    pool.chunks_mut(q, stride, &|t, q| {
        q[k..].fill(0);
        let of_row = f(t, q);
        // SAFETY: `t` is visited once.
        let (d, sums) = unsafe { (d.slice(t, 1), sums.slice(t, 1)) };
        (d[0], sums[0]) = of_row;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn equals_the_specification() {
        for_each_isa_and_pool(|isa, pool| {
            for k in [1, 16, 31, 200, 2560] {
                let mut x = Noise(k as u32).floats(5 * k, 4.0);
                x[..k].fill(0.0);
                x[k] = f32::NAN;
                x[2 * k] = f32::INFINITY;
                x[3 * k..4 * k].fill(1e-7);
                let mut got = Quantized::default();
                quantize(isa, pool, &x, k, &mut got);
                for (t, x) in x.chunks(k).enumerate() {
                    let mut want = vec![0; k];
                    let d = bitnet_quant::spec::quantize_row(x, &mut want);
                    assert_eq!(&got.q[t * got.stride..][..k], want, "{isa} {k} token {t}");
                    assert_eq!(got.d[t].to_bits(), d.to_bits());
                    assert_eq!(got.sums[t], want.iter().map(|q| i32::from(*q)).sum::<i32>());
                    assert!(got.q[t * got.stride + k..(t + 1) * got.stride].iter().all(|q| *q == 0));
                }
            }
        });
    }
}
