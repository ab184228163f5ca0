use super::*;
use crate::random::normal;
use bitnet_cpu::QuantizedTokens;
use bitnet_testkit::golden;

const FILE: &str = "training/quantizers.safetensors";
const NUMBERS: [(Bits, &str); 5] =
    [(Bits::Ternary, "1.58"), (Bits::Two, "2"), (Bits::Three, "3"), (Bits::Four, "4"), (Bits::Eight, "8")];

fn ops() -> CpuTraining {
    CpuTraining::new(None, Some(2)).unwrap()
}

fn reference(name: &str) -> Vec<f32> {
    golden::floats(FILE, name)
}

fn noise(stream: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| normal(5, stream, i as u64) as f32).collect()
}

fn quantized(q: WeightQuantizer, w: &[f32], cols: usize, steps: &[f32], rounding: Rounding) -> Quantized {
    let mut out = Quantized::default();
    q.quantize(&ops(), w, cols, steps, rounding, &mut out);
    out
}

fn weights(q: &Quantized, cols: usize) -> Vec<f32> {
    q.codes.iter().enumerate().map(|(i, code)| f32::from(*code) * q.scale(i / cols)).collect()
}

/// Values within `tolerance` of the largest.
fn near(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let diff = golden::max_diff(got, want);
    assert!(got.len() == want.len() && diff <= tolerance * largest, "{what}: {diff} of {largest}");
}

#[test]
fn absmean_is_that_of_the_reference() {
    let got = quantized(WeightQuantizer::Absmean, &reference("w"), 40, &[], Rounding::Nearest);
    near("absmean", &weights(&got, 40), &reference("absmean.y"), 1e-6);
    // The straight-through estimator: what comes in goes out.
    let (w, mut dw) = (reference("w"), reference("gy"));
    let steps = WeightQuantizer::Absmean.backward(&ops(), (&w, 40), &[], &got, 1.0, &mut dw);
    assert!(steps.is_empty() && dw == reference("absmean.dw"));
}

#[test]
fn trits_are_those_that_loading_makes() {
    let (rows, cols) = (70, 300);
    let w = noise(0, rows * cols);
    let got = quantized(WeightQuantizer::Absmean, &w, cols, &[], Rounding::Nearest);
    let want = bitnet_quant::absmean::absmean(&w, rows, cols).unwrap();
    assert_eq!(got.scale(0).to_bits(), want.scale_at(0, 0).to_bits());
    for (i, trit) in got.codes.iter().enumerate() {
        assert_eq!(*trit, want.trit(i / cols, i % cols));
    }
}

/// Values and gradients of a quantizer with learned steps; those of the reference are not scaled.
fn check_learned(q: WeightQuantizer, key: &str, names: [&str; 3], factor: f64) {
    let (w, mut dw) = (reference("w"), reference("gy"));
    let name = |of: &str| format!("{key}.{of}");
    let steps = reference(&name(names[0]));
    let got = quantized(q, &w, 40, &steps, Rounding::Nearest);
    near(key, &weights(&got, 40), &reference(&name("y")), 1e-6);
    let dsteps = q.backward(&ops(), (&w, 40), &steps, &got, 1.0, &mut dw);
    near(key, &dw, &reference(&name(names[1])), 1e-6);
    let want: Vec<f32> = reference(&name(names[2])).iter().map(|d| (f64::from(*d) * factor) as f32).collect();
    near(key, &dsteps, &want, 1e-4);
}

#[test]
fn learned_quantizers_are_those_of_the_reference() {
    let info = &golden::json("training/quantizers.json")["info"];
    for (bits, number) in NUMBERS {
        for (rows, by) in [(false, "tensor"), (true, "row")] {
            let key = format!("lsq.{number}.{by}");
            let factor = info[&key]["grad_scale"].as_f64().unwrap();
            let q = WeightQuantizer::Lsq { bits, rows };
            check_learned(q, &key, ["step", "dv", "dstep_unscaled"], factor);
            let steps = reference(&format!("{key}.step"));
            near(&key, &q.first_steps(&reference("w"), 40), &steps, 1e-6);
        }
        if bits != Bits::Eight {
            let key = format!("seq.{number}");
            let factor = info[&key]["grad_scale"].as_f64().unwrap();
            check_learned(WeightQuantizer::Seq { bits }, &key, ["alpha", "dw", "dalpha_unscaled"], factor);
        }
    }
}

