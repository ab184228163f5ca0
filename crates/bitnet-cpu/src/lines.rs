//! Memory for weights and for the key-value cache: blocks of [`Pages`], large ones where the system has them.
//!
//! Both are read as streams once a token. Large pages make that a few percent faster, and a block of its own gives back all of
//! its memory, which a heap that served the loading of a model does not.

use crate::layout::{Line, bytes};
use bitnet_core::{BackendError, Storage};
use bitnet_memory::{Block, HostBlock, Pages, PagesBlock, Source};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

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

    /// Gives the pages that lie in a range of bytes back to the system, where it takes them one by one; tells how many bytes. They are
    /// zero until they are written again.
    fn discard(&mut self, bytes: Range<usize>) -> usize {
        let inside = bytes.start <= bytes.end && bytes.end <= size_of_val(&**self);
        // SAFETY: the range lies in the block, which is borrowed for writing; zero is a line like any other.
        self.block.as_ref().filter(|_| inside).map_or(0, |block| unsafe { block.discard(bytes) })
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

    /// Gives the memory of a range of numbers back to the system, as far as whole pages lie in it; tells how many bytes. What is read
    /// of them next is zero.
    pub(crate) fn discard(&mut self, range: Range<usize>) -> usize {
        self.lines.discard(range.start * size_of::<T>()..range.end * size_of::<T>())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest page that the system may have.
    #[cfg(target_os = "linux")]
    const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 64 * 1024 };

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_discarded_is_zero_and_the_rest_stays() {
        let mut numbers = Numbers::<u16>::new(4 * PAGE, "a test").unwrap();
        numbers.fill(7);
        assert_eq!(numbers.discard(10..PAGE), PAGE, "one page of two lies in it");
        let zero: Vec<usize> = (0..4 * PAGE).filter(|i| numbers[*i] == 0).collect();
        assert_eq!((zero.len(), zero.first()), (PAGE / 2, Some(&(PAGE / 2))));
        assert_eq!(numbers.discard(0..10) + numbers.discard(5..5), 0);
        assert_eq!(numbers.discard(0..4 * PAGE), 8 * PAGE);
        assert!(numbers.iter().all(|x| *x == 0));
    }
}
