//! NEON: subtractions find the fifth digit, and `tbl` with `tbx` looks sixteen numbers below 81 up at once.

use super::super::neon::{Rows, STEPS, broadcast, fields, load, store};
use crate::Isa;
use crate::layout::base3::{BLOCK, COLUMNS, FIELDS, FIFTH};
use crate::layout::{Line, TILE};
use std::arch::aarch64::*;

/// Blocks whose sums 16 bits hold.
const STEP: usize = STEPS / 5;

/// [`FIELDS`] in six registers.
#[derive(Clone, Copy)]
pub(super) struct Table(uint8x16x4_t, uint8x16x2_t);

impl Table {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn new() -> Self {
        const PADDED: [u8; 96] = {
            let mut padded = [0; 96];
            let mut i = 0;
            while i < FIELDS.len() {
                padded[i] = FIELDS[i];
                i += 1;
            }
            padded
        };
        // SAFETY: 64 and then 32 readable bytes.
        unsafe { Self(vld1q_u8_x4(PADDED.as_ptr()), vld1q_u8_x2(PADDED[64..].as_ptr())) }
    }

    /// The four low digits of every byte as fields of two bits, and the fifth digit.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn split(self, bytes: uint8x16_t) -> (uint8x16_t, int8x16_t) {
        let fifth = vdupq_n_u8(FIFTH);
        // A difference below zero wraps to a large number, and then the smaller one is what was there.
        let first = vminq_u8(bytes, vsubq_u8(bytes, fifth));
        let low = vminq_u8(first, vsubq_u8(first, fifth));
        let kept = vaddq_u8(vceqq_u8(bytes, first), vceqq_u8(first, low));
        // What lies outside a table is zero by `tbl`, and stays as it is by `tbx`.
        let fields = vqtbl4q_u8(self.0, low);
        let fields = vqtbx2q_u8(fields, self.1, vsubq_u8(low, vdupq_n_u8(64)));
        (fields, vreinterpretq_s8_u8(vaddq_u8(vdupq_n_u8(2), kept)))
    }
}

#[target_feature(enable = "neon")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let (table, mut rows) = (Table::new(), [Rows::new(); 4]);
    let blocks = tile.as_chunks::<BLOCK>().0.chunks(STEP);
    for (blocks, x) in blocks.zip(x.as_chunks::<COLUMNS>().0.chunks(STEP)) {
        for (block, x) in blocks.iter().zip(x) {
            let x = x.as_chunks::<4>().0;
            for (quarter, rows) in rows.iter_mut().enumerate() {
                let (low, fifth) = table.split(load(block, quarter));
                for (codes, x) in fields(low).into_iter().chain([fifth]).zip(x) {
                    rows.add(codes, broadcast(x));
                }
            }
        }
        rows.iter_mut().for_each(|rows| rows.widen());
    }
    for (quarter, rows) in rows.iter().enumerate() {
        store(rows.sums(), out, quarter);
    }
}

/// The panel of [`neon`](super::super::neon): one line for every four columns.
#[target_feature(enable = "neon")]
fn unpack_tiles(tiles: &[u8], panel: &mut [Line]) {
    let (table, blocks) = (Table::new(), tiles.as_chunks::<BLOCK>().0);
    for (block, lines) in blocks.iter().zip(panel.as_chunks_mut::<5>().0) {
        for quarter in 0..4 {
            let (low, fifth) = table.split(load(block, quarter));
            for (codes, line) in fields(low).into_iter().chain([fifth]).zip(&mut *lines) {
                let out = &mut line.0.as_chunks_mut::<16>().0[quarter];
                // SAFETY: `out` is sixteen writable bytes.
                unsafe { vst1q_s8(out.as_mut_ptr().cast(), codes) };
            }
        }
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Neon.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen NEON.
        unsafe { gemv_tile(tile, x, out) };
    }
}

pub(in super::super) fn unpack(tiles: &[u8], _tile_bytes: usize, panel: &mut [Line]) {
    assert!(Isa::Neon.is_available());
    // SAFETY: the assertion has seen NEON.
    unsafe { unpack_tiles(tiles, panel) };
}
