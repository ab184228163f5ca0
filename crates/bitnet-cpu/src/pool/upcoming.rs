//! What the next job will read, so that threads that wait for it can ask for it from memory.
//!
//! Products follow each other in the same order in every step: whichever came after this one the last time is taken to come next.
//! A wrong guess costs a little bandwidth, never a result.

use super::lock;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const LINE: usize = 64;
/// Bytes that a thread asks for, at most: a part of the second-level cache.
const MOST: usize = 512 << 10;
/// Lines that are asked for between two looks for the job.
const LINES: usize = 8;

/// The addresses of the job that is expected next.
#[derive(Default)]
pub(super) struct Upcoming {
    from: AtomicUsize,
    bytes: AtomicUsize,
    order: Mutex<Order>,
}

#[derive(Default)]
struct Order {
    /// Where the latest job reads.
    last: usize,
    /// Where each job's successor read.
    after: HashMap<usize, Range<usize>>,
}

/// How far a thread has asked.
#[derive(Default)]
pub(super) struct Asked {
    from: usize,
    lines: usize,
}

impl Upcoming {
    /// A job that reads `memory` is about to begin.
    pub(super) fn begin<T>(&self, memory: &[T]) {
        let from = memory.as_ptr() as usize;
        let mut order = lock(&self.order);
        let last = std::mem::replace(&mut order.last, from);
        order.after.insert(last, from..from + size_of_val(memory));
        let next = order.after.get(&from).cloned().unwrap_or(0..0);
        self.bytes.store(0, Ordering::Relaxed);
        self.from.store(next.start, Ordering::Relaxed);
        self.bytes.store(next.len(), Ordering::Relaxed);
    }

    /// Addresses that the next job is expected to read.
    pub(super) fn expected(&self) -> Range<usize> {
        let (from, bytes) = (self.from.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        from..from + bytes
    }

    /// Asks for the next few lines of what thread `id` of `threads` will begin with.
    pub(super) fn ask(&self, id: usize, threads: usize, asked: &mut Asked) {
        let Range { start: from, end } = self.expected();
        let bytes = end - from;
        if from != asked.from {
            *asked = Asked { from, lines: 0 };
        }
        let most = (bytes / threads).min(MOST) / LINE;
        let first = from + bytes / threads * id;
        for line in asked.lines..most.min(asked.lines + LINES) {
            prefetch(first + line * LINE);
        }
        asked.lines = most.min(asked.lines + LINES);
    }
}

/// Asks for a line of memory, to the second-level cache. Any address will do.
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of any address is without effect on the program; SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
