//! Scores by `sdot`.

use super::neon::{levels, load_i8, part, scale, signed};
use super::query::{BLOCK, Query};
use crate::Isa;
use crate::kernels::ternary::dot;
use crate::layout::Line;
use std::arch::aarch64::*;

#[target_feature(enable = "neon,dotprod")]
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
                        // At most 4 * 32 * 127 a lane, times 128, sixteen of them: 2^25.
                        let products = dot(vdupq_n_s32(0), part(raw, half, pair, odd), load_i8(&z[p]));
                        integers = vmlaq_n_s32(integers, products, i32::from(levels[p] as i8));
                    }
                }
            }
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(integers), scale(raw) * factor);
        }
        *out = vaddvq_f32(sum);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn int8_rows(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(width).zip(out) {
        let mut sum = vdupq_n_f32(0.0);
        let blocks = row.as_chunks::<4>().0.iter().zip(query.z.as_chunks::<BLOCK>().0);
        for ((lines, z), factor) in blocks.zip(query.scales) {
            let mut integers = vdupq_n_s32(0);
            for (line, z) in lines.iter().zip(z.as_chunks::<64>().0) {
                for (codes, z) in line.0.as_chunks::<16>().0.iter().zip(z.as_chunks::<16>().0) {
                    integers = dot(integers, signed(codes), load_i8(z));
                }
            }
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(integers), *factor);
        }
        *out = vaddvq_f32(sum);
    }
}

pub(super) fn q6_k(rows: &[u8], row_bytes: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Dotprod.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { q6_k_rows(rows, row_bytes, query, out) };
}

pub(super) fn int8(rows: &[Line], width: usize, query: Query<'_>, out: &mut [f32]) {
    assert!(Isa::Dotprod.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { int8_rows(rows, width, query, out) };
}
