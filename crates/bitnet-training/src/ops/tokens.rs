//! What products of integers are of.

use super::array::{Array, View};
use super::device::Device;
use bitnet_core::{At, BackendError, TernaryMatrix};
use bitnet_cpu::{QuantizedTokens, TernaryWeights};
use std::sync::{Arc, OnceLock};

/// Codes of tokens, `[m, k]`, and what makes each real again.
#[derive(Default)]
pub(crate) struct Tokens {
    pub(super) host: QuantizedTokens,
    /// Where they are on a device, codes in rows of a multiple of 16, and factors `[m]`.
    pub(super) device: Option<(Array<i8>, Array)>,
    /// Where they are on the host, for products that run there.
    pub(super) factors: Array,
}

impl Tokens {
    pub(crate) fn on_cpu(&self) -> &QuantizedTokens {
        &self.host
    }

    pub(crate) fn factors(&self) -> View<'_> {
        match &self.device {
            Some((_, factors)) => factors.into(),
            None => (&self.factors).into(),
        }
    }

    pub(super) fn stride(&self) -> usize {
        self.device.as_ref().map_or(0, |(codes, _)| codes.stride())
    }

    pub(super) fn on(&self, device: &Arc<Device>) -> Result<(At<'_>, At<'_>), BackendError> {
        match &self.device {
            Some((codes, factors)) => Ok((At::start(codes.on(device)?), At::start(factors.on(device)?))),
            None => Err(BackendError::Unsupported {
                backend: "training",
                what: "tokens that were quantized elsewhere".to_owned(),
                hint: "this is a defect; please report it",
            }),
        }
    }
}

/// Packed trits, and room for a copy of them on the device that a model computes on.
#[derive(Clone, Copy)]
pub(crate) struct Trits<'a> {
    pub(crate) weights: &'a TernaryWeights,
    pub(crate) copy: &'a OnceLock<Array<u8>>,
}

impl<'a> Trits<'a> {
    /// In the canonical form, and the trits of its rows.
    pub(super) fn on(&self, device: &Arc<Device>) -> Result<(At<'a>, usize), BackendError> {
        let (rows, cols) = (self.weights.rows(), self.weights.cols());
        if self.copy.get().is_none() {
            let mut trits = vec![0; rows * cols];
            trits.chunks_exact_mut(cols).enumerate().for_each(|(r, trits)| self.weights.trits(r, trits));
            let matrix = TernaryMatrix::from_trits(rows, cols, &trits, bitnet_core::Scale::Tensor(1.0))?;
            let _ = self.copy.set(matrix.codes().to_vec().into());
        }
        let codes = self.copy.get().expect("it was made");
        Ok((At::start(codes.on(device)?), codes.len() / rows.max(1) * 4))
    }
}
