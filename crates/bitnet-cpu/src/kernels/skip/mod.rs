//! Ternary products that leave out what cannot change the result.
//!
//! Behind ReLU squared a gate that is not positive makes its channel exactly zero, so the row of `up` is not needed
//! ([`gated_relu2`]); and a zero among the int8 inputs of `down` makes its column's share of every integer sum zero
//! ([`columns`]). Both leave out terms of integer sums or values that rule 9 replaces by +0, so not a bit changes. `up` lies row
//! by row for this and `down` column by column; the product of several tokens makes tiles of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use super::gate::Gate;
use super::quantize::Int8;
use super::ternary::{Kernel, Output, Rescaled};
use crate::Isa;
use crate::layout::by_row::LINE_COLUMNS;
use crate::layout::{Line, Order, PanelScale, Panels, STRIPE_TILES, TILE};
use crate::memory::{OutOfMemory, Room, Scratch};
use crate::pool::{Pool, Shares};
use crate::simd::dispatch;
use bitnet_core::Activation;

/// `sum of code * x` of one row; `x` is arranged by [`by_field`]. The row `ahead`, of the same length, is asked for from memory.
type Row = fn(row: &[Line], ahead: &[Line], x: &[i8]) -> i32;
/// `out[tile][row] = sum of code * q` over the columns of a stripe that were picked; their number is a multiple of four.
type Columns = fn(stripe: &[Line], picked: Picked<'_>, out: &mut [[i32; TILE]; STRIPE_TILES]);
/// Gives how many columns are not zero, which they are and their values; there is room for [`SURPLUS`] more than there are.
type Pick = fn(q: &[i8], columns: &mut [u32], values: &mut [i8]) -> usize;

/// Columns that are not zero, and what the activations are there.
#[derive(Clone, Copy)]
struct Picked<'a> {
    columns: &'a [u32],
    values: &'a [i8],
}

struct SkipKernel {
    isa: Isa,
    row: Row,
    columns: Columns,
    pick: Pick,
}

/// Best first.
static TABLE: &[SkipKernel] = &[
    #[cfg(target_arch = "x86_64")]
    SkipKernel { isa: Isa::Avx512, row: avx512::row, columns: avx512::columns, pick: avx512::pick },
    #[cfg(target_arch = "x86_64")]
    SkipKernel { isa: Isa::Avx2, row: avx2::row, columns: avx2::columns, pick: scalar::pick },
    #[cfg(target_arch = "aarch64")]
    SkipKernel { isa: Isa::Dotprod, row: dotprod::row, columns: dotprod::columns, pick: scalar::pick },
    #[cfg(target_arch = "aarch64")]
    SkipKernel { isa: Isa::Neon, row: neon::row, columns: neon::columns, pick: scalar::pick },
    SkipKernel { isa: Isa::Scalar, row: scalar::row, columns: scalar::columns, pick: scalar::pick },
];

fn kernel(isa: Isa) -> &'static SkipKernel {
    TABLE.iter().find(|k| isa.includes(k.isa)).expect("the scalar kernel runs everywhere")
}

/// Columns of a matrix whose sums every kernel here holds in 32 bits: four products of 64 * 2 * 128 a line or four columns.
pub(crate) const MAX_COLUMNS: usize = 1 << 16;
/// Numbers that a kernel may write before it knows how many of them count.
const SURPLUS: usize = 16;
/// Open rows of `up` that are asked for ahead of the product.
const ROWS_AHEAD: usize = 4;
/// Pieces of work a thread, so that the last ones end together.
const PIECES: usize = 8;

/// Arranges the activations of a token in the order in which the fields of a row's lines multiply them:
/// `[lines][4 fields][16 words][4]`.
fn by_field(q: &[i8], out: &mut [i8]) {
    for (x, out) in q.chunks(LINE_COLUMNS).zip(out.as_chunks_mut::<LINE_COLUMNS>().0) {
        let mut padded = [0; LINE_COLUMNS];
        padded[..x.len()].copy_from_slice(x);
        let x = padded.as_chunks::<4>().0;
        for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *out = x[4 * (i % 16) + i / 16];
        }
    }
}

