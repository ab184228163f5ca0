//! Lanes as one zmm register.

use super::{Kernel, Lanes};
use crate::Isa;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, VL, DQ and VNNI, AVX2, FMA and F16C. Made in [`run`] alone.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs `kernel` compiled for AVX-512.
pub(super) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }
    assert!(isa.is_available(), "{isa} is not available");
    // SAFETY: the assertion above has seen every feature that `inner` enables.
    unsafe { inner(kernel) }
}

/// States the promise of every intrinsic below once: a value of [`Avx512`] exists only inside [`run`].
macro_rules! lane {
    ($e:expr) => {
        // SAFETY: `self` proves that the processor has the instructions, and every pointer below comes from an array
        // reference of the full width.
        unsafe { $e }
    };
}

/// Signed bytes as floats.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(bytes: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
}

impl Lanes for Avx512 {
    type F = __m512;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a prefetch of any address is without effect on the program; SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        lane!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        lane!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        lane!(_mm512_storeu_ps(out.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lane!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lane!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        lane!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn zero_unless_positive(self, t: Self::F, y: Self::F) -> Self::F {
        lane!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(t, _mm512_setzero_ps()), y))
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        lane!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn exp2_int(self, k: Self::F) -> Self::F {
        lane!({
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(k), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn half_floor(self, k: Self::F) -> Self::F {
        lane!(_mm512_cvtepi32_ps(_mm512_srai_epi32::<1>(_mm512_cvtps_epi32(k))))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::F {
        lane!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> Self::F {
        lane!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Self::F {
        lane!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn six_bits(self, low: &[u8; 64], high: &[u8; 32]) -> [Self::F; 8] {
        lane!({
            let low = _mm512_loadu_si512(low.as_ptr().cast());
            let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(high.as_ptr().cast()));
            let (nibble, pair) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
            // Shifts of 16-bit words: what crosses into the other byte is masked away.
            let up =
                _mm512_sllv_epi16(high, _mm512_inserti64x4::<1>(_mm512_set1_epi16(4), _mm256_set1_epi16(2)));
            let down = _mm512_srlv_epi16(
                high,
                _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(2)),
            );
            let first = _mm512_or_si512(_mm512_and_si512(low, nibble), _mm512_and_si512(up, pair));
            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble);
            let second = _mm512_or_si512(second, _mm512_and_si512(down, pair));
            let offset = _mm512_set1_epi8(32);
            let (first, second) = (_mm512_sub_epi8(first, offset), _mm512_sub_epi8(second, offset));
            [
                widen(_mm512_castsi512_si128(first)),
                widen(_mm512_extracti32x4_epi32::<1>(first)),
                widen(_mm512_extracti32x4_epi32::<2>(first)),
                widen(_mm512_extracti32x4_epi32::<3>(first)),
                widen(_mm512_castsi512_si128(second)),
                widen(_mm512_extracti32x4_epi32::<1>(second)),
                widen(_mm512_extracti32x4_epi32::<2>(second)),
                widen(_mm512_extracti32x4_epi32::<3>(second)),
            ]
        })
    }
    #[inline(always)]
    fn difference(self, a: &[i32; 16], b: i32) -> Self::F {
        lane!(_mm512_cvtepi32_ps(_mm512_sub_epi32(
            _mm512_loadu_si512(a.as_ptr().cast()),
            _mm512_set1_epi32(b)
        )))
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, out: &mut [i8; 16]) {
        lane!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))))
    }
    #[inline(always)]
    fn trits(self, words: &[u32; 16], shift: u32) -> Self::F {
        lane!({
            let words = _mm512_loadu_si512(words.as_ptr().cast());
            let codes = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
            let codes = _mm512_and_si512(codes, _mm512_set1_epi32(3));
            _mm512_sub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(1.0))
        })
    }
}
