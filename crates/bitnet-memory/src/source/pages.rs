//! Maps of pages.

use super::{Block, HostBlock, Source};
use memmap2::MmapMut;
use std::ops::Range;
use std::ptr::NonNull;

/// The largest page that a system of ours has: where they are smaller, multiples of it are multiples of theirs, too.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 64 * 1024 };
/// The smallest.
const SMALLEST: usize = 4096;

/// Maps of pages, which become resident as they are written and go back to the system with their block.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Blocks of at least so many bytes ask for huge pages, which make long streams a few percent faster and first writes much faster,
    /// and become resident in larger pieces. `usize::MAX` for never. 2 MiB by default: no smaller block holds one.
    pub huge_from_bytes: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self { huge_from_bytes: 2 << 20 }
    }
}

/// A map of its own.
#[derive(Debug)]
pub struct PagesBlock(MmapMut);

impl Source for Pages {
    type Block = PagesBlock;

    fn granule(&self) -> usize {
        PAGE
    }

    fn allocate(&self, bytes: usize) -> Option<PagesBlock> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        let map = MmapMut::map_anon(bytes).ok()?;
        // Advice: where it is not taken, pages are small.
        #[cfg(target_os = "linux")]
        if bytes >= self.huge_from_bytes {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Some(PagesBlock(map))
    }
}

impl Block for PagesBlock {
    fn len_bytes(&self) -> usize {
        self.0.len()
    }

    fn populate(&mut self) {
        #[cfg(target_os = "linux")]
        if self.0.advise(memmap2::Advice::PopulateWrite).is_ok() {
            return;
        }
        // Systems that have no such call make a page resident when it is written.
        self.0.iter_mut().step_by(SMALLEST).for_each(|byte| *byte = std::hint::black_box(0));
    }

    #[cfg(target_os = "linux")]
    unsafe fn discard(&self, range: Range<usize>) -> usize {
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start >= end {
            return 0;
        }
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: bytes of an anonymous map become zero, and nobody uses these, says the caller.
        let result = unsafe { self.0.unchecked_advise_range(advice, start, end - start) };
        if result.is_ok() { end - start } else { 0 }
    }
}

// SAFETY: an anonymous, private map is zero, begins with a page, and belongs to nobody else.
unsafe impl HostBlock for PagesBlock {
    fn start(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr().cast_mut()).expect("a map has an address")
    }
}
