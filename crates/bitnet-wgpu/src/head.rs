//! Logits: all of them, or the largest ones with the others left on the device (`shaders/select.wgsl`). Of a greedy step an id and its
//! logit are read, of top-k sampling `k` of both.

use crate::WgpuBackend;
use crate::backend::{bytes_of, put_floats};
use crate::kernel::{Kernel, Numbers, RUN};
use crate::product::word;
use crate::tensor::WgpuTensor;
use crate::weight::WgpuWeight;
use bitnet_core::{BackendError, Logits, LogitsNeed};
use std::ops::Range;

/// The most logits of a token that are looked for on the device; for more, all are copied. Each run of numbers then leaves a quarter of itself.
const MAX_TOP: usize = RUN / 4;

/// Memory of the head.
#[derive(Default)]
pub(crate) struct HeadScratch {
    int8: (WgpuTensor, WgpuTensor),
    logits: WgpuTensor,
    /// What runs have found, by turns.
    found: [WgpuTensor; 2],
    best: WgpuTensor,
}

/// How many of the largest logits each token gets, and the ids of others: as many of both as the token that needs most of them.
struct Asked {
    k: usize,
    /// Others of a token.
    besides: usize,
    /// `[tokens, besides]`
    ids: Vec<u32>,
}

impl Asked {
    /// `None`: a token needs all of them, or so many that all may as well be copied.
    fn new(needs: &[LogitsNeed], vocab: usize) -> Option<Self> {
        let top = |need: &'_ LogitsNeed| match need {
            LogitsNeed::Top { k, also } => Some((*k, also.len())),
            LogitsNeed::All => None,
        };
        let tops: Vec<(usize, usize)> = needs.iter().map(top).collect::<Option<_>>()?;
        let k = tops.iter().map(|(k, _)| *k).max()?.clamp(1, vocab.max(1));
        let besides = tops.iter().map(|(_, besides)| *besides).max()?;
        if k > MAX_TOP || besides > MAX_TOP || k + besides >= vocab {
            return None;
        }
        let mut ids = Vec::with_capacity(needs.len() * besides);
        for need in needs {
            let LogitsNeed::Top { also, .. } = need else { return None };
            ids.extend_from_slice(also);
            // Any id does for a token that needs fewer.
            ids.resize(ids.len() + besides - also.len(), 0);
        }
        ids.iter().all(|id| (*id as usize) < vocab).then_some(Self { k, besides, ids })
    }

    /// Pairs of a token.
    fn room(&self) -> usize {
        self.k + self.besides
    }
}

impl WgpuBackend {
    /// The logits that are needed, or all.
    pub(crate) fn logits(
        &self,
        x: &WgpuTensor,
        w: &WgpuWeight,
        needs: &[LogitsNeed],
        scratch: &mut HeadScratch,
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        // As many tokens at a time as a binding has room for, of logits or of as many pairs.
        let at_once = (self.gpu.max_binding() / (8 * w.rows).max(1)).max(1);
        let asked = Asked::new(needs, w.rows);
        if asked.is_none() {
            self.memory.fit(&mut out.values, x.rows * w.rows)?;
        }
        let mut at = 0;
        for first in (0..x.rows).step_by(at_once) {
            let rows = first..x.rows.min(first + at_once);
            let HeadScratch { int8, logits, .. } = scratch;
            self.linear_rows(x, rows.clone(), w, int8, logits);
            if let Some(asked) = &asked {
                self.largest(rows, asked, scratch, out)?;
            } else {
                let piece = (logits.part(&self.gpu).buffer, 0, 4 * logits.len());
                self.gpu.read(&[piece], |bytes| at += put_floats(&mut out.values[at..], bytes))?;
            }
        }
        if asked.is_none() {
            out.push_full(x.rows);
        }
        Ok(())
    }

    /// Of these tokens, whose logits are there, the largest and those wanted besides.
    fn largest(
        &self,
        rows: Range<usize>,
        asked: &Asked,
        scratch: &mut HeadScratch,
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        let (gpu, m) = (&self.gpu, rows.len());
        let HeadScratch { logits, found, best, .. } = scratch;
        let (vocab, k) = (logits.cols, asked.k);
        for found in &mut *found {
            found.shape(gpu, m, 2 * k * vocab.div_ceil(RUN));
        }
        best.shape(gpu, m, 2 * asked.room());
        let mut targets = found.iter().cycle();
        let (mut kernel, mut from, mut n, mut stride) =
            (Kernel::Largest(Numbers::Logits), logits.part(gpu), vocab, vocab);
        loop {
            let runs = n.div_ceil(RUN);
            let to = if runs == 1 { &*best } else { targets.next().expect("a cycle has no end") };
            let params = [n, stride, k, to.cols / 2, asked.besides].map(word);
            gpu.run(kernel, &[from, to.part(gpu)], &params, [runs, m, 1]);
            if runs == 1 {
                break;
            }
            n = (runs - 1) * k + k.min(n - (runs - 1) * RUN);
            (kernel, from, stride) = (Kernel::Largest(Numbers::Pairs), to.part(gpu), to.cols / 2);
        }
        let ids = gpu.give(&bytes_of(&asked.ids[rows.start * asked.besides..rows.end * asked.besides]));
        let params = [vocab, vocab, k, asked.room(), asked.besides].map(word);
        let parts = [logits.part(gpu), best.part(gpu), ids.part()];
        gpu.run(Kernel::Besides, &parts, &params, [asked.besides.div_ceil(64), m, 1]);
        self.lists(best, asked.room(), out)
    }

    /// Reads the pairs of each token.
    fn lists(&self, best: &WgpuTensor, room: usize, out: &mut Logits) -> Result<(), BackendError> {
        let mut words = Vec::with_capacity(best.len());
        self.gpu.read(&[(best.part(&self.gpu).buffer, 0, 4 * best.len())], |bytes| {
            words.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
        })?;
        for own in words.as_chunks_mut::<2>().0.chunks_mut(room) {
            own.sort_unstable_by_key(|[id, _]| *id);
            let (ids, values) = (out.ids.len(), out.values.len());
            self.memory.grow(&mut out.ids, ids + own.len())?;
            self.memory.grow(&mut out.values, values + own.len())?;
            let mut n = 0;
            for pairs in own.chunk_by(|[one, _], [other, _]| one == other) {
                let [id, bits] = pairs[0];
                (out.ids[ids + n], out.values[values + n]) = (id, f32::from_bits(bits));
                n += 1;
            }
            self.memory.grow(&mut out.ids, ids + n)?;
            self.memory.grow(&mut out.values, values + n)?;
            out.rows.push((ids..ids + n, values..values + n));
        }
        Ok(())
    }
}
