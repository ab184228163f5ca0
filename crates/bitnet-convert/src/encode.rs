//! From a slot of the input to bytes of the output.

use crate::plan::{Job, Make, Source};
use crate::quality::layer_error;
use crate::scale::{Stored, rounded};
use crate::{ConvertError, Inexact, LayerError, Target};
use bitnet_core::{DenseMatrix, DenseType, Matrix, Scale, TernaryMatrix};
use bitnet_model::{Architecture, in_file_order};
use bitnet_quant::dense::{dequantize_row, quantize_row};
use bitnet_quant::packing::Packing;
use half::{bf16, f16};
use std::ops::Range;

/// The bytes of one step, a tensor each.
pub(crate) struct Encoded {
    pub(crate) pieces: Vec<Vec<u8>>,
    /// What was rounded.
    pub(crate) inexact: Option<Inexact>,
    /// What quantizing did.
    pub(crate) layer: Option<LayerError>,
}

impl Encoded {
    fn new(bytes: Vec<u8>, inexact: Option<Inexact>) -> Self {
        Self { pieces: vec![bytes], inexact, layer: None }
    }

    fn with_scale(bytes: Vec<u8>, tensor: &str, scale: &Stored) -> Self {
        let error = scale.error;
        let inexact = (error > 0.0).then(|| Inexact { tensor: tensor.to_owned(), what: "scale", error });
        Self { pieces: vec![bytes, scale.bytes.clone()], inexact, layer: None }
    }
}

/// Makes the bytes of a job for files of an architecture.
pub(crate) fn encode(
    source: &Source<'_>,
    arch: &Architecture,
    target: &Target,
    job: &Job,
) -> Result<Encoded, ConvertError> {
    let slot = &job.slot;
    let name = arch.tensor_name(slot.role, slot.layer);
    let mut done = match &job.make {
        Make::Norm(dtype) => {
            let (mut bytes, values) = (Vec::new(), source.tensors.vector(slot)?);
            append(&name, *dtype, &values, &mut bytes)?;
            Encoded::new(bytes, None)
        }
        Make::Rows(dtype, rows) => return table(source, job, &name, *dtype, rows.clone()),
        Make::Masters(dtype) => match source.tensors.masters(slot)? {
            Some(m) => dense(&name, "master weights", &m, *dtype, 0..m.rows())?,
            None => real(source, arch, target, job, *dtype)?,
        },
        Make::Packed(packing) => {
            let m = trits(source, arch, target, job)?;
            let (m, inexact) = rounded(m, packing.scale, &name, target.name)?;
            Encoded::new(pack(&name, packing, &m)?, inexact)
        }
        Make::Beside(packing, scale) => {
            let m = trits(source, arch, target, job)?;
            Encoded::with_scale(pack(&name, packing, &m)?, &name, scale)
        }
        Make::Tiled(kind, tile) => {
            let m = trits(source, arch, target, job)?;
            let Scale::Tensor(scale) = m.scale() else {
                return Err(ConvertError::Groups { tensor: name, size: m.cols(), target: target.name });
            };
            let (mut bytes, scale) = (Vec::new(), scale.to_le_bytes().to_vec());
            kind.pack(tile, &m, &mut bytes)
                .map_err(|source| ConvertError::Packing { tensor: name.clone(), source })?;
            Encoded { pieces: vec![bytes, scale], inexact: None, layer: None }
        }
        Make::Trits(dtype, scale) => {
            let m = trits(source, arch, target, job)?;
            Encoded::with_scale(products(&m, 0..m.rows(), *dtype, |_, _| 1.0), &name, scale)
        }
        Make::Real(dtype) => real(source, arch, target, job, *dtype)?,
    };
    if source.method.is_some() && slot.role.is_projection() {
        done.layer = layer_error(source, slot, &name)?;
    }
    source.tensors.stored(slot)?.data.release();
    Ok(done)
}

/// Packs trits whose scales the packing can hold.
pub(crate) fn pack(name: &str, packing: &Packing, m: &TernaryMatrix) -> Result<Vec<u8>, ConvertError> {
    let mut bytes = Vec::with_capacity((packing.bytes)(m.rows(), m.cols()).unwrap_or(0));
    (packing.pack)(m, &mut bytes)
        .map_err(|source| ConvertError::Packing { tensor: name.to_owned(), source })?;
    Ok(bytes)
}

/// A projection, or a table in trits, with its rows in the order of the output.
fn matrix(source: &Source<'_>, arch: &Architecture, job: &Job) -> Result<Matrix, ConvertError> {
    let matrix = match source.trits(&job.slot)? {
        Some(m) => Matrix::Ternary(m),
        None => source.tensors.matrix(&job.slot)?,
    };
    Ok(in_file_order(arch, job.slot.role, source.config.shape.head_dim, matrix)?)
}

fn trits(
    source: &Source<'_>,
    arch: &Architecture,
    target: &Target,
    job: &Job,
) -> Result<TernaryMatrix, ConvertError> {
    match matrix(source, arch, job)? {
        Matrix::Ternary(m) => Ok(m),
        Matrix::Dense(_) => Err(ConvertError::NotTernary {
            tensor: source.tensors.stored(&job.slot)?.name.clone(),
            target: target.name,
        }),
    }
}

