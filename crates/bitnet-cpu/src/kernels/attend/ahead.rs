//! Memory that is asked for while something else is computed.

use crate::simd::Lanes;

/// Runs of memory: the blocks of one segment's keys and values.
const RUNS: usize = 8;
const LINE: usize = 64;

/// Memory that will be read next. It is asked for a few lines at a time, so that requests never queue up.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// The next line of each run, and lines it still has.
    runs: [(*const u8, usize); RUNS],
    /// The runs `run..count` are left.
    run: usize,
    count: usize,
    /// Lines for each call.
    rate: usize,
}

impl Ahead {
    /// Nothing, at `rate` lines a call.
    pub(super) fn new(rate: usize) -> Self {
        Self { runs: [(std::ptr::null(), 0); RUNS], run: 0, count: 0, rate }
    }

    /// Adds a run; more than there is room for are not asked for.
    pub(super) fn push<T>(&mut self, data: &[T]) {
        if let Some(run) = self.runs.get_mut(self.count).filter(|_| !data.is_empty()) {
            *run = (data.as_ptr().cast(), size_of_val(data).div_ceil(LINE));
            self.count += 1;
        }
    }

    /// Asks for the next lines.
    #[inline(always)]
    pub(super) fn ask<L: Lanes>(&mut self, l: L) {
        if self.run == self.count {
            return;
        }
        for _ in 0..self.rate {
            let Some((line, left)) = self.runs[..self.count].get_mut(self.run) else { return };
            l.prefetch(*line);
            *line = line.wrapping_add(LINE);
            *left -= 1;
            self.run += usize::from(*left == 0);
        }
    }
}
