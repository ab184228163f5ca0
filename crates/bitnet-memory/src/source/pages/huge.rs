//! Blocks of huge pages, one behind the other.
//!
//! A huge page is made where a map has all of its 2 MiB when the first byte of it is written. Blocks that are maps of their own have
//! none at their borders and, where they are smaller, none at all; a decode step read a third of its weights through small pages, a
//! seventh slower. So blocks are cut from the front of a larger map, and whoever comes next has the rest of the page.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ops::Range;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

/// A huge page.
const HUGE: usize = 2 << 20;
/// What is mapped at a time: addresses, of which nothing is resident before it is written.
const MAP: usize = 64 << 20;

/// Addresses that are mapped and nobody's yet.
static AHEAD: Mutex<Range<usize>> = Mutex::new(0..0);

/// Pages of a map; they go back to the system when it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages are this part's alone.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

/// The next `bytes` bytes, whole pages.
pub(super) fn allocate(bytes: usize) -> Option<Part> {
    if bytes >= MAP {
        return map(bytes).map(|start| Part { start, len: bytes });
    }
    let mut ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner);
    if ahead.len() < bytes {
        // Where there are no more addresses than asked for, as with a limit of them, the block is a map of its own.
        let Some(start) = map(MAP) else { return map(bytes).map(|start| Part { start, len: bytes }) };
        let start = start.as_ptr().expose_provenance();
        let rest = std::mem::replace(&mut *ahead, start..start + MAP);
        drop(
            NonNull::new(std::ptr::with_exposed_provenance_mut(rest.start))
                .map(|start| Part { start, len: rest.len() }),
        );
    }
    let start = NonNull::new(std::ptr::with_exposed_provenance_mut(ahead.start))?;
    ahead.start += bytes;
    Some(Part { start, len: bytes })
}

/// A map of so many bytes that begins with a huge page.
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let room = bytes.checked_add(HUGE)?;
    // SAFETY: an anonymous map at an address that the system chooses overlaps nothing.
    let all =
        unsafe { mmap_anonymous(null_mut(), room, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    let all = all.ok()?.cast::<u8>();
    let before = all.align_offset(HUGE);
    let start = all.wrapping_add(before);
    for (from, len) in [(all, before), (start.wrapping_add(bytes), HUGE - before)] {
        drop(NonNull::new(from).map(|start| Part { start, len }));
    }
    // Advice: where it is not taken, pages are small.
    // SAFETY: which pages hold the map's bytes changes none of them.
    let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxHugepage) };
    NonNull::new(start)
}

impl Part {
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes all pages resident; false where the system has no such call.
    pub(super) fn populate(&mut self) -> bool {
        // SAFETY: that changes no byte.
        unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite).is_ok() }
    }

    /// Gives the pages of a range of bytes back, which are zero then.
    ///
    /// # Safety
    /// The range lies inside, and nobody uses its bytes.
    pub(super) unsafe fn discard(&self, range: Range<usize>) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            madvise(self.start.as_ptr().add(range.start).cast(), range.len(), Advice::LinuxDontNeed).is_ok()
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: whole pages that are this part's alone. Where the system refuses to split a map they stay mapped, which is no harm.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}
