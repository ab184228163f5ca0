//! `sdot`. Fields 0 to 2 are not shifted down before they are multiplied: field `f` gives `4^f` times its sum, which is taken
//! off the finished sum. Field 3 would become negative.

use super::Picked;
use super::neon::four_columns;
use crate::Isa;
use crate::kernels::ternary::{broadcast, dot, load, store};
use crate::layout::{Line, STRIPE_TILES, TILE};
use std::arch::aarch64::*;

/// The four fields of sixteen bytes, each four times the one before, but for the last one.
#[inline]
#[target_feature(enable = "neon")]
fn scaled_fields(packed: uint8x16_t) -> [int8x16_t; 4] {
    let field = |mask| vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(mask)));
    [field(0x03), field(0x0C), field(0x30), vreinterpretq_s8_u8(vshrq_n_u8::<6>(packed))]
}

/// Takes the factors of [`scaled_fields`] off.
#[inline]
#[target_feature(enable = "neon")]
fn unscaled([a, b, c, d]: [int32x4_t; 4]) -> [int32x4_t; 4] {
    [a, vshrq_n_s32::<2>(b), vshrq_n_s32::<4>(c), d]
}

#[target_feature(enable = "neon,dotprod")]
fn row_sum(row: &[Line], x: &[i8]) -> i32 {
    let mut sum = [vdupq_n_s32(0); 4];
    for (line, x) in row.iter().zip(x.as_chunks::<256>().0) {
        let x = x.as_chunks::<64>().0;
        for quarter in 0..4 {
            for (f, codes) in scaled_fields(load(&line.0, quarter)).into_iter().enumerate() {
                let x = vreinterpretq_s8_u8(load(&x[f].map(|x| x as u8), quarter));
                sum[f] = dot(sum[f], codes, x);
            }
        }
    }
    unscaled(sum).into_iter().map(|sum| vaddvq_s32(sum)).sum()
}

#[target_feature(enable = "neon,dotprod")]
fn quarter_sums(stripe: &[Line], picked: Picked<'_>, quarter: usize, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    let mut sum = [[vdupq_n_s32(0); 4]; 4];
    for (columns, q) in picked.columns.as_chunks::<4>().0.iter().zip(picked.values.as_chunks::<4>().0) {
        let q = broadcast(q);
        for (sum, bytes) in sum.iter_mut().zip(four_columns(stripe, columns, quarter)) {
            for (sum, codes) in sum.iter_mut().zip(scaled_fields(bytes)) {
                *sum = dot(*sum, codes, q);
            }
        }
    }
    for (sum, out) in sum.into_iter().zip(out.as_chunks_mut::<4>().0) {
        for (sum, out) in unscaled(sum).into_iter().zip(out) {
            store(sum, out, quarter);
        }
    }
}

pub(super) fn row(row: &[Line], _ahead: &[Line], x: &[i8]) -> i32 {
    assert!(Isa::Dotprod.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { row_sum(row, x) }
}

pub(super) fn columns(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    assert!(Isa::Dotprod.is_available());
    for quarter in 0..4 {
        // SAFETY: the assertion has seen the instruction set.
        unsafe { quarter_sums(stripe, picked, quarter, out) };
    }
}
