//! Memory for weights and for the key-value cache: blocks of [`Pages`], large ones where the system has them.
//!
//! Both are read as streams once a token. Large pages make that a few percent faster, and a block of its own gives back all of
//! its memory, which a heap that served the loading of a model does not.

use crate::layout::{Line, bytes};
use bitnet_core::{BackendError, Storage};
use bitnet_memory::{HostBlock, Pages, PagesBlock, Source};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Cache lines, zero at first.
pub(crate) struct Lines {
    /// `None` for no lines at all, which no system maps.
    block: Option<PagesBlock>,
    len: usize,
}

impl Lines {
    /// `len` lines for what the error will name.
    pub(crate) fn new(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let bytes = len.saturating_mul(size_of::<Line>());
        if bytes == 0 {
            return Ok(Self { block: None, len });
        }
        // Neighbouring maps become one, so that small ones may share a large page.
        let pages = Pages { huge_from_bytes: 0 };
        let block = pages.allocate(bytes).ok_or(BackendError::OutOfMemory { bytes, what })?;
        Ok(Self { block: Some(block), len })
    }
}

impl Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: the block has room for `len` lines and is aligned for them, and any byte belongs to a line.
        unsafe { std::slice::from_raw_parts(block.start().cast().as_ptr(), self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        let Some(block) = &mut self.block else { return &mut [] };
        // SAFETY: as above, and the block is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(block.start().cast().as_ptr(), self.len) }
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
