//! Scales in the types that targets have for them.

use crate::{ConvertError, Inexact};
use bitnet_core::{DenseType, Scale, TernaryMatrix};
use half::{bf16, f16};

/// Whether all values are the same in a type.
pub(crate) fn narrowest(values: &[f32]) -> DenseType {
    let same = |round: fn(f32) -> f32| values.iter().all(|v| round(*v).to_bits() == v.to_bits());
    if same(|v| bf16::from_f32(v).to_f32()) {
        DenseType::BF16
    } else if same(|v| f16::from_f32(v).to_f32()) {
        DenseType::F16
    } else {
        DenseType::F32
    }
}

/// The matrix with its scales rounded to a type, and the largest relative error that makes.
///
/// # Errors
/// A scale would become zero or infinite.
pub(crate) fn rounded(
    m: TernaryMatrix,
    dtype: DenseType,
    tensor: &str,
    target: &'static str,
) -> Result<(TernaryMatrix, Option<Inexact>), ConvertError> {
    let round = match dtype {
        DenseType::BF16 => |v| bf16::from_f32(v).to_f32(),
        DenseType::F32 => |v| v,
        _ => |v| f16::from_f32(v).to_f32(),
    };
    let mut error = 0.0f64;
    let mut lost = None;
    let mut one = |scale: f32| {
        let nearest = round(scale);
        if scale != 0.0 && (nearest == 0.0 || !nearest.is_finite()) {
            lost = lost.or(Some((scale, nearest)));
        } else if scale != 0.0 {
            error = error.max((f64::from(nearest) / f64::from(scale) - 1.0).abs());
        }
        nearest
    };
    let scale = match m.scale() {
        Scale::Tensor(s) => Scale::Tensor(one(*s)),
        Scale::Rows(v) => Scale::Rows(v.iter().map(|s| one(*s)).collect()),
        Scale::Groups { size, values } => {
            Scale::Groups { size: *size, values: values.iter().map(|s| one(*s)).collect() }
        }
    };
    if let Some((scale, nearest)) = lost {
        return Err(ConvertError::Scale { tensor: tensor.to_owned(), scale, nearest, target });
    }
    let inexact = (error > 0.0).then(|| Inexact { tensor: tensor.to_owned(), what: "scale", error });
    Ok((m.with_scale(scale).map_err(bitnet_model::ModelError::from)?, inexact))
}

/// A `weight_scale` beside a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) dtype: DenseType,
    pub(crate) bytes: Vec<u8>,
    /// The error of the multiplier that is read back.
    pub(crate) error: f64,
}

impl Stored {
    fn new(value: f32, error: f64) -> Self {
        match narrowest(&[value]) {
            DenseType::BF16 => {
                Self { dtype: DenseType::BF16, bytes: bf16::from_f32(value).to_le_bytes().into(), error }
            }
            // Scales have no f16 in any published file.
            _ => Self { dtype: DenseType::F32, bytes: value.to_le_bytes().into(), error },
        }
    }

    /// The same in f32.
    pub(crate) fn widened(&self) -> Self {
        match self.bytes[..] {
            [a, b] => Self {
                dtype: DenseType::F32,
                bytes: bf16::from_le_bytes([a, b]).to_f32().to_le_bytes().into(),
                error: self.error,
            },
            _ => self.clone(),
        }
    }

    /// A multiplier as it is.
    pub(crate) fn multiplier(scale: f32) -> Self {
        Self::new(scale, 0.0)
    }

    /// The divisor whose reciprocal is the multiplier: the one that it was computed from, where it came from a file.
    pub(crate) fn divisor(scale: f32) -> Self {
        let near = 1.0 / scale;
        let gives = |d: f32| (1.0 / d).to_bits() == scale.to_bits();
        let around = |i: i32| f32::from_bits(near.to_bits().wrapping_add_signed(i));
        let candidates = [bf16::from_f32(near).to_f32(), near].into_iter();
        let found = candidates.chain([-1, 1, -2, 2].map(around)).find(|d| gives(*d));
        match found {
            Some(d) => Self::new(d, 0.0),
            None => Self::new(near, (f64::from(1.0 / near) / f64::from(scale) - 1.0).abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_that_came_from_a_file_come_back() {
        for bits in (0x3000u16..0x5000).step_by(7) {
            let d = bf16::from_bits(bits);
            let stored = Stored::divisor(1.0 / d.to_f32());
            assert_eq!(
                (stored.dtype, stored.bytes, stored.error),
                (DenseType::BF16, d.to_le_bytes().into(), 0.0)
            );
        }
        // Reciprocals are not one to one: some multipliers have no divisor.
        let (mut exact, mut worst) = (0, 0.0f64);
        for i in 0..1000u32 {
            let stored = Stored::divisor(f32::from_bits(0x3f80_0000 + i * 7919));
            exact += usize::from(stored.error == 0.0);
            worst = worst.max(stored.error);
        }
        assert!(exact > 500 && worst < 1.2e-7, "{exact} {worst}");
    }

    #[test]
    fn scales_that_vanish_are_refused() {
        let m = |s| TernaryMatrix::from_trits(1, 4, &[1, 0, -1, 1], Scale::Tensor(s)).unwrap();
        assert!(rounded(m(1e-9), DenseType::F16, "t", "tq2_0").is_err());
        assert!(rounded(m(1e9), DenseType::F16, "t", "tq2_0").is_err());
        let (_, inexact) = rounded(m(0.1), DenseType::F16, "t", "tq2_0").unwrap();
        assert!(inexact.unwrap().error < 5e-4);
        assert!(rounded(m(0.125), DenseType::F16, "t", "tq2_0").unwrap().1.is_none());
    }
}
