//! AMX: sixteen tokens times sixteen rows times 64 columns in one instruction, `tdpbsud`.
//!
//! Its intrinsics are not stable in Rust, so the loop is assembly. Two halves of 32 tokens and two tiles of weights fill the
//! eight registers: 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.

use super::avx512;
use super::table::Gemm;
use crate::Isa;
use crate::layout::tile2::BLOCK;
use crate::layout::{Line, TILE};
use std::arch::asm;

/// The product of several tokens.
pub(super) const GEMM: Gemm = Gemm { tiles: TILES, tokens: TOKENS, columns: COLUMNS, unpack, multiply };

/// Tokens of the register tile.
pub(super) const TOKENS: usize = 32;
/// Columns of a token that lie together: a row of a register.
pub(super) const COLUMNS: usize = 64;
/// Tiles of a panel, two of which are multiplied at a time: what is read of the activations serves all of them.
pub(super) const TILES: usize = 8;
/// Lines of a panel that a register holds.
const LINES: usize = 16;

/// What `ldtilecfg` reads: the shapes of all registers.
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// For so many tokens in either half.
    fn halves(first: usize, second: usize) -> Self {
        let (first, second) = (first as u8, second as u8);
        Self::new([first, first, second, second, first, second, 16, 16])
    }

    /// For so many tokens and tiles of weights four at a time.
    fn fours(tokens: usize) -> Self {
        let tokens = tokens as u8;
        Self::new([tokens, tokens, tokens, tokens, tokens, 16, 16, 16])
    }

    /// Sixteen rows each.
    pub(crate) fn full() -> Self {
        Self::new([16; 8])
    }

    /// Rows of the registers.
    fn new(used: [u8; 8]) -> Self {
        let mut rows = [0; 16];
        rows[..8].copy_from_slice(&used);
        let mut row_bytes = [0; 16];
        row_bytes[..8].fill(64);
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// The tile registers, while they have shapes.
pub(crate) struct Registers(());

impl Registers {
    pub(crate) fn new(shapes: &Shapes) -> Self {
        assert!(Isa::Amx.is_available());
        // SAFETY: the assertion has seen that the process may use the registers; what is read are the 64 bytes of `shapes`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: a value of this type exists only where the instructions do. Without shapes the registers have no state, which
        // a change of threads would have to save.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Where the products of two halves of tokens and two tiles of weights are. Where there is only one half or one tile, both are
/// the same one.
struct Operands {
    /// Activations of either half.
    x: [*const i8; 2],
    /// Bytes that 64 columns of all tokens take.
    x_step: usize,
    /// Weights of either tile.
    weights: [*const Line; 2],
    /// Bytes from one line of a tile to the next.
    line: usize,
    /// How often 64 columns.
    steps: usize,
    /// Sums of the first half with either tile.
    out: [*mut [i32; TILE]; 2],
    /// Bytes from the sums of the first half to those of the second.
    half: usize,
}

/// Multiplies.
///
/// # Safety
/// The registers have the shapes for the tokens of either half, `steps` is not zero, and all that the operands describe may be
/// read, and in the case of sums written.
#[inline]
unsafe fn multiply_two(_registers: &Registers, o: &Operands) {
    // SAFETY: the caller's promise. A step reads 64 bytes of each token and sixteen lines of each tile; a sum takes 64 bytes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{w0} + {line}*1]",
            "tileloadd tmm4, [{x0} + {row}*1]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w1} + {line}*1]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {row}*1]",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "add {x0}, {x_step}",
            "add {x1}, {x_step}",
            "add {w0}, {w_step}",
            "add {w1}, {w_step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out0} + {row}*1], tmm0",
            "tilestored [{out1} + {row}*1], tmm1",
            "add {out0}, {half}",
            "add {out1}, {half}",
            "tilestored [{out0} + {row}*1], tmm2",
            "tilestored [{out1} + {row}*1], tmm3",
            x0 = inout(reg) o.x[0] => _,
            x1 = inout(reg) o.x[1] => _,
            x_step = in(reg) o.x_step,
            w0 = inout(reg) o.weights[0] => _,
            w1 = inout(reg) o.weights[1] => _,
            w_step = in(reg) o.line * LINES,
            line = in(reg) o.line,
            row = in(reg) size_of::<[i32; TILE]>(),
            steps = inout(reg) o.steps => _,
            out0 = inout(reg) o.out[0] => _,
            out1 = inout(reg) o.out[1] => _,
            half = in(reg) o.half,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Multiplies tokens of one half with four tiles, which are two pairs of a panel: `x` and `out` as in [`Operands`], `pairs` bytes from
/// one pair to the next, `sums` from the sums of a tile to those of the next.
///
/// # Safety
/// As for [`multiply_two`], with the shapes for fours.
#[inline]
unsafe fn multiply_four(_registers: &Registers, o: &Operands, pairs: usize, sums: usize) {
    let [first, _] = o.weights;
    // SAFETY: the caller's promise. A step reads 64 bytes of each token and sixteen lines of each tile; a sum takes 64 bytes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm5, [{w0} + {line}*1]",
            "tileloadd tmm4, [{x} + {row}*1]",
            "tdpbsud tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{w0} + {line}*1 + 64]",
            "tdpbsud tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{w2} + {line}*1]",
            "tdpbsud tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{w2} + {line}*1 + 64]",
            "tdpbsud tmm3, tmm4, tmm5",
            "add {x}, {x_step}",
            "add {w0}, {w_step}",
            "add {w2}, {w_step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {row}*1], tmm0",
            "add {out}, {sums}",
            "tilestored [{out} + {row}*1], tmm1",
            "add {out}, {sums}",
            "tilestored [{out} + {row}*1], tmm2",
            "add {out}, {sums}",
            "tilestored [{out} + {row}*1], tmm3",
            x = inout(reg) o.x[0] => _,
            x_step = in(reg) o.x_step,
            w0 = inout(reg) first => _,
            w2 = inout(reg) first.wrapping_byte_add(pairs) => _,
            w_step = in(reg) o.line * LINES,
            line = in(reg) o.line,
            row = in(reg) size_of::<[i32; TILE]>(),
            steps = inout(reg) o.steps => _,
            out = inout(reg) o.out[0] => _,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Multiplies without memory, `turns` times four registers, and returns how many multiplications and additions those are.
pub(crate) fn multiply_registers(turns: u64) -> u64 {
    assert!(turns > 0);
    let registers = Registers::new(&Shapes::halves(TOKENS / 2, TOKENS / 2));
    // SAFETY: the loop touches registers only, all of which are named and have shapes.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
    }
    drop(registers);
    turns * 4 * (TOKENS / 2 * TILE * COLUMNS * 2) as u64
}

fn unpack(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]) {
    unpack_pairs(tiles, tile_bytes, panel, tile_bytes / BLOCK * 4, avx512::unpack);
}

/// Two tiles after two tiles, for every four columns one line of each; columns are filled up with zeros to whole registers. A
/// tile becomes `tile_lines` lines by `unpack`, which is given two tiles at most.
pub(super) fn unpack_pairs(
    tiles: &[u8],
    tile_bytes: usize,
    panel: &mut [Line],
    tile_lines: usize,
    unpack: fn(&[u8], usize, &mut [Line]),
) {
    let steps = tile_lines.div_ceil(LINES);
    let mut rest = panel;
    for pair in tiles.chunks(2 * tile_bytes) {
        let (lines, behind) = rest.split_at_mut(pair.len() / tile_bytes * steps * LINES);
        let (codes, zeros) = lines.split_at_mut(pair.len() / tile_bytes * tile_lines);
        unpack(pair, tile_bytes, codes);
        zeros.fill(Line([0; 64]));
        rest = behind;
    }
}

/// As [`Multiply`](super::table::Multiply), but `x [columns/64][tokens][64]`.
fn multiply(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize) {
    let (first, second) = (tokens.min(TOKENS / 2), tokens.saturating_sub(TOKENS / 2));
    let steps = x.len() / (tokens * COLUMNS);
    let tiles = out.len() / tokens;
    assert!((1..=TOKENS).contains(&tokens) && steps > 0);
    assert_eq!((x.len(), out.len()), (steps * tokens * COLUMNS, tiles * tokens));
    assert_eq!(panel.len(), tiles * steps * LINES);
    let (mut panel, mut out) = (panel, out);
    if second == 0 {
        // Half of the registers would hold what the other half does; with twice as many tiles each holds something else.
        let (sums, pair) = (tokens * size_of::<[i32; TILE]>(), 2 * steps * LINES);
        let registers = Registers::new(&Shapes::fours(first));
        while let (Some((lines, rest)), true) = (panel.split_at_checked(2 * pair), out.len() >= 4 * tokens) {
            let (four, others) = out.split_at_mut(4 * tokens);
            let operands = Operands {
                x: [x.as_ptr(); 2],
                x_step: tokens * COLUMNS,
                weights: [lines.as_ptr(); 2],
                line: 2 * size_of::<Line>(),
                steps,
                out: [four.as_mut_ptr(); 2],
                half: 0,
            };
            // SAFETY: the shapes are those of `first` tokens; the assertions above have compared the lengths of all three slices with
            // the number of tokens, tiles and steps, and there are four tiles more.
            unsafe { multiply_four(&registers, &operands, size_of_val(&lines[..pair]), sums) };
            (panel, out) = (rest, others);
        }
        if out.is_empty() {
            return;
        }
    }
    let halves = usize::from(second > 0);
    let registers = Registers::new(&Shapes::halves(first, if second > 0 { second } else { first }));
    for (lines, out) in panel.chunks(2 * steps * LINES).zip(out.chunks_mut(2 * tokens)) {
        let tiles = out.len() / tokens;
        let (x, weights, out) = (x.as_ptr(), lines.as_ptr(), out.as_mut_ptr());
        let other = tiles - 1;
        let operands = Operands {
            x: [x, x.wrapping_add(halves * first * COLUMNS)],
            x_step: tokens * COLUMNS,
            weights: [weights, weights.wrapping_add(other)],
            line: tiles * size_of::<Line>(),
            steps,
            out: [out, out.wrapping_add(other * tokens)],
            half: halves * first * size_of::<[i32; TILE]>(),
        };
        // SAFETY: the shapes are those of `first` and `second` tokens; the assertions above have compared the lengths of all
        // three slices with the number of tokens, tiles and steps.
        unsafe { multiply_two(&registers, &operands) };
    }
}
