//! Loops of one instruction, written in assembly so that no compiler moves anything out of them.

use super::Multiply;
use crate::isa::Isa;
use crate::kernels::ternary::multiply_registers;
use std::arch::asm;

const TURNS: u64 = 1 << 16;

pub(super) const AMX: Multiply = Multiply {
    name: "tdpbsud",
    available: || Isa::Amx.is_available(),
    run: || multiply_registers(TURNS / 8),
};

pub(super) const AVX512_VNNI: Multiply = Multiply {
    name: "vpdpbusd zmm",
    available: || is_x86_feature_detected!("avx512vnni"),
    // SAFETY: rows of the table run only where their instructions are available.
    run: || unsafe { vpdpbusd_zmm() },
};

pub(super) const AVX_VNNI: Multiply = Multiply {
    name: "vpdpbusd ymm",
    available: || is_x86_feature_detected!("avxvnni"),
    // SAFETY: rows of the table run only where their instructions are available.
    run: || unsafe { vpdpbusd_ymm() },
};

pub(super) const AVX512: Multiply = Multiply {
    name: "vpmaddubsw zmm",
    available: || is_x86_feature_detected!("avx512bw"),
    // SAFETY: rows of the table run only where their instructions are available.
    run: || unsafe { vpmaddubsw_zmm() },
};

pub(super) const AVX2: Multiply = Multiply {
    name: "vpmaddubsw ymm",
    available: || is_x86_feature_detected!("avx2"),
    // SAFETY: rows of the table run only where their instructions are available.
    run: || unsafe { vpmaddubsw_ymm() },
};

/// Twelve sums that do not wait for each other hide the instruction's latency.
#[target_feature(enable = "avx512f,avx512vnni")]
fn vpdpbusd_zmm() -> u64 {
    // SAFETY: the loop touches registers only, all of which are named.
    unsafe {
        asm!(
            "2:",
            "vpdpbusd zmm0, zmm12, zmm13", "vpdpbusd zmm1, zmm12, zmm13", "vpdpbusd zmm2, zmm12, zmm13",
            "vpdpbusd zmm3, zmm12, zmm13", "vpdpbusd zmm4, zmm12, zmm13", "vpdpbusd zmm5, zmm12, zmm13",
            "vpdpbusd zmm6, zmm12, zmm13", "vpdpbusd zmm7, zmm12, zmm13", "vpdpbusd zmm8, zmm12, zmm13",
            "vpdpbusd zmm9, zmm12, zmm13", "vpdpbusd zmm10, zmm12, zmm13", "vpdpbusd zmm11, zmm12, zmm13",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            options(nomem, nostack),
        );
    }
    TURNS * 12 * 64 * 2
}

#[target_feature(enable = "avx2,avxvnni")]
fn vpdpbusd_ymm() -> u64 {
    // SAFETY: the loop touches registers only, all of which are named.
    unsafe {
        asm!(
            "2:",
            "{{vex}} vpdpbusd ymm0, ymm12, ymm13", "{{vex}} vpdpbusd ymm1, ymm12, ymm13", "{{vex}} vpdpbusd ymm2, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm3, ymm12, ymm13", "{{vex}} vpdpbusd ymm4, ymm12, ymm13", "{{vex}} vpdpbusd ymm5, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm6, ymm12, ymm13", "{{vex}} vpdpbusd ymm7, ymm12, ymm13", "{{vex}} vpdpbusd ymm8, ymm12, ymm13",
            "{{vex}} vpdpbusd ymm9, ymm12, ymm13", "{{vex}} vpdpbusd ymm10, ymm12, ymm13", "{{vex}} vpdpbusd ymm11, ymm12, ymm13",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    TURNS * 12 * 32 * 2
}

/// Pairs are multiplied and added to sums of 16 bits: what products without VNNI cannot do with less.
#[target_feature(enable = "avx512f,avx512bw")]
fn vpmaddubsw_zmm() -> u64 {
    // SAFETY: the loop touches registers only, all of which are named.
    unsafe {
        asm!(
            "2:",
            "vpmaddubsw zmm6, zmm12, zmm13", "vpmaddubsw zmm7, zmm12, zmm13", "vpmaddubsw zmm8, zmm12, zmm13",
            "vpmaddubsw zmm9, zmm12, zmm13", "vpmaddubsw zmm10, zmm12, zmm13", "vpmaddubsw zmm11, zmm12, zmm13",
            "vpaddw zmm0, zmm0, zmm6", "vpaddw zmm1, zmm1, zmm7", "vpaddw zmm2, zmm2, zmm8",
            "vpaddw zmm3, zmm3, zmm9", "vpaddw zmm4, zmm4, zmm10", "vpaddw zmm5, zmm5, zmm11",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            options(nomem, nostack),
        );
    }
    TURNS * 6 * 64 * 2
}

#[target_feature(enable = "avx2")]
fn vpmaddubsw_ymm() -> u64 {
    // SAFETY: the loop touches registers only, all of which are named.
    unsafe {
        asm!(
            "2:",
            "vpmaddubsw ymm6, ymm12, ymm13", "vpmaddubsw ymm7, ymm12, ymm13", "vpmaddubsw ymm8, ymm12, ymm13",
            "vpmaddubsw ymm9, ymm12, ymm13", "vpmaddubsw ymm10, ymm12, ymm13", "vpmaddubsw ymm11, ymm12, ymm13",
            "vpaddw ymm0, ymm0, ymm6", "vpaddw ymm1, ymm1, ymm7", "vpaddw ymm2, ymm2, ymm8",
            "vpaddw ymm3, ymm3, ymm9", "vpaddw ymm4, ymm4, ymm10", "vpaddw ymm5, ymm5, ymm11",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nomem, nostack),
        );
    }
    TURNS * 6 * 32 * 2
}
