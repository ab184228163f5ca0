//! bitnet.cpp's `I2_S`: the flat tensor in blocks of 128 codes, 32 bytes each; byte `g` holds codes `g`, `32 + g`, `64 + g`
//! and `96 + g`, highest bits first. Behind the codes one f32 multiplier for the tensor, padded to 32 bytes.

use super::codes::{find_reserved, flat_from_rows, reserved, rows_from_flat, transpose};
use super::{Packing, PackingError, check};
use bitnet_core::{Bytes, Packed, Scale, TernaryMatrix};

/// bitnet.cpp's `I2_S`, GGUF type 36.
pub static I2_S: Packing = Packing { name: "I2_S", bytes, unpack, pack };

const NEED: &str = "rows times columns must be a multiple of 128";
/// Codes of a block.
pub(super) const BLOCK: usize = 128;
/// The scale and its padding.
const TAIL: usize = 32;

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    let n = rows.checked_mul(cols)?;
    n.is_multiple_of(128).then_some(n / 4 + TAIL)
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    let (codes, scale) = parts(rows, cols, data)?;
    let canonical = canonical(rows, cols, codes);
    find_reserved(I2_S.name, cols, &canonical)?;
    Ok(TernaryMatrix::new(rows, cols, canonical.into(), scale)?)
}

/// The same without a copy, for rows of whole blocks.
pub(super) fn in_place(rows: usize, cols: usize, data: &Bytes) -> Result<TernaryMatrix, PackingError> {
    let (codes, scale) = parts(rows, cols, data)?;
    let words = codes.as_chunks::<4>().0;
    if words.iter().fold(0, |found, word| found | reserved(u32::from_le_bytes(*word))) != 0 {
        find_reserved(I2_S.name, cols, &canonical(rows, cols, codes))?;
    }
    let bytes = data.slice(0..codes.len()).expect("the codes are a part of the data");
    Ok(TernaryMatrix::packed(rows, cols, Packed { packing: I2_S.name, bytes, unpack: canonical }, scale)?)
}

/// Codes and scale.
fn parts(rows: usize, cols: usize, data: &[u8]) -> Result<(&[u8], Scale), PackingError> {
    check(&I2_S, rows, cols, data.len(), NEED)?;
    let (codes, tail) = data.split_at(data.len() - TAIL);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    if !scale.is_finite() {
        return Err(PackingError::ScaleNotFinite { packing: I2_S.name, value: scale });
    }
    Ok((codes, Scale::Tensor(scale)))
}

fn canonical(rows: usize, cols: usize, codes: &[u8]) -> Vec<u8> {
    let mut flat = vec![0; codes.len()];
    for (block, out) in codes.as_chunks::<32>().0.iter().zip(flat.as_chunks_mut::<32>().0) {
        for (i, word) in block.as_chunks::<4>().0.iter().enumerate() {
            let [d, c, b, a] = transpose(u32::from_le_bytes(*word)).to_le_bytes();
            (out[i], out[8 + i], out[16 + i], out[24 + i]) = (a, b, c, d);
        }
    }
    rows_from_flat(rows, cols, flat)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    let Scale::Tensor(scale) = m.scale() else {
        return Err(PackingError::ScaleKind { packing: I2_S.name, room: "the whole tensor" });
    };
    if bytes(m.rows(), m.cols()).is_none() {
        return Err(PackingError::Shape { packing: I2_S.name, rows: m.rows(), cols: m.cols(), need: NEED });
    }
    for block in flat_from_rows(m).as_chunks::<32>().0 {
        for i in 0..8 {
            let word = u32::from_le_bytes([block[24 + i], block[16 + i], block[8 + i], block[i]]);
            out.extend(transpose(word).to_le_bytes());
        }
    }
    out.extend(scale.to_le_bytes());
    out.resize(out.len() + TAIL - 4, 0);
    Ok(())
}
