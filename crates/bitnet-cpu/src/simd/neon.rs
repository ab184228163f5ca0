//! Lanes as four NEON registers: the first holds lanes 0 to 3.

use super::{Kernel, Lanes};
use crate::Isa;
use std::arch::aarch64::*;
use std::arch::asm;

/// Proof that the processor has NEON. Made in [`run`] alone.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Runs `kernel` compiled for NEON.
pub(super) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[target_feature(enable = "neon")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Neon(()))
    }
    assert!(isa.is_available(), "{isa} is not available");
    // SAFETY: every instruction set but the scalar one includes NEON, and the assertion above has seen it.
    unsafe { inner(kernel) }
}

/// States the promise of every intrinsic below once: a value of [`Neon`] exists only inside [`run`].
macro_rules! lane {
    ($e:expr) => {
        // SAFETY: `self` proves that the processor has the instructions, and every pointer below comes from an array
        // reference of sixteen elements, offset by at most twelve of them and read or written four, eight or sixteen at a time.
        unsafe {
            $e
        }
    };
}

/// Four registers, each by the same one-register operation.
macro_rules! each {
    (|$($x:ident),+| $e:expr) => {{
        #[inline(always)]
        fn one($($x: float32x4_t),+) -> float32x4_t {
            // SAFETY: as in `lane`; the operations here touch no memory.
            unsafe { $e }
        }
        [one($($x.0[0]),+), one($($x.0[1]),+), one($($x.0[2]),+), one($($x.0[3]),+)].into()
    }};
}

/// Sixteen floats.
#[derive(Clone, Copy)]
pub(super) struct Floats([float32x4_t; 4]);

impl From<[float32x4_t; 4]> for Floats {
    #[inline(always)]
    fn from(registers: [float32x4_t; 4]) -> Self {
        Self(registers)
    }
}

/// Sixteen signed bytes as floats.
#[inline(always)]
fn widen(_: Neon, bytes: int8x16_t) -> Floats {
    lane!({
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        Floats([
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
            vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
            vcvtq_f32_s32(vmovl_high_s16(high)),
        ])
    })
}

impl Lanes for Neon {
    type F = Floats;
    // There are 32, but a value takes four: they hold as much as eight.
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a prefetch of any address is without effect on the program.
        unsafe {
            asm!("prfm pldl2keep, [{0}]", in(reg) line, options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        Floats([lane!(vdupq_n_f32(x)); 4])
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Floats {
        let x = x.as_ptr();
        lane!(Floats([vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))]))
    }
    #[inline(always)]
    fn store(self, x: Floats, out: &mut [f32; 16]) {
        for (x, out) in x.0.into_iter().zip(out.as_chunks_mut::<4>().0) {
            lane!(vst1q_f32(out.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vaddq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vmulq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vsubq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        each!(|a, b, c| vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn fnma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        each!(|a, b, c| vfmsq_f32(c, a, b))
    }
    // `fmax` would pass on a NaN that the specification's comparison drops.
    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        each!(|a, b| vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn zero_unless_positive(self, t: Floats, y: Floats) -> Floats {
        each!(|t, y| vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(t), vreinterpretq_u32_f32(y))))
    }
    #[inline(always)]
    fn round(self, a: Floats) -> Floats {
        each!(|a| vrndnq_f32(a))
    }
    #[inline(always)]
    fn exp2_int(self, k: Floats) -> Floats {
        each!(|k| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(k), vdupq_n_s32(127)))))
    }
    #[inline(always)]
    fn half_floor(self, k: Floats) -> Floats {
        each!(|k| vcvtq_f32_s32(vshrq_n_s32::<1>(vcvtq_s32_f32(k))))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Floats {
        lane!({
            let (low, high) = (vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8)));
            let (low, high) = (vreinterpretq_f16_u16(low), vreinterpretq_f16_u16(high));
            Floats([
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            ])
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> Floats {
        lane!({
            let (low, high) = (vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8)));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            Floats(words.map(|w| vreinterpretq_f32_u32(vshlq_n_u32::<16>(w))))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Floats {
        widen(self, lane!(vld1q_s8(x.as_ptr())))
    }
    #[inline(always)]
    fn difference(self, a: &[i32; 16], b: i32) -> Floats {
        lane!({
            let (a, b) = (a.as_ptr(), vdupq_n_s32(b));
            let one = |a| vcvtq_f32_s32(vsubq_s32(vld1q_s32(a), b));
            Floats([one(a), one(a.add(4)), one(a.add(8)), one(a.add(12))])
        })
    }
    #[inline(always)]
    fn store_i8(self, x: Floats, out: &mut [i8; 16]) {
        lane!({
            let [a, b, c, d] = x.0.map(|x| vqmovn_s32(vcvtq_s32_f32(x)));
            let low = vqmovn_s16(vcombine_s16(a, b));
            vst1q_s8(out.as_mut_ptr(), vcombine_s8(low, vqmovn_s16(vcombine_s16(c, d))));
        })
    }
    #[inline(always)]
    fn trits(self, words: &[u32; 16], shift: u32) -> Floats {
        lane!({
            let (words, shift) = (words.as_ptr(), vdupq_n_s32(-(shift as i32)));
            let one = |words| {
                let codes = vandq_u32(vshlq_u32(vld1q_u32(words), shift), vdupq_n_u32(3));
                vsubq_f32(vcvtq_f32_u32(codes), vdupq_n_f32(1.0))
            };
            Floats([one(words), one(words.add(4)), one(words.add(8)), one(words.add(12))])
        })
    }
    #[inline(always)]
    fn six_bits(self, low: &[u8; 64], high: &[u8; 32]) -> [Floats; 8] {
        let (low, high) = (low.as_chunks::<16>().0, high.as_chunks::<16>().0);
        std::array::from_fn(|i| {
            lane!({
                let (low, high) = (vld1q_u8(low[i % 4].as_ptr()), vld1q_u8(high[i % 2].as_ptr()));
                let nibble = if i < 4 { vandq_u8(low, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(low) };
                let upper = vshlq_u8(high, vdupq_n_s8(4 - 2 * (i as i8 / 2)));
                let codes = vorrq_u8(nibble, vandq_u8(upper, vdupq_n_u8(0x30)));
                widen(self, vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(32)))
            })
        })
    }
}
