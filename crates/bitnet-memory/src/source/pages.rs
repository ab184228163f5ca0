//! Maps of pages.

use super::{Block, HostBlock, Source};
use memmap2::MmapMut;
use std::ops::Range;
use std::ptr::NonNull;

#[cfg(target_os = "linux")]
mod huge;

/// The largest page that a system of ours has: where they are smaller, multiples of it are multiples of theirs, too.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 64 * 1024 };
/// The smallest.
const SMALLEST: usize = 4096;

/// Maps of pages, which become resident as they are written and go back to the system with their block.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Blocks of at least so many bytes ask for huge pages, which make long streams a few percent faster and first writes much faster,
    /// and become resident in larger pieces. `usize::MAX` for never. 2 MiB by default: no smaller block holds one. On Linux such blocks
    /// lie one behind the other, so that those that follow each other share the page at their border.
    pub huge_from_bytes: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self { huge_from_bytes: 2 << 20 }
    }
}

/// A map of its own, or a part of one.
#[derive(Debug)]
pub struct PagesBlock(Map);

#[derive(Debug)]
enum Map {
    Own(MmapMut),
    #[cfg(target_os = "linux")]
    Part(huge::Part),
}

impl Source for Pages {
    type Block = PagesBlock;

    fn granule(&self) -> usize {
        PAGE
    }

    fn allocate(&self, bytes: usize) -> Option<PagesBlock> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        #[cfg(target_os = "linux")]
        if bytes >= self.huge_from_bytes {
            return huge::allocate(bytes).map(|part| PagesBlock(Map::Part(part)));
        }
        MmapMut::map_anon(bytes).ok().map(|map| PagesBlock(Map::Own(map)))
    }
}

impl Block for PagesBlock {
    fn len_bytes(&self) -> usize {
        match &self.0 {
            Map::Own(map) => map.len(),
            #[cfg(target_os = "linux")]
            Map::Part(part) => part.len(),
        }
    }

    fn populate(&mut self) {
        #[cfg(target_os = "linux")]
        {
            let done = match &mut self.0 {
                Map::Own(map) => map.advise(memmap2::Advice::PopulateWrite).is_ok(),
                Map::Part(part) => part.populate(),
            };
            if done {
                return;
            }
        }
        // Systems that have no such call make a page resident when it is written.
        self.bytes_mut().iter_mut().step_by(SMALLEST).for_each(|byte| *byte = std::hint::black_box(0));
    }

    #[cfg(target_os = "linux")]
    unsafe fn discard(&self, range: Range<usize>) -> usize {
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start >= end {
            return 0;
        }
        // SAFETY: bytes of an anonymous map become zero, and nobody uses these, says the caller.
        let done = unsafe {
            match &self.0 {
                Map::Own(map) => {
                    let advice = memmap2::UncheckedAdvice::DontNeed;
                    map.unchecked_advise_range(advice, start, end - start).is_ok()
                }
                Map::Part(part) => part.discard(start..end),
            }
        };
        if done { end - start } else { 0 }
    }
}

// SAFETY: an anonymous, private map is zero, begins with a page, and belongs to nobody else; parts of one do not overlap.
unsafe impl HostBlock for PagesBlock {
    fn start(&self) -> NonNull<u8> {
        match &self.0 {
            Map::Own(map) => NonNull::new(map.as_ptr().cast_mut()).expect("a map has an address"),
            #[cfg(target_os = "linux")]
            Map::Part(part) => part.start(),
        }
    }
}
