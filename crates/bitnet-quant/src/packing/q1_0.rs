//! ggml's `Q1_0`: 128 columns in 18 bytes: an f16 scale, then one bit a weight, lowest first; 1 is +1 and 0 is -1.

use super::blocks::BlockFormat;
use super::codes::ZEROS;
use super::{Packing, PackingError};
use bitnet_core::{DenseType, TernaryMatrix};

/// ggml's `Q1_0`, GGUF type 41.
pub static Q1_0: Packing = Packing { name: "Q1_0", scale: DenseType::F16, bytes, unpack, pack };

static FORMAT: BlockFormat = BlockFormat {
    packing: &Q1_0,
    len: 128,
    bytes: 18,
    scale_at: 0,
    decode,
    encode,
    need: "columns must be a multiple of 128",
};

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    BlockFormat::size(rows, cols, 128, 18)
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    FORMAT.unpack(rows, cols, data)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    for row in 0..m.rows() {
        let zero = |col: &usize| (m.row_codes(row)[col / 4] ^ ZEROS) >> (2 * (col % 4)) & 3 == 0;
        if let Some(col) = (0..m.cols()).find(zero) {
            return Err(PackingError::Zero { packing: Q1_0.name, row, col });
        }
    }
    FORMAT.pack(m, out)
}

fn decode(bits: &[u8], out: &mut [u8]) {
    for (byte, out) in bits.iter().zip(out.as_chunks_mut::<2>().0) {
        // Bit `i` becomes the high bit of code `i`: code 2 or 0.
        let spread =
            |nibble: u8| (nibble & 1) << 1 | (nibble & 2) << 2 | (nibble & 4) << 3 | (nibble & 8) << 4;
        *out = [spread(byte & 15), spread(byte >> 4)];
    }
}

fn encode(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<2>().0.iter().zip(out) {
        let gather = |byte: u8| byte >> 1 & 1 | byte >> 2 & 2 | byte >> 3 & 4 | byte >> 4 & 8;
        *out = gather(codes[0]) | gather(codes[1]) << 4;
    }
}
