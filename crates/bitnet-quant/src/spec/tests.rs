//! The specification against f64 and against vectors made with torch.

use super::*;
use bitnet_core::{Scale, TernaryMatrix};
use safetensors::SafeTensors;

fn vectors() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/quant_vectors.safetensors");
    std::fs::read(path).expect("fixture is in the repository")
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).expect(name).data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn i32s(file: &SafeTensors<'_>, name: &str) -> Vec<i32> {
    f32s(file, name).iter().map(|v| v.to_bits() as i32).collect()
}

#[test]
fn exp_is_within_two_ulp() {
    let mut worst = 0.0f64;
    for i in -870_000..=887_000i32 {
        let x = i as f32 * 1e-4;
        let want = libm::exp(f64::from(x));
        let got = exp(x);
        let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
        worst = worst.max((f64::from(got) - want).abs() / ulp);
    }
    assert!(worst < 2.0, "{worst} ulp");
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-104.0), 0.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(89.0), f32::INFINITY);
    assert!(exp(-100.0) > 0.0, "denormals are kept");
}

#[test]
fn activation_quantization_equals_torch() {
    let bytes = vectors();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (x, scale) = (f32s(&file, "act.x"), f32s(&file, "act.scale"));
    let want = file.tensor("act.q").expect("act.q").data();
    for (row, x) in x.chunks(256).enumerate() {
        let mut q = [0i8; 256];
        let d = quantize_row(x, &mut q);
        // Torch evaluates 127 / a as 127 * (1 / a): its scale may be one ulp away, the integers agree.
        assert!(d.to_bits().abs_diff((1.0 / scale[row]).to_bits()) <= 2, "row {row}");
        let want: Vec<i8> = want[row * 256..][..256].iter().map(|b| *b as i8).collect();
        assert_eq!(q.as_slice(), want, "row {row}");
    }
}

#[test]
fn weight_quantization_equals_torch() {
    let bytes = vectors();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for (master, ternary, rows, cols) in
        [("w.master", "w.ternary", 16, 256), ("tie.master", "tie.ternary", 4, 8)]
    {
        let t = file.tensor(master).expect(master);
        let values: Vec<f32> = t
            .data()
            .chunks_exact(if t.dtype() == safetensors::Dtype::BF16 { 2 } else { 4 })
            .map(|b| match b {
                [a, b] => f32::from_bits(u32::from(u16::from_le_bytes([*a, *b])) << 16),
                _ => f32::from_le_bytes(b.try_into().expect("four bytes")),
            })
            .collect();
        let w = crate::absmean::absmean(&values, rows, cols).expect("shape");
        let want = file.tensor(ternary).expect(ternary).data();
        for (i, &want) in want.iter().enumerate() {
            assert_eq!(w.trit(i / cols, i % cols), want as i8, "{master} {i}");
        }
        if master == "w.master" {
            let (mean, inv) = (f32s(&file, "w.mean")[0], f32s(&file, "w.inv_scale")[0]);
            let got = crate::absmean::mean_magnitude(&values, cols);
            assert!(got.to_bits().abs_diff(mean.to_bits()) <= 2, "{got} {mean}");
            assert!(w.scale_at(0, 0).to_bits().abs_diff((1.0 / inv).to_bits()) <= 2);
        }
    }
}

#[test]
fn bitlinear_is_the_integer_product() {
    let bytes = vectors();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let trits: Vec<i8> = file.tensor("w.ternary").expect("w").data().iter().map(|b| *b as i8).collect();
    let w = TernaryMatrix::from_trits(16, 256, &trits, Scale::Tensor(1.0)).expect("shape");
    let (acc, want) = (i32s(&file, "linear.acc_i32"), f32s(&file, "linear.y_f32"));
    let inv = f32s(&file, "w.inv_scale")[0];
    let scaled = TernaryMatrix::from_trits(16, 256, &trits, Scale::Tensor(1.0 / inv)).expect("shape");
    for (row, x) in f32s(&file, "act.x").chunks(256).enumerate() {
        let (mut q, mut y) = ([0i8; 256], [0.0f32; 16]);
        let d = quantize_row(x, &mut q);
        bitlinear(&w, &q, 1.0, &mut y);
        for (y, acc) in y.iter().zip(&acc[row * 16..]) {
            assert_eq!(*y, *acc as f32);
        }
        bitlinear(&scaled, &q, d, &mut y);
        for (y, want) in y.iter().zip(&want[row * 16..]) {
            assert!((y - want).abs() <= 1e-6 * want.abs(), "{y} {want}");
        }
    }
}