/// Of one bit the reference has none: signs, whose step is their mean magnitude at first and learns from all of them.
#[test]
fn one_bit_is_the_sign() {
    let (q, cols) = (WeightQuantizer::Seq { bits: Bits::One }, 40);
    let (w, gy) = (reference("w"), reference("gy"));
    let steps = q.first_steps(&w, cols);
    let got = quantized(q, &w, cols, &steps, Rounding::Nearest);
    let mut dw = gy.clone();
    let dsteps = q.backward(&ops(), (&w, cols), &steps, &got, 1.0, &mut dw);
    for (r, row) in w.chunks(cols).enumerate() {
        let mean = row.iter().map(|w| f64::from(w.abs())).sum::<f64>() / cols as f64;
        assert!((f64::from(steps[r]) / mean - 1.0).abs() < 1e-6);
        let mut sum = 0.0;
        for (i, w) in row.iter().enumerate() {
            let (at, sign) = (r * cols + i, if *w < 0.0 { -1.0 } else { 1.0 });
            assert_eq!(f32::from(got.codes[at]) * got.scale(r), sign * steps[r]);
            assert_eq!(dw[at], if (w / steps[r]).abs() <= 0.99 { gy[at] } else { 0.0 });
            sum += f64::from(gy[at] * sign);
        }
        let want = sum / (w.len() as f64).sqrt();
        assert!((f64::from(dsteps[r]) - want).abs() < 1e-6 * want.abs().max(1e-3));
    }
}

/// With what rounding adds held fixed, a learned quantizer is smooth, also in part: its gradient is the slope.
#[test]
fn gradients_of_learned_quantizers_are_slopes() {
    let (rows, cols) = (5, 33);
    let (w, gy, along) = (noise(1, rows * cols), noise(2, rows * cols), noise(3, rows * cols));
    let lsq = |bits, rows| WeightQuantizer::Lsq { bits, rows };
    let mut all: Vec<WeightQuantizer> =
        NUMBERS.iter().flat_map(|(bits, _)| [lsq(*bits, false), lsq(*bits, true)]).collect();
    all.extend(NUMBERS[..4].iter().map(|(bits, _)| WeightQuantizer::Seq { bits: *bits }));
    for (q, strength) in all.iter().flat_map(|q| [(*q, 1.0f32), (*q, 0.3)]) {
        let steps: Vec<f32> = q.first_steps(&w, cols).iter().map(|s| 0.7 * s).collect();
        let got = quantized(q, &w, cols, &steps, Rounding::Nearest);
        let mut dw = gy.clone();
        let dsteps = q.backward(&ops(), (&w, cols), &steps, &got, strength, &mut dw);
        let step = |by: f64, r: usize| f64::from(steps[if steps.len() == 1 { 0 } else { r }]) + by;
        let (low, high) = match q {
            WeightQuantizer::Lsq { bits, .. } => bits.range(),
            _ => (-SEQ_CLIP, SEQ_CLIP),
        };
        let (low, high) = (f64::from(low), f64::from(high));
        // Moves weights by `a` along a direction and steps by `b`.
        let value = |a: f64, b: f64| -> f64 {
            let term = |i: usize| {
                let (r, strength) = (i / cols, f64::from(strength));
                let (w0, w) = (f64::from(w[i]), f64::from(w[i]) + a * f64::from(along[i]));
                let level = f64::from(got.codes[i]) * f64::from(got.scale(r)) / step(0.0, r);
                let z0 = w0 / step(0.0, r);
                let inside = z0 > low && z0 < high;
                let real = if inside { w / step(b, r) + (level - z0) } else { level };
                f64::from(gy[i]) * (strength * step(b, r) * real + (1.0 - strength) * w)
            };
            (0..w.len()).map(term).sum()
        };
        let h = 1e-6;
        let of_weights: f64 = dw.iter().zip(&along).map(|(d, a)| f64::from(d * a)).sum();
        let of_steps: f64 = dsteps.iter().map(|d| f64::from(*d)).sum::<f64>() / q.step_factor(w.len());
        for (slope, got) in [
            ((value(h, 0.0) - value(-h, 0.0)) / (2.0 * h), of_weights),
            ((value(0.0, h) - value(0.0, -h)) / (2.0 * h), of_steps),
        ] {
            assert!((slope - got).abs() < 1e-4 * slope.abs().max(1.0), "{q:?} {strength}: {slope} {got}");
        }
    }
}

