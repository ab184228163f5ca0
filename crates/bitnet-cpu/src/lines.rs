//! Memory for weights: whole pages from the system, large ones where it has them.
//!
//! Weights are read as a stream once a token. Large pages make that a few percent faster, and a map of its own gives back all of
//! its memory, which a heap that served the loading of a model does not.

use crate::layout::{Line, bytes};
use bitnet_core::{BackendError, Storage};
use memmap2::MmapMut;
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
