//! Products by table lookup: every two activations become a table of what the sixteen possible pairs of codes give, and `tbl`
//! finds sixteen rows' products in it.
//!
//! A table holds 16-bit numbers from -512 to 508, as one vector of low bytes and one of high bytes. In sums of 64 pairs low bytes
//! make at most 64 * 255 in 16 bits, high bytes from -2 to 1 at least -128 in 8 bits, and both together -32768 to 32512, which 16
//! bits hold. Then they are widened to 32.

use super::super::neon::{fields, store};
use crate::Isa;
use crate::layout::tl1::COLUMNS;
use crate::layout::{Line, TILE};
use std::arch::aarch64::*;

/// Columns whose sums 16 bits hold.
const STEP: usize = 128;

/// The products of two activations with every pair of codes, `code + 4 * code'`: low bytes and high bytes.
#[derive(Clone, Copy)]
struct Table {
    low: uint8x16_t,
    high: int8x16_t,
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `bytes` is sixteen readable bytes.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// Tables of the activations of [`STEP`] columns at most, two a table.
#[target_feature(enable = "neon")]
fn tables(x: &[i8], tables: &mut [Table; STEP / 2]) {
    // The codes of entries 0 to 7; entries 8 to 15 have two more in the second code.
    const FIRST: [i16; 8] = [0, 1, 2, 3, 0, 1, 2, 3];
    const SECOND: [i16; 8] = [0, 0, 0, 0, 1, 1, 1, 1];
    // SAFETY: both are sixteen readable bytes.
    let (first, second) = unsafe { (vld1q_s16(FIRST.as_ptr()), vld1q_s16(SECOND.as_ptr())) };
    for (x, table) in x.as_chunks::<2>().0.iter().zip(tables) {
        let [a, b] = x.map(i16::from);
        let small = vmlaq_n_s16(vmulq_n_s16(first, a), second, b);
        let large = vaddq_s16(small, vdupq_n_s16(2 * b));
        let (small, large) = (vreinterpretq_s8_s16(small), vreinterpretq_s8_s16(large));
        *table = Table { low: vreinterpretq_u8_s8(vuzp1q_s8(small, large)), high: vuzp2q_s8(small, large) };
    }
}

/// Adds the products of one tile's columns, four for every sixteen bytes.
#[inline]
#[target_feature(enable = "neon")]
fn add(columns: &[[u8; TILE]], tables: &[Table; STEP / 2], out: &mut [i32; TILE]) {
    let mut low = [vdupq_n_u16(0); 2];
    let mut high = vdupq_n_s8(0);
    for (codes, tables) in columns.iter().zip(tables.as_chunks::<2>().0) {
        let codes = load(codes);
        let indices = [vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes)];
        for (index, table) in indices.into_iter().zip(tables) {
            let bytes = vqtbl1q_u8(table.low, index);
            low = [vaddw_u8(low[0], vget_low_u8(bytes)), vaddw_high_u8(low[1], bytes)];
            high = vaddq_s8(high, vqtbl1q_s8(table.high, index));
        }
    }
    let high = [vshll_n_s8::<7>(vget_low_s8(high)), vshll_high_n_s8::<7>(high)];
    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
        let sum = vaddq_s16(vreinterpretq_s16_u16(low), vaddq_s16(high, high));
        for (half, sum) in [vmovl_s16(vget_low_s16(sum)), vmovl_high_s16(sum)].into_iter().enumerate() {
            let quarter = 2 * i + half;
            // SAFETY: a quarter of a tile is four readable numbers.
            let before = unsafe { vld1q_s32(out.as_chunks::<4>().0[quarter].as_ptr()) };
            store(vaddq_s32(before, sum), out, quarter);
        }
    }
}

#[target_feature(enable = "neon")]
fn gemv_tiles(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    out.fill([0; TILE]);
    let mut room = [Table { low: vdupq_n_u8(0), high: vdupq_n_s8(0) }; STEP / 2];
    // A step's tables serve all tiles while they are in the first-level cache.
    let columns = tile_bytes / TILE * COLUMNS;
    for (step, x) in x[..columns].chunks(STEP).enumerate() {
        tables(x, &mut room);
        for (tile, out) in tiles.chunks_exact(tile_bytes).zip(&mut *out) {
            let columns = tile.as_chunks::<TILE>().0;
            add(&columns[step * STEP / COLUMNS..][..x.len() / COLUMNS], &room, out);
        }
    }
}

/// The panel of [`neon`](super::super::neon): one line for every four columns, byte `4r + j` the code of row `r`, column `j`.
#[target_feature(enable = "neon")]
fn unpack_tiles(tiles: &[u8], panel: &mut [Line]) {
    let columns = tiles.as_chunks::<TILE>().0;
    for (codes, line) in columns.iter().zip(panel) {
        let [a, b, c, d] = fields(load(codes)).map(|codes| vreinterpretq_u8_s8(codes));
        let pairs = |a, b| [vzip1q_u8(a, b), vzip2q_u8(a, b)].map(|pairs| vreinterpretq_u16_u8(pairs));
        let ([ab, ab_high], [cd, cd_high]) = (pairs(a, b), pairs(c, d));
        let rows = [
            vzip1q_u16(ab, cd),
            vzip2q_u16(ab, cd),
            vzip1q_u16(ab_high, cd_high),
            vzip2q_u16(ab_high, cd_high),
        ];
        for (rows, out) in rows.into_iter().zip(line.0.as_chunks_mut::<16>().0) {
            // SAFETY: `out` is sixteen writable bytes.
            unsafe { vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_u16(rows)) };
        }
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { gemv_tiles(tiles, tile_bytes, x, out) };
}

pub(in super::super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { unpack_tiles(tiles, panel) };
}
