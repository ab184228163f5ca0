//! Dense element and block types, to floats and back.
//!
//! Dequantization defines what a stored weight is worth, to the last bit; blocks are those of ggml. Quantization rounds to
//! nearest with the scale that the largest magnitude of a block asks for.

use bitnet_core::{DenseMatrix, DenseType};
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
/// use bitnet_core::{DenseMatrix, DenseType};
/// let mut out = [0.0; 2];
/// bitnet_quant::dense::dequantize_row(DenseType::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out);
/// assert_eq!(out, [1.0, -2.0]);
/// ```
pub fn dequantize_row(dtype: DenseType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()), "a row of {} {}", out.len(), dtype.name());
    // Types without blocks have loops of their own, which vectorize.
    match dtype {
        DenseType::F32 => {
            return out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        }
        DenseType::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            return out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, b)| *o = wide(b));
        }
        _ => {}
    }
    let (values, len) = dtype.block();
    for (out, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(len)) {
        match dtype {
            DenseType::F32 | DenseType::BF16 => {}
            DenseType::F16 => out[0] = f16_at(block, 0),
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
            DenseType::Q4_1 => {
                let (d, least) = (f16_at(block, 0), f16_at(block, 2));
                // Four bits times eleven are exact, so it does not matter whether the sum is fused.
                for (i, q) in block[4..].iter().enumerate() {
                    out[i] = f32::from(q & 15) * d + least;
                    out[i + 16] = f32::from(q >> 4) * d + least;
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

/// The first number of some whole blocks that is a NaN or an infinity. Block types can only hold them in their scales.
pub fn first_not_finite(dtype: DenseType, bytes: &[u8]) -> Option<f32> {
    let f16s = |at: usize| {
        let mut scales = bytes.chunks_exact(dtype.block().1).map(move |block| f16_at(block, at));
        scales.find(|v| !v.is_finite())
    };
    match dtype {
        DenseType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).find(|v| !v.is_finite()),
        DenseType::BF16 => {
            bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).find(|v| !v.is_finite())
        }
        DenseType::F16 | DenseType::Q8_0 | DenseType::Q4_0 => f16s(0),
        DenseType::Q4_1 => f16s(0).or_else(|| f16s(2)),
        DenseType::Q6_K => f16s(208),
    }
}

/// The same matrix in `F32`, for backends that have no kernel for its type: its values are what they were.
///
/// ```
/// use bitnet_core::{DenseMatrix, DenseType};
/// let m = DenseMatrix::new(1, 2, DenseType::BF16, vec![0x80, 0x3f, 0, 0xc0].into())?;
/// assert_eq!(bitnet_quant::dense::widened(&m).data()[..], [1.0f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
/// # Ok::<(), bitnet_core::ShapeError>(())
/// ```
pub fn widened(m: &DenseMatrix) -> DenseMatrix {
    let mut data = Vec::with_capacity(4 * m.rows() * m.cols());
    let mut values = vec![0.0; m.cols()];
    for row in 0..m.rows() {
        dequantize_row(m.dtype(), m.row(row), &mut values);
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    DenseMatrix::new(m.rows(), m.cols(), DenseType::F32, data.into()).expect("four bytes a value")
}

/// Appends a row in `dtype` to `out`; `None` when it is not whole blocks.
pub fn quantize_row(dtype: DenseType, values: &[f32], out: &mut Vec<u8>) -> Option<()> {
    dtype.row_bytes(values.len())?;
    for block in values.chunks_exact(dtype.block().0) {
        match dtype {
            DenseType::F32 => out.extend(block[0].to_le_bytes()),
            DenseType::F16 => out.extend(f16::from_f32(block[0]).to_le_bytes()),
            DenseType::BF16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            DenseType::Q8_0 => {
                let d = f16::from_f32(magnitude(block) / 127.0);
                out.extend(d.to_le_bytes());
                out.extend(block.iter().map(|v| level(*v, d.to_f32(), 127.0) as u8));
            }
            DenseType::Q6_K => q6_k_block(block, out),
            DenseType::Q4_0 => q4_0_block(block, out),
            DenseType::Q4_1 => q4_1_block(block, out),
        }
    }
    Some(())
}

fn magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// The nearest multiple of `step`, at most `limit` of them.
fn level(value: f32, step: f32, limit: f32) -> i8 {
    if step == 0.0 { 0 } else { (value / step).round_ties_even().clamp(-limit, limit) as i8 }
}

/// There is one level more below zero than above: the largest magnitude gets it, whatever its sign.
fn q4_0_block(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m });
    let d = f16::from_f32(largest / -8.0);
    let code = |v: f32| {
        if d.to_f32() == 0.0 { 8 } else { ((v / d.to_f32()).round_ties_even() + 8.0).clamp(0.0, 15.0) as u8 }
    };
    out.extend(d.to_le_bytes());
    out.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
}

/// Sixteen levels from the smallest value to the largest.
fn q4_1_block(block: &[f32], out: &mut Vec<u8>) {
    let least = block.iter().copied().fold(f32::INFINITY, f32::min);
    let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (d, from) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
    let code = |v: f32| match d.to_f32() {
        0.0 => 0,
        d => ((v - from.to_f32()) / d).round_ties_even().clamp(0.0, 15.0) as u8,
    };
    out.extend(d.to_le_bytes());
    out.extend(from.to_le_bytes());
    out.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
}

/// The reverse of [`q6_k`].
fn q6_k_block(block: &[f32], out: &mut Vec<u8>) {
    let steps: Vec<f32> = block.chunks_exact(16).map(|part| magnitude(part) / 31.0).collect();
    let d = f16::from_f32(magnitude(&steps) / 127.0);
    let scales: Vec<i8> = steps.iter().map(|step| level(*step, d.to_f32(), 127.0)).collect();
    let mut bytes = [0u8; 208];
    for (i, v) in block.iter().enumerate() {
        let scale = scales[i / 16];
        let q = (level(*v, d.to_f32() * f32::from(scale), 31.0) + 32) as u8;
        let (half, quarter, i) = (i / 128, i / 32 % 4, i % 32);
        bytes[64 * half + i + 32 * (quarter % 2)] |= (q & 15) << (4 * (quarter / 2));
        bytes[128 + 32 * half + i] |= (q >> 4) << (2 * quarter);
    }
    for (byte, scale) in bytes[192..].iter_mut().zip(scales) {
        *byte = scale as u8;
    }
    out.extend(bytes);
    out.extend(d.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_values_are_near() {
        let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
        for (dtype, limit) in [
            (DenseType::F32, 0.0),
            (DenseType::F16, 5e-4),
            (DenseType::BF16, 4e-3),
            (DenseType::Q8_0, 6e-3),
            (DenseType::Q6_K, 2.3e-2),
            (DenseType::Q4_0, 0.16),
            (DenseType::Q4_1, 0.09),
        ] {
            let (mut bytes, mut back) = (Vec::new(), vec![0.0; 512]);
            quantize_row(dtype, &values, &mut bytes).unwrap();
            dequantize_row(dtype, &bytes, &mut back);
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= limit, "{dtype:?}: {worst}");
        }
        assert!(quantize_row(DenseType::Q6_K, &values[..100], &mut Vec::new()).is_none());
    }
}
