//! Sixteen f32 lanes on every instruction set: one zmm, two ymm, four NEON registers, or an array.
//!
//! A kernel's float part is written once over [`Lanes`] and compiled for each instruction set by [`dispatch`]. All
//! implementations round every operation in the same way, so the results are the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::Isa;

/// Sixteen f32 lanes. A value of an implementing type proves that the processor has its instructions.
pub(crate) trait Lanes: Copy {
    /// Sixteen lanes.
    type F: Copy;
    /// Vector registers, for loops that choose how much to keep in them.
    const REGISTERS: usize;

    /// Asks for a line of memory, to the second-level cache. Any address will do.
    fn prefetch(self, _line: *const u8) {}

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }` in every lane.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }` in every lane.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if t > 0 { y } else { +0 }` in every lane.
    fn zero_unless_positive(self, t: Self::F, y: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^k` of lanes that hold integers from -126 to 127.
    fn exp2_int(self, k: Self::F) -> Self::F;
    /// Halves of integers, rounded down.
    fn half_floor(self, k: Self::F) -> Self::F;
    /// Widens f16 bits.
    fn load_f16(self, x: &[u16; 16]) -> Self::F;
    /// Widens bf16 bits.
    fn load_bf16(self, x: &[u16; 16]) -> Self::F;
    /// Widens signed bytes.
    fn load_i8(self, x: &[i8; 16]) -> Self::F;

    /// `a - b` of integers, as floats.
    fn difference(self, a: &[i32; 16], b: i32) -> Self::F;
    /// Narrows lanes that hold integers from -128 to 127.
    fn store_i8(self, x: Self::F, out: &mut [i8; 16]);
    /// The trits of two-bit codes at bits `shift..shift + 2` of sixteen words.
    fn trits(self, words: &[u32; 16], shift: u32) -> Self::F;

    /// Half a block of `Q6_K`: 128 numbers from -32 to 31 in eight times sixteen lanes. Byte `i` of `low` has the low nibbles of
    /// numbers `i % 32 + 32 * (i / 32)` and 64 on; byte `i` of `high` the upper bits of numbers `i`, `32 + i`, `64 + i`, `96 + i`.
    #[inline(always)]
    fn six_bits(self, low: &[u8; 64], high: &[u8; 32]) -> [Self::F; 8] {
        let mut q = [0i8; 128];
        for i in 0..64 {
            let upper = high[i % 32] >> (2 * (i / 32));
            q[i] = ((low[i] & 15) | ((upper & 3) << 4)) as i8 - 32;
            q[64 + i] = ((low[i] >> 4) | ((upper >> 4 & 3) << 4)) as i8 - 32;
        }
        let mut out = [self.splat(0.0); 8];
        for (out, q) in out.iter_mut().zip(q.as_chunks::<16>().0) {
            *out = self.load_i8(q);
        }
        out
    }

    /// Rule 2: folds the lanes by +8, +4, +2, +1.
    #[inline(always)]
    fn fold(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        bitnet_quant::spec::fold16(lanes)
    }

    /// Rule 9 in every lane, operation for operation as `bitnet_quant::spec::exp`.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        use bitnet_quant::spec::{EXP_C, EXP_HI, EXP_LN2_HI, EXP_LN2_LO, EXP_LO, EXP_LOG2E};
        let x = self.min(self.max(x, self.splat(EXP_LO)), self.splat(EXP_HI));
        let k = self.round(self.mul(x, self.splat(EXP_LOG2E)));
        let r = self.fnma(k, self.splat(EXP_LN2_HI), x);
        let r = self.fnma(k, self.splat(EXP_LN2_LO), r);
        let mut p = self.splat(EXP_C[4]);
        for c in [EXP_C[3], EXP_C[2], EXP_C[1], EXP_C[0], 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        let low = self.half_floor(k);
        let high = self.sub(k, low);
        self.mul(self.mul(p, self.exp2_int(low)), self.exp2_int(high))
    }
}

/// A piece of work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, so that they take on the instruction set of the caller.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the lanes of `isa`.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Scalar => kernel.run(scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        Isa::Sse => kernel.run(scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => avx2::run(isa, kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw | Isa::Avx512 | Isa::Avx512Vbmi | Isa::Amx => avx512::run(isa, kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => neon::run(isa, kernel),
    }
}
