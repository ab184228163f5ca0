//! Dense element and block types, dequantized.
//!
//! The formulas define what a stored weight is worth, to the last bit; blocks are those of ggml.

use bitnet_core::DenseType;
use half::{bf16, f16};

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Dequantizes a whole row of `dtype`.
///
/// # Panics
/// When `bytes` is not a row of `out.len()` values; a `DenseMatrix` hands out whole rows.
///
/// ```
/// use bitnet_core::DenseType;
/// let mut out = [0.0; 2];
/// bitnet_quant::dense::dequantize_row(DenseType::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out);
/// assert_eq!(out, [1.0, -2.0]);
/// ```
pub fn dequantize_row(dtype: DenseType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "a row of {} {}", out.len(), dtype.name());
    let (values, len) = dtype.block();
    for (out, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(len)) {
        match dtype {
            DenseType::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            DenseType::F16 => out[0] = f16_at(block, 0),
            DenseType::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            DenseType::Q8_0 => {
                let d = f16_at(block, 0);
                for (out, q) in out.iter_mut().zip(&block[2..]) {
                    *out = f32::from(*q as i8) * d;
                }
            }
            DenseType::Q4_0 => {
                let d = f16_at(block, 0);
                for (i, q) in block[2..].iter().enumerate() {
                    out[i] = f32::from((q & 15) as i8 - 8) * d;
                    out[i + 16] = f32::from((q >> 4) as i8 - 8) * d;
                }
            }
            DenseType::Q6_K => q6_k(block, out),
        }
    }
}

/// 256 values: 128 bytes of low nibbles, 64 bytes of high bit pairs, sixteen signed scales, one f16.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 208);
    for half in 0..2 {
        let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        let scales = &block[192 + 8 * half..][..8];
        for i in 0..32 {
            for quarter in 0..4 {
                let nibble = (low[i + 32 * (quarter % 2)] >> (4 * (quarter / 2))) & 15;
                let pair = (high[i] >> (2 * quarter)) & 3;
                let q = (nibble | (pair << 4)) as i8 - 32;
                let scale = scales[2 * quarter + i / 16] as i8;
                out[128 * half + 32 * quarter + i] = (d * f32::from(scale)) * f32::from(q);
            }
        }
    }
}
