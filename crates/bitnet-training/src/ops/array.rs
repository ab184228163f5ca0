//! Numbers that are wherever they were last used.

use super::device::Device;
use super::memory::{copied, room, zeroed};
use bitnet_core::{BackendError, Memory};
use bitnet_memory::{Buffer, Tag};
use bytemuck::Pod;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, OnceLock};

/// Numbers on the host, on a device, or on both.
///
/// It is a slice: who uses it as one brings it to the host, and to change it there takes it from the device. Operations ([`super::Ops`]) take
/// it to the device, where there is one, and what they give stays there. So what no operation is for is written as for any slice, and
/// costs a copy there and back.
pub struct Array<T: Pod = f32> {
    len: usize,
    /// Where it is on neither side, its numbers have no meaning.
    host: OnceLock<Buffer<T>>,
    device: OnceLock<(Arc<Device>, Memory)>,
    /// What its memory is for.
    tag: Tag,
    /// Elements of a row, and how far apart rows are on the device.
    rows: Option<(usize, usize)>,
}

impl<T: Pod> Array<T> {
    /// Rows of `cols` elements; on a device, rows of a multiple of 16, zero behind their own.
    pub(crate) fn in_rows(values: Vec<T>, cols: usize) -> Self {
        Self { rows: Some((cols, cols.next_multiple_of(ROW))), ..values.into() }
    }

    /// Zeros.
    pub fn zeros(len: usize, tag: Tag) -> Self {
        Self { len, host: zeroed(len, tag).into(), device: OnceLock::new(), tag, rows: None }
    }

    /// The same numbers in memory that is for something else.
    pub(crate) fn tagged(values: &[T], tag: Tag) -> Self {
        Self { len: values.len(), host: copied(values, tag).into(), tag, ..Self::default() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// So many in rows, whose values have no meaning.
    pub(super) fn sized_in_rows(&mut self, (rows, cols): (usize, usize)) -> &mut Self {
        let layout = Some((cols, cols.next_multiple_of(ROW)));
        if self.rows != layout {
            *self = Self { rows: layout, ..Self::default() };
        }
        self.sized(rows * cols)
    }

    /// So many, whose values have no meaning.
    pub(crate) fn sized(&mut self, len: usize) -> &mut Self {
        if len != self.len {
            self.len = len;
            self.device.take();
            if let Some(host) = self.host.get_mut() {
                room(host, len, self.tag);
            }
        }
        self
    }

    /// Some of them.
    pub(crate) fn part(&self, range: Range<usize>) -> View<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "a part of an array");
        View { array: self, range }
    }

    /// Some of them, to be changed.
    pub(crate) fn part_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "a part of an array");
        ViewMut { array: self, range }
    }

    /// Elements from one row to the next on a device.
    pub(crate) fn stride(&self) -> usize {
        self.rows.map_or(self.len, |(_, stride)| stride)
    }

    /// As a vector, taken from it.
    pub(crate) fn into_vec(self) -> Vec<T> {
        self.to_vec()
    }

    fn host(&self) -> &[T] {
        self.host.get_or_init(|| match self.device.get() {
            Some((device, memory)) => self.download(device, memory),
            None => zeroed(self.len, self.tag),
        })
    }

    fn host_mut(&mut self) -> &mut [T] {
        let _ = self.host();
        self.device.take();
        self.host.get_mut().expect("it was brought here")
    }

    /// What is on the device; of one that failed, bytes that say so.
    fn download(&self, device: &Device, memory: &Memory) -> Buffer<T> {
        let (cols, stride) = self.rows.unwrap_or((self.len, self.len));
        let mut wide = zeroed(self.bytes() / size_of::<T>(), self.tag);
        device.download(memory, bytemuck::cast_slice_mut(&mut wide));
        if cols != stride {
            for row in 1..self.len / cols.max(1) {
                wide.copy_within(row * stride..row * stride + cols, row * cols);
            }
        }
        room(&mut wide, self.len, self.tag);
        wide
    }

    /// Bytes on the device.
    fn bytes(&self) -> usize {
        let elements = match self.rows {
            Some((cols, stride)) => self.len / cols.max(1) * stride,
            None => self.len,
        };
        (elements * size_of::<T>()).next_multiple_of(4)
    }

    /// Its memory on a device, where its values are. It is on one at a time.
    pub(super) fn on(&self, device: &Arc<Device>) -> Result<&Memory, BackendError> {
        if self.device.get().is_some_and(|(other, _)| !Arc::ptr_eq(other, device)) {
            return Err(BackendError::Unsupported {
                backend: "training",
                what: "numbers that lie on another device".to_owned(),
                hint: "this is a defect; please report it",
            });
        }
        if self.device.get().is_none() {
            let memory = device.memory(self.bytes(), self.tag)?;
            // Where it is nowhere, there is nothing to bring.
            if let Some(host) = self.host.get() {
                match self.rows.filter(|(cols, stride)| cols != stride) {
                    None => device.upload(&memory, bytemuck::cast_slice(host)),
                    Some((cols, stride)) => {
                        let mut wide = vec![T::zeroed(); self.bytes() / size_of::<T>()];
                        for (wide, row) in wide.chunks_exact_mut(stride).zip(host.chunks_exact(cols)) {
                            wide[..cols].copy_from_slice(row);
                        }
                        device.upload(&memory, bytemuck::cast_slice(&wide));
                    }
                }
            }
            let _ = self.device.set((Arc::clone(device), memory));
        }
        Ok(&self.device.get().expect("it was brought there").1)
    }

    /// The same to change it there.
    pub(super) fn changed_on(&mut self, device: &Arc<Device>) -> Result<&Memory, BackendError> {
        self.on(device)?;
        self.host.take();
        self.on(device)
    }

    /// The same to write all of it.
    pub(super) fn written_on(&mut self, device: &Arc<Device>) -> Result<&Memory, BackendError> {
        self.host.take();
        self.on(device)
    }
}

