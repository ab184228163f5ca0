//! Rotary position embedding.

/// Rule 8: `1 / f32(theta^(2i/d))` for the `d/2` pairs, the power in f64 from an exponent rounded to f32.
pub fn inverse_frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / libm::pow(theta, f64::from(exponent)) as f32
        })
        .collect()
}

/// Rule 8: appends cosines and sines of one position to `cos` and `sin`, `[d/2]` each, times a factor that is 1 but with YaRN.
///
/// The angle is rounded to f32; sine and cosine are taken in f64, rounded, and then multiplied.
pub fn rope_angles(
    position: u32,
    inverse_frequencies: &[f32],
    factor: f32,
    cos: &mut Vec<f32>,
    sin: &mut Vec<f32>,
) {
    for &inv in inverse_frequencies {
        let angle = f64::from(position as f32 * inv);
        cos.push(libm::cos(angle) as f32 * factor);
        sin.push(libm::sin(angle) as f32 * factor);
    }
}

/// Rule 8: rotates one head `x [d]` in place; pairs are `(i, i + d/2)`, `cos` and `sin` are `[d/2]`.
pub fn rotate_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (u, v) = (*a, *b);
        *a = u * c - v * s;
        *b = v * c + u * s;
    }
}
