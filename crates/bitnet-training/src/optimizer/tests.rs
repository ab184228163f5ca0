use super::*;
use crate::schedule::{Schedule, Shape};
use bitnet_testkit::golden;

const FILE: &str = "training/optim_unit.safetensors";
const PARTS: [&str; 3] = ["mat", "vec", "dead"];

/// Runs 20 steps of the reference's gradients and compares the parameters after each.
fn check(case: &str, optimizer: Optimizer, max_norm: Option<f64>, schedule: Schedule) {
    let ops = CpuTraining::new(None, Some(2)).unwrap();
    let mut values = PARTS.map(|part| golden::floats(FILE, &format!("init.{part}")));
    let gradients = PARTS.map(|part| golden::floats(FILE, &format!("grad.{part}")));
    let want = PARTS.map(|part| golden::floats(FILE, &format!("{case}.{part}")));
    let mut buffers: Vec<Vec<Vec<f32>>> =
        values.iter().map(|v| vec![vec![0.0; v.len()]; optimizer.buffers()]).collect();
    for t in 0..20 {
        let of_step: Vec<&[f32]> =
            values.iter().zip(&gradients).map(|(v, g)| &g[t * v.len()..(t + 1) * v.len()]).collect();
        let scale = clip(norm(&ops, &of_step.concat()), max_norm);
        let (rate, decay) = (schedule.rate(t as u64), schedule.decay(t as u64));
        let rates = Rates { rate, decay, scale, step: t as u64 + 1 };
        for part in 0..3 {
            let keep = if PARTS[part] == "vec" { 1.0 } else { (1.0 - rate * decay) as f32 };
            let buffers: Vec<&mut [f32]> = buffers[part].iter_mut().map(|b| &mut b[..]).collect();
            optimizer.apply(&ops, rates, keep, &mut values[part], of_step[part], buffers);
            let want = &want[part][t * values[part].len()..][..values[part].len()];
            let diff = golden::max_diff(&values[part], want);
            assert!(diff <= 3e-6, "{case} step {t} {}: {diff}", PARTS[part]);
        }
    }
}

#[test]
fn trajectories_are_those_of_the_reference() {
    let adam = |b2| Optimizer::AdamW { betas: (0.9, b2), eps: 1e-8 };
    let cosine =
        Schedule { shape: Shape::Cosine, base: 1e-3, floor: 0.1, warmup: 4, steps: 20, weight_decay: 0.1 };
    let constant = |base| Schedule { shape: Shape::Constant, base, warmup: 0, weight_decay: 0.0, ..cosine };
    check("adamw", adam(0.95), Some(1.0), cosine);
    check("adam", adam(0.999), None, constant(1e-3));
    check("sgd", Optimizer::Sgd { momentum: 0.9, nesterov: false }, None, constant(0.01));
    check("sgd_nesterov", Optimizer::Sgd { momentum: 0.9, nesterov: true }, None, constant(0.01));
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
