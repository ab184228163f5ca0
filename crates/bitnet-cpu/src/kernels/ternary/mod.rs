//! Ternary products (rules 5 and 6 of `docs/numerics.md`).
//!
//! Kernels compute the integer sums `code * q` of whole tiles; what turns them into outputs is shared and exact. Codes are
//! 0, 1, 2, so the sum of the activations is taken off once a token.

#[cfg(target_arch = "x86_64")]
mod amx;
mod arrange;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bw;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod base3;
#[cfg(target_arch = "aarch64")]
mod dotprod;
mod float;
mod i2_s;
#[cfg(target_arch = "aarch64")]
mod i8mm;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sse;
mod table;
mod tl1;
mod tl2;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Registers, Shapes, multiply_registers};
#[cfg(target_arch = "aarch64")]
pub(super) use dotprod::dot;
pub(crate) use float::float_linear;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::{Rows, broadcast, fields, load, store};
pub(crate) use table::names;
pub use table::{Kernel, UnknownKernel};

use super::skip;
use crate::Isa;
use crate::kernels::quantize::{Int8, Quantized};
use crate::layout::{Line, Order, PanelScale, Panels, TILE};
use crate::memory::{self, OutOfMemory, Scratch};
use crate::pool::{Pool, Shares};
use crate::simd::{self, Lanes, dispatch};
use arrange::Arranged;
use table::TernaryKernel;

/// Tokens from which the product unpacks weights once for all of them.
pub(crate) const GEMM_TOKENS: usize = 4;

/// What a product of activations that are kept needs while it runs.
pub(crate) type Room = bitnet_memory::Region;

/// A token's int8 activations.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    /// As [`Int8::q`] has them, zeros behind the columns included.
    pub(super) q: &'a [i8],
    d: f32,
    /// The sum of the activations, which stands for the code of a zero trit.
    pub(super) zero: i32,
}

impl<'a> Int8<'a> {
    pub(super) fn token(&self, t: usize) -> Token<'a> {
        Token { q: &self.q[t * self.stride..][..self.stride], d: self.d[t], zero: self.sums[t] }
    }
}

/// Where outputs go: columns from `first` on of `y [m, stride]`.
pub(crate) struct Place<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) first: usize,
}

/// `y[m, n] = x[m, k] * w[n, k]^T` with int8 activations. The kernel is one of the layout of `w`.
pub(crate) fn ternary_linear(
    isa: Isa,
    kernel: Kernel,
    pool: &Pool,
    w: &Panels,
    x: Int8<'_>,
    scratch: &Scratch<'_>,
    place: Place<'_>,
) -> Result<(), OutOfMemory> {
    assert!(std::ptr::eq(kernel.0.layout, w.layout), "{kernel} does not read {}", w.layout.name);
    let m = x.d.len();
    let Place { y, stride, first } = place;
    let out = Output { isa, w, x, y: Shares::new(y), stride, first };
    match &w.scale {
        PanelScale::Groups { .. } => grouped(kernel.0, pool, m, &out),
        PanelScale::Rows(_) if m >= GEMM_TOKENS => many(kernel.0, pool, m, &out, scratch)?,
        PanelScale::Rows(_) if w.order == Order::Columns => {
            for t in 0..m {
                skip::columns(pool, t, &out, scratch)?;
            }
        }
        PanelScale::Rows(_) => few(kernel.0, pool, m, &out, scratch)?,
    }
    Ok(())
}

/// The same for who keeps activations, and a room for products.
///
/// # Panics
/// There is no memory for what the product needs while it runs.
pub(crate) fn product(
    isa: Isa,
    kernel: Kernel,
    pool: &Pool,
    w: &Panels,
    quantized: &Quantized,
    room: &mut Room,
    place: Place<'_>,
) {
    let scratch = room.begin(pool.memory());
    let done = ternary_linear(isa, kernel, pool, w, quantized.int8(), &scratch, place);
    // Nobody between here and who began the run can do without.
    done.unwrap_or_else(|e| std::panic::resume_unwind(Box::new(e)));
}

/// What turns integer sums into outputs.
pub(super) struct Output<'a> {
    pub(super) isa: Isa,
    pub(super) w: &'a Panels,
    x: Int8<'a>,
    y: Shares<'a, f32>,
    stride: usize,
    first: usize,
}

/// Rule 5 for neighbouring tiles and tokens: `y = (sum - zero) * (d * scale)`.
struct Rescale<'a> {
    out: &'a Output<'a>,
    /// `[tiles][tokens]`.
    sums: &'a [[i32; TILE]],
    scales: &'a [[f32; TILE]],
    tile: usize,
    token: usize,
    tokens: usize,
}

