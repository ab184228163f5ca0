//! Keys and values in eight bits.

use half::f16;

/// Elements that share a scale in a `q8_0` cache.
pub const Q8_BLOCK: usize = 32;

/// Rule 12: rounds neighbouring elements `x`, at most [`Q8_BLOCK`] of them, to eight bits and returns their scale; an element is
/// then `f32(q) * f32(scale)`.
///
/// `scale = f16(max |x| / 127)`, at most the largest f16; `q = clamp(round_half_even(x * (1 / scale)), -127, 127)`, and 0 where the
/// scale is 0.
pub fn quantize_q8(x: &[f32], q: &mut [i8]) -> f16 {
    let absmax = x.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
    let scale = f16::from_f32((absmax / 127.0).min(65504.0));
    if scale.to_f32() == 0.0 {
        q.fill(0);
        return scale;
    }
    let inverse = 1.0 / scale.to_f32();
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}
