//! Softmax attention of one query head over the cached positions.

use super::{LANES, exp, fold16};
use std::ops::Range;

/// Positions of a softmax segment; segments begin at absolute positions that are multiples of this.
pub const SEGMENT: usize = 256;

/// Rules 10 and 11: attention of one query `q [d]` over some positions, at least one.
///
/// `key` and `value` return row `[d]` of a position, already rounded to the cache type (rule 12). `out` is `[d]`.
pub fn attend_head<'a>(
    q: &[f32],
    positions: Range<usize>,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let mut segments = Vec::new();
    let first = positions.start / SEGMENT * SEGMENT;
    for segment in (first..positions.end).step_by(SEGMENT) {
        let (from, to) = (segment.max(positions.start), positions.end.min(segment + SEGMENT));
        let scores: Vec<f32> = (from..to)
            .map(|p| q.iter().zip(key(p)).fold(0.0f32, |s, (a, b)| a.mul_add(*b, s)) * scale)
            .collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, |m, s| if s > m { s } else { m });
        let mut lane = [0.0f32; LANES];
        let mut o = vec![0.0f32; q.len()];
        for (position, s) in (from..to).zip(&scores) {
            let p = exp(s - max);
            lane[position % LANES] += p;
            for (o, v) in o.iter_mut().zip(value(position)) {
                *o = p.mul_add(*v, *o);
            }
        }
        segments.push((max, fold16(lane), o));
    }
    let max = segments.iter().fold(f32::NEG_INFINITY, |m, s| if s.0 > m { s.0 } else { m });
    out.fill(0.0);
    let mut total = 0.0f32;
    for (m, l, o) in &segments {
        let e = exp(m - max);
        total = l.mul_add(e, total);
        for (out, o) in out.iter_mut().zip(o) {
            *out = o.mul_add(e, *out);
        }
    }
    for out in out.iter_mut() {
        *out /= total;
    }
}