/// Real weights: trits times scales, or the floats of a projection that is dense.
fn real(
    source: &Source<'_>,
    arch: &Architecture,
    target: &Target,
    job: &Job,
    dtype: DenseType,
) -> Result<Encoded, ConvertError> {
    let name = arch.tensor_name(job.slot.role, job.slot.layer);
    match matrix(source, arch, job)? {
        Matrix::Ternary(m) => {
            if arch.ternary && !matches!(m.scale(), Scale::Tensor(_)) {
                // Files of such an architecture have one magnitude a tensor, or master weights.
                return Err(ConvertError::Groups { tensor: name, size: m.cols(), target: target.name });
            }
            let (m, inexact) = rounded(m, dtype, &name, target.name)?;
            Ok(Encoded::new(products(&m, 0..m.rows(), dtype, |row, col| m.scale_at(row, col)), inexact))
        }
        Matrix::Dense(m) => dense(&name, "values", &m, dtype, 0..m.rows()),
    }
}

/// Trits times their scales, exactly: a scale is a number of `dtype`, or of f16 where that has blocks.
fn products(
    m: &TernaryMatrix,
    rows: Range<usize>,
    dtype: DenseType,
    scale: impl Fn(usize, usize) -> f32,
) -> Vec<u8> {
    let (values, len) = dtype.block();
    let mut bytes = Vec::with_capacity(rows.len() * m.cols() / values * len);
    for row in rows {
        let codes = m.row_codes(row);
        let code = |col: usize| (codes[col / 4] >> (2 * (col % 4))) & 3;
        match dtype {
            // A block's scale is the weights' own, so that its levels are the trits.
            DenseType::Q8_0 => {
                for block in (0..m.cols()).step_by(values) {
                    bytes.extend(f16::from_f32(scale(row, block)).to_le_bytes());
                    bytes.extend((block..block + values).map(|col| code(col).wrapping_sub(1)));
                }
            }
            DenseType::F32 => {
                for col in 0..m.cols() {
                    let s = scale(row, col);
                    bytes.extend([-s, 0.0, s, 0.0][usize::from(code(col))].to_le_bytes());
                }
            }
            _ => {
                let bits = |s: f32| match dtype {
                    DenseType::BF16 => bf16::from_f32(s).to_bits(),
                    _ => f16::from_f32(s).to_bits(),
                };
                for col in 0..m.cols() {
                    let s = bits(scale(row, col));
                    bytes.extend([s ^ 0x8000, 0, s, 0][usize::from(code(col))].to_le_bytes());
                }
            }
        }
    }
    bytes
}

/// Rows of embedding or head.
fn table(
    source: &Source<'_>,
    job: &Job,
    name: &str,
    dtype: DenseType,
    rows: Range<usize>,
) -> Result<Encoded, ConvertError> {
    let (matrix, rows) = source.tensors.table_rows(&job.slot, rows)?;
    match matrix {
        Matrix::Dense(m) => {
            let done = dense(name, "values", &m, dtype, rows);
            // Neighbouring rows share pages; those of other chunks are read again from the cache.
            m.data().release();
            done
        }
        Matrix::Ternary(m) => {
            let (m, inexact) = rounded(m, dtype, name, "a table")?;
            let bytes = products(&m, rows, dtype, |row, col| m.scale_at(row, col));
            Ok(Encoded::new(bytes, inexact))
        }
    }
}

/// Rows of floats or blocks in another type, or as they are.
fn dense(
    name: &str,
    what: &'static str,
    m: &DenseMatrix,
    dtype: DenseType,
    rows: Range<usize>,
) -> Result<Encoded, ConvertError> {
    let stride = m.data().len() / m.rows().max(1);
    if m.dtype() == dtype {
        return Ok(Encoded::new(m.data()[rows.start * stride..rows.end * stride].to_vec(), None));
    }
    let len = dtype.row_bytes(m.cols()).unwrap_or(0);
    let (mut bytes, mut values) = (Vec::with_capacity(len * rows.len()), vec![0.0f32; m.cols()]);
    let mut back = values.clone();
    let (mut error, mut magnitude) = (0.0f32, 0.0f32);
    for row in rows {
        dequantize_row(m.dtype(), m.row(row), &mut values);
        let start = bytes.len();
        append(name, dtype, &values, &mut bytes)?;
        if dtype != DenseType::F32 {
            dequantize_row(dtype, &bytes[start..], &mut back);
            for (was, is) in values.iter().zip(&back) {
                // Infinities that were none before are the largest error there is.
                error = if (was - is).abs() <= error { error } else { (was - is).abs() };
                magnitude = magnitude.max(was.abs());
            }
        }
    }
    let error = f64::from(error) / f64::from(magnitude.max(f32::MIN_POSITIVE));
    let inexact = (error > 0.0).then(|| Inexact { tensor: name.to_owned(), what, error });
    Ok(Encoded::new(bytes, inexact))
}

/// Appends values in a type.
fn append(name: &str, dtype: DenseType, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), ConvertError> {
    quantize_row(dtype, values, bytes).ok_or_else(|| ConvertError::Blocks {
        tensor: name.to_owned(),
        cols: values.len(),
        dtype: dtype.name(),
    })
}
