//! `smmla`: two rows of eight codes times two tokens of eight activations, by assembly, since its intrinsic is not stable yet.
//! One token alone would use half of it, so that product is [`dotprod`](super::dotprod)'s.

use super::neon::{broadcast, fields, load};
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::BLOCK;
use crate::layout::{Line, TILE};
use std::arch::aarch64::*;
use std::arch::asm;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: TOKENS, columns: 4, unpack, multiply };

/// Tokens of the register tile: 24 registers hold sums of two rows and two tokens each.
pub(super) const TOKENS: usize = 6;

/// `sum[2i + j] += a[8i..8i + 8] * b[8j..8j + 8]`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn multiply_pairs(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is enabled above and touches nothing but its registers.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Two lines for every eight columns: half `p` of eight is rows `2p` and `2p + 1`, eight codes each.
#[target_feature(enable = "neon")]
fn unpack_tiles(tiles: &[u8], panel: &mut [Line]) {
    let blocks = tiles.as_chunks::<BLOCK>().0;
    for (block, lines) in blocks.iter().zip(panel.as_chunks_mut::<4>().0) {
        for quarter in 0..4 {
            let fields = fields(load(block, quarter)).map(|codes| vreinterpretq_s32_s8(codes));
            for (pair, lines) in fields.as_chunks::<2>().0.iter().zip(lines.as_chunks_mut::<2>().0) {
                let rows = [vzip1q_s32(pair[0], pair[1]), vzip2q_s32(pair[0], pair[1])];
                let out = &mut lines[quarter / 2].0.as_chunks_mut::<32>().0[quarter % 2];
                for (rows, out) in rows.into_iter().zip(out.as_chunks_mut::<16>().0) {
                    // SAFETY: `out` is sixteen writable bytes.
                    unsafe { vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s32(rows)) };
                }
            }
        }
    }
}

/// Eight columns of two tokens, of which the second may be missing; `columns` is `[2][T][4]`.
#[inline]
#[target_feature(enable = "neon")]
fn two_tokens<const T: usize>(columns: [&[[i8; 4]; T]; 2], first: usize) -> int8x16_t {
    let four = |tokens: &[[i8; 4]; T]| {
        let both = match tokens[first..].first_chunk::<2>() {
            // SAFETY: two tokens' four columns are eight readable bytes.
            Some(both) => unsafe { vld1_s8(both.as_flattened().as_ptr()) },
            None => vget_low_s8(broadcast(&tokens[first])),
        };
        vreinterpretq_s32_s8(vcombine_s8(both, vdup_n_s8(0)))
    };
    vreinterpretq_s8_s32(vzip1q_s32(four(columns[0]), four(columns[1])))
}

/// `PAIRS` is half of `T`, rounded up.
#[target_feature(enable = "neon,i8mm")]
fn register_tile<const T: usize, const PAIRS: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut sum = [[vdupq_n_s32(0); 8]; PAIRS];
    let x = x.as_chunks::<4>().0.as_chunks::<T>().0;
    for (lines, x) in panel.as_chunks::<2>().0.iter().zip(x.chunks(2)) {
        // The number of columns is a multiple of four, not of eight.
        let columns = [&x[0], x.get(1).unwrap_or(&[[0; 4]; T])];
        let mut tokens = [vdupq_n_s8(0); PAIRS];
        for (pair, tokens) in tokens.iter_mut().enumerate() {
            *tokens = two_tokens(columns, 2 * pair);
        }
        for rows in 0..8 {
            let codes = vreinterpretq_s8_u8(load(&lines[rows / 4].0, rows % 4));
            for pair in 0..PAIRS {
                sum[pair][rows] = multiply_pairs(sum[pair][rows], codes, tokens[pair]);
            }
        }
    }
    for (sum, out) in sum.iter().zip(out.chunks_mut(2)) {
        for (sum, rows) in sum.iter().zip(0..8) {
            let mut both = [0; 4];
            // SAFETY: `both` is four writable numbers.
            unsafe { vst1q_s32(both.as_mut_ptr(), *sum) };
            for (t, out) in out.iter_mut().enumerate() {
                out[2 * rows..2 * rows + 2].copy_from_slice(&[both[t], both[2 + t]]);
            }
        }
    }
}

pub(super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::I8mm.is_available());
    // SAFETY: the assertion has seen the instruction set, which includes NEON.
    unsafe { unpack_tiles(tiles, panel) };
}

pub(super) fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    assert!(Isa::I8mm.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe {
        match tokens {
            1 => register_tile::<1, 1>(panel, x, out),
            2 => register_tile::<2, 1>(panel, x, out),
            3 => register_tile::<3, 2>(panel, x, out),
            4 => register_tile::<4, 2>(panel, x, out),
            5 => register_tile::<5, 3>(panel, x, out),
            6 => register_tile::<6, 3>(panel, x, out),
            n => unreachable!("{n} tokens"),
        }
    }
}