impl simd::Kernel for Rescale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let tokens = self.token..self.token + self.tokens;
        let (d, zeros) = (&self.out.x.d[tokens.clone()], &self.out.x.sums[tokens]);
        // Token after token, so that what is written lies together.
        for (t, (d, zero)) in d.iter().zip(zeros).enumerate() {
            for (i, sum) in self.sums[t..].iter().step_by(self.tokens).enumerate() {
                let tile = self.tile + i;
                let y = rescale(l, sum, *zero, *d, l.load(&self.scales[tile]));
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                let out = unsafe { self.out.place(tile, self.token + t) };
                match out.as_mut_array() {
                    Some(out) => l.store(y, out),
                    None => {
                        let mut lanes = [0.0; TILE];
                        l.store(y, &mut lanes);
                        out.copy_from_slice(&lanes[..out.len()]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rescale<L: Lanes>(l: L, sum: &[i32; TILE], zero: i32, d: f32, scale: L::F) -> L::F {
    l.mul(l.difference(sum, zero), l.mul(l.splat(d), scale))
}

/// Rule 5 for one token, tile by tile.
pub(super) struct Rescaled<'a> {
    pub(super) sums: &'a [[i32; TILE]],
    pub(super) token: Token<'a>,
    pub(super) scales: &'a [[f32; TILE]],
    pub(super) out: &'a mut [[f32; TILE]],
}

impl simd::Kernel for Rescaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Token { d, zero, .. } = self.token;
        for ((sum, scale), out) in self.sums.iter().zip(self.scales).zip(self.out) {
            l.store(rescale(l, sum, zero, d, l.load(scale)), out);
        }
    }
}

impl Output<'_> {
    pub(super) fn token(&self, t: usize) -> Token<'_> {
        self.x.token(t)
    }

    /// Where the outputs of a tile and a token go: sixteen, or fewer in the last tile.
    ///
    /// # Safety
    /// No other slice of the same tile and token may be in use.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn place(&self, tile: usize, t: usize) -> &mut [f32] {
        let first = tile * TILE;
        // SAFETY: the caller's promise; tiles and tokens do not overlap.
        unsafe { self.y.slice(t * self.stride + self.first + first, TILE.min(self.w.rows - first)) }
    }

    /// Rule 5 for tiles from `tile` on and tokens from `token` on; `sums [tiles][tokens]` holds `code * q`.
    pub(super) fn rescale(&self, sums: &[[i32; TILE]], tile: usize, token: usize, tokens: usize) {
        let PanelScale::Rows(scales) = &self.w.scale else { return };
        dispatch(self.isa, Rescale { out: self, sums, scales, tile, token, tokens });
    }
}

fn total(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
}

fn few(
    kernel: &TernaryKernel,
    pool: &Pool,
    m: usize,
    out: &Output<'_>,
    scratch: &Scratch<'_>,
) -> Result<(), OutOfMemory> {
    let (tiles, grain) = (out.w.tiles(), out.w.grain());
    // Several tokens find the weights in the cache, and tiles that have to be made first stay in it.
    let most = if m == 1 && out.w.order == Order::Tiles { tiles } else { grain.min(tiles) };
    let lines = memory::Room::lines::<[i32; TILE]>(most) + out.w.room_lines(most);
    let room = scratch.buffer(lines * pool.threads())?;
    pool.ranges_with(room, tiles, grain, &|room, range| {
        let (sums, tiles) = room.split_at_mut(memory::Room::lines::<[i32; TILE]>(most));
        let sums = bytemuck::cast_slice_mut(sums);
        for first in range.clone().step_by(most) {
            let part = first..range.end.min(first + most);
            let sums = &mut sums[..part.len()];
            let tiles = out.w.tiles_of(part.clone(), tiles);
            for t in 0..m {
                (kernel.gemv)(tiles, out.w.tile_bytes, out.token(t).q, sums);
                out.rescale(sums, part.start, t, 1);
            }
        }
    });
    Ok(())
}

fn many(
    kernel: &TernaryKernel,
    pool: &Pool,
    m: usize,
    out: &Output<'_>,
    scratch: &Scratch<'_>,
) -> Result<(), OutOfMemory> {
    let gemm = &kernel.gemm;
    let x = Arranged::new(pool, out.x, out.w.tile_cols(), gemm, scratch)?;
    let (sums, panel) = (gemm.tiles * gemm.tokens.min(m), gemm.panel_lines(gemm.tiles, out.w.tile_cols()));
    let lines = memory::Room::lines::<[i32; TILE]>(sums) + panel + out.w.room_lines(gemm.tiles);
    let room = scratch.buffer(lines * pool.threads())?;
    pool.ranges_with(room, out.w.tiles().div_ceil(gemm.tiles), 1, &|room, range| {
        let mut room = memory::Room::new(room);
        let (sums, panel) = (room.take::<[i32; TILE]>(sums), room.take::<Line>(panel));
        let tiles = room.take::<Line>(out.w.room_lines(gemm.tiles));
        for first in range.map(|i| i * gemm.tiles) {
            let last = out.w.tiles().min(first + gemm.tiles);
            let panel = &mut panel[..gemm.panel_lines(last - first, out.w.tile_cols())];
            (gemm.unpack)(out.w.tiles_of(first..last, tiles), out.w.tile_bytes, panel);
            for from in (0..m).step_by(gemm.tokens) {
                let tokens = gemm.tokens.min(m - from);
                let sums = &mut sums[..(last - first) * tokens];
                (gemm.multiply)(panel, x.tokens(from, tokens), sums, tokens);
                out.rescale(sums, first, from, tokens);
            }
        }
    });
    Ok(())
}

/// Rule 6: a scale for every group of columns.
fn grouped(kernel: &TernaryKernel, pool: &Pool, m: usize, out: &Output<'_>) {
    let PanelScale::Groups { cols, groups, values } = &out.w.scale else { return };
    let group_bytes = out.w.layout.tile_bytes(*cols);
    pool.ranges(out.w.tiles(), 1, &|range| {
        for tile in range {
            for t in 0..m {
                let mut y = [0.0f32; TILE];
                let parts = out.w.tile(tile).chunks(group_bytes).zip(out.token(t).q.chunks(*cols));
                for ((part, q), scale) in parts.zip(&values[tile * groups..]) {
                    let mut sum = [[0; TILE]];
                    (kernel.gemv)(part, part.len(), q, &mut sum);
                    let zero = total(q);
                    y = std::array::from_fn(|r| ((sum[0][r] - zero) as f32).mul_add(scale[r], y[r]));
                }
                let y = y.map(|y| y * out.x.d[t]);
                // SAFETY: a tile is computed by one thread, and (tile, token) addresses no other output.
                let out = unsafe { out.place(tile, t) };
                out.copy_from_slice(&y[..out.len()]);
            }
        }
    });
}

#[cfg(test)]
mod tests;
