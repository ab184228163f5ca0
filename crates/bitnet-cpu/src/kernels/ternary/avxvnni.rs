//! AVX-VNNI, 256 bits wide: four products a lane by `vpdpbusd`, on processors that have it and no AVX-512.

use super::avx2::{self, broadcast, fields, load, store};
use super::avx512::prefetch;
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::{BLOCK, COLUMNS};
use crate::layout::{Line, TILE};
use std::arch::x86_64::*;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: 1, tokens: TOKENS, columns: 4, unpack: avx2::unpack, multiply };

/// Tokens of the register tile: sixteen rows of them fill twelve of the sixteen registers.
const TOKENS: usize = 6;

#[target_feature(enable = "avx2,avxvnni")]
fn gemv_tile(tile: &[u8], x: &[i8], out: &mut [i32; TILE]) {
    let mut sum = [[_mm256_setzero_si256(); 2]; 2];
    for (block, x) in tile.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<COLUMNS>().0) {
        prefetch(block);
        for (half, sum) in sum.iter_mut().enumerate() {
            for (i, (codes, x)) in fields(block, half).into_iter().zip(x.as_chunks::<4>().0).enumerate() {
                sum[i % 2] = _mm256_dpbusd_avx_epi32(sum[i % 2], codes, broadcast(x));
            }
        }
    }
    store(sum.map(|[a, b]| _mm256_add_epi32(a, b)), out);
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn register_tile<const T: usize>(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    let mut sum = [[_mm256_setzero_si256(); 2]; T];
    for (line, x) in panel.iter().zip(x.as_chunks::<4>().0.as_chunks::<T>().0) {
        let codes = [load(&line.0, 0), load(&line.0, 1)];
        for t in 0..T {
            let x = broadcast(&x[t]);
            for half in 0..2 {
                sum[t][half] = _mm256_dpbusd_avx_epi32(sum[t][half], codes[half], x);
            }
        }
    }
    for (sum, out) in sum.into_iter().zip(out) {
        store(sum, out);
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn tokens(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]]) {
    macro_rules! match_tokens {
        ($($t:literal)*) => {
            match out.len() {
                $($t => register_tile::<$t>(panel, x, out),)*
                n => unreachable!("{n} tokens"),
            }
        };
    }
    match_tokens!(1 2 3 4 5 6);
}

pub(super) fn gemv(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]) {
    assert!(Isa::AvxVnni.is_available());
    for (tile, out) in tiles.chunks_exact(tile_bytes).zip(out) {
        // SAFETY: the assertion has seen the instruction set.
        unsafe { gemv_tile(tile, x, out) };
    }
}

fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], _tokens: usize) {
    assert!(Isa::AvxVnni.is_available());
    // SAFETY: the assertion has seen the instruction set.
    unsafe { tokens(panel, x, out) };
}
