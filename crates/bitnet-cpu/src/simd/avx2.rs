//! Lanes as two ymm registers: the first holds lanes 0 to 7.

use super::{Kernel, Lanes};
use crate::Isa;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C. Made in [`run`] alone.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs `kernel` compiled for AVX2.
pub(super) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }
    assert!(isa.is_available(), "{isa} is not available");
    // SAFETY: the assertion above has seen every feature that `inner` enables.
    unsafe { inner(kernel) }
}

/// States the promise of every intrinsic below once: a value of [`Avx2`] exists only inside [`run`].
macro_rules! lane {
    ($e:expr) => {
        // SAFETY: `self` proves that the processor has the instructions, and every pointer below comes from an array
        // reference of the full width, offset by at most half of it.
        unsafe { $e }
    };
}

/// Two registers, each by the same one-register operation.
macro_rules! both {
    ($f:ident, $a:ident $(, $b:ident)*) => {
        lane!(($f($a.0 $(, $b.0)*), $f($a.1 $(, $b.1)*)))
    };
}

impl Lanes for Avx2 {
    type F = (__m256, __m256);
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a prefetch of any address is without effect on the program; SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        lane!((_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        lane!((_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        lane!({
            _mm256_storeu_ps(out.as_mut_ptr(), x.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x.1);
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fnmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn zero_unless_positive(self, t: Self::F, y: Self::F) -> Self::F {
        let one = |t, y| lane!(_mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(t, _mm256_setzero_ps()), y));
        (one(t.0, y.0), one(t.1, y.1))
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        lane!((_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)))
    }
    #[inline(always)]
    fn exp2_int(self, k: Self::F) -> Self::F {
        let one = |k| {
            lane!({
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            })
        };
        (one(k.0), one(k.1))
    }
    #[inline(always)]
    fn half_floor(self, k: Self::F) -> Self::F {
        let one = |k| lane!(_mm256_cvtepi32_ps(_mm256_srai_epi32::<1>(_mm256_cvtps_epi32(k))));
        (one(k.0), one(k.1))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::F {
        lane!({
            let p: *const __m128i = x.as_ptr().cast();
            (_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))))
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> Self::F {
        let one = |half| lane!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))));
        let p: *const __m128i = x.as_ptr().cast();
        (one(lane!(_mm_loadu_si128(p))), one(lane!(_mm_loadu_si128(p.add(1)))))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Self::F {
        let half = |x: *const i8| lane!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.cast()))));
        (half(x.as_ptr()), half(x[8..].as_ptr()))
    }
    #[inline(always)]
    fn six_bits(self, low: &[u8; 64], high: &[u8; 32]) -> [Self::F; 8] {
        // By way of memory: a load widens eight numbers, and registers are few.
        let mut q = [0i8; 128];
        lane!({
            let nibbles = [0, 32].map(|at| _mm256_loadu_si256(low[at..].as_ptr().cast()));
            let high = _mm256_loadu_si256(high.as_ptr().cast());
            let (nibble, pair) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            // Shifts of 16-bit words: what crosses into the other byte is masked away.
            let quarters = [
                (nibbles[0], _mm256_slli_epi16::<4>(high)),
                (nibbles[1], _mm256_slli_epi16::<2>(high)),
                (_mm256_srli_epi16::<4>(nibbles[0]), high),
                (_mm256_srli_epi16::<4>(nibbles[1]), _mm256_srli_epi16::<2>(high)),
            ];
            for ((low, high), out) in quarters.into_iter().zip(q.as_chunks_mut::<32>().0) {
                let bits = _mm256_or_si256(_mm256_and_si256(low, nibble), _mm256_and_si256(high, pair));
                let numbers = _mm256_sub_epi8(bits, _mm256_set1_epi8(32));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), numbers);
            }
        });
        let q = q.as_chunks::<16>().0;
        [0, 1, 2, 3, 4, 5, 6, 7].map(|i| self.load_i8(&q[i]))
    }
    #[inline(always)]
    fn difference(self, a: &[i32; 16], b: i32) -> Self::F {
        lane!({
            let (p, b) = (a.as_ptr().cast::<__m256i>(), _mm256_set1_epi32(b));
            let half = |p| _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(p), b));
            (half(p), half(p.add(1)))
        })
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, out: &mut [i8; 16]) {
        lane!({
            let (a, b) = (_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
            let (a, b) = (
                _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a)),
                _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256::<1>(b)),
            );
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_packs_epi16(a, b));
        })
    }
    #[inline(always)]
    fn trits(self, words: &[u32; 16], shift: u32) -> Self::F {
        let one = |words: *const u32| {
            lane!({
                let codes =
                    _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), _mm_cvtsi32_si128(shift as i32));
                let codes = _mm256_and_si256(codes, _mm256_set1_epi32(3));
                _mm256_sub_ps(_mm256_cvtepi32_ps(codes), _mm256_set1_ps(1.0))
            })
        };
        (one(words.as_ptr()), one(words[8..].as_ptr()))
    }
}
