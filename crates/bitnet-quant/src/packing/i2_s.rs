//! bitnet.cpp's `I2_S`: the flat tensor in blocks; byte `g` of a block's `B` bytes holds codes `g`, `B + g`, `2 B + g` and
//! `3 B + g`, highest bits first. Behind the codes one f32 multiplier for the tensor, padded to 32 bytes.
//!
//! What is compiled for x86 has blocks of 128 codes in 32 bytes, and so have published files; what is compiled for ARM writes
//! and reads blocks of 64 in 16 bytes, under the same type id and in as many bytes.

use super::codes::{find_reserved, flat_from_rows, reserved, rows_from_flat, transpose};
use super::{Packing, PackingError, check};
use bitnet_core::{Bytes, DenseType, Packed, Scale, TernaryMatrix};

/// bitnet.cpp's `I2_S` as it is on x86, GGUF type 36: blocks of 128.
pub static I2_S: Packing = Packing {
    name: "I2_S",
    scale: DenseType::F32,
    bytes: |rows, cols| bytes::<32>(rows, cols),
    unpack: |rows, cols, data| unpack::<32>(&I2_S, rows, cols, data),
    pack: |m, out| pack::<32>(&I2_S, m, out),
};

/// bitnet.cpp's `I2_S` as it is on ARM: blocks of 64.
pub static I2_S_ARM: Packing = Packing {
    name: "I2_S_ARM",
    scale: DenseType::F32,
    bytes: |rows, cols| bytes::<16>(rows, cols),
    unpack: |rows, cols, data| unpack::<16>(&I2_S_ARM, rows, cols, data),
    pack: |m, out| pack::<16>(&I2_S_ARM, m, out),
};

/// Codes of a block of [`I2_S`].
pub(super) const BLOCK: usize = 128;
/// The scale and its padding.
const TAIL: usize = 32;

/// What the shape must be where blocks have `B` bytes.
const fn need<const B: usize>() -> &'static str {
    match B {
        32 => "rows times columns must be a multiple of 128",
        _ => "rows times columns must be a multiple of 64",
    }
}

fn bytes<const B: usize>(rows: usize, cols: usize) -> Option<usize> {
    let n = rows.checked_mul(cols)?;
    n.is_multiple_of(4 * B).then_some(n / 4 + TAIL)
}

fn unpack<const B: usize>(
    packing: &Packing,
    rows: usize,
    cols: usize,
    data: &[u8],
) -> Result<TernaryMatrix, PackingError> {
    let (codes, scale) = parts::<B>(packing, rows, cols, data)?;
    let canonical = canonical::<B>(rows, cols, codes);
    find_reserved(packing.name, cols, &canonical)?;
    Ok(TernaryMatrix::new(rows, cols, canonical.into(), scale)?)
}

/// [`I2_S`] without a copy, for rows of whole blocks.
pub(super) fn in_place(rows: usize, cols: usize, data: &Bytes) -> Result<TernaryMatrix, PackingError> {
    const B: usize = BLOCK / 4;
    let (codes, scale) = parts::<B>(&I2_S, rows, cols, data)?;
    let words = codes.as_chunks::<4>().0;
    if words.iter().fold(0, |found, word| found | reserved(u32::from_le_bytes(*word))) != 0 {
        find_reserved(I2_S.name, cols, &canonical::<B>(rows, cols, codes))?;
    }
    let bytes = data.slice(0..codes.len()).expect("the codes are a part of the data");
    let packed = Packed { packing: I2_S.name, bytes, unpack: canonical::<B> };
    Ok(TernaryMatrix::packed(rows, cols, packed, scale)?)
}

/// Codes and scale.
fn parts<'a, const B: usize>(
    packing: &Packing,
    rows: usize,
    cols: usize,
    data: &'a [u8],
) -> Result<(&'a [u8], Scale), PackingError> {
    check(packing, rows, cols, data.len(), need::<B>())?;
    let (codes, tail) = data.split_at(data.len() - TAIL);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    if !scale.is_finite() {
        return Err(PackingError::ScaleNotFinite { packing: packing.name, value: scale });
    }
    Ok((codes, Scale::Tensor(scale)))
}

fn canonical<const B: usize>(rows: usize, cols: usize, codes: &[u8]) -> Vec<u8> {
    let mut flat = vec![0; codes.len()];
    for (block, out) in codes.as_chunks::<B>().0.iter().zip(flat.as_chunks_mut::<B>().0) {
        let mut words = [0; BLOCK / 16];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = transpose(u32::from_le_bytes(*bytes));
        }
        for (field, out) in out.chunks_exact_mut(B / 4).enumerate() {
            for (out, word) in out.iter_mut().zip(&words) {
                *out = (word >> (24 - 8 * field)) as u8;
            }
        }
    }
    rows_from_flat(rows, cols, flat)
}

fn pack<const B: usize>(packing: &Packing, m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    let Scale::Tensor(scale) = m.scale() else {
        return Err(PackingError::ScaleKind { packing: packing.name, room: "the whole tensor" });
    };
    if (packing.bytes)(m.rows(), m.cols()).is_none() {
        let (packing, rows, cols) = (packing.name, m.rows(), m.cols());
        return Err(PackingError::Shape { packing, rows, cols, need: need::<B>() });
    }
    for block in flat_from_rows(m).as_chunks::<B>().0 {
        for i in 0..B / 4 {
            let word =
                u32::from_le_bytes([block[3 * B / 4 + i], block[B / 2 + i], block[B / 4 + i], block[i]]);
            out.extend(transpose(word).to_le_bytes());
        }
    }
    out.extend(scale.to_le_bytes());
    out.resize(out.len() + TAIL - 4, 0);
    Ok(())
}