#[test]
fn computed_scales_are_their_definitions() {
    for (rows, cols) in [(6, 40), (3, 15), (1, 1)] {
        let w = if cols == 40 { reference("w") } else { noise(7, rows * cols) };
        let mut sorted: Vec<f32> = w.iter().map(|w| w.abs()).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let median = sorted[(w.len() - 1) / 2].max(1e-5);
        let got = quantized(WeightQuantizer::Absmedian, &w, cols, &[], Rounding::Nearest);
        let want: Vec<f32> =
            w.iter().map(|w| (w / median).round_ties_even().clamp(-1.0, 1.0) * median).collect();
        near("absmedian", &weights(&got, cols), &want, 1e-6);

        let mean = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / w.len() as f64;
        let kept: Vec<f64> = w.iter().map(|w| f64::from(*w)).filter(|w| w.abs() > 0.7 * mean).collect();
        let scale = kept.iter().map(|w| w.abs()).sum::<f64>() / kept.len() as f64;
        let got = quantized(WeightQuantizer::Twn, &w, cols, &[], Rounding::Nearest);
        let want: Vec<f32> = w
            .iter()
            .map(|w| if f64::from(w.abs()) > 0.7 * mean { w.signum() * scale as f32 } else { 0.0 })
            .collect();
        near("twn", &weights(&got, cols), &want, 1e-6);
    }
}

#[test]
fn matrices_of_zeros_have_finite_scales() {
    let w = vec![0.0; 80];
    let lsq = |rows| WeightQuantizer::Lsq { bits: Bits::Ternary, rows };
    for q in [
        WeightQuantizer::Absmean,
        WeightQuantizer::Absmedian,
        WeightQuantizer::Twn,
        lsq(false),
        lsq(true),
        WeightQuantizer::Seq { bits: Bits::One },
        WeightQuantizer::Seq { bits: Bits::Four },
    ] {
        let steps = q.first_steps(&w, 40);
        let got = quantized(q, &w, 40, &steps, Rounding::Nearest);
        assert!(got.scales.iter().all(|s| s.is_finite() && *s > 0.0), "{q:?}");
        // A step that was learned to be nothing, or less.
        let none = vec![-1.0; steps.len()];
        let got = quantized(q, &w, 40, &none, Rounding::Nearest);
        assert!(got.scales.iter().all(|s| s.is_finite() && *s > 0.0), "{q:?}");
    }
}

