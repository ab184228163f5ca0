//! Every kernel that might be the best one somewhere gives the same bits.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::many;
use crate::CudaBackend;
use bitnet_core::{
    Activation, ActivationPrecision, Backend, DenseMatrix, DenseType, Matrix, Purpose, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_testkit::tensors::Noise;

/// A product and a gated one of so many tokens; rows and columns fill no tile.
fn products<B: Backend>(b: &B, m: usize) -> Vec<f32> {
    let (hidden, ffn) = (331, 112);
    let mut noise = Noise(7);
    let mut ternary = |rows: usize, cols: usize| {
        let trits: Vec<i8> = (0..rows * cols).map(|_| noise.below(3) as i8 - 1).collect();
        Matrix::Ternary(TernaryMatrix::from_trits(rows, cols, &trits, Scale::Tensor(0.3)).unwrap())
    };
    let (int8, act) = (ActivationPrecision::Int8, Activation::Silu);
    let gate_up = [ternary(ffn, hidden), ternary(ffn, hidden)];
    let gate_up = b.prepare(&gate_up, int8, Purpose::GateUp(act)).unwrap();
    let plain = b.prepare(&[ternary(201, hidden)], int8, Purpose::Product).unwrap();
    let bytes: Vec<u8> = (0..m * hidden).flat_map(|_| (noise.unit() as f32).to_le_bytes()).collect();
    let table = DenseMatrix::new(m, hidden, DenseType::F32, bytes.into()).unwrap();
    let table = b.prepare(&[Matrix::Dense(table)], int8, Purpose::Product).unwrap();
    let (mut x, mut wide, mut y, mut all) = (b.tensor(), b.tensor(), b.tensor(), Vec::new());
    b.embed(&table, &(0..m as u32).collect::<Vec<_>>(), &mut x).unwrap();
    b.gated(&x, &gate_up, act, &mut wide, &mut y);
    b.download(&y, &mut all).unwrap();
    b.linear(&x, &plain, &mut y);
    let mut rest = Vec::new();
    b.download(&y, &mut rest).unwrap();
    all.extend(rest);
    all
}

#[test]
fn kernels_of_many_tokens_are_interchangeable() {
    if let Err(why) = crate::devices() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "{why}");
        return println!("not run: {why}");
    }
    let gpu = CudaBackend::new(0).unwrap();
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    for m in [17, 150] {
        let want: Vec<u32> = products(&cpu, m).iter().map(|v| v.to_bits()).collect();
        // One that was found out about gives the keys.
        assert_eq!(products(&gpu, m).iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want);
        let most = many(&gpu.gpu.kernels, false).len().max(many(&gpu.gpu.kernels, true).len());
        for choice in 0..most {
            for ((_, _, _, gated), best) in gpu.tuned.lock().unwrap().iter_mut() {
                *best = choice.min(many(&gpu.gpu.kernels, *gated).len() - 1);
            }
            let got: Vec<u32> = products(&gpu, m).iter().map(|v| v.to_bits()).collect();
            assert_eq!(got, want, "{m} tokens, choice {choice}");
        }
    }
}
