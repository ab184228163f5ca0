//! L16: the one order in which f32 values are summed.

/// Lanes of a reduction: one zmm, two ymm or four NEON registers.
pub const LANES: usize = 16;

/// Rule 2: folds sixteen lanes by +8, +4, +2, +1.
pub fn fold16(mut lane: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lane[i] += lane[i + width];
        }
    }
    lane[0]
}

/// Rule 2: dot product. Element `i` goes to lane `i mod 16`, ascending, by fused multiply-add; the tail is zero.
///
/// The shorter operand counts as padded with zeros.
pub fn l16_dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lane = [0.0f32; LANES];
    for i in 0..a.len().min(b.len()).next_multiple_of(LANES) {
        let (x, y) = (a.get(i).copied().unwrap_or(0.0), b.get(i).copied().unwrap_or(0.0));
        lane[i % LANES] = x.mul_add(y, lane[i % LANES]);
    }
    fold16(lane)
}

/// Rule 2: sum. Element `i` goes to lane `i mod 16`, ascending; the tail is zero.
pub fn l16_sum(a: &[f32]) -> f32 {
    let mut lane = [0.0f32; LANES];
    for i in 0..a.len().next_multiple_of(LANES) {
        lane[i % LANES] += a.get(i).copied().unwrap_or(0.0);
    }
    fold16(lane)
}
