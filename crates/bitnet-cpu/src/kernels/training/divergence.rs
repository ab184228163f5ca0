//! How far rows of scores are from those of a teacher, and the gradient in their place.

use super::norm::{lanes, put};
use crate::Isa;
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};

struct Row<'a> {
    student: &'a mut [f32],
    teacher: &'a [f32],
    factor: f32,
    weight: f32,
}

/// The largest score.
#[inline(always)]
fn largest<L: Lanes>(l: L, x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<16>();
    let mut max = l.splat(f32::NEG_INFINITY);
    for block in blocks {
        max = l.max(l.load(block), max);
    }
    let mut each = [0.0; 16];
    l.store(max, &mut each);
    each.iter().chain(tail).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

impl Kernel for Row<'_> {
    type Output = [f32; 3];
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> [f32; 3] {
        let Self { student, teacher, factor, weight } = self;
        let (of_student, of_teacher) = (l.splat(largest(l, student)), l.splat(largest(l, teacher)));
        let scale = l.splat(factor);
        // Scores of both less their largest; what is behind the last one weighs nothing.
        let pair = |s: &[f32], t: &[f32]| {
            let a = l.mul(l.sub(lanes(l, s), of_student), scale);
            let b = l.mul(l.sub(lanes(l, t), of_teacher), scale);
            let (mut own, mut theirs) = ([0.0; 16], [0.0; 16]);
            l.store(l.exp(a), &mut own);
            l.store(l.exp(b), &mut theirs);
            own[s.len()..].fill(0.0);
            theirs[s.len()..].fill(0.0);
            (l.load(&own), l.load(&theirs), l.sub(b, a))
        };
        let zero = l.splat(0.0);
        let (mut sum, mut sum_of_teacher, mut along) = (zero, zero, zero);
        for (s, t) in student.chunks(16).zip(teacher.chunks(16)) {
            let (own, theirs, less) = pair(s, t);
            sum = l.add(sum, own);
            sum_of_teacher = l.add(sum_of_teacher, theirs);
            along = l.fma(theirs, less, along);
        }
        let (sum, sum_of_teacher, along) = (l.fold(sum), l.fold(sum_of_teacher), l.fold(along));
        let (own_share, their_share) = (l.splat(1.0 / sum), l.splat(1.0 / sum_of_teacher));
        let weight = l.splat(weight * factor);
        for (s, t) in student.chunks_mut(16).zip(teacher.chunks(16)) {
            let (own, theirs, _) = pair(s, t);
            put(l, l.mul(weight, l.sub(l.mul(own, own_share), l.mul(theirs, their_share))), s);
        }
        [sum, sum_of_teacher, along]
    }
}

/// The first elements of each row of `student [m, n]`, as many as `rows` says, become the gradients of `weight * KL(teacher || student)`, the
/// distributions being softmaxes of scores times `factor`; what is behind them becomes zero. `parts [m, 3]` gets the sums of `exp` of both
/// and the teacher's mean of how much larger its scores are, times its sum, all of scores less the largest.
pub(crate) fn divergence(
    isa: Isa,
    pool: &Pool,
    student: &mut [f32],
    teacher: &[f32],
    factor: f32,
    rows: &[(usize, f32)],
    parts: &mut [f32],
) {
    let n = student.len() / rows.len().max(1);
    let parts = Shares::new(parts);
    pool.chunks_mut(student, n, &|row, student| {
        let (valid, weight) = rows[row];
        let (student, rest) = student.split_at_mut(valid);
        rest.fill(0.0);
        // SAFETY: a row is visited once.
        let part = unsafe { parts.slice(row * 3, 3) };
        let teacher = &teacher[row * n..][..valid];
        part.copy_from_slice(&dispatch(isa, Row { student, teacher, factor, weight }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn is_the_difference_of_softmaxes() {
        for_each_isa_and_pool(|isa, pool| {
            for n in [1, 16, 37] {
                let (student, teacher) = (Noise(n as u32).floats(3 * n, 8.0), Noise(99).floats(3 * n, 8.0));
                let rows = [(n, 0.5), (n.div_ceil(2), 0.25), (1, 0.0)];
                let (mut got, mut parts) = (student.clone(), [0.0; 9]);
                divergence(isa, pool, &mut got, &teacher, 0.5, &rows, &mut parts);
                for (row, (valid, weight)) in rows.into_iter().enumerate() {
                    let softmax = |z: &[f32]| -> Vec<f64> {
                        let e: Vec<f64> =
                            z[row * n..][..valid].iter().map(|z| (0.5 * f64::from(*z)).exp()).collect();
                        let sum: f64 = e.iter().sum();
                        e.iter().map(|e| e / sum).collect()
                    };
                    let (s, t) = (softmax(&student), softmax(&teacher));
                    let want: f64 = t.iter().zip(&s).map(|(t, s)| t * (t / s).ln()).sum();
                    let [a, b, along] = [0, 1, 2].map(|i| f64::from(parts[row * 3 + i]));
                    let kl = along / b + a.ln() - b.ln();
                    assert!((kl - want).abs() < 1e-5, "{isa} {n} {row}: {kl} {want}");
                    for i in 0..n {
                        let want = if i < valid { 0.5 * f64::from(weight) * (s[i] - t[i]) } else { 0.0 };
                        assert!((f64::from(got[row * n + i]) - want).abs() < 1e-6, "{isa} {n} {row} {i}");
                    }
                }
            }
        });
    }
}
