//! Plain Rust.

use super::Picked;
use crate::layout::{Line, STRIPE_TILES, TILE};

pub(super) fn row(row: &[Line], _ahead: &[Line], x: &[i8]) -> i32 {
    let mut sum = 0;
    for (line, x) in row.iter().zip(x.as_chunks::<256>().0) {
        for (field, x) in x.as_chunks::<64>().0.iter().enumerate() {
            for (codes, x) in line.0.iter().zip(x) {
                sum += i32::from((codes >> (2 * field)) & 3) * i32::from(*x);
            }
        }
    }
    sum
}

pub(super) fn columns(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]) {
    *out = [[0; TILE]; STRIPE_TILES];
    for (column, q) in picked.columns.iter().zip(picked.values) {
        let line = &stripe[*column as usize].0;
        for (t, out) in out.iter_mut().enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let codes = line[16 * (i / 4) + 4 * (t / 4) + i % 4];
                *out += i32::from((codes >> (2 * (t % 4))) & 3) * i32::from(*q);
            }
        }
    }
}

pub(super) fn pick(q: &[i8], columns: &mut [u32], values: &mut [i8]) -> usize {
    let mut found = 0;
    for (column, q) in q.iter().enumerate() {
        (columns[found], values[found]) = (column as u32, *q);
        found += usize::from(*q != 0);
    }
    found
}
