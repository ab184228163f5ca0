use super::*;
use crate::schedule::{Schedule, Shape};
use bitnet_testkit::golden;

const FILE: &str = "training/optim_unit.safetensors";
const PARTS: [&str; 3] = ["mat", "vec", "dead"];

fn adam(b2: f64) -> Adam {
    Adam { betas: (0.9, b2), eps: 1e-8 }
}

/// Runs 20 steps of the reference's gradients and compares the parameters after each.
fn check(case: &str, optimizer: Optimizer, max_norm: Option<f64>, schedule: Schedule) {
    check_with(case, optimizer, max_norm, schedule, schedule);
}

/// The same with another schedule's weight decay.
fn check_with(case: &str, optimizer: Optimizer, max_norm: Option<f64>, rates: Schedule, decays: Schedule) {
    let ops = Ops::from(CpuTraining::new(None, Some(2)).unwrap());
    let mut values = PARTS.map(|part| Array::from(golden::floats(FILE, &format!("init.{part}"))));
    let gradients = PARTS.map(|part| golden::floats(FILE, &format!("grad.{part}")));
    let want = PARTS.map(|part| golden::floats(FILE, &format!("{case}.{part}")));
    let mut buffers: Vec<Vec<Array>> =
        values.iter().map(|v| vec![vec![0.0; v.len()].into(); optimizer.buffers()]).collect();
    for t in 0..20 {
        let of_step: Vec<&[f32]> =
            values.iter().zip(&gradients).map(|(v, g)| &g[t * v.len()..(t + 1) * v.len()]).collect();
        let scale = clip(norm(&ops, &of_step.concat()), max_norm);
        let (rate, decay) = (rates.rate(t as u64), decays.decay(t as u64));
        for part in 0..3 {
            let decay = if PARTS[part] == "vec" { 0.0 } else { decay };
            let rates = Rates { rate, decay, scale, step: t as u64 + 1 };
            let buffers = buffers[part].iter_mut().map(ViewMut::from).collect();
            let gradient = Array::from(of_step[part].to_vec());
            optimizer.apply(&ops, rates, None, (&mut values[part]).into(), (&gradient).into(), buffers);
            let want = &want[part][t * values[part].len()..][..values[part].len()];
            let diff = golden::max_diff(&values[part], want);
            assert!(diff <= 3e-6, "{case} step {t} {}: {diff}", PARTS[part]);
        }
    }
}

#[test]
fn trajectories_are_those_of_the_reference() {
    let cosine =
        Schedule { shape: Shape::Cosine, base: 1e-3, floor: 0.1, warmup: 4, steps: 20, weight_decay: 0.1 };
    let constant = |base| Schedule { shape: Shape::Constant, base, warmup: 0, weight_decay: 0.0, ..cosine };
    check("adamw", Optimizer::AdamW(adam(0.95)), Some(1.0), cosine);
    let stages = Schedule { shape: Shape::TwoStage { second: 5e-4 }, ..cosine };
    check_with("adamw_two_stage_wd", Optimizer::AdamW(adam(0.95)), Some(1.0), cosine, stages);
    check("adam", Optimizer::Adam(adam(0.999)), None, constant(1e-3));
    check("adam", Optimizer::AdamW(adam(0.999)), None, constant(1e-3));
    // What is no matrix of a projection is AdamW's.
    check(
        "adamw",
        Optimizer::Muon { momentum: 0.95, adam: adam(0.95), terms: Terms::F32 },
        Some(1.0),
        cosine,
    );
    check("sgd", Optimizer::Sgd { momentum: 0.9, nesterov: false }, None, constant(0.01));
    check("sgd_nesterov", Optimizer::Sgd { momentum: 0.9, nesterov: true }, None, constant(0.01));
}

/// Decay of Adam goes through its averages: what a gradient with it added gives.
#[test]
fn decay_of_adam_is_a_part_of_the_gradient() {
    let ops = Ops::from(CpuTraining::new(None, Some(2)).unwrap());
    let mut p = [vec![0.5f32, -2.0], vec![0.0; 2], vec![0.0; 2]].map(Array::from);
    let mut q = p.clone();
    for step in 1..4 {
        let rates = Rates { rate: 0.1, decay: 0.2, scale: 0.5, step };
        let added: Array = q[0].iter().map(|q| 1.0 + 0.4 * q).collect();
        let step = |rates, [p, m, v]: &mut [Array; 3], gradient: Array| {
            let buffers = vec![m.into(), v.into()];
            Optimizer::Adam(adam(0.9)).apply(&ops, rates, None, p.into(), (&gradient).into(), buffers);
        };
        step(rates, &mut p, vec![1.0, 1.0].into());
        step(Rates { decay: 0.0, ..rates }, &mut q, added);
        assert!(golden::max_diff(&p[0], &q[0]) < 1e-6, "{:?} {:?}", &*p[0], &*q[0]);
    }
}

