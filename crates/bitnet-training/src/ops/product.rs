//! Products, with what is multiplied wherever it is.

use super::array::{Array, View, ViewMut};
use super::{Device, Ops, Tokens, Trits};
use bitnet_core::{At, BackendError, DeviceSide, DeviceStore, DeviceValues, Product, Terms};
use bitnet_cpu as cpu;
use std::sync::Arc;

/// Elements of a stored matrix.
#[derive(Clone)]
pub(crate) enum Values<'a> {
    F32(View<'a>),
    /// Codes of weights.
    Codes(&'a Array<i8>),
    /// Codes of tokens.
    Tokens(&'a Tokens),
    /// Trits, times their scales where groups of columns have them.
    Trits(Trits<'a>),
}

impl<'a> From<&'a Array> for Values<'a> {
    fn from(array: &'a Array) -> Self {
        Self::F32(array.into())
    }
}

impl<'a> From<View<'a>> for Values<'a> {
    fn from(view: View<'a>) -> Self {
        Self::F32(view)
    }
}

/// One side of a product: vectors that are rows or columns of what is stored.
#[derive(Clone)]
pub(crate) struct Side<'a> {
    values: Values<'a>,
    /// Elements of a stored row, of floats and of codes on the host.
    stride: usize,
    columns: bool,
    factors: Option<View<'a>>,
}

impl<'a> Side<'a> {
    pub(crate) fn rows(values: impl Into<Values<'a>>, stride: usize) -> Self {
        Self { values: values.into(), stride, columns: false, factors: None }
    }

    pub(crate) fn columns(values: impl Into<Values<'a>>, stride: usize) -> Self {
        Self { columns: true, ..Self::rows(values, stride) }
    }

    /// Multiplies element `p` of every vector with `factors[p]`.
    pub(crate) fn scaled(self, factors: View<'a>) -> Self {
        Self { factors: Some(factors), ..self }
    }

    fn on_cpu(&self) -> cpu::Side<'a> {
        let (values, stride) = match &self.values {
            Values::F32(view) => (cpu::Values::F32(view.host()), self.stride),
            Values::Codes(codes) => (cpu::Values::I8(codes), self.stride),
            Values::Tokens(tokens) => {
                let (codes, stride) = tokens.on_cpu().integers();
                (cpu::Values::I8(codes), stride)
            }
            Values::Trits(trits) => (cpu::Values::Trits(trits.weights), self.stride),
        };
        let side = match self.columns {
            true => cpu::Side::columns(values, stride),
            false => cpu::Side::rows(values, stride),
        };
        match &self.factors {
            Some(factors) => side.scaled(factors.host()),
            None => side,
        }
    }

    fn on(&self, device: &Arc<Device>) -> Result<DeviceSide<'a>, BackendError> {
        let (values, stride) = match &self.values {
            Values::F32(view) => (DeviceValues::F32(view.on(device)?), self.stride),
            Values::Codes(codes) => (DeviceValues::I8(At::start(codes.on(device)?)), codes.stride()),
            Values::Tokens(tokens) => {
                let (codes, _) = tokens.on(device)?;
                (DeviceValues::I8(codes), tokens.stride())
            }
            Values::Trits(trits) => {
                let (codes, stride) = trits.on(device)?;
                (DeviceValues::Trits(codes), stride)
            }
        };
        let factors = self.factors.as_ref().map(|factors| factors.on(device)).transpose()?;
        Ok(DeviceSide { values, stride, columns: self.columns, factors })
    }
}

/// A multiplier of sums.
#[derive(Clone)]
pub(crate) enum Factor<'a> {
    Value(f32),
    /// One element.
    One(View<'a>),
    /// One for each column of the result.
    Columns(View<'a>),
}

impl<'a> Factor<'a> {
    /// The scale of a matrix, or those of its rows, which are columns of the result.
    pub(crate) fn scales(scales: &'a Array) -> Self {
        if scales.len() == 1 { Self::One(scales.into()) } else { Self::Columns(scales.into()) }
    }

    fn on_cpu(&self) -> f32 {
        match self {
            Self::Value(value) => *value,
            Self::One(view) => view.host()[0],
            Self::Columns(_) => 1.0,
        }
    }

    fn on(&self, device: &Arc<Device>) -> Result<bitnet_core::Factor<'a>, BackendError> {
        Ok(match self {
            Self::Value(value) => bitnet_core::Factor::Value(*value),
            Self::One(view) => bitnet_core::Factor::One(view.on(device)?),
            Self::Columns(view) => bitnet_core::Factor::Columns(view.on(device)?),
        })
    }
}

