//! The bytes of tensors, whatever order a file has them in.

use bitnet_core::Bytes;
use std::ops::Range;

/// The bytes of a tensor as they lie in a file.
#[derive(Clone, Debug)]
pub enum TensorData {
    /// Row after row.
    InOrder(Bytes),
    /// In another order: transposed, or rows with something between them.
    Strided(Strided),
}

impl TensorData {
    /// How many bytes the tensor has.
    pub fn len(&self) -> usize {
        match self {
            Self::InOrder(bytes) => bytes.len(),
            Self::Strided(view) => view.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the file's pages back, where they are pages of a file.
    pub fn release(&self) {
        match self {
            Self::InOrder(bytes) => bytes.release(),
            Self::Strided(view) => view.bytes.release(),
        }
    }

    /// All bytes, row after row: where they lie, or a copy in that order, which lives as long as whoever asked keeps it.
    pub(crate) fn bytes(&self) -> Bytes {
        match self {
            Self::InOrder(bytes) => bytes.clone(),
            Self::Strided(view) => view.in_order(),
        }
    }

    /// The bytes of some of a tensor's `of` rows, in the same way; `None` where it has no such rows.
    pub(crate) fn rows(&self, rows: Range<usize>, of: usize) -> Option<Bytes> {
        let is_inside = rows.start <= rows.end && rows.end <= of;
        match self {
            _ if !is_inside => None,
            _ if rows.is_empty() => Some(Vec::new().into()),
            Self::InOrder(bytes) => {
                let stride = bytes.len() / of.max(1);
                bytes.slice(rows.start * stride..rows.end * stride)
            }
            Self::Strided(view) => Some(view.rows(rows)?.in_order()),
        }
    }
}

impl From<Bytes> for TensorData {
    fn from(bytes: Bytes) -> Self {
        Self::InOrder(bytes)
    }
}

/// A view of bytes whose neighbours in a tensor are no neighbours there.
///
/// It is put in order when it is asked for, part by part, so that a file whose tensors all lie so takes no more memory than another.
#[derive(Clone, Debug)]
pub struct Strided {
    /// From the first element to the last.
    bytes: Bytes,
    element_bytes: usize,
    shape: Vec<usize>,
    /// Elements from one index of a dimension to the next.
    strides: Vec<usize>,
}

impl Strided {
    /// Elements of `element_bytes` (1, 2, 4 or 8), the first at byte `start` of a storage, and `strides` elements apart.
    ///
    /// `None` where one of them lies outside, or where there are none.
    pub(crate) fn new(
        storage: &Bytes,
        start: usize,
        element_bytes: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Option<Self> {
        let last = shape.iter().zip(&strides).try_fold(0usize, |at, (dim, stride)| {
            at.checked_add(dim.checked_sub(1)?.checked_mul(*stride)?)
        })?;
        let end = last.checked_add(1)?.checked_mul(element_bytes)?.checked_add(start)?;
        shape.iter().try_fold(element_bytes, |n, dim| n.checked_mul(*dim))?;
        let fits = matches!(element_bytes, 1 | 2 | 4 | 8) && shape.len() == strides.len();
        let bytes = storage.slice(start..end).filter(|_| fits)?;
        Some(Self { bytes, element_bytes, shape, strides })
    }

    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element_bytes
    }

    /// Some indices of the slowest dimension, at least one.
    fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (mut shape, strides) = (self.shape.clone(), self.strides.clone());
        *shape.first_mut()? = rows.len();
        let start = rows.start * strides.first()? * self.element_bytes;
        Self::new(&self.bytes, start, self.element_bytes, shape, strides)
    }

    fn in_order(&self) -> Bytes {
        // A file may say any number of dimensions of one index; without them there are few.
        let dims = self.shape.iter().copied().zip(self.strides.iter().copied());
        let (shape, strides): (Vec<usize>, Vec<usize>) = dims.filter(|(dim, _)| *dim > 1).unzip();
        let mut out = vec![0; self.len()];
        match self.element_bytes {
            1 => gather::<1>(&self.bytes, &shape, &strides, &mut out),
            2 => gather::<2>(&self.bytes, &shape, &strides, &mut out),
            4 => gather::<4>(&self.bytes, &shape, &strides, &mut out),
            _ => gather::<8>(&self.bytes, &shape, &strides, &mut out),
        }
        self.bytes.release();
        out.into()
    }
}

/// What is worth giving back before a view has been read to its end, in bytes: that of a head takes hundreds of megabytes.
const LARGE: usize = 1 << 20;

/// Elements of `N` bytes, row after row.
fn gather<const N: usize>(bytes: &Bytes, shape: &[usize], strides: &[usize], out: &mut [u8]) {
    let (rows, cols, row_stride, col_stride) = match (shape, strides) {
        ([], _) => (1, 1, 0, 0),
        ([cols], [stride]) => (1, *cols, 0, *stride),
        ([rows, cols], [row_stride, col_stride]) => (*rows, *cols, *row_stride, *col_stride),
        _ => {
            let part = out.len() / shape[0];
            for (i, out) in out.chunks_exact_mut(part).enumerate() {
                let bytes = bytes.slice(i * strides[0] * N..bytes.len()).expect("a view lies in its bytes");
                gather::<N>(&bytes, &shape[1..], &strides[1..], out);
            }
            return;
        }
    };
    // Of a transposed matrix, a strip of columns is read from beginning to end; what is written of a row fills a cache line.
    const STRIP: usize = 64;
    let out = out.as_chunks_mut::<N>().0;
    for first in (0..cols).step_by(STRIP) {
        let strip = first..(first + STRIP).min(cols);
        for row in 0..rows {
            let out = &mut out[row * cols + strip.start..row * cols + strip.end];
            for (col, out) in strip.clone().zip(out) {
                let at = (row * row_stride + col * col_stride) * N;
                out.copy_from_slice(&bytes[at..at + N]);
            }
        }
        // The strip's part of the file: all rows of all its columns.
        let end = (rows - 1) * row_stride + (strip.end - 1) * col_stride + 1;
        let read = strip.start * col_stride * N..end * N;
        if col_stride > row_stride && read.len() >= LARGE {
            bytes.slice(read).expect("a view lies in its bytes").release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `Strided` should give: every index on its own.
    fn naive(storage: &[u8], start: usize, n: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
        let count: usize = shape.iter().product();
        (0..count)
            .flat_map(|i| {
                let (mut rest, mut at) = (i, 0);
                for (dim, stride) in shape.iter().zip(strides).rev() {
                    at += rest % dim * stride;
                    rest /= dim;
                }
                storage[start + at * n..][..n].to_vec()
            })
            .collect()
    }

    #[test]
    fn elements_come_row_after_row() {
        let storage: Bytes = (0..80_000u32).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>().into();
        for (shape, strides) in [
            (&[70, 130][..], &[1, 70][..]),
            (&[130, 9], &[11, 1]),
            (&[5, 6], &[0, 1]),
            (&[6], &[3]),
            (&[3, 4, 5], &[1, 15, 3]),
            (&[2, 3, 4, 5], &[60, 1, 15, 3]),
            (&[2, 1, 4, 1], &[1, 7, 2, 7]),
            (&[1, 2], &[9, 5]),
        ] {
            for (n, start) in [(1, 0), (2, 3), (4, 100), (8, 1)] {
                let view =
                    Strided::new(&storage, start, n, shape.to_vec(), strides.to_vec()).expect("it fits");
                let want = naive(&storage, start, n, shape, strides);
                let data = TensorData::Strided(view);
                assert_eq!((data.len(), &data.bytes()[..]), (want.len(), &want[..]), "{shape:?} {n}");
                let row = want.len() / shape[0];
                for rows in [0..1, 1..shape[0], 0..shape[0]] {
                    let part = data.rows(rows.clone(), shape[0]).expect("they are there");
                    assert_eq!(&part[..], &want[rows.start * row..rows.end * row], "{shape:?} {rows:?}");
                }
                assert!(data.rows(1..shape[0] + 1, shape[0]).is_none());
            }
        }
    }

    #[test]
    fn what_lies_outside_is_no_view() {
        let storage: Bytes = vec![0; 100].into();
        let new = |start, shape: &[usize], strides: &[usize]| {
            Strided::new(&storage, start, 4, shape.to_vec(), strides.to_vec()).is_some()
        };
        assert!(new(0, &[5, 5], &[1, 5]) && !new(4, &[5, 5], &[1, 5]) && !new(0, &[5, 5], &[1, 6]));
        assert!(!new(0, &[usize::MAX, 2], &[1, 1]) && !new(0, &[2, 2], &[usize::MAX, 1]));
        assert!(!new(usize::MAX, &[1], &[1]) && !new(0, &[0, 5], &[1, 1]));
        assert!(!new(0, &[1 << 40, 1 << 40], &[0, 0]));
    }
}
