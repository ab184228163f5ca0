//! `sdot` over the digits that [`neon`](super::neon) splits.
//!
//! Fields 0 to 2 are masked where they lie, as [`dotprod`](super::super::dotprod) has them, with the same bounds.

use super::super::dotprod::dot_four;
use super::super::neon::{broadcast, load, store};
use super::neon::Table;
use crate::Isa;
use crate::layout::TILE;
use crate::layout::base3::{BLOCK, COLUMNS};
use std::arch::aarch64::*;

#[target_feature(enable = "neon,dotprod")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let (table, masks) = (Table::new(), [0x03, 0x0C, 0x30].map(|mask| vdupq_n_u8(mask)));
    let mut sum = [[vdupq_n_s32(0); 4]; 4];
    for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
        let (first, rest) = x.split_at(16);
        // SAFETY: `first` is sixteen readable bytes.
        let first = unsafe { vld1q_s8(first.as_ptr()) };
        let fifth_x = broadcast(&[rest[0], rest[1], rest[2], rest[3]]);
        for (quarter, sum) in sum.iter_mut().enumerate() {
            let (low, fifth) = table.split(load(block, quarter));
            let field = |f: usize| vreinterpretq_s8_u8(vandq_u8(low, masks[f]));
            sum[0] = dot_four::<0>(sum[0], field(0), first);
            sum[1] = dot_four::<1>(sum[1], field(1), first);
            sum[2] = dot_four::<2>(sum[2], field(2), first);
            sum[3] = dot_four::<3>(sum[3], vreinterpretq_s8_u8(vshrq_n_u8::<6>(low)), first);
            sum[3] = dot_four::<0>(sum[3], fifth, fifth_x);
        }
    }
    for (quarter, [a, b, c, d]) in sum.into_iter().enumerate() {
        let low = vaddq_s32(a, vshrq_n_s32::<2>(b));
        store(vaddq_s32(low, vaddq_s32(vshrq_n_s32::<4>(c), d)), out, quarter);
    }
}

pub(in super::super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::Dotprod.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen the instruction set.
        unsafe { gemv_tile(tile, x, out) };
    }
}