#[test]
fn random_rounding_is_that_of_the_reference_and_right_in_the_mean() {
    let (v, u) = (reference("stochastic.v"), reference("stochastic.u"));
    let bytes = std::fs::read(golden::fixtures().join(FILE)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let want = file.tensor("stochastic.q").unwrap().data().to_vec();
    for (i, (u, want)) in u.iter().zip(want).enumerate() {
        assert_eq!(with_random(v[i % 16], *u), f32::from(want as i8));
    }
    let (w, cols) = (vec![0.3f32; 40_000], 400);
    for q in [WeightQuantizer::Absmean, WeightQuantizer::Lsq { bits: Bits::Three, rows: false }] {
        // A step that puts the weight at 0.6.
        let w: Vec<f32> = match q {
            WeightQuantizer::Absmean => {
                w.iter().enumerate().map(|(i, w)| if i % 2 == 0 { *w } else { 0.7 }).collect()
            }
            _ => w.clone(),
        };
        let rounding = |stream| Rounding::Stochastic { seed: 3, stream };
        let got = quantized(q, &w, cols, &[0.5], rounding(1));
        let of: Vec<f64> = got.codes.iter().step_by(2).map(|c| f64::from(*c)).collect();
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        assert!((mean - 0.6).abs() < 0.01, "{q:?}: {mean}");
        assert_eq!(got, quantized(q, &w, cols, &[0.5], rounding(1)));
        assert_ne!(got, quantized(q, &w, cols, &[0.5], rounding(2)));
    }
    // What is a code stays one, and nothing leaves the range.
    let w: Vec<f32> = (0..64).map(|i| 0.25 * ((i % 21) as f32 - 10.0)).collect();
    for q in [WeightQuantizer::Lsq { bits: Bits::Two, rows: false }, WeightQuantizer::Seq { bits: Bits::Two }]
    {
        let steps = vec![1.0; q.steps(1)];
        for stream in 0..50 {
            let got = quantized(q, &w, 64, &steps, Rounding::Stochastic { seed: 1, stream });
            let allowed: &[i8] = if q.steps(2) == 1 { &[-2, -1, 0, 1] } else { &[-3, -1, 1, 3] };
            assert!(got.codes.iter().all(|c| allowed.contains(c)), "{q:?}");
        }
    }
}

/// Integers without what is behind a token's own.
fn integers(tokens: &QuantizedTokens, k: usize) -> Vec<i8> {
    let (q, stride) = tokens.integers();
    q.chunks_exact(stride).take(tokens.factors().len()).flat_map(|q| &q[..k]).copied().collect()
}

#[test]
fn inputs_are_those_of_the_reference() {
    let file = std::fs::read(golden::fixtures().join(FILE)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let ops = ops();
    let check_int4 = |x: &[f32], k: usize, codes: &str, values: &str| {
        let mut tokens = QuantizedTokens::default();
        int4(&ops, x, k, &mut tokens);
        let (q, d) = (integers(&tokens, k), tokens.factors());
        let want: Vec<i8> = file.tensor(codes).unwrap().data().iter().map(|b| *b as i8).collect();
        assert_eq!(q, want, "{codes}");
        let got: Vec<f32> = q.iter().enumerate().map(|(i, q)| f32::from(*q) * d[i / k]).collect();
        near(values, &got, &reference(values), 1e-6);
    };
    check_int4(&reference("int4.x"), 48, "int4.q", "int4.y");
    // Straight through.
    assert_eq!(reference("int4.dx"), reference("int4.gy"));
    for k in [16, 48, 20] {
        let name = |of: &str| format!("hadamard.{k}.{of}");
        let mut x = reference(&name("x"));
        hadamard(&ops, &mut x, k);
        near(&name("y"), &x, &reference(&name("y")), 1e-6);
        check_int4(&x, k, &name("int4_q"), &name("int4_y"));
        let mut tokens = QuantizedTokens::default();
        ops.quantize(&x, k, &mut tokens);
        let (q, d) = (integers(&tokens, k), tokens.factors());
        let got: Vec<f32> = q.iter().enumerate().map(|(i, q)| f32::from(*q) * d[i / k]).collect();
        near(&name("int8_y"), &got, &reference(&name("int8_y")), 1e-6);
        let mut dx = reference(&name("gy"));
        hadamard(&ops, &mut dx, k);
        near(&name("dx"), &dx, &reference(&name("dx")), 1e-6);
    }
}

#[test]
fn the_largest_inputs_stay() {
    let how = |keep| InputQuantizer { codes: InputCodes::Float, keep: Some(keep), hadamard: false };
    let x = [1.0, -3.0, 3.0, 0.5, -3.0, 0.0, 2.0, -2.0, 9.0, -9.0];
    let got = how(0.4).turned(&ops(), &x, 5).unwrap();
    // Of equal ones the first.
    assert_eq!(got, [0.0, -3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, -9.0]);
    assert_eq!(how(1e-3).turned(&ops(), &x, 10).unwrap().iter().filter(|x| **x != 0.0).count(), 1);
    let x = noise(4, 7 * 129);
    let got = how(0.5).turned(&ops(), &x, 129).unwrap();
    for (x, got) in x.chunks(129).zip(got.chunks(129)) {
        let least = x.iter().zip(got).filter(|(_, g)| **g != 0.0).fold(f32::MAX, |m, (x, _)| m.min(x.abs()));
        assert_eq!(got.iter().filter(|g| **g != 0.0).count(), 65);
        assert!(x.iter().zip(got).all(|(x, g)| if *g == 0.0 { x.abs() <= least } else { x == g }));
    }
}