/// The same polynomial in f64, naively, and on wide and high matrices the singular values that it is for.
#[test]
fn muon_makes_matrices_orthogonal() {
    let ops = CpuTraining::new(None, Some(2)).unwrap();
    for (n, k) in [(20, 33), (33, 20), (16, 16), (1, 5)] {
        let g: Vec<f32> = (0..n * k).map(|i| crate::random::normal(3, 1, i as u64) as f32).collect();
        let mut x: Vec<Vec<f64>> =
            (0..n).map(|r| g[r * k..][..k].iter().map(|v| f64::from(*v)).collect()).collect();
        let flip = |x: &[Vec<f64>]| -> Vec<Vec<f64>> {
            (0..x[0].len()).map(|c| x.iter().map(|row| row[c]).collect()).collect()
        };
        let times = |a: &[Vec<f64>], b: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let b = flip(b);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
            a.iter().map(|a| b.iter().map(|b| dot(a, b)).collect()).collect()
        };
        let length = g.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        x.iter_mut().flatten().for_each(|v| *v /= length);
        for _ in 0..5 {
            // x (a + b x^T x + c (x^T x)^2)
            let gram = times(&flip(&x), &x);
            let square = times(&gram, &gram);
            let mut f: Vec<Vec<f64>> = gram.clone();
            for (r, row) in f.iter_mut().enumerate() {
                for (c, v) in row.iter_mut().enumerate() {
                    *v = -4.7750 * gram[r][c] + 2.0315 * square[r][c] + if r == c { 3.4445 } else { 0.0 };
                }
            }
            x = times(&x, &f);
        }
        for (terms, near) in [(Terms::F32, 1e-3), (Terms::Bf16, 5e-2)] {
            let mut got = g.clone();
            muon::orthogonal(&ops, terms, &mut got, (n, k));
            let factor = 0.2 * (n.max(k) as f64).sqrt();
            for (got, want) in got.iter().zip(x.iter().flatten()) {
                assert!((f64::from(*got) / factor - want).abs() < near, "{n} {k} {terms:?}: {got} {want}");
            }
        }
        // x x^T of the smaller side is near the identity.
        let small = if n <= k { x.clone() } else { flip(&x) };
        let gram = times(&small, &flip(&small));
        let trace: f64 = gram.iter().enumerate().map(|(i, row)| row[i]).sum();
        assert!((0.4..1.4).contains(&(trace / n.min(k) as f64)), "{trace}");
    }
}

#[test]
fn a_step_of_muon_is_momentum_made_orthogonal() {
    let ops = Ops::from(CpuTraining::new(None, Some(2)).unwrap());
    let optimizer = Optimizer::Muon { momentum: 0.9, adam: adam(0.95), terms: Terms::F32 };
    let noise =
        |stream| -> Vec<f32> { (0..60).map(|i| crate::random::normal(4, stream, i) as f32).collect() };
    let [mut p, mut m, mut unused] = [noise(0), vec![0.0; 60], vec![0.0; 60]].map(Array::from);
    let (mut want, mut buffer) = (p.to_vec(), [0.0f32; 60]);
    for step in 1..4 {
        let g = Array::from(noise(step));
        let rates = Rates { rate: 0.1, decay: 0.2, scale: 0.5, step };
        let buffers = vec![(&mut m).into(), (&mut unused).into()];
        optimizer.apply(&ops, rates, Some((6, 10)), (&mut p).into(), (&g).into(), buffers);
        let mut along: Vec<f32> = g
            .iter()
            .zip(&mut buffer)
            .map(|(g, b)| {
                *b = 0.9 * *b + 0.5 * g;
                0.5 * g + 0.9 * *b
            })
            .collect();
        muon::orthogonal(&ops, Terms::F32, &mut along, (6, 10));
        want.iter_mut().zip(&along).for_each(|(w, a)| *w = *w * 0.98 - 0.1 * a);
        assert!(golden::max_diff(&p, &want) < 1e-6);
    }
    assert!(unused.iter().all(|v| *v == 0.0));
}

#[test]
fn averages_are_of_all_values_so_far() {
    let ops = Ops::from(CpuTraining::new(None, Some(2)).unwrap());
    let (n, decay) = (PIECE + 5, 0.75);
    let mut got = Array::from(vec![1.0; n]);
    let mut want = vec![1.0f64; n];
    for t in 0..4 {
        let values: Array = (0..n).map(|i| ((i * 7 + t * 3) % 11) as f32).collect();
        ops.average((0.75, 0.25), (&values).into(), &mut got);
        want.iter_mut().zip(&*values).for_each(|(w, v)| *w = decay * *w + (1.0 - decay) * f64::from(*v));
    }
    assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
}

#[test]
fn clipping_leaves_small_gradients_alone() {
    let ops = CpuTraining::new(None, Some(2)).unwrap();
    let long = vec![2.0; 100_000];
    assert!((norm(&ops, &long) / (4e5f64).sqrt() - 1.0).abs() < 1e-12);
    assert_eq!(clip(0.5, Some(1.0)), 1.0);
    assert_eq!(clip(1e9, None), 1.0);
    assert!((f64::from(clip(4.0, Some(1.0))) - 0.25).abs() < 1e-6);
}
