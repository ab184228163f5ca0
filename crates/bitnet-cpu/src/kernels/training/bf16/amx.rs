//! Tiles of sums by `tdpbf16ps`.
//!
//! Its intrinsics are not stable in Rust, so the loop is assembly. Registers 0 to 3 hold sums, 4 and 5 rows, 6 and 7 columns.

use super::Sums;
use super::pairs::{Pairs, TILE};
use crate::kernels::ternary::{Registers, Shapes};
use std::arch::asm;

/// The registers.
pub(super) struct Tiles(Registers);

impl Tiles {
    pub(super) fn new() -> Self {
        Self(Registers::new(&Shapes::full()))
    }

    /// Adds to `sums [2 of rows][2 of columns]` the products of two tiles of rows with two of columns, as many blocks each.
    pub(super) fn multiply(&self, left: [&[Pairs]; 2], right: [&[Pairs]; 2], sums: &mut [Sums; 4]) {
        let blocks = left[0].len();
        let as_many = |tile: &&[Pairs]| tile.len() == blocks;
        assert!(blocks > 0 && left.iter().chain(&right).all(as_many), "blocks of tiles");
        let _registers: &Registers = &self.0;
        // SAFETY: the registers exist, which only `Isa::Amx` allows, and have sixteen rows of 64 bytes each; the assertion has seen
        // that there are as many blocks of sixteen such rows as are read, and `sums` has four tiles of such rows.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {row}*1]",
                "tileloadd tmm1, [{sums} + {row}*1 + 1024]",
                "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {row}*1 + 3072]",
                "2:",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0",
                "tilestored [{sums} + {row}*1 + 1024], tmm1",
                "tilestored [{sums} + {row}*1 + 2048], tmm2",
                "tilestored [{sums} + {row}*1 + 3072], tmm3",
                a0 = inout(reg) left[0].as_ptr() => _,
                a1 = inout(reg) left[1].as_ptr() => _,
                b0 = inout(reg) right[0].as_ptr() => _,
                b1 = inout(reg) right[1].as_ptr() => _,
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) TILE * size_of::<u32>(),
                blocks = inout(reg) blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
