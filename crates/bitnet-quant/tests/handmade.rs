//! Every stored type, value by value, against bytes made from the layout's description alone.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{DenseType, Scale};
use bitnet_quant::dense::dequantize_row;
use bitnet_quant::packing::{
    HF, I2_S, I2_S_ARM, I8, PACKINGS, Packing, Q1_0, Q2_0_G64, Q2_0_G128, TQ1_0, TQ2_0,
};
use bitnet_testkit::tensors::{self, Float, Made, Noise, Scales};

/// The reals are exact in double precision; single precision rounds them once.
fn same(name: &str, got: impl Iterator<Item = f32>, want: &[f64]) {
    let got: Vec<f32> = got.collect();
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(*got, *want as f32, "{name}, value {i}");
    }
}

#[test]
fn dense_types() {
    let n = 1024;
    let mut noise = Noise(1);
    let made: [(DenseType, Made); 7] = [
        (DenseType::F32, tensors::f32s(&mut noise, n, 2.0)),
        (DenseType::F16, tensors::f16s(&mut noise, n, 1.0)),
        (DenseType::BF16, tensors::bf16s(&mut noise, n, 0.0, 1e30)),
        (DenseType::Q8_0, tensors::q8_0(&mut noise, n)),
        (DenseType::Q4_0, tensors::q4_0(&mut noise, n)),
        (DenseType::Q4_1, tensors::q4_1(&mut noise, n)),
        (DenseType::Q6_K, tensors::q6_k(&mut noise, n)),
    ];
    for (dtype, (bytes, want)) in made {
        let mut got = vec![0.0; n];
        dequantize_row(dtype, &bytes, &mut got);
        same(dtype.name(), got.into_iter(), &want);
    }
}

fn unpacked(packing: &Packing, cols: usize, bytes: &[u8], scale: Option<Scale>, want: &[f64]) {
    let rows = want.len() / cols;
    assert_eq!((packing.bytes)(rows, cols), Some(bytes.len()), "{}", packing.name);
    let mut m = (packing.unpack)(rows, cols, bytes).unwrap();
    if let Some(scale) = scale {
        m = m.with_scale(scale).unwrap();
    }
    let at = |i: usize| f32::from(m.trit(i / cols, i % cols)) * m.scale_at(i / cols, i % cols);
    same(packing.name, (0..want.len()).map(at), want);
}

#[test]
fn ternary_types() {
    let (rows, cols) = (8, 768);
    let n = rows * cols;
    let mut noise = Noise(2);
    let mut seen = vec![];
    for (packing, (bytes, want)) in [
        (&Q1_0, tensors::q1_0(&mut noise, n)),
        (&Q2_0_G64, tensors::q2_0(&mut noise, n, 64)),
        (&Q2_0_G128, tensors::q2_0(&mut noise, n, 128)),
        (&TQ1_0, tensors::tq1_0(&mut noise, n, Scales::One)),
        (&TQ1_0, tensors::tq1_0(&mut noise, n, Scales::Each)),
        (&TQ2_0, tensors::tq2_0(&mut noise, n, Scales::One)),
        (&TQ2_0, tensors::tq2_0(&mut noise, n, Scales::Each)),
    ] {
        unpacked(packing, cols, &bytes, None, &want);
        seen.push(packing.name);
    }
    let real = |trits: &[i8], scale: f32| -> Vec<f64> {
        trits.iter().map(|t| f64::from(*t) * f64::from(scale)).collect()
    };
    // Blocks of I2_S are cut from the flat tensor; rows of Hugging Face's packing may have any length.
    for (rows, cols) in [(8, 768), (8, 160), (4, 32), (16, 24)] {
        let trits = tensors::trits(&mut noise, rows * cols);
        for (packing, bytes) in
            [(&I2_S, tensors::i2_s(&trits, 0.123)), (&I2_S_ARM, tensors::i2_s_arm(&trits, 0.123))]
        {
            unpacked(packing, cols, &bytes, None, &real(&trits, 0.123));
            seen.push(packing.name);
        }
    }
    for (rows, cols) in [(8, 768), (4, 1), (12, 37), (20, 130)] {
        let trits = tensors::trits(&mut noise, rows * cols);
        let bytes = tensors::hf_packed(&trits, rows, cols);
        unpacked(&HF, cols, &bytes, Some(Scale::Tensor(0.123)), &real(&trits, 0.123));
        seen.push(HF.name);
    }
    for (rows, cols) in [(8, 768), (1, 1), (3, 130)] {
        let trits = tensors::trits(&mut noise, rows * cols);
        let bytes: Vec<u8> = trits.iter().map(|t| *t as u8).collect();
        unpacked(&I8, cols, &bytes, Some(Scale::Tensor(0.123)), &real(&trits, 0.123));
        seen.push(I8.name);
    }
    for packing in PACKINGS {
        assert!(seen.contains(&packing.name), "{} has no bytes made by hand", packing.name);
    }
}

#[test]
fn floats_of_one_magnitude() {
    for (dtype, float) in
        [(DenseType::F32, Float::F32), (DenseType::F16, Float::F16), (DenseType::BF16, Float::BF16)]
    {
        let (bytes, want) = tensors::one_magnitude(&mut Noise(3), 300, float);
        let mut got = vec![0.0; want.len()];
        dequantize_row(dtype, &bytes, &mut got);
        same(dtype.name(), got.into_iter(), &want);
    }
}
