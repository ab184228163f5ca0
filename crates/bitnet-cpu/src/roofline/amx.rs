//! The same loop on AMX's tile registers.

use super::Multiply;
use crate::Isa;
use std::arch::asm;

const TURNS: u64 = 1 << 13;

pub(super) const AMX: Multiply = Multiply {
    name: "tdpbsud",
    available: || Isa::Amx.is_available(),
    // SAFETY: rows of the table run only where their instructions are available, which includes the system's permission.
    run: || unsafe { tdpbsud() },
};

/// What `ldtilecfg` reads: eight registers of sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

impl Shapes {
    fn full() -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        bytes[16..32].copy_from_slice(&[64, 0].repeat(8));
        bytes[48..56].fill(16);
        Self(bytes)
    }
}

/// Four sums that do not wait for each other hide the instruction's latency.
///
/// # Safety
/// [`Isa::Amx`] is available.
unsafe fn tdpbsud() -> u64 {
    let shapes = Shapes::full();
    // SAFETY: the caller's promise; what is read are the 64 bytes of `shapes`, and the registers that are written are named.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbsud tmm0, tmm4, tmm6", "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6", "tdpbsud tmm3, tmm5, tmm7",
            "dec {turns}",
            "jnz 2b",
            "tilerelease",
            shapes = in(reg) &raw const shapes,
            turns = inout(reg) TURNS => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(readonly, nostack),
        );
    }
    TURNS * 4 * 16 * 16 * 64 * 2
}
