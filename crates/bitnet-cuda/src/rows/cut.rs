//! Which rows of a stack of matrices each device has: columns of what is made with them.

use crate::driver::Rectangle;
use std::ops::Range;

/// Bytes of an element of a tensor.
const ELEMENT: usize = 4;

/// The columns of a tensor that each device makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Of all devices.
    pub(crate) cols: usize,
    /// Of each device, ascending; a piece has them one behind the other.
    columns: Vec<Vec<Range<usize>>>,
}

/// Cuts `n` into a run for each share, of whole units but for the last one's end: as near to the proportions as that goes. A run may be empty.
pub(crate) fn divide(n: usize, unit: usize, shares: &[f64]) -> Vec<Range<usize>> {
    let (units, all) = (n.div_ceil(unit) as f64, shares.iter().sum::<f64>());
    let (mut until, mut begin) = (0.0, 0);
    let run = |share: &f64| {
        until += share;
        let end = ((units * until / all).round() as usize * unit).clamp(begin, n);
        let run = begin..end;
        begin = end;
        run
    };
    let mut runs: Vec<Range<usize>> = shares.iter().map(run).collect();
    // Sums of shares are rounded.
    if let Some(last) = runs.last_mut() {
        last.end = n;
    }
    runs
}

impl Cut {
    /// A stack of so many rows each, of which the units are given too.
    pub(crate) fn of(stack: &[(usize, usize)], shares: &[f64]) -> Self {
        let (mut cols, mut columns) = (0, vec![Vec::new(); shares.len()]);
        for &(rows, unit) in stack {
            for (own, run) in columns.iter_mut().zip(divide(rows, unit.max(1), shares)) {
                own.push(cols + run.start..cols + run.end);
            }
            cols += rows;
        }
        Self { cols, columns }
    }

    /// The columns of a device: of each matrix of the stack some, or none.
    pub(crate) fn columns(&self, device: usize) -> &[Range<usize>] {
        &self.columns[device]
    }

    /// How many these are.
    pub(crate) fn width(&self, device: usize) -> usize {
        self.columns[device].iter().map(Range::len).sum()
    }

    /// Who has a column, and which of its own it is.
    pub(crate) fn place(&self, column: usize) -> Option<(usize, usize)> {
        (0..self.columns.len()).find_map(|device| {
            let mut before = 0;
            self.columns[device].iter().find_map(|run| {
                let at = run.contains(&column).then(|| before + column - run.start);
                before += run.len();
                Some((device, at?))
            })
        })
    }

    /// Which column a device's own is.
    ///
    /// # Panics
    /// It has not so many.
    pub(crate) fn column(&self, device: usize, own: usize) -> usize {
        let mut before = 0;
        let column = self.columns[device].iter().find_map(|run| {
            let column = (own < before + run.len()).then(|| run.start + (own - before));
            before += run.len();
            column
        });
        column.expect("a column of the device")
    }

    /// The columns of a device's piece that are some of the tensor's.
    pub(crate) fn within(&self, device: usize, columns: &Range<usize>) -> Vec<Range<usize>> {
        let mut before = 0;
        let own = self.columns[device].iter().map(|run| {
            let (start, end) = (run.start.max(columns.start), run.end.min(columns.end));
            let at = before + start.saturating_sub(run.start);
            before += run.len();
            at..at + end.saturating_sub(start)
        });
        own.filter(|run| !run.is_empty()).collect()
    }

    /// What is made of both halves of the columns, if each device has the same of both.
    pub(crate) fn halved(&self) -> Option<Self> {
        let half = self.cols / 2;
        let columns = self.columns.iter().map(|own| match &own[..] {
            [one, two] if (one.start + half..one.end + half) == *two => Some(vec![one.clone()]),
            _ => None,
        });
        Some(Self { cols: half, columns: columns.collect::<Option<_>>()? })
    }

    /// Where a device's piece of `rows` rows lies in the whole.
    pub(crate) fn rectangles(&self, device: usize, rows: usize) -> Vec<Rectangle> {
        let from_pitch = ELEMENT * self.width(device);
        let mut from = 0;
        let each = self.columns[device].iter().map(|run| {
            let width = ELEMENT * run.len();
            let to = ELEMENT * run.start;
            let own = Rectangle { from, from_pitch, to, to_pitch: ELEMENT * self.cols, width, height: rows };
            from += width;
            own
        });
        each.filter(|own| own.width > 0).collect()
    }
}

#[cfg(test)]
mod tests;
