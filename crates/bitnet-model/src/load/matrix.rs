//! Tensors as matrices and vectors.

use super::masters::{Floats, absmean};
use crate::{Architecture, ModelError, Role};
use bitnet_core::{DenseMatrix, DenseType, Matrix, Scale, TernaryMatrix};
use bitnet_formats::{Tensor, TensorType};
use bitnet_quant::dense::dequantize_row;
use std::sync::Arc;

/// All values of a float tensor of a given shape.
pub(crate) fn dense_values(tensor: &Tensor, need: &[usize]) -> Result<Vec<f32>, ModelError> {
    if tensor.shape != need {
        let (name, got) = (tensor.name.clone(), tensor.shape.clone());
        return Err(ModelError::TensorShape { name, got, need: need.to_vec() });
    }
    to_f32(tensor)
}

/// The values of a scale tensor: one dimension or none.
pub(super) fn scalar_values(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    to_f32(tensor)
}

/// All values of a tensor of floats.
pub(super) fn to_f32(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let dtype = match tensor.ttype {
        TensorType::Dense(dtype @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) => dtype,
        other => {
            let got = other.name().to_owned();
            return Err(ModelError::TensorType {
                name: tensor.name.clone(),
                got,
                need: "it must be F32, F16 or BF16",
            });
        }
    };
    let mut values = vec![0.0; tensor.data.len() / dtype.block().1];
    dequantize_row(dtype, &tensor.bytes(), &mut values);
    Ok(values)
}

/// A dense matrix, in place where the file has it row after row.
pub(super) fn dense_matrix(
    tensor: &Tensor,
    rows: usize,
    cols: usize,
    dtype: DenseType,
) -> Result<DenseMatrix, ModelError> {
    Ok(DenseMatrix::new(rows, cols, dtype, tensor.bytes())?)
}

/// A dense matrix whose values are all zero or of one magnitude, in all or in each group of columns, as trits; `None` for any
/// other.
///
/// # Errors
/// A value is not finite; `name` is what the error calls the matrix.
pub fn trits_of(name: &str, matrix: &DenseMatrix) -> Result<Option<TernaryMatrix>, ModelError> {
    let floats = Floats::read(name, matrix)?;
    Ok(match floats.magnitude() {
        Some(magnitude) => floats.trits(magnitude),
        None => floats.grouped(),
    })
}

/// A dense matrix made ternary by absmean.
///
/// # Errors
/// A value is not finite; `name` is what the error calls the matrix.
pub fn absmean_of(name: &str, matrix: &DenseMatrix) -> Result<TernaryMatrix, ModelError> {
    Ok(absmean(matrix, &Floats::read(name, matrix)?)?)
}

/// A projection with its rows in the order in which files of an architecture have them: the reverse of what
/// [`crate::ModelTensors::matrix`] does.
pub fn in_file_order(
    arch: &Architecture,
    role: Role,
    head_dim: usize,
    matrix: Matrix,
) -> Result<Matrix, ModelError> {
    if !arch.interleaved || !matches!(role, Role::Q | Role::K) {
        return Ok(matrix);
    }
    let d = head_dim;
    reorder(&matrix, |row| {
        let (head, i, a) = (row / d, row % d / 2, row % 2);
        head * d + a * (d / 2) + i
    })
}

/// The matrix whose row `r` is row `from(r)` of another.
pub(super) fn reorder(m: &Matrix, from: impl Fn(usize) -> usize) -> Result<Matrix, ModelError> {
    let order = || (0..m.rows()).map(&from);
    Ok(match m {
        Matrix::Dense(m) => {
            let data: Vec<u8> = order().flat_map(|r| m.row(r)).copied().collect();
            Matrix::Dense(DenseMatrix::new(m.rows(), m.cols(), m.dtype(), data.into())?)
        }
        Matrix::Ternary(m) => {
            let codes: Vec<u8> = order().flat_map(|r| m.row_codes(r)).copied().collect();
            let scale = match m.scale() {
                Scale::Tensor(s) => Scale::Tensor(*s),
                Scale::Rows(v) => Scale::Rows(order().map(|r| v[r]).collect()),
                Scale::Groups { size, values } => {
                    let groups = m.cols().div_ceil(*size);
                    let values: Arc<[f32]> =
                        order().flat_map(|r| &values[r * groups..(r + 1) * groups]).copied().collect();
                    Scale::Groups { size: *size, values }
                }
            };
            Matrix::Ternary(TernaryMatrix::new(m.rows(), m.cols(), codes.into(), scale)?)
        }
    })
}
