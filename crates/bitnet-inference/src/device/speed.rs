//! How fast a device is: products as a model makes them, of one token and of many.

use super::Device;
use crate::OpenError;
use bitnet_core::{
    ActivationPrecision, Backend, BackendError, DenseMatrix, DenseType, Matrix, Purpose, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_cuda::CudaBackend;
use bitnet_wgpu::WgpuBackend;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Rows and columns of the weights, 16 MiB of trits.
const SIZE: (usize, usize) = (16_384, 4096);
/// So many of them, one behind the other, are more than caches hold.
const WEIGHTS: usize = 16;
/// Tokens of a product that is bound by arithmetic.
const TOKENS: usize = 128;
/// Of so many measurements the best counts: what disturbs one makes it slower.
const TRIES: usize = 5;

/// What a device does in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes of ternary weights that products of one token read, as in decoding.
    pub read: f64,
    /// Multiplications and additions of int8 by trits in products of 128 tokens, as in prefill.
    pub int8: f64,
    /// The same of f32 by f32.
    pub float: f64,
}

impl Device {
    /// Measures this device, in about a second and half a gigabyte of its memory.
    ///
    /// # Errors
    /// It cannot be used, or has too little memory.
    pub fn measure(self) -> Result<Speed, OpenError> {
        let of_model = |e| OpenError::Model(bitnet_model::ModelError::Backend(e));
        match self {
            Self::Cpu => speed(&CpuBackend::new(CpuOptions::default())?).map_err(of_model),
            Self::Cuda(number) => {
                let backend =
                    CudaBackend::new(number).map_err(|source| OpenError::Cuda { number, source })?;
                speed(&backend).map_err(of_model)
            }
            Self::Wgpu(number) => speed(&WgpuBackend::new(number)?).map_err(of_model),
        }
    }
}

fn speed<B: Backend>(backend: &B) -> Result<Speed, BackendError> {
    let (rows, cols) = SIZE;
    // Every code but the one that is no trit.
    let codes: Vec<u8> = (0..rows * cols / 4).map(|i| [0x94, 0x61, 0x18, 0x86][i % 4]).collect();
    let trits = Matrix::Ternary(TernaryMatrix::new(rows, cols, codes.into(), Scale::Tensor(0.5))?);
    let int8 = ActivationPrecision::Int8;
    let prepare = || backend.prepare(std::slice::from_ref(&trits), int8, Purpose::Product);
    let weights = (0..WEIGHTS).map(|_| prepare()).collect::<Result<Vec<_>, _>>()?;
    let table = dense(2, cols)?;
    let table = backend.prepare(&[table], ActivationPrecision::Float, Purpose::Product)?;
    let small = dense(2048, cols)?;
    let small = backend.prepare(&[small], ActivationPrecision::Float, Purpose::Product)?;
    let (mut x, mut y, mut out) = (backend.tensor(), backend.tensor(), Vec::new());
    let mut best = |ids: &[u32], weights: &[&B::Weight]| -> Result<f64, BackendError> {
        let mut best = f64::INFINITY;
        // The first time kernels are made and memory is taken.
        for _ in 0..=TRIES {
            let begin = Instant::now();
            backend.embed(&table, ids, &mut x)?;
            for w in weights {
                backend.linear(&x, w, &mut y);
            }
            backend.keep_rows(&mut y, &[0]);
            backend.download(&y, &mut out)?;
            best = best.min(begin.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let all: Vec<&B::Weight> = weights.iter().collect();
    let bytes: usize = weights.iter().map(|w| backend.weight_bytes(w).0).sum();
    let many: Vec<u32> = (0..TOKENS as u32).map(|i| i % 2).collect();
    let ops = |rows: usize| (2 * rows * cols * TOKENS) as f64;
    Ok(Speed {
        read: bytes as f64 / best(&[1], &all)?,
        int8: 2.0 * ops(rows) / best(&many, &all[..2])?,
        float: ops(2048) / best(&many, &[&small])?,
    })
}

/// Small numbers of both signs.
fn dense(rows: usize, cols: usize) -> Result<Matrix, BackendError> {
    let values = (0..rows * cols).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect::<Vec<u8>>();
    Ok(Matrix::Dense(DenseMatrix::new(rows, cols, DenseType::F32, values.into())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Speeds cannot be tested; that everything is there can.
    #[test]
    fn the_processor_is_measured() {
        let Speed { read, int8, float } = Device::Cpu.measure().unwrap();
        assert!(
            [read, int8, float].iter().all(|speed| speed.is_finite() && *speed > 1e6),
            "{read} {int8} {float}"
        );
        assert!(Device::Cuda(99).measure().is_err() && Device::Wgpu(99).measure().is_err());
    }
}
