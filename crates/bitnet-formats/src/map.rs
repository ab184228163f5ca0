//! Read-only memory maps.
#![allow(unsafe_code, reason = "mapping a file and giving pages back")]

use crate::FormatError;
use bitnet_core::{Bytes, Storage};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The length of a regular file. Merely opening a pipe may wait for ever, and a device may never end.
pub(crate) fn len(path: &Path) -> Result<u64, FormatError> {
    let metadata = std::fs::metadata(path).map_err(FormatError::io(path))?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(FormatError::Unrecognized { path: path.to_owned(), what: "it is no regular file" }),
    }
}

struct MappedFile(Mmap);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Storage for MappedFile {
    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start < end {
            // SAFETY: the map is shared with the file and never written, so dropping its pages loses nothing: the next
            // read brings them back from the file.
            let advice = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
            };
            // Advice that is not taken costs memory and nothing else (pages larger than 4096 bytes, for one).
            let _ = advice;
        }
    }
}

/// Maps a file, read only. An empty one is an empty heap.
///
/// # Errors
/// It is no regular file, or the system refuses.
pub fn map(path: &Path) -> Result<Bytes, FormatError> {
    if len(path)? == 0 {
        return Ok(Vec::new().into());
    }
    let file = File::open(path).map_err(FormatError::io(path))?;
    // SAFETY: the map is read-only. Whoever truncates or rewrites a model file while it is in use gets a signal or other
    // numbers; that is the contract of every program that maps its weights.
    let map = unsafe { Mmap::map(&file) }.map_err(FormatError::io(path))?;
    Ok(Bytes::new(Arc::new(MappedFile(map))))
}

/// Has the heap give free pages back to the system when it is dropped, where that is not its habit: glibc keeps what lies
/// between live blocks, 20 MB after a vocabulary of 128000 strings has been read.
#[derive(Debug)]
pub(crate) struct TrimHeap;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
impl Drop for TrimHeap {
    fn drop(&mut self) {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's declaration; it locks what it needs and touches free memory only.
        unsafe { malloc_trim(0) };
    }
}
