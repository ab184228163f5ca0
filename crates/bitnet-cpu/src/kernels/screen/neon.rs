//! Scores on NEON. Products of bytes meet in 16 bits two at a time.

use super::query::{BLOCK, Query};
use crate::Isa;
use crate::layout::Line;
use half::f16;
use std::arch::aarch64::*;

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `x` is sixteen readable bytes.
    unsafe { vld1q_u8(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_i8(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: `x` is sixteen readable bytes.
    unsafe { vld1q_s8(x.as_ptr()) }
}

/// Part `2 * pair + odd` of half a `Q6_K` block as signed bytes: elements `16p..16p + 16` are its part `p`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn part(raw: &[u8; 210], half: usize, pair: usize, odd: usize) -> int8x16_t {
    // The low nibbles of a half are 64 bytes, its upper pairs 32.
    let bytes = raw.as_chunks::<16>().0;
    let low = load(&bytes[4 * half + 2 * (pair % 2) + odd]);
    let high = load(&bytes[8 + 2 * half + odd]);
    let nibble = if pair < 2 { vandq_u8(low, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(low) };
    let upper = match pair {
        0 => vshlq_n_u8::<4>(high),
        1 => vshlq_n_u8::<2>(high),
        2 => high,
        _ => vshrq_n_u8::<2>(high),
    };
    let codes = vorrq_u8(nibble, vandq_u8(upper, vdupq_n_u8(0x30)));
    vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(32))
}

/// The sixteen scales of a `Q6_K` block.
pub(super) fn levels(raw: &[u8; 210]) -> &[u8; 16] {
    raw[192..208].as_array().expect("sixteen bytes")
}

/// The scale of a whole `Q6_K` block.
pub(super) fn scale(raw: &[u8; 210]) -> f32 {
    f16::from_le_bytes([raw[208], raw[209]]).to_f32()
}

/// Int8 codes are stored plus 128.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn signed(codes: &[u8; 16]) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(load(codes), vdupq_n_u8(0x80)))
}

/// Two products of bytes a 16-bit lane: at most 2 * 127 * 127.
#[inline]
#[target_feature(enable = "neon")]
fn products(a: int8x16_t, b: int8x16_t) -> int16x8_t {
    vmlal_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), a, b)
}

#[target_feature(enable = "neon")]
fn q6_k_rows(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(row_bytes).zip(out) {
        let mut sum = vdupq_n_f32(0.0);
        let blocks = row.as_chunks::<210>().0.iter().zip(query.z.as_chunks::<BLOCK>().0);
        for ((raw, z), factor) in blocks.zip(query.scales) {
            let mut integers = vdupq_n_s32(0);
            let (z, levels) = (z.as_chunks::<16>().0, levels(raw));
            for half in 0..2 {
                for pair in 0..4 {
                    for odd in 0..2 {
                        let p = 8 * half + 2 * pair + odd;
                        // At most 2 * 32 * 127 in 16 bits, times 128, 32 of them: 2^25.
                        let products = products(part(raw, half, pair, odd), load_i8(&z[p]));
                        let level = i16::from(levels[p] as i8);
                        integers = vmlal_n_s16(integers, vget_low_s16(products), level);
                        integers = vmlal_high_n_s16(integers, products, level);
                    }
                }
            }
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(integers), scale(raw) * factor);
        }
        *out = vaddvq_f32(sum);
    }
}

#[target_feature(enable = "neon")]
fn int8_rows(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(width).zip(out) {
        let mut sum = vdupq_n_f32(0.0);
        let blocks = row.as_chunks::<4>().0.iter().zip(query.z.as_chunks::<BLOCK>().0);
        for ((lines, z), factor) in blocks.zip(query.scales) {
            let mut integers = vdupq_n_s32(0);
            for (line, z) in lines.iter().zip(z.as_chunks::<64>().0) {
                for (codes, z) in line.0.as_chunks::<16>().0.iter().zip(z.as_chunks::<16>().0) {
                    integers = vpadalq_s16(integers, products(signed(codes), load_i8(z)));
                }
            }
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(integers), *factor);
        }
        *out = vaddvq_f32(sum);
    }
}

pub(super) fn q6_k(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { q6_k_rows(rows, row_bytes, query, out) };
}

pub(super) fn int8(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { int8_rows(rows, width, query, out) };
}
