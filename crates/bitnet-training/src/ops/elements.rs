//! Operations on elements and on rows as they are.

use super::Ops;
use super::array::{Array, View, ViewMut};
use bitnet_core::{At, ColumnsOf};

/// Elements that a thread adds at a time.
const PIECE: usize = 1 << 14;

impl Ops {
    /// A copy.
    pub(crate) fn copy(&self, from: &Array, to: &mut Array) {
        to.sized(from.len());
        if !self.try_on(|device, on| {
            let from = At::start(from.on(device)?);
            let to = At::start(to.written_on(device)?);
            let len = to.memory.bytes() / 4;
            on.mix(from, 1.0, from, 0.0, to, len);
            Ok(())
        }) {
            to.copy_from_slice(from);
        }
    }

    /// Every element becomes this one.
    pub(crate) fn fill<'a>(&self, to: impl Into<ViewMut<'a>>, value: f32) {
        let mut to = to.into();
        let len = to.len();
        if self.device.is_none() {
            return to.host().fill(value);
        }
        self.try_on(|device, on| {
            on.fill(to.written_on(device)?, len, value);
            Ok(())
        });
    }

    /// `x += y`.
    pub(crate) fn add<'a>(&self, x: &mut Array, y: impl Into<View<'a>>) {
        let y = y.into();
        let len = x.len();
        assert_eq!(len, y.len(), "what is added");
        if self.device.is_none() {
            let y = y.host();
            return self.cpu.chunks(x, PIECE, &|i, x| {
                x.iter_mut().zip(&y[i * PIECE..]).for_each(|(x, y)| *x += y);
            });
        }
        self.try_on(|device, on| {
            let x = At::start(x.changed_on(device)?);
            on.mix(x, 1.0, y.on(device)?, 1.0, x, len);
            Ok(())
        });
    }

    /// `average = old * average + new * values`.
    pub(crate) fn average(&self, (old, new): (f32, f32), values: View<'_>, average: &mut Array) {
        let len = average.len();
        assert_eq!(len, values.len(), "what is averaged");
        if self.device.is_none() {
            let values = values.host();
            return self.cpu.chunks(average, PIECE, &|i, average| {
                average.iter_mut().zip(&values[i * PIECE..]).for_each(|(a, v)| *a = old * *a + new * v);
            });
        }
        self.try_on(|device, on| {
            let average = At::start(average.changed_on(device)?);
            on.mix(average, old, values.on(device)?, new, average, len);
            Ok(())
        });
    }

    /// Rows of a table, `[ids, n]`.
    pub(crate) fn gather(&self, table: View<'_>, ids: &[u32], n: usize, to: &mut Array) {
        to.sized(ids.len() * n);
        if self.device.is_none() {
            let table = table.host();
            return self.cpu.chunks(to, n, &|i, to| to.copy_from_slice(&table[ids[i] as usize * n..][..n]));
        }
        self.try_on(|device, on| {
            on.gather(table.on(device)?, ids, n, At::start(to.written_on(device)?));
            Ok(())
        });
    }

    /// Adds rows to those of a table, in the order of ids: one may stand more than once.
    pub(crate) fn scatter(&self, from: &Array, ids: &[u32], n: usize, mut table: ViewMut<'_>) {
        if self.device.is_none() {
            let table = table.host();
            for (id, from) in ids.iter().zip(from.chunks_exact(n)) {
                let row = &mut table[*id as usize * n..][..n];
                row.iter_mut().zip(from).for_each(|(row, from)| *row += from);
            }
            return;
        }
        self.try_on(|device, on| {
            on.scatter(At::start(from.on(device)?), ids, n, table.changed_on(device)?);
            Ok(())
        });
    }

    /// Columns `first..first + count` of rows of `stride`, row after row.
    pub(crate) fn take_columns(
        &self,
        from: &Array,
        stride: usize,
        (first, count): (usize, usize),
        to: &mut Array,
    ) {
        let rows = from.len() / stride;
        to.sized(rows * count);
        if self.device.is_none() {
            let from = &**from;
            return self.cpu.chunks(to, count, &|row, to| {
                to.copy_from_slice(&from[row * stride + first..][..count]);
            });
        }
        self.try_on(|device, on| {
            let from = ColumnsOf { at: At::start(from.on(device)?), stride, first };
            let to = ColumnsOf { at: At::start(to.written_on(device)?), stride: count, first: 0 };
            on.columns(from, to, rows, count);
            Ok(())
        });
    }

    /// The way back of [`Ops::take_columns`].
    pub(crate) fn put_columns(
        &self,
        from: &Array,
        (first, count): (usize, usize),
        to: &mut Array,
        stride: usize,
    ) {
        let rows = to.len() / stride;
        if self.device.is_none() {
            let from = &**from;
            return self.cpu.chunks(to, stride, &|row, to| {
                to[first..first + count].copy_from_slice(&from[row * count..][..count]);
            });
        }
        self.try_on(|device, on| {
            let from = ColumnsOf { at: At::start(from.on(device)?), stride: count, first: 0 };
            let to = ColumnsOf { at: At::start(to.changed_on(device)?), stride, first };
            on.columns(from, to, rows, count);
            Ok(())
        });
    }
}
