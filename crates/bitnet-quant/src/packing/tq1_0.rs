//! ggml's `TQ1_0`: 256 columns in 54 bytes, base 3. Five codes share a byte: columns 0..160 lie in 32 bytes (digit `k` of byte
//! `b` is column `32 k + b`), 160..240 in 16 bytes (column `160 + 16 k + b`); the last 16 in 4 bytes, four codes each (column
//! `240 + 4 k + b`); then an f16 scale. A byte is `ceil(v * 256 / 243)` for `v = sum of code_k * 3^(4 - k)`.

use super::blocks::BlockFormat;
use super::{Packing, PackingError};
use bitnet_core::{DenseType, TernaryMatrix};

/// ggml's `TQ1_0`, GGUF type 34.
pub static TQ1_0: Packing = Packing { name: "TQ1_0", scale: DenseType::F16, bytes, unpack, pack };

static FORMAT: BlockFormat = BlockFormat {
    packing: &TQ1_0,
    len: 256,
    bytes: 54,
    scale_at: 52,
    decode,
    encode,
    need: "columns must be a multiple of 256",
};

/// First byte, bytes, digits a byte and first column of the three parts of a block.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

fn bytes(rows: usize, cols: usize) -> Option<usize> {
    BlockFormat::size(rows, cols, 256, 54)
}

fn unpack(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, PackingError> {
    FORMAT.unpack(rows, cols, data)
}

fn pack(m: &TernaryMatrix, out: &mut Vec<u8>) -> Result<(), PackingError> {
    FORMAT.pack(m, out)
}

fn decode(stored: &[u8], out: &mut [u8]) {
    let mut codes = [0u8; 256];
    for (from, len, digits, column) in PARTS {
        for (b, byte) in stored[from..from + len].iter().enumerate() {
            let mut rest = *byte;
            for k in 0..digits {
                codes[column + len * k + b] = ((u16::from(rest) * 3) >> 8) as u8;
                rest = rest.wrapping_mul(3);
            }
        }
    }
    for (four, out) in codes.as_chunks::<4>().0.iter().zip(out) {
        *out = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
    }
}

fn encode(canonical: &[u8], out: &mut [u8]) {
    let code = |col: usize| u16::from((canonical[col / 4] >> (2 * (col % 4))) & 3);
    for (from, len, digits, column) in PARTS {
        for (b, out) in out[from..from + len].iter_mut().enumerate() {
            let v = (0..5).fold(0, |v, k| v * 3 + if k < digits { code(column + len * k + b) } else { 0 });
            *out = (v * 256).div_ceil(243) as u8;
        }
    }
}
