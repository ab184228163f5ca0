use super::*;
use crate::testing::{Noise, for_each_isa_and_pool};
use bitnet_quant::spec;

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 20 };

fn attend(isa: Isa, pool: &Pool, qkv: &[f32], spans: &[Range<usize>]) -> (Vec<f32>, Vec<f32>) {
    let m = qkv.len() / SHAPE.qkv_cols();
    let mut out = vec![0.0; m * SHAPE.heads * SHAPE.head_dim];
    let mut sums = vec![0.0; m * SHAPE.heads * 2];
    forward(isa, pool, Sequences { qkv, shape: SHAPE, spans }, &mut out, &mut sums);
    (out, sums)
}

#[test]
fn forward_equals_the_specification() {
    for_each_isa_and_pool(|isa, pool| {
        let (cols, d) = (SHAPE.qkv_cols(), SHAPE.head_dim);
        let spans = [0..3, 3..4, 4..4 + 330];
        let qkv = Noise(7).floats(334 * cols, 2.0);
        let (out, _) = attend(isa, pool, &qkv, &spans);
        for span in &spans {
            for row in span.clone() {
                for head in 0..SHAPE.heads {
                    let at = Sequences { qkv: &qkv, shape: SHAPE, spans: &spans }.columns(head);
                    let mut want = vec![0.0; d];
                    let of = |column: usize| {
                        let qkv = &qkv;
                        move |p: usize| &qkv[(span.start + p) * cols + column..][..d]
                    };
                    let q = &qkv[row * cols + at.q..][..d];
                    spec::attend_head(q, 0..row - span.start + 1, of(at.k), of(at.v), &mut want);
                    let got = &out[(row * SHAPE.heads + head) * d..][..d];
                    assert_eq!(got, want, "{isa} {row} {head}");
                }
            }
        }
    });
}

/// The gradient along random directions is the slope of a weighted sum of the outputs, in double precision.
#[test]
fn backward_is_the_slope() {
    let (cols, d) = (SHAPE.qkv_cols(), SHAPE.head_dim);
    let (spans, m) = ([0..5, 5..275], 275);
    let qkv = Noise(3).floats(m * cols, 1.0);
    let dout = Noise(4).floats(m * SHAPE.heads * d, 1.0);
    let value = |qkv: &[f64]| -> f64 {
        let mut sum = 0.0;
        for span in &spans {
            for row in span.clone() {
                for head in 0..SHAPE.heads {
                    let at = Sequences { qkv: &[], shape: SHAPE, spans: &spans }.columns(head);
                    let of = |row: usize, column: usize| &qkv[row * cols + column..][..d];
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let seen = span.start..row + 1;
                    let scores =
                        seen.clone().map(|p| (dot(of(row, at.q), of(p, at.k)) / (d as f64).sqrt()).exp());
                    let scores: Vec<f64> = scores.collect();
                    let total: f64 = scores.iter().sum();
                    for (p, e) in seen.zip(&scores) {
                        let dout = &dout[(row * SHAPE.heads + head) * d..][..d];
                        let along: f64 = of(p, at.v).iter().zip(dout).map(|(v, g)| v * f64::from(*g)).sum();
                        sum += e / total * along;
                    }
                }
            }
        }
        sum
    };
    for_each_isa_and_pool(|isa, pool| {
        let (out, sums) = attend(isa, pool, &qkv, &spans);
        let mut got = vec![f32::NAN; m * cols];
        let sequences = Sequences { qkv: &qkv, shape: SHAPE, spans: &spans };
        backward(isa, pool, sequences, (&out, &sums), &dout, Terms::F32, &mut got);
        FIRST.with_borrow_mut(|first| match first {
            None => *first = Some(got),
            Some(first) => assert_eq!(*first, got, "{isa}"),
        });
    });
    let got = FIRST.take().unwrap();
    for seed in 0..3 {
        let along = Noise(100 + seed).floats(m * cols, 1.0);
        let moved = |by: f64| -> Vec<f64> {
            qkv.iter().zip(&along).map(|(x, a)| f64::from(*x) + by * f64::from(*a)).collect()
        };
        let slope = (value(&moved(1e-5)) - value(&moved(-1e-5))) / 2e-5;
        let gradient: f64 = got.iter().zip(&along).map(|(g, a)| f64::from(*g) * f64::from(*a)).sum();
        assert!((slope - gradient).abs() <= 1e-4 * slope.abs().max(1.0), "{slope} {gradient}");
    }
}

thread_local! {
    static FIRST: std::cell::RefCell<Option<Vec<f32>>> = const { std::cell::RefCell::new(None) };
}
