//! Memory for weights and for the key-value cache: whole pages from the system, large ones where it has them.
//!
//! Both are read as streams once a token. Large pages make that a few percent faster, and a map of its own gives back all of
//! its memory, which a heap that served the loading of a model does not.

use crate::layout::{Line, bytes};
use bitnet_core::{BackendError, Storage};
use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Cache lines, zero at first.
pub(crate) struct Lines {
    /// `None` for no lines at all, which no system maps.
    map: Option<MmapMut>,
    len: usize,
}

impl Lines {
    /// `len` lines for what the error will name.
    pub(crate) fn new(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let bytes = len.saturating_mul(size_of::<Line>());
        if bytes == 0 {
            return Ok(Self { map: None, len });
        }
        let map = MmapMut::map_anon(bytes).map_err(|_| BackendError::OutOfMemory { bytes, what })?;
        // Advice: where it is not taken, pages are small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Some(map), len })
    }
}

impl Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: the map has room for `len` lines and begins with a page, and any byte belongs to a line.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        let Some(map) = &mut self.map else { return &mut [] };
        // SAFETY: as above, and the map is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len) }
    }
}

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        bytes(self)
    }
}

impl Storage for Lines {}

/// A number that any bytes are.
pub(crate) trait Number: Copy + Send + Sync {}
impl Number for f32 {}
impl Number for u16 {}
impl Number for i8 {}

/// Numbers in memory of the system's, zero at first. Pages become resident as they are written.
pub(crate) struct Numbers<T> {
    lines: Lines,
    len: usize,
    number: PhantomData<T>,
}

impl<T: Number> Numbers<T> {
    /// `len` numbers for what the error will name.
    pub(crate) fn new(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let lines = Lines::new(len.saturating_mul(size_of::<T>()).div_ceil(size_of::<Line>()), what)?;
        Ok(Self { lines, len, number: PhantomData })
    }
}

impl<T: Number> Deref for Numbers<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the lines have room for `len` numbers and are aligned for them, and any bytes are a number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Numbers<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the lines are borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
