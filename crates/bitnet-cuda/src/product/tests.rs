//! Every kernel that might be the best one somewhere gives the same bits, and so do those for fixed sizes.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::many;
use crate::{Choices, CudaBackend, KernelCache, Tuning, compiler};
use bitnet_core::{
    Activation, ActivationPrecision, Backend, DenseMatrix, DenseType, Matrix, Purpose, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_testkit::tensors::Noise;
use std::sync::Arc;

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

fn bits<B: Backend>(b: &B, m: usize) -> Vec<u32> {
    products(b, m).iter().map(|v| v.to_bits()).collect()
}

/// Whether there is a GPU; says so where there is none.
fn has_device() -> bool {
    let none = crate::devices().err();
    if let Some(why) = &none {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "{why}");
        println!("not run: {why}");
    }
    none.is_none()
}

/// With a compiler, this is its code on a GPU; the stand-in for the driver takes anything for code and runs what it has.
#[test]
fn kernels_for_fixed_sizes_give_the_same_bits() {
    if !has_device() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache { folder: folder.path().to_owned(), max_bytes: 1 << 20 };
    let tuning = Arc::new(Tuning::new(Choices::default(), Some(cache.clone())));
    let gpu = CudaBackend::with(0, Arc::clone(&tuning)).unwrap();
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    tuning.observe();
    let want = bits(&cpu, 1);
    assert_eq!(bits(&gpu, 1), want);
    let met = tuning.met();
    let names: Vec<_> = met.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["gemv rows=201 tiles=3 up=0 act=0", "gemv_gated rows=112 tiles=3 up=112 act=1"]);
    if let Err(why) = compiler() {
        println!("without code of a compiler: {why}");
        // A driver refuses it, and the launches run what was compiled ahead.
        met.iter().for_each(|kernel| cache.put(&tuning.key(kernel), b"no code\0").unwrap());
    }
    met.iter().for_each(|kernel| tuning.compile(kernel).unwrap());
    for wanted in [&met[..1], &met[..], &[]] {
        tuning.want(wanted.to_vec());
        assert_eq!(bits(&gpu, 1), want, "{wanted:?}");
    }
}

#[test]
fn kernels_of_many_tokens_are_interchangeable() {
    if !has_device() {
        return;
    }
    let gpu = CudaBackend::new(0).unwrap();
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    for m in [17, 150] {
        let want = bits(&cpu, m);
        // One that was found out about gives the keys.
        assert_eq!(bits(&gpu, m), want);
        let most = many(&gpu.gpu.kernels, false).len().max(many(&gpu.gpu.kernels, true).len());
        for choice in 0..most {
            let tuning = &gpu.gpu.tuning;
            for shape in tuning.choices().products.into_keys() {
                let kernels = many(&gpu.gpu.kernels, shape.gated);
                let kernel = kernels[choice.min(kernels.len() - 1)].kernel;
                tuning.set_best(shape, gpu.gpu.driver.name(kernel).unwrap());
            }
            assert_eq!(bits(&gpu, m), want, "{m} tokens, choice {choice}");
        }
        // A kernel that there is no more is one that has to be found again.
        let tuning = &gpu.gpu.tuning;
        tuning.choices().products.into_keys().for_each(|shape| tuning.set_best(shape, "gone"));
        assert_eq!(bits(&gpu, m), want);
        let found = tuning.choices().products.into_iter().filter(|(shape, _)| shape.tokens >= m);
        assert!(found.map(|(_, name)| name).all(|name| name.starts_with("gemm")));
    }
}