/// What rows of integers are a multiple of on a device.
const ROW: usize = 16;

impl<T: Pod> Default for Array<T> {
    fn default() -> Self {
        let device = OnceLock::new();
        Self { len: 0, host: Buffer::default().into(), device, tag: Tag::Activations, rows: None }
    }
}

impl<T: Pod> From<Vec<T>> for Array<T> {
    fn from(values: Vec<T>) -> Self {
        Self::tagged(&values, Tag::Activations)
    }
}

impl<T: Pod> FromIterator<T> for Array<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.host()
    }
}

impl<T: Pod> DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.host_mut()
    }
}

/// A copy on the host.
impl<T: Pod> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self { rows: self.rows, ..Self::tagged(self, self.tag) }
    }
}

impl<T: Pod + PartialEq> PartialEq for Array<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({})", self.len)
    }
}

/// Some elements of an array.
#[derive(Clone, Debug)]
pub(crate) struct View<'a, T: Pod = f32> {
    array: &'a Array<T>,
    range: Range<usize>,
}

impl<'a, T: Pod> View<'a, T> {
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn host(&self) -> &'a [T] {
        &self.array.host()[self.range.clone()]
    }

    /// From an element on.
    pub(crate) fn skip(self, first: usize) -> Self {
        assert!(first <= self.range.len(), "a part of an array");
        Self { range: self.range.start + first..self.range.end, ..self }
    }

    pub(super) fn on(&self, device: &Arc<Device>) -> Result<bitnet_core::At<'a>, BackendError> {
        Ok(bitnet_core::At { memory: self.array.on(device)?, first: self.range.start })
    }
}

impl<'a, T: Pod> From<&'a Array<T>> for View<'a, T> {
    fn from(array: &'a Array<T>) -> Self {
        View { array, range: 0..array.len }
    }
}

impl<'a, T: Pod> From<&'a mut Array<T>> for View<'a, T> {
    fn from(array: &'a mut Array<T>) -> Self {
        View { array, range: 0..array.len }
    }
}

/// Some elements of an array, to be changed.
pub(crate) struct ViewMut<'a, T: Pod = f32> {
    array: &'a mut Array<T>,
    range: Range<usize>,
}

impl<T: Pod> ViewMut<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn host(&mut self) -> &mut [T] {
        &mut self.array.host_mut()[self.range.clone()]
    }

    /// The same, borrowed for less long.
    pub(crate) fn again(&mut self) -> ViewMut<'_, T> {
        ViewMut { array: self.array, range: self.range.clone() }
    }

    /// To read it and write it, or to write some of it.
    pub(super) fn changed_on(&mut self, device: &Arc<Device>) -> Result<bitnet_core::At<'_>, BackendError> {
        Ok(bitnet_core::At { memory: self.array.changed_on(device)?, first: self.range.start })
    }

    /// To write all of it.
    pub(super) fn written_on(&mut self, device: &Arc<Device>) -> Result<bitnet_core::At<'_>, BackendError> {
        let whole = self.range == (0..self.array.len);
        let memory = if whole { self.array.written_on(device)? } else { self.array.changed_on(device)? };
        Ok(bitnet_core::At { memory, first: self.range.start })
    }
}

impl<'a, T: Pod> From<&'a mut Array<T>> for ViewMut<'a, T> {
    fn from(array: &'a mut Array<T>) -> Self {
        let range = 0..array.len;
        ViewMut { array, range }
    }
}
