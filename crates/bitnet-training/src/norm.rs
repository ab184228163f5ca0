//! The way back through RMSNorm.

use bitnet_cpu::CpuTraining;

/// Rows whose contributions to the weight's gradient are summed together. It decides the order of that sum, so it is no matter of threads.
const ROWS: usize = 64;

/// Sums in sixteen lanes, so that they are the same and fast on every processor.
fn sums(x: &[f32], f: impl Fn(usize, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (block, x) in x.chunks(16).enumerate() {
        for (i, (lane, x)) in lanes.iter_mut().zip(x).enumerate() {
            *lane += f(block * 16 + i, *x);
        }
    }
    bitnet_quant::spec::fold16(lanes)
}

/// `dx [m, n]` (set, or added to) and `dw [n]` (added to, where it is wanted) from `dy [m, n]`, for `y = x / rms(x) * w`.
pub(crate) fn backward(
    ops: &CpuTraining,
    (x, w, eps): (&[f32], &[f32], f32),
    dy: &[f32],
    add: bool,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let n = w.len();
    let mut parts = vec![0.0f32; x.len().div_ceil(ROWS * n) * n];
    let mut pieces: Vec<(&mut [f32], &mut [f32])> =
        dx.chunks_mut(ROWS * n).zip(parts.chunks_mut(n)).collect();
    ops.chunks(&mut pieces, 1, &|piece, at| {
        let (dx, part) = &mut at[0];
        for (row, dx) in dx.chunks_exact_mut(n).enumerate() {
            let from = (piece * ROWS + row) * n;
            let (x, dy) = (&x[from..from + n], &dy[from..from + n]);
            let r = 1.0 / (sums(x, |_, x| x * x) / n as f32 + eps).sqrt();
            let along = sums(x, |i, x| x * (w[i] * dy[i]));
            let back = r * r * r * (along / n as f32);
            for i in 0..n {
                let d = r * (w[i] * dy[i]) - x[i] * back;
                dx[i] = if add { dx[i] + d } else { d };
                part[i] += dy[i] * (x[i] * r);
            }
        }
    });
    let Some(dw) = dw else { return };
    for part in parts.chunks_exact(n) {
        dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_slope() {
        let ops = CpuTraining::new(None, Some(2)).unwrap();
        let (m, n, eps) = (130, 21, 1e-5);
        let noise = |stream, i| crate::random::normal(9, stream, i as u64) as f32;
        let x: Vec<f32> = (0..m * n).map(|i| noise(0, i)).collect();
        let w: Vec<f32> = (0..n).map(|i| noise(1, i)).collect();
        let dy: Vec<f32> = (0..m * n).map(|i| noise(2, i)).collect();
        let value = |x: &[f64], w: &[f64]| -> f64 {
            let rows = x.chunks(n).zip(dy.chunks(n)).map(|(x, dy)| {
                let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
                x.iter().zip(w).zip(dy).map(|((x, w), dy)| x * r * w * f64::from(*dy)).sum::<f64>()
            });
            rows.sum()
        };
        let (mut dx, mut dw) = (vec![1.0; m * n], vec![2.0; n]);
        backward(&ops, (&x, &w, eps as f32), &dy, true, &mut dx, Some(&mut dw));
        let moved = |x: &[f32], stream: u64, by: f64| -> Vec<f64> {
            let along = |i: usize| f64::from(noise(stream, i));
            x.iter().enumerate().map(|(i, x)| f64::from(*x) + by * along(i)).collect()
        };
        let h = 1e-6;
        let at = |a: f64, b: f64| value(&moved(&x, 7, a), &moved(&w, 8, b));
        let along = |d: &[f32], less: f32, stream: u64| -> f64 {
            d.iter().enumerate().map(|(i, d)| f64::from(d - less) * f64::from(noise(stream, i))).sum()
        };
        for (slope, got) in [
            ((at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), along(&dx, 1.0, 7)),
            ((at(0.0, h) - at(0.0, -h)) / (2.0 * h), along(&dw, 2.0, 8)),
        ] {
            assert!((slope - got).abs() < 1e-4 * slope.abs().max(1.0), "{slope} {got}");
        }
    }
}
