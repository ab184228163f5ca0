//! ggml's `TQ2_0`: 256 columns in 66 bytes; each half of 128 codes takes 32 bytes, byte `b` holding codes `b`, `32 + b`,
//! `64 + b` and `96 + b`, lowest bits first; then an f16 scale.

use super::blocks::BlockFormat;
use super::codes::transpose;
use super::{Packing, PackingError};
use bitnet_core::{DenseType, TernaryMatrix};

/// ggml's `TQ2_0`, GGUF type 35.
pub static TQ2_0: Packing = Packing { name: "TQ2_0", scale: DenseType::F16, bytes, unpack, pack };

static FORMAT: BlockFormat = BlockFormat {
    packing: &TQ2_0,
    len: 256,
    bytes: 66,
    scale_at: 64,
    decode,
    encode,
    need: "columns must be a multiple of 256",
};

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    BlockFormat::size(rows, cols, 256, 66)
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    FORMAT.unpack(rows, cols, data)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    FORMAT.pack(m, out)
}

fn decode(codes: &[u8], out: &mut [u8]) {
    for (half, out) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, word) in half.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = transpose(u32::from_le_bytes(*word)).to_le_bytes();
            (out[i], out[8 + i], out[16 + i], out[24 + i]) = (a, b, c, d);
        }
    }
}

fn encode(codes: &[u8], out: &mut [u8]) {
    for (half, out) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *out = transpose(u32::from_le_bytes([half[i], half[8 + i], half[16 + i], half[24 + i]]))
                .to_le_bytes();
        }
    }
}