#[test]
fn rotation_norm_and_gate_match_torch() {
    let bytes = vectors();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for (name, d) in [("rope64", 64), ("rope128", 128)] {
        let inv = inverse_frequencies(500_000.0, d);
        let want_inv = f32s(&file, &format!("{name}.inv_freq"));
        for (a, b) in inv.iter().zip(&want_inv) {
            assert!(a.to_bits().abs_diff(b.to_bits()) <= 1, "{a} {b}");
        }
        let want = f32s(&file, &format!("{name}.y_theta500000"));
        let positions = i32s(&file, &format!("{name}.pos"));
        for (row, x) in f32s(&file, &format!("{name}.x")).chunks(d).enumerate() {
            let (mut cos, mut sin, mut x) = (Vec::new(), Vec::new(), x.to_vec());
            rope_angles(positions[row] as u32, &inv, 1.0, &mut cos, &mut sin);
            rotate_half(&mut x, &cos, &sin);
            for (got, want) in x.iter().zip(&want[row * d..]) {
                assert!((got - want).abs() < 4e-4, "{name} {row}: {got} {want}");
            }
        }
    }
    let (x, w, want) = (f32s(&file, "relu2.x"), f32s(&file, "rms.weight"), f32s(&file, "rms.y_eps1e-5"));
    for (g, y) in x.iter().zip(f32s(&file, "relu2.y")) {
        assert_eq!(gate_relu2(*g, 1.0), y);
    }
    for (x, want) in x.chunks(256).zip(want.chunks(256)) {
        let mut y = vec![0.0; 256];
        rms_norm(x, &w, 1e-5, &mut y);
        for (got, want) in y.iter().zip(want) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-6), "{got} {want}");
        }
    }
}

#[test]
fn attention_matches_f64_over_three_segments() {
    let (n, d) = (600, 32);
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let keys: Vec<f32> = (0..n * d).map(|_| random() * 3.0).collect();
    let values: Vec<f32> = (0..n * d).map(|_| random()).collect();
    let q: Vec<f32> = (0..d).map(|_| random() * 3.0).collect();
    for positions in [0..n, 255..n, 256..n, 300..n, 599..n] {
        let mut out = vec![0.0; d];
        attend_head(&q, positions.clone(), |p| &keys[p * d..][..d], |p| &values[p * d..][..d], &mut out);
        let dot = |p: usize| -> f64 { (0..d).map(|i| f64::from(q[i]) * f64::from(keys[p * d + i])).sum() };
        let weight = |p: usize| (dot(p) / (d as f64).sqrt()).exp();
        let total: f64 = positions.clone().map(weight).sum();
        for (i, got) in out.iter().enumerate() {
            let values = positions.clone().map(|p| weight(p) * f64::from(values[p * d + i]));
            let want = values.sum::<f64>() / total;
            assert!((f64::from(*got) - want).abs() < 2e-6, "{positions:?}: {got} {want}");
        }
    }
}

#[test]
fn eight_bits_of_cache_are_within_half_a_step() {
    let mut state = 9u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / 8_388_608.0 - 1.0
    };
    for size in [0.1, 1.0, 300.0, 1e6] {
        for len in [1, 17, Q8_BLOCK] {
            let x: Vec<f32> = (0..len).map(|_| (random() * size) as f32).collect();
            let mut q = vec![0; len];
            let scale = f64::from(quantize_q8(&x, &mut q).to_f32());
            let largest = x.iter().fold(0.0f64, |m, v| m.max(f64::from(*v).abs()));
            for (x, q) in x.iter().zip(&q) {
                // Half a step, and what rounding the scale to 11 bits takes off the largest.
                let limit = 0.5 * scale + largest / 2048.0;
                assert!((f64::from(*x) - f64::from(*q) * scale).abs() <= limit, "{x} {q} {scale}");
            }
        }
    }
    let mut q = [1; 4];
    assert_eq!((quantize_q8(&[0.0, -0.0, 1e-30, -1e-30], &mut q).to_f32(), q), (0.0, [0; 4]));
    assert_eq!((quantize_q8(&[1e30, -1e30, 0.0, 1.0], &mut q).to_f32(), q), (65504.0, [127, -127, 0, 0]));
    // Ties go to the even number.
    assert_eq!((quantize_q8(&[127.0, 0.5, 1.5, -2.5], &mut q).to_f32(), q), (1.0, [127, 0, 2, -2]));
}

#[test]
fn gelu_is_near_its_formula_with_tanh() {
    for i in -2000..2000 {
        let x = f64::from(i) / 100.0;
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        let want = 0.5 * x * (1.0 + inner.tanh());
        // Relative to the slope of 1 that it has on the right; on the left single precision keeps more than the formula does.
        assert!((f64::from(gelu(x as f32)) - want).abs() < 1e-6 * x.abs().max(1.0), "{x}");
    }
    assert_eq!((gelu(f32::MAX), gelu(-f32::MAX)), (f32::MAX, 0.0));
}
