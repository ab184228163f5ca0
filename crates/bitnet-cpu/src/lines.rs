//! Memory for weights and for the key-value cache: whole pages from the system, large ones where it has them.
//!
//! Both are read as streams once a token. Large pages make that a few percent faster, and a map of its own gives back all of
//! its memory, which a heap that served the loading of a model does not.

use crate::layout::{Line, bytes};
use bitnet_core::{BackendError, Storage};
use memmap2::MmapMut;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

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

    /// Gives the pages that lie in a range of bytes back to the system, where it takes them one by one; tells how many bytes. They are
    /// zero until they are written again.
    #[cfg(target_os = "linux")]
    fn discard(&mut self, bytes: Range<usize>) -> usize {
        let (first, end) = (bytes.start.next_multiple_of(PAGE), bytes.end / PAGE * PAGE);
        let Some(map) = self.map.as_ref().filter(|map| first < end && end <= map.len()) else { return 0 };
        // SAFETY: the pages lie in the map, which is anonymous and private, so that what is read of them next is zero, which any
        // line may be; and it is borrowed for writing.
        match unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first) } {
            Ok(()) => end - first,
            Err(_) => 0,
        }
    }

    /// Other systems promise nothing about pages that are given back.
    #[cfg(not(target_os = "linux"))]
    fn discard(&mut self, _bytes: Range<usize>) -> usize {
        0
    }
}

/// The largest page that the system may have: a call that begins inside of one would take all of it.
#[cfg(target_os = "linux")]
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 64 * 1024 };

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
