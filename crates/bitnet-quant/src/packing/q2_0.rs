//! `Q2_0`: an f16 scale, then sequential codes, lowest bits first. ggml has groups of 64 (18 bytes); Prism's first files have
//! groups of 128 (34 bytes) under the same type id, and are told apart by the size of the tensor.

use super::Packing;
use super::blocks::BlockFormat;
use bitnet_core::DenseType;

/// ggml's `Q2_0`, GGUF type 42: groups of 64.
pub static Q2_0_G64: Packing = Packing {
    name: "Q2_0_G64",
    scale: DenseType::F16,
    bytes: |rows, cols| BlockFormat::size(rows, cols, 64, 18),
    unpack: |rows, cols, data| G64.unpack(rows, cols, data),
    pack: |m, out| G64.pack(m, out),
};

/// `Q2_0` with groups of 128.
pub static Q2_0_G128: Packing = Packing {
    name: "Q2_0_G128",
    scale: DenseType::F16,
    bytes: |rows, cols| BlockFormat::size(rows, cols, 128, 34),
    unpack: |rows, cols, data| G128.unpack(rows, cols, data),
    pack: |m, out| G128.pack(m, out),
};

static G64: BlockFormat = BlockFormat {
    packing: &Q2_0_G64,
    len: 64,
    bytes: 18,
    scale_at: 0,
    decode: copy,
    encode: copy,
    need: "columns must be a multiple of 64",
};

static G128: BlockFormat = BlockFormat {
    packing: &Q2_0_G128,
    len: 128,
    bytes: 34,
    scale_at: 0,
    decode: copy,
    encode: copy,
    need: "columns must be a multiple of 128",
};

/// Stored codes are canonical ones.
fn copy(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}
