//! NEON without `sdot`: signed bytes times signed bytes into 16 bits by `smlal`.
//!
//! A product is at most 2 * 128 = 256 in magnitude, so a 16-bit lane holds 128 of them: 32768 below zero and 32512 above. Sums
//! are widened then. The lanes of a vector are two rows by four columns.

use super::table::Gemm;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::aarch64::*;
use std::arch::asm;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: TOKENS, columns: 4, unpack, multiply };

/// Products whose 16-bit sums cannot overflow.
pub(super) const STEPS: usize = 128;
/// Tokens of the register tile: 24 registers of 16-bit sums for sixteen rows.
pub(super) const TOKENS: usize = 3;

/// Quarter `quarter` of 64 bytes: rows `4 * quarter..` of four columns, or their packed codes.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn load(line: &[u8; 64], quarter: usize) -> uint8x16_t {
    let quarter = &line.as_chunks::<16>().0[quarter];
    // SAFETY: `quarter` is sixteen readable bytes.
    unsafe { vld1q_u8(quarter.as_ptr()) }
}

/// Four activations, four times.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn broadcast(x: &[i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))))
}

/// The four fields of a quarter of a block: field `f` holds columns `4f..4f + 4` of four rows.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn fields(packed: uint8x16_t) -> [int8x16_t; 4] {
    let mask = vdupq_n_u8(3);
    [
        vandq_u8(packed, mask),
        vandq_u8(vshrq_n_u8::<2>(packed), mask),
        vandq_u8(vshrq_n_u8::<4>(packed), mask),
        vshrq_n_u8::<6>(packed),
    ]
    .map(|codes| vreinterpretq_s8_u8(codes))
}

/// 16-bit sums of four rows, and the 32-bit sums that they are added to.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Rows {
    narrow: [int16x8_t; 2],
    wide: [int32x4_t; 2],
}

impl Rows {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels) fn new() -> Self {
        Self { narrow: [vdupq_n_s16(0); 2], wide: [vdupq_n_s32(0); 2] }
    }

    /// Adds the products of four columns.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels) fn add(&mut self, codes: int8x16_t, x: int8x16_t) {
        self.narrow[0] = vmlal_s8(self.narrow[0], vget_low_s8(codes), vget_low_s8(x));
        // The intrinsic becomes two instructions where `x` is the same in both halves.
        // SAFETY: the instruction is NEON's and touches nothing but its registers.
        unsafe {
            asm!("smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b", inout(vreg) self.narrow[1], in(vreg) codes,
                in(vreg) x, options(pure, nomem, nostack, preserves_flags));
        }
    }

    /// Empties the 16-bit sums into the 32-bit ones.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels) fn widen(&mut self) {
        for (wide, narrow) in self.wide.iter_mut().zip(&mut self.narrow) {
            *wide = vpadalq_s16(*wide, *narrow);
            *narrow = vdupq_n_s16(0);
        }
    }

    /// The sums of the four rows, widened before.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels) fn sums(&self) -> int32x4_t {
        vpaddq_s32(self.wide[0], self.wide[1])
    }
}

/// Rows `4 * quarter..` of a tile.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels) fn store(sum: int32x4_t, out: &mut [i32; TILE], quarter: usize) {
    let out = &mut out.as_chunks_mut::<4>().0[quarter];
    // SAFETY: `out` is four writable numbers.
    unsafe { vst1q_s32(out.as_mut_ptr(), sum) };
}

#[target_feature(enable = "neon")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let mut rows = [Rows::new(); 4];
    let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEPS / 4);
    for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEPS / 4)) {
        for (block, x) in blocks.iter().zip(x) {
            let x = x.as_chunks::<4>().0;
            let x = [broadcast(&x[0]), broadcast(&x[1]), broadcast(&x[2]), broadcast(&x[3])];
            for (quarter, rows) in rows.iter_mut().enumerate() {
                for (codes, x) in fields(load(block, quarter)).into_iter().zip(x) {
                    rows.add(codes, x);
                }
            }
        }
        rows.iter_mut().for_each(|rows| rows.widen());
    }
    for (quarter, rows) in rows.iter().enumerate() {
        store(rows.sums(), out, quarter);
    }
}

/// One line for every four columns: byte `4r + j` is the code of row `r`, column `j`.
#[target_feature(enable = "neon")]
fn unpack_tiles(tiles: &[u8], panel: &mut [Line]) {
    let blocks = tiles.as_chunks::<BLOCK>().0;
    for (block, lines) in blocks.iter().zip(panel.as_chunks_mut::<4>().0) {
        for quarter in 0..4 {
            for (codes, line) in fields(load(block, quarter)).into_iter().zip(&mut *lines) {
                let out = &mut line.0.as_chunks_mut::<16>().0[quarter];
                // SAFETY: `out` is sixteen writable bytes.
                unsafe { vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(codes)) };
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn register_tile<const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut rows = [[Rows::new(); 4]; T];
    let x = x.as_chunks::<4>().0.as_chunks::<T>().0;
    for (lines, x) in panel.chunks(STEPS).zip(x.chunks(STEPS)) {
        for (line, x) in lines.iter().zip(x) {
            let codes = [0, 1, 2, 3].map(|quarter| vreinterpretq_s8_u8(load(&line.0, quarter)));
            for t in 0..T {
                let x = broadcast(&x[t]);
                for quarter in 0..4 {
                    rows[t][quarter].add(codes[quarter], x);
                }
            }
        }
        rows.as_flattened_mut().iter_mut().for_each(|rows| rows.widen());
    }
    for (rows, out) in rows.iter().zip(out) {
        for (quarter, rows) in rows.iter().enumerate() {
            store(rows.sums(), out, quarter);
        }
    }
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(crate::Isa::Neon.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen NEON.
        unsafe { gemv_tile(tile, x, out) };
    }
}

pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(crate::Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { unpack_tiles(tiles, panel) };
}

pub(super) fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    assert!(crate::Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe {
        match tokens {
            1 => register_tile::<1>(panel, x, out),
            2 => register_tile::<2>(panel, x, out),
            3 => register_tile::<3>(panel, x, out),
            n => unreachable!("{n} tokens"),
        }
    }
}
