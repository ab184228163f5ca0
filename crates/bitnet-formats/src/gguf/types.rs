//! Tensor types by their numbers.
//!
//! ggml and bitnet.cpp gave 36 to 40 different meanings; the ones read here are bitnet.cpp's `I2_S` and ggml's `Q1_0` and `Q2_0`.
//! Two numbers stand for two layouts each, see [`super::dialect`].

use super::dialect::{DIALECTS, Dialects};
use crate::TensorType;
use bitnet_core::DenseType;
use bitnet_quant::packing::{Packing, Q1_0, TQ1_0, TQ2_0, TileTable, Tiled};

/// What a number stands for.
pub(super) enum Kind {
    Known(TensorType),
    /// One of two layouts.
    Two(&'static Dialects),
    /// Carried along, not computed with; bytes an element.
    Plain(&'static str, usize),
    Refused(&'static str, &'static str),
}

const QUANTIZED: &str =
    "llama.cpp reads it; requantize the model to one of F16, Q8_0, Q6_K, Q4_0, Q4_1, I2_S, TQ1_0 or TQ2_0";
const TILED: &str = "its tiles follow a kernel configuration that the file does not hold; `bitnet convert --tiles kernel_config.ini` \
                     reads it, if that has this shape; or export the model as I2_S";
const TL2: &str = "tiles of TL2 follow a kernel configuration that the file does not hold, `bitnet convert --tiles kernel_config.ini` \
                   reads them, if that has this shape; MXFP4 is read by llama.cpp; or export the model as I2_S";
const HADAMARD: &str = "its activations need a Hadamard transform, which is not supported";

pub(super) fn kind(id: u32) -> Kind {
    let dense = |d| Kind::Known(TensorType::Dense(d));
    let ternary = |p: &'static Packing| Kind::Known(TensorType::Ternary(p));
    if let Some(dialects) = DIALECTS.iter().find(|d| d.id == id) {
        return Kind::Two(dialects);
    }
    match id {
        0 => dense(DenseType::F32),
        1 => dense(DenseType::F16),
        2 => dense(DenseType::Q4_0),
        3 => dense(DenseType::Q4_1),
        8 => dense(DenseType::Q8_0),
        14 => dense(DenseType::Q6_K),
        30 => dense(DenseType::BF16),
        34 => ternary(&TQ1_0),
        35 => ternary(&TQ2_0),
        41 => ternary(&Q1_0),
        24 => Kind::Plain("I8", 1),
        25 => Kind::Plain("I16", 2),
        26 => Kind::Plain("I32", 4),
        27 => Kind::Plain("I64", 8),
        28 => Kind::Plain("F64", 8),
        6 => Kind::Refused("Q5_0", QUANTIZED),
        7 => Kind::Refused("Q5_1", QUANTIZED),
        9 => Kind::Refused("Q8_1", QUANTIZED),
        10 => Kind::Refused("Q2_K", QUANTIZED),
        11 => Kind::Refused("Q3_K", QUANTIZED),
        12 => Kind::Refused("Q4_K", QUANTIZED),
        13 => Kind::Refused("Q5_K", QUANTIZED),
        15 => Kind::Refused("Q8_K", QUANTIZED),
        16..=23 | 29 => Kind::Refused("an IQ type", QUANTIZED),
        31..=33 => Kind::Refused("a repacked Q4_0", "it is a layout of one machine; use the Q4_0 file"),
        37 => Kind::Refused("I8_S", "it is bitnet.cpp's type of activations, not of weights"),
        38 => Kind::Refused("TL1", TILED),
        39 => Kind::Refused("TL2 in bitnet.cpp, MXFP4 in ggml", TL2),
        40 => Kind::Refused("NVFP4", QUANTIZED),
        142 => Kind::Refused("PQ2_0", HADAMARD),
        143 => Kind::Refused("PTQ1_0", HADAMARD),
        _ => Kind::Refused("unknown", "no known tool writes it"),
    }
}

/// The type of a tensor in tiles, if the table has its shape.
pub(super) fn tiled(id: u32, shape: &[usize], tiles: &TileTable) -> Option<TensorType> {
    let kind = match id {
        38 => Tiled::Tl1,
        39 => Tiled::Tl2,
        _ => return None,
    };
    let [rows, cols] = shape else { return None };
    Some(TensorType::Tiled(kind, tiles.find(*rows, *cols)?))
}

/// The number of a type that can be written.
pub(super) fn id(ttype: &TensorType) -> Option<u32> {
    match ttype {
        TensorType::Dense(d) => Some(match d {
            DenseType::F32 => 0,
            DenseType::F16 => 1,
            DenseType::Q4_0 => 2,
            DenseType::Q4_1 => 3,
            DenseType::Q8_0 => 8,
            DenseType::Q6_K => 14,
            DenseType::BF16 => 30,
        }),
        TensorType::Ternary(p) => {
            let single = [(&TQ1_0, 34), (&TQ2_0, 35), (&Q1_0, 41)];
            let single = single.into_iter().find(|(known, _)| known.name == p.name).map(|(_, id)| id);
            single.or_else(|| DIALECTS.iter().find(|d| d.has(p)).map(|d| d.id))
        }
        TensorType::Tiled(Tiled::Tl1, _) => Some(38),
        TensorType::Tiled(Tiled::Tl2, _) => Some(39),
        TensorType::U8 | TensorType::Other(_) => None,
    }
}

/// Bytes of a tensor of a shape, rows first.
pub(super) fn bytes(ttype: &TensorType, shape: &[usize]) -> Option<usize> {
    let (cols, outer) = shape.split_last()?;
    let rows = outer.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match ttype {
        TensorType::Dense(d) => d.row_bytes(*cols)?.checked_mul(rows),
        TensorType::Ternary(p) => (p.bytes)(rows, *cols),
        TensorType::Tiled(kind, tile) => kind.bytes(tile).filter(|_| (tile.rows, tile.cols) == (rows, *cols)),
        TensorType::U8 | TensorType::Other(_) => None,
    }
}
