//! Sixteen neighbouring weights of a row, dequantized in registers.

use crate::simd::Lanes;

/// How a row of one dense type is read. The formulas are those of `bitnet_quant::dense`, operation for operation.
pub(super) trait RowFormat {
    /// Weights of a step, a multiple of sixteen.
    const STEP: usize;
    /// Adds the products of step `step` of a row with `x [STEP]` to a running L16.
    fn accumulate<L: Lanes>(l: L, row: &[u8], step: usize, x: &[f32], sum: L::F) -> L::F;
    /// The weights of step `step` of a row.
    fn weights<L: Lanes>(l: L, row: &[u8], step: usize, out: &mut [f32]);
    /// The last `len` weights, from `16 * block` on, padded with zeros. Only unblocked types have such a tail.
    fn tail<L: Lanes>(l: L, row: &[u8], block: usize, len: usize) -> L::F;
}

/// A type whose weights are had sixteen at a time.
pub(super) trait Sixteen {
    /// Weights `16 * block ..` of a row.
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F;
    /// As [`RowFormat::tail`].
    #[inline(always)]
    fn tail<L: Lanes>(l: L, _row: &[u8], _block: usize, _len: usize) -> L::F {
        l.splat(0.0)
    }
}

impl<T: Sixteen> RowFormat for T {
    const STEP: usize = 16;
    #[inline(always)]
    fn accumulate<L: Lanes>(l: L, row: &[u8], step: usize, x: &[f32], sum: L::F) -> L::F {
        l.fma(T::lanes(l, row, step), l.load(array(x, 0)), sum)
    }
    #[inline(always)]
    fn weights<L: Lanes>(l: L, row: &[u8], step: usize, out: &mut [f32]) {
        l.store(T::lanes(l, row, step), &mut out.as_chunks_mut::<16>().0[0]);
    }
    #[inline(always)]
    fn tail<L: Lanes>(l: L, row: &[u8], block: usize, len: usize) -> L::F {
        <T as Sixteen>::tail(l, row, block, len)
    }
}

/// `N` bytes from `at`. Rows are whole, so they are there.
#[inline(always)]
fn bytes<const N: usize>(row: &[u8], at: usize) -> &[u8; N] {
    row[at..at + N].as_array().expect("a slice of N bytes is an array of N bytes")
}

/// Sixteen floats from `16 * block`.
#[inline(always)]
fn array(x: &[f32], block: usize) -> &[f32; 16] {
    &x.as_chunks::<16>().0[block]
}

#[inline(always)]
fn words(raw: &[u8; 32]) -> [u16; 16] {
    std::array::from_fn(|i| u16::from_le_bytes([raw[2 * i], raw[2 * i + 1]]))
}

#[inline(always)]
fn half_words(row: &[u8], block: usize, len: usize) -> [u16; 16] {
    let mut raw = [0; 32];
    raw[..2 * len].copy_from_slice(&row[32 * block..][..2 * len]);
    words(&raw)
}

/// The f16 at a byte of a row, in every lane.
#[inline(always)]
fn f16_at<L: Lanes>(l: L, row: &[u8], at: usize) -> L::F {
    l.load_f16(&[u16::from_le_bytes(*bytes(row, at)); 16])
}

pub(super) struct F32;
impl Sixteen for F32 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let raw: &[u8; 64] = bytes(row, 64 * block);
        l.load(&std::array::from_fn(|i| {
            f32::from_le_bytes([raw[4 * i], raw[4 * i + 1], raw[4 * i + 2], raw[4 * i + 3]])
        }))
    }
    #[inline(always)]
    fn tail<L: Lanes>(l: L, row: &[u8], block: usize, len: usize) -> L::F {
        let mut raw = [0; 64];
        raw[..4 * len].copy_from_slice(&row[64 * block..][..4 * len]);
        Self::lanes(l, &raw, 0)
    }
}