/// `out[i] = max(gate, 0)^2 * up` of one token, where `gate = x * gate^T` and `up = x * up^T`.
pub(crate) fn gated_relu2(
    isa: Isa,
    gate_kernel: Kernel,
    pool: &Pool,
    (gate, up): (&Panels, &Panels),
    x: Int8<'_>,
    scratch: &Scratch<'_>,
    out: &mut [f32],
) -> Result<(), OutOfMemory> {
    debug_assert_eq!((gate.rows, gate.cols, up.order), (up.rows, up.cols, Order::Rows));
    let (PanelScale::Rows(gate_scales), PanelScale::Rows(up_scales)) = (&gate.scale, &up.scale) else {
        unreachable!("scales for groups of columns have another path")
    };
    let token = x.token(0);
    let x = scratch.buffer(up.cols.next_multiple_of(LINE_COLUMNS))?;
    by_field(&token.q[..up.cols], x);
    let kernel = kernel(isa);
    let (tiles, out) = (gate.tiles(), Shares::new(out));
    // Sums, gates and products, and the numbers of open rows.
    let lines = 3 * Room::lines::<[f32; TILE]>(tiles) + Room::lines::<u32>(tiles * TILE);
    let room = scratch.buffer(lines * pool.threads())?;
    pool.ranges_with(room, tiles, gate.grain(), &|room, range| {
        let mut room = Room::new(room);
        let sums = room.take(range.len());
        gate_kernel.gemv(gate, range.clone(), token.q, sums);
        let g = room.take(range.len());
        dispatch(isa, Rescaled { sums, token, scales: &gate_scales[range.clone()], out: g });
        let first = range.start * TILE;
        let rows = gate.rows.min(range.end * TILE) - first;
        let (open, mut count) = (room.take::<u32>(rows), 0);
        for (row, gate) in g.as_flattened()[..rows].iter().enumerate() {
            open[count] = row as u32;
            count += usize::from(*gate > 0.0);
        }
        let open = &open[..count];
        // A closed channel's sum stands for zero.
        sums.fill([token.zero; TILE]);
        for (i, row) in open.iter().enumerate() {
            let ahead = open.get(i + ROWS_AHEAD).unwrap_or(row);
            let line = |row: &u32| up.rows_of(first + *row as usize..first + *row as usize + 1);
            sums.as_flattened_mut()[*row as usize] = (kernel.row)(line(row), line(ahead), x);
        }
        let u = room.take(range.len());
        dispatch(isa, Rescaled { sums, token, scales: &up_scales[range.clone()], out: u });
        // SAFETY: ranges of tiles do not overlap.
        let out = unsafe { out.slice(first, rows) };
        let (gate, up) = (&g.as_flattened()[..rows], &u.as_flattened()[..rows]);
        dispatch(isa, Gate { gate, up, act: Activation::Relu2, out });
    });
    Ok(())
}

/// `y[n] = x * w^T` of token `t`, where `w` lies column by column.
pub(super) fn columns(
    pool: &Pool,
    t: usize,
    out: &Output<'_>,
    scratch: &Scratch<'_>,
) -> Result<(), OutOfMemory> {
    let w = out.w;
    let kernel = kernel(out.isa);
    let (columns, values) = (scratch.buffer(w.cols + SURPLUS)?, scratch.buffer(w.cols + SURPLUS)?);
    let found = (kernel.pick)(&out.token(t).q[..w.cols], columns, values);
    // Column 0 times zero adds nothing.
    let count = found.next_multiple_of(4);
    columns[found..count].fill(0);
    values[found..count].fill(0);
    let (columns, values) = (&columns[..count], &values[..count]);
    let stripes = w.tiles().div_ceil(STRIPE_TILES);
    let parts = (pool.threads() * PIECES).div_ceil(stripes.max(1)).clamp(1, (count / 64).max(1));
    let part = (count / 4).div_ceil(parts) * 4;
    let tiles = stripes * STRIPE_TILES;
    // `[parts of the columns][tiles]`.
    let partial = scratch.buffer::<[i32; TILE]>(parts * tiles)?;
    let sums = Shares::new(partial);
    pool.ranges(parts * stripes, 1, &|range| {
        for i in range {
            let (p, stripe) = (i / stripes, i % stripes);
            let picked = p * part..count.min((p + 1) * part);
            // SAFETY: every part of every stripe has its own sums.
            let sums = unsafe { sums.slice(p * tiles + stripe * STRIPE_TILES, STRIPE_TILES) };
            let Some(sums) = sums.as_mut_array() else { continue };
            let picked = if picked.start < picked.end { picked } else { 0..0 };
            let picked = Picked { columns: &columns[picked.clone()], values: &values[picked] };
            (kernel.columns)(w.stripe(stripe), picked, sums);
        }
    });
    let (first, rest) = partial.split_at_mut(tiles);
    for part in rest.chunks_exact(tiles.max(1)) {
        for (sum, more) in first.as_flattened_mut().iter_mut().zip(part.as_flattened()) {
            *sum += more;
        }
    }
    out.rescale(&first[..w.tiles()], 0, t, 1);
    Ok(())
}

#[cfg(test)]
mod tests;
