//! `sdot`: four products of signed bytes a 32-bit lane. Its intrinsic is not stable yet, so it stands here in assembly.
//!
//! A lane adds at most 4 * 2 * 128 a step, sixteen times that where a field is not shifted down before it is multiplied; 32
//! bits hold that for two million columns.

use super::neon::{self, load, store};
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::aarch64::*;
use std::arch::asm;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: TOKENS, columns: 4, unpack: neon::unpack, multiply };

/// Tokens of the register tile: 24 registers of sums for sixteen rows.
pub(super) const TOKENS: usize = 6;

/// `sum[i] += a[4i..4i + 4] * b[4i..4i + 4]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(in crate::kernels) fn dot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is enabled above and touches nothing but its registers.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum[i] += a[4i..4i + 4] * b[4 FOUR..4 FOUR + 4]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_four<const FOUR: u8>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is enabled above and touches nothing but its registers.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sum, in(vreg) a, in(vreg) b,
            const FOUR, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    // Fields 0 to 2 are masked where they lie: field `f` gives `4^f` times its sum, which is taken off at the end. Field 3 would
    // become negative.
    let masks = [0x03, 0x0C, 0x30].map(|mask| vdupq_n_u8(mask));
    let mut sum = [[vdupq_n_s32(0); 4]; 4];
    for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
        // SAFETY: `x` is sixteen readable bytes.
        let x = unsafe { vld1q_s8(x.as_ptr()) };
        for (quarter, sum) in sum.iter_mut().enumerate() {
            let packed = load(block, quarter);
            let field = |f: usize| vreinterpretq_s8_u8(vandq_u8(packed, masks[f]));
            sum[0] = dot_four::<0>(sum[0], field(0), x);
            sum[1] = dot_four::<1>(sum[1], field(1), x);
            sum[2] = dot_four::<2>(sum[2], field(2), x);
            sum[3] = dot_four::<3>(sum[3], vreinterpretq_s8_u8(vshrq_n_u8::<6>(packed)), x);
        }
    }
    for (quarter, [a, b, c, d]) in sum.into_iter().enumerate() {
        let low = vaddq_s32(a, vshrq_n_s32::<2>(b));
        store(vaddq_s32(low, vaddq_s32(vshrq_n_s32::<4>(c), d)), out, quarter);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn register_tile<const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut sum = [[vdupq_n_s32(0); 4]; T];
    for (line, x) in panel.iter().zip(x.as_chunks::<4>().0.as_chunks::<T>().0) {
        let codes = [0, 1, 2, 3].map(|quarter| vreinterpretq_s8_u8(load(&line.0, quarter)));
        for t in 0..T {
            let x = neon::broadcast(&x[t]);
            for quarter in 0..4 {
                sum[t][quarter] = dot(sum[t][quarter], codes[quarter], x);
            }
        }
    }
    for (sum, out) in sum.into_iter().zip(out) {
        for (quarter, sum) in sum.into_iter().enumerate() {
            store(sum, out, quarter);
        }
    }
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Dotprod.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen the instruction set.
        unsafe { gemv_tile(tile, x, out) };
    }
}

pub(super) fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    assert!(Isa::Dotprod.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match tokens {
            1 => register_tile::<1>(panel, x, out),
            2 => register_tile::<2>(panel, x, out),
            3 => register_tile::<3>(panel, x, out),
            4 => register_tile::<4>(panel, x, out),
            5 => register_tile::<5>(panel, x, out),
            6 => register_tile::<6>(panel, x, out),
            n => unreachable!("{n} tokens"),
        }
    }
}