pub(super) struct F16;
impl Sixteen for F16 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        l.load_f16(&words(bytes(row, 32 * block)))
    }
    #[inline(always)]
    fn tail<L: Lanes>(l: L, row: &[u8], block: usize, len: usize) -> L::F {
        l.load_f16(&half_words(row, block, len))
    }
}

pub(super) struct Bf16;
impl Sixteen for Bf16 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        l.load_bf16(&words(bytes(row, 32 * block)))
    }
    #[inline(always)]
    fn tail<L: Lanes>(l: L, row: &[u8], block: usize, len: usize) -> L::F {
        l.load_bf16(&half_words(row, block, len))
    }
}

/// 32 weights: f16 scale, 32 signed bytes; `q * d`.
pub(super) struct Q8_0;
impl Sixteen for Q8_0 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let start = block / 2 * 34;
        let q: &[u8; 16] = bytes(row, start + 2 + block % 2 * 16);
        l.mul(l.load_i8(&q.map(|b| b as i8)), f16_at(l, row, start))
    }
}

/// 32 weights: f16 scale, 16 bytes; low nibbles are the first half; `(q - 8) * d`.
pub(super) struct Q4_0;
impl Sixteen for Q4_0 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let start = block / 2 * 18;
        let raw: &[u8; 16] = bytes(row, start + 2);
        let shift = 4 * (block % 2);
        l.mul(l.load_i8(&raw.map(|b| ((b >> shift) & 15) as i8 - 8)), f16_at(l, row, start))
    }
}

/// 32 weights: f16 scale, f16 offset, 16 bytes; low nibbles are the first half; `q * d + m`, whose product is exact.
pub(super) struct Q4_1;
impl Sixteen for Q4_1 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let start = block / 2 * 20;
        let raw: &[u8; 16] = bytes(row, start + 4);
        let shift = 4 * (block % 2);
        let q = l.load_i8(&raw.map(|b| ((b >> shift) & 15) as i8));
        l.fma(q, f16_at(l, row, start), f16_at(l, row, start + 2))
    }
}

/// 256 weights: low nibbles, high bit pairs, sixteen signed scales, f16 scale; `(d * sc) * q`.
pub(super) struct Q6K;
impl RowFormat for Q6K {
    const STEP: usize = 256;
    #[inline(always)]
    fn accumulate<L: Lanes>(l: L, row: &[u8], step: usize, x: &[f32], mut sum: L::F) -> L::F {
        let raw: &[u8; 210] = bytes(row, 210 * step);
        let scales = Self::scales(l, raw);
        for half in 0..2 {
            let q = l.six_bits(bytes(raw, 64 * half), bytes(raw, 128 + 32 * half));
            for i in 0..8 {
                let weights = l.mul(l.splat(scales[8 * half + i]), q[i]);
                sum = l.fma(weights, l.load(array(x, 8 * half + i)), sum);
            }
        }
        sum
    }
    #[inline(always)]
    fn weights<L: Lanes>(l: L, row: &[u8], step: usize, out: &mut [f32]) {
        let raw: &[u8; 210] = bytes(row, 210 * step);
        let scales = Self::scales(l, raw);
        let out = out.as_chunks_mut::<16>().0;
        for half in 0..2 {
            let q = l.six_bits(bytes(raw, 64 * half), bytes(raw, 128 + 32 * half));
            for i in 0..8 {
                l.store(l.mul(l.splat(scales[8 * half + i]), q[i]), &mut out[8 * half + i]);
            }
        }
    }
    #[inline(always)]
    fn tail<L: Lanes>(l: L, _row: &[u8], _block: usize, _len: usize) -> L::F {
        l.splat(0.0)
    }
}

impl Q6K {
    /// `d * sc` of the sixteen parts of a block.
    #[inline(always)]
    fn scales<L: Lanes>(l: L, raw: &[u8; 210]) -> [f32; 16] {
        let mut scales = [0.0; 16];
        let levels: &[u8; 16] = bytes(raw, 192);
        l.store(l.mul(f16_at(l, raw, 208), l.load_i8(&levels.map(|b| b as i8))), &mut scales);
        scales
    }
}
