//! Cross-entropy of rows of logits, and its gradient in their place.

use crate::Isa;
use crate::kernels::norm::padded;
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};

struct Row<'a> {
    logits: &'a mut [f32],
    target: usize,
    weight: f32,
}

impl Kernel for Row<'_> {
    type Output = (f32, f32, f32);
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> (f32, f32, f32) {
        let Self { logits, target, weight } = self;
        let wanted = logits[target];
        let (blocks, tail) = logits.as_chunks_mut::<16>();
        let mut max = l.splat(f32::NEG_INFINITY);
        for block in blocks.iter() {
            max = l.max(l.load(block), max);
        }
        let mut lanes = [0.0; 16];
        l.store(max, &mut lanes);
        let max = lanes.iter().chain(&*tail).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
        let mut sum = l.splat(0.0);
        for block in blocks.iter_mut() {
            let e = l.exp(l.sub(l.load(block), l.splat(max)));
            sum = l.add(sum, e);
            l.store(e, block);
        }
        if !tail.is_empty() {
            l.store(l.exp(l.sub(l.load(&padded(tail)), l.splat(max))), &mut lanes);
            lanes[tail.len()..].fill(0.0);
            sum = l.add(sum, l.load(&lanes));
            tail.copy_from_slice(&lanes[..tail.len()]);
        }
        let sum = l.fold(sum);
        let factor = weight / sum;
        for block in blocks {
            l.store(l.mul(l.load(block), l.splat(factor)), block);
        }
        tail.iter_mut().for_each(|e| *e *= factor);
        logits[target] -= weight;
        (max, sum, wanted)
    }
}

/// Rows of `logits [m, vocab]` become the gradient of `sum of weights * cross-entropy`; `parts [m, 3]` gets each row's largest logit, the
/// sum of `exp(logit - largest)`, and the logit of its target.
pub(crate) fn cross_entropy(
    isa: Isa,
    pool: &Pool,
    logits: &mut [f32],
    targets: &[u32],
    weights: &[f32],
    parts: &mut [f32],
) {
    let vocab = logits.len() / targets.len().max(1);
    let parts = Shares::new(parts);
    pool.chunks_mut(logits, vocab, &|row, logits| {
        // SAFETY: a row is visited once.
        let part = unsafe { parts.slice(row * 3, 3) };
        let (target, weight) = (targets[row] as usize, weights[row]);
        (part[0], part[1], part[2]) = dispatch(isa, Row { logits, target, weight });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn is_the_softmax_less_the_target() {
        for_each_isa_and_pool(|isa, pool| {
            for vocab in [1, 16, 37] {
                let logits = Noise(vocab as u32).floats(3 * vocab, 8.0);
                let (targets, weights) = ([0, vocab as u32 - 1, 0], [0.5, 0.25, 0.0]);
                let (mut got, mut parts) = (logits.clone(), [0.0; 9]);
                cross_entropy(isa, pool, &mut got, &targets, &weights, &mut parts);
                for row in 0..3 {
                    let z: Vec<f64> = logits[row * vocab..][..vocab].iter().map(|z| f64::from(*z)).collect();
                    let max = z.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = z.iter().map(|z| (z - max).exp()).sum();
                    let [m, sum, wanted] = parts[row * 3..][..3] else { unreachable!() };
                    assert_eq!((f64::from(m), f64::from(wanted)), (max, z[targets[row] as usize]));
                    assert!((f64::from(sum) / total - 1.0).abs() < 1e-6);
                    for (id, z) in z.iter().enumerate() {
                        let one = f64::from(id as u32 == targets[row]);
                        let want = f64::from(weights[row]) * ((z - max).exp() / total - one);
                        let got = f64::from(got[row * vocab + id]);
                        assert!((got - want).abs() < 1e-6, "{isa} {vocab} {row} {id}: {got} {want}");
                    }
                }
            }
        });
    }
}
