//! How much of a model is left when its weights become trits.

use crate::ConvertError;
use crate::plan::Source;
use bitnet_core::{DenseMatrix, Matrix};
use bitnet_model::Slot;
use bitnet_quant::dense::dequantize_row;

/// A way to make trits of real weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// BitNet b1.58's: the scale is the mean magnitude.
    Absmean,
}

/// What quantizing did to a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// The tensor.
    pub tensor: String,
    /// Mean squared difference of weights, relative to their mean square.
    pub mse: f64,
    /// Cosine of the angle between the weights before and after.
    pub cosine: f64,
    /// Share of trits that are zero.
    pub zeros: f64,
}

/// The floats that a projection is quantized from; `None` where it is ternary to begin with.
pub(crate) fn floats(source: &Source<'_>, slot: &Slot) -> Result<Option<DenseMatrix>, ConvertError> {
    if let Some(masters) = source.tensors.masters(slot)? {
        return Ok(Some(masters));
    }
    Ok(match source.tensors.matrix(slot)? {
        Matrix::Dense(m) if !source.tensors.is_kept_dense(slot) => Some(m),
        _ => None,
    })
}

pub(crate) fn layer_error(
    source: &Source<'_>,
    slot: &Slot,
    tensor: &str,
) -> Result<Option<LayerError>, ConvertError> {
    let Some((was, is)) = floats(source, slot)?.zip(source.trits(slot)?) else { return Ok(None) };
    let mut row = vec![0.0; slot.cols];
    let (mut difference, mut before, mut after, mut product, mut zeros) =
        (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0u64);
    for r in 0..slot.rows {
        dequantize_row(was.dtype(), was.row(r), &mut row);
        for (c, w) in row.iter().enumerate() {
            let (w, trit) = (f64::from(*w), is.trit(r, c));
            let q = f64::from(trit) * f64::from(is.scale_at(r, c));
            difference += (w - q) * (w - q);
            before += w * w;
            after += q * q;
            product += w * q;
            zeros += u64::from(trit == 0);
        }
    }
    let tiny = f64::MIN_POSITIVE;
    Ok(Some(LayerError {
        tensor: tensor.to_owned(),
        mse: difference / before.max(tiny),
        cosine: product / (before.sqrt() * after.sqrt()).max(tiny),
        zeros: zeros as f64 / slot.weights() as f64,
    }))
}
