//! Lanes as an array: what the specification says, element by element.

use super::Lanes;
use half::{bf16, f16};

/// Needs nothing of the processor.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

#[inline(always)]
fn map2(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Scalar {
    type F = [f32; 16];
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn zero_unless_positive(self, t: Self::F, y: Self::F) -> Self::F {
        map2(t, y, |t, y| if t > 0.0 { y } else { 0.0 })
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2_int(self, k: Self::F) -> Self::F {
        k.map(|k| f32::from_bits(((k as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn half_floor(self, k: Self::F) -> Self::F {
        k.map(|k| (k as i32 >> 1) as f32)
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::F {
        x.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> Self::F {
        x.map(|b| bf16::from_bits(b).to_f32())
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Self::F {
        x.map(f32::from)
    }
    #[inline(always)]
    fn difference(self, a: &[i32; 16], b: i32) -> Self::F {
        a.map(|a| (a - b) as f32)
    }
    #[inline(always)]
    fn store_i8(self, x: Self::F, out: &mut [i8; 16]) {
        *out = x.map(|x| x as i8)
    }
    #[inline(always)]
    fn trits(self, words: &[u32; 16], shift: u32) -> Self::F {
        words.map(|w| ((w >> shift) & 3) as f32 - 1.0)
    }
}
