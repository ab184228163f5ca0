//! NEON without `sdot`: 16-bit sums of products of at most 256 in magnitude, 128 of them, as in the ternary products.

use super::Picked;
use crate::Isa;
use crate::kernels::ternary::{Rows, fields, load, store};
use crate::layout::{Line, STRIPE_TILES, TILE};
use std::arch::aarch64::*;

/// Products whose 16-bit sums cannot overflow.
const STEPS: usize = 128;
/// Lines of a row that give sixteen products a lane each.
const LINES: usize = STEPS / 16;

#[target_feature(enable = "neon")]
fn row_sum(row: &[Line], x: &[i8]) -> i32 {
    let mut sum = Rows::new();
    for (lines, x) in row.chunks(LINES).zip(x.as_chunks::<256>().0.chunks(LINES)) {
        for (line, x) in lines.iter().zip(x) {
            let x = x.as_chunks::<64>().0;
            for quarter in 0..4 {
                for (codes, x) in fields(load(&line.0, quarter)).into_iter().zip(x) {
                    sum.add(codes, vreinterpretq_s8_u8(load(&x.map(|x| x as u8), quarter)));
                }
            }
        }
        sum.widen();
    }
    vaddvq_s32(sum.sums())
}

/// One quarter of four columns, interleaved: vector `v` has, in each field, four columns of four rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn four_columns(stripe: &[Line], columns: &[u32; 4], quarter: usize) -> [uint8x16_t; 4] {
    let [a, b, c, d] = columns.map(|column| load(&stripe[column as usize].0, quarter));
    let pairs = |a, b| [vzip1q_u8(a, b), vzip2q_u8(a, b)].map(|pairs| vreinterpretq_u16_u8(pairs));
    let ([ab, ab_high], [cd, cd_high]) = (pairs(a, b), pairs(c, d));
    [vzip1q_u16(ab, cd), vzip2q_u16(ab, cd), vzip1q_u16(ab_high, cd_high), vzip2q_u16(ab_high, cd_high)]
        .map(|bytes| vreinterpretq_u8_u16(bytes))
}

/// Sums of vectors `2 * HALF` and `2 * HALF + 1` of a quarter: eight times two registers of 16-bit sums.
#[target_feature(enable = "neon")]
fn half_sums<const HALF: usize>(
    stripe: &[Line],
    picked: Picked<'_>,
    quarter: usize,
    out: &mut [[i32; TILE]; STRIPE_TILES],
) {
    let mut rows = [Rows::new(); 8];
    let columns = picked.columns.as_chunks::<4>().0.chunks(STEPS);
    for (columns, q) in columns.zip(picked.values.as_chunks::<4>().0.chunks(STEPS)) {
        for (columns, q) in columns.iter().zip(q) {
            let bytes = four_columns(stripe, columns, quarter);
            let q = crate::kernels::ternary::broadcast(q);
            for v in 0..2 {
                for (f, codes) in fields(bytes[2 * HALF + v]).into_iter().enumerate() {
                    rows[4 * v + f].add(codes, q);
                }
            }
        }
        rows.iter_mut().for_each(|rows| rows.widen());
    }
    for (rows, out) in rows.iter().zip(&mut out[8 * HALF..]) {
        store(rows.sums(), out, quarter);
    }
}

pub(super) fn row(row: &[Line], _ahead: &[Line], x: &[i8]) -> i32 {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { row_sum(row, x) }
}

pub(super) fn columns(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    assert!(Isa::Neon.is_available());
    for quarter in 0..4 {
        // SAFETY: the assertion has seen NEON.
        unsafe {
            half_sums::<0>(stripe, picked, quarter, out);
            half_sums::<1>(stripe, picked, quarter, out);
        }
    }
}
