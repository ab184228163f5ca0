//! Whether this process may use the tile registers of AMX.
//!
//! The standard library cannot tell: their state is eight kilobytes a thread, so Linux gives them to a process that asks.

use std::sync::LazyLock;

/// Asks once; the answer holds for the life of the process and all its threads.
pub(super) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_products() && permitted());
    *AVAILABLE
}

/// `CPUID.(EAX=7,ECX=0):EDX` has AMX-BF16 in bit 22, AMX-TILE in bit 24 and AMX-INT8 in bit 25.
fn has_products() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    let highest = std::arch::x86_64::__cpuid(0).eax;
    highest >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & BITS == BITS
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)`.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: the call takes two numbers, reads and writes no memory of this process, and fails where the kernel does not know
    // it. A system call changes `rcx` and `r11`.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