/// What becomes of sums.
#[derive(Clone)]
pub(crate) enum Store<'a> {
    /// They take the elements' places, times a factor.
    Set(Factor<'a>),
    /// The same, times another factor of each row.
    SetRows(View<'a>, Factor<'a>),
    /// They are added, times a factor that is not of columns.
    Add(Factor<'a>),
    /// They go on from what is there; see [`cpu::Store::Continue`].
    Continue,
}

/// Where a product goes: some columns of a matrix.
pub(crate) struct Target<'a> {
    pub(crate) values: ViewMut<'a>,
    /// Elements of a row.
    pub(crate) stride: usize,
    /// The first column that is written.
    pub(crate) first: usize,
}

impl<'a> Target<'a> {
    pub(crate) fn whole(values: impl Into<ViewMut<'a>>, stride: usize) -> Self {
        Self { values: values.into(), stride, first: 0 }
    }
}

impl Ops {
    /// `c[i, j] = sum over p of a[i, p] * b[j, p]` for the sizes `(m, n, k)`; see [`cpu::CpuTraining::product`]. On a device, products of integers
    /// are exact whatever the terms.
    pub(crate) fn product(
        &self,
        terms: Terms,
        sizes: (usize, usize, usize),
        a: Side<'_>,
        b: Side<'_>,
        store: Store<'_>,
        mut c: Target<'_>,
    ) {
        match self.device() {
            Some(device) => {
                let done = self.product_on(device, terms, sizes, (&a, &b), &store, &mut c);
                device.note(done);
            }
            None => self.product_on_cpu(terms, sizes, (&a, &b), &store, &mut c),
        }
    }

    fn product_on_cpu(
        &self,
        terms: Terms,
        sizes: (usize, usize, usize),
        (a, b): (&Side<'_>, &Side<'_>),
        store: &Store<'_>,
        c: &mut Target<'_>,
    ) {
        let (stride, first) = (c.stride, c.first);
        let values = c.values.host();
        let how = match store {
            Store::Set(Factor::Columns(_)) | Store::SetRows(_, Factor::Columns(_)) => cpu::Store::Set(1.0),
            Store::Set(factor) => cpu::Store::Set(factor.on_cpu()),
            Store::SetRows(rows, factor) => cpu::Store::SetRows(rows.host(), factor.on_cpu()),
            Store::Add(factor) => cpu::Store::Add(factor.on_cpu()),
            Store::Continue => cpu::Store::Continue,
        };
        let target = cpu::Target { values: &mut *values, stride, first };
        self.cpu().product(terms, sizes, a.on_cpu(), b.on_cpu(), how, target);
        let (rows, scales) = match store {
            Store::Set(Factor::Columns(scales)) => (None, scales),
            Store::SetRows(rows, Factor::Columns(scales)) => (Some(rows.host()), scales),
            _ => return,
        };
        let (n, scales) = (sizes.1, scales.host());
        self.cpu().chunks(&mut values[..sizes.0 * stride], stride, &|row, y| {
            let d = rows.map_or(1.0, |rows| rows[row]);
            y[first..][..n].iter_mut().zip(scales).for_each(|(y, scale)| *y *= d * scale);
        });
    }

    fn product_on(
        &self,
        device: &Arc<Device>,
        terms: Terms,
        sizes: (usize, usize, usize),
        (a, b): (&Side<'_>, &Side<'_>),
        store: &Store<'_>,
        c: &mut Target<'_>,
    ) -> Result<(), BackendError> {
        let store = match store {
            Store::Set(factor) => DeviceStore::Set { rows: None, scale: factor.on(device)? },
            Store::SetRows(rows, factor) => {
                DeviceStore::Set { rows: Some(rows.on(device)?), scale: factor.on(device)? }
            }
            Store::Add(factor) => DeviceStore::Add { scale: factor.on(device)? },
            Store::Continue => DeviceStore::Continue,
        };
        let (stride, first) = (c.stride, c.first);
        let all = matches!(store, DeviceStore::Set { .. })
            && sizes.1 == stride
            && sizes.0 * stride == c.values.len();
        let (a, b) = (a.on(device)?, b.on(device)?);
        let c = if all { c.values.written_on(device)? } else { c.values.changed_on(device)? };
        device.operations().product(&Product { terms, sizes, a, b, store, c, stride, first });
        Ok(())
    }
}
