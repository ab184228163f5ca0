//! Sixteen neighbouring weights of a row, dequantized in registers.

use crate::simd::Lanes;

/// How a row of one dense type is read, sixteen weights at a time.
///
/// The formulas are those of `bitnet_quant::dense`, operation for operation.
pub(super) trait RowFormat {
    /// Weights `16 * block ..` of a row.
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F;
    /// The last `len` weights, from `16 * block` on, padded with zeros. Only unblocked types have such a tail.
    #[inline(always)]
    fn tail<L: Lanes>(l: L, _row: &[u8], _block: usize, _len: usize) -> L::F {
        l.splat(0.0)
    }
}

/// `N` bytes from `at`. Rows are whole, so they are there.
#[inline(always)]
fn bytes<const N: usize>(row: &[u8], at: usize) -> &[u8; N] {
    row[at..at + N].as_array().expect("a slice of N bytes is an array of N bytes")
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

#[inline(always)]
fn f16_at(row: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes(*bytes(row, at)).to_f32()
}

pub(super) struct F32;
impl RowFormat for F32 {
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
impl RowFormat for F16 {
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
impl RowFormat for Bf16 {
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
impl RowFormat for Q8_0 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let start = block / 2 * 34;
        let q: &[u8; 16] = bytes(row, start + 2 + block % 2 * 16);
        l.mul(l.load_i8(&q.map(|b| b as i8)), l.splat(f16_at(row, start)))
    }
}

/// 32 weights: f16 scale, 16 bytes; low nibbles are the first half; `(q - 8) * d`.
pub(super) struct Q4_0;
impl RowFormat for Q4_0 {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let start = block / 2 * 18;
        let raw: &[u8; 16] = bytes(row, start + 2);
        let shift = 4 * (block % 2);
        l.mul(l.load_i8(&raw.map(|b| ((b >> shift) & 15) as i8 - 8)), l.splat(f16_at(row, start)))
    }
}

/// 256 weights: low nibbles, high bit pairs, sixteen signed scales, f16 scale; `(d * sc) * q`.
pub(super) struct Q6K;
impl RowFormat for Q6K {
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, row: &[u8], block: usize) -> L::F {
        let raw: &[u8; 210] = bytes(row, block / 16 * 210);
        // A half of 128 weights is four quarters of 32; each quarter is two blocks of 16 with a scale of their own.
        let (half, quarter, side) = (block / 8 % 2, block / 2 % 4, block % 2);
        let low: &[u8; 16] = bytes(raw, 64 * half + 32 * (quarter % 2) + 16 * side);
        let high: &[u8; 16] = bytes(raw, 128 + 32 * half + 16 * side);
        let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
        let q = std::array::from_fn(|i| {
            (((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4)) as i8 - 32
        });
        let scale = f16_at(raw, 208) * f32::from(raw[192 + 8 * half + 2 * quarter + side] as i8);
        l.mul(l.splat(scale), l.load_i8(&q))
    }
}
