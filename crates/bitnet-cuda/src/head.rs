//! Logits: all of them, or the largest ones with the others left on the device (`kernels/select.cu`), where that can be proven
//! without computing them all (`kernels/screen.cu`). Of a greedy step an id and its logit are read, of top-k sampling `k` of both.

use crate::CudaBackend;
use crate::attention::{bytes_of, word};
use crate::backend::put_floats;
use crate::driver::Function;
use crate::gpu::{Gpu, elements};
use crate::memory::Buffer;
use crate::tensor::{CudaTensor, Int8, int8_words};
use crate::weight::{CudaWeight, Form, Part, TILE_COLS, TILE_ROWS};
use bitnet_core::{BackendError, Logits, LogitsNeed};
use bitnet_memory::Tag;

/// Tokens whose logits are computed at once.
pub(crate) const HEAD_TOKENS: usize = 128;
/// The most logits of a token that are looked for on the device; for more, all are copied.
const MAX_TOP: usize = 1024;
/// Logits of a token that there is room for.
const ROOM: usize = 8192;
/// Logits of a token that a block ranks.
const RANKED: usize = 256;
/// Bins of the histogram by which the largest are found.
const BINS: usize = 8192;
/// Heads of fewer rows are not screened.
const SCREENED_ROWS: usize = 256;
/// Bytes of what is known of a row, and of a token.
const ROW_BYTES: usize = 16;
const QUERY_BYTES: usize = 12;

/// An int8 copy of a dense matrix, and what it misses.
pub(crate) struct Screen {
    codes: Buffer,
    rows: Buffer,
    exact: Function,
    row_words: usize,
}

impl Screen {
    /// `None`: products with these rows are not screened.
    pub(crate) fn new(gpu: &Gpu, part: &Part, cols: usize) -> Result<Option<Self>, BackendError> {
        let Form::Dense { dtype, row_words } = part.form else { return Ok(None) };
        if part.rows < SCREENED_ROWS {
            return Ok(None);
        }
        let padded = cols.next_multiple_of(TILE_COLS);
        let codes =
            gpu.zeroed(Tag::Weights, part.rows.next_multiple_of(TILE_ROWS) * padded, "a copy of the head")?;
        let rows = gpu.storage_for(Tag::Weights, part.rows * ROW_BYTES, "norms of the head")?;
        let (copy, exact) = gpu.kernels.screen(dtype);
        let sizes = [part.rows, row_words, cols, padded / 64].map(|n| n as u64);
        let addresses = [part.data.address(), codes.address(), rows.address()];
        let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
        gpu.run(copy, [part.rows.div_ceil(8), 1, 1], 256, 0, &params);
        gpu.read(&[], |_| ())?;
        Ok(Some(Self { codes, rows, exact, row_words }))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.bytes() + self.rows.bytes()
    }
}

/// Memory of the head.
#[derive(Default)]
pub(crate) struct HeadScratch {
    pub(crate) int8: Int8,
    pub(crate) logits: CudaTensor,
    /// The least and the most that logits can be, and what is known of the tokens.
    lower: CudaTensor,
    upper: CudaTensor,
    queries: CudaTensor,
    digits: CudaTensor,
    /// Bins of the histogram, the logits that were found, and the best of them.
    bins: CudaTensor,
    found: CudaTensor,
    best: CudaTensor,
}

/// An id, and the bits of its logit.
pub(crate) type Pair = [u32; 2];

/// The largest logits of some tokens, and some besides.
pub(crate) struct Asked {
    /// For each token how many of the largest, and how many ids besides.
    wanted: Vec<[u32; 2]>,
    /// Pairs of a token and an id.
    also: Vec<u32>,
}

impl Asked {
    /// `None`: a token needs all of them, or so many that all may as well be copied.
    pub(crate) fn new(needs: &[LogitsNeed], vocab: usize) -> Option<Self> {
        let mut asked = Self { wanted: Vec::new(), also: Vec::new() };
        for (t, need) in needs.iter().enumerate() {
            let LogitsNeed::Top { k, also } = need else { return None };
            if *k > MAX_TOP || also.len() > MAX_TOP || also.iter().any(|id| *id as usize >= vocab) {
                return None;
            }
            asked.wanted.push([word(*k).max(1), word(also.len())]);
            asked.also.extend(also.iter().flat_map(|id| [word(t), *id]));
        }
        (needs.len() <= HEAD_TOKENS).then_some(asked)
    }

    /// What is asked of a device that has some of the rows: `own` gives the number that an id has there.
    pub(crate) fn of(&self, own: impl Fn(u32) -> Option<u32>) -> Self {
        let mut part = Self { wanted: self.wanted.iter().map(|[k, _]| [*k, 0]).collect(), also: Vec::new() };
        for [token, id] in self.also.as_chunks::<2>().0 {
            if let Some(id) = own(*id) {
                part.also.extend([*token, id]);
                part.wanted[*token as usize][1] += 1;
            }
        }
        part
    }

    /// Keeps of a token's logits what was asked for: the largest, of equal ones the lower ids, and those besides.
    pub(crate) fn keep(&self, token: usize, entries: &mut Vec<(u32, f32)>) {
        let also: Vec<u32> = self
            .also
            .as_chunks::<2>()
            .0
            .iter()
            .filter(|[t, _]| *t as usize == token)
            .map(|[_, id]| *id)
            .collect();
        let k = self.wanted[token][0] as usize;
        // Both zeros are alike.
        entries.sort_unstable_by(|a, b| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0)));
        entries.dedup();
        let mut rank = 0;
        entries.retain(|(id, _)| {
            rank += 1;
            rank <= k || also.contains(id)
        });
    }

    /// Logits that a token gets, at most.
    fn each(&self) -> usize {
        self.wanted.iter().map(|[k, also]| (k + also) as usize).max().unwrap_or(0)
    }
}

impl CudaBackend {
    /// All logits of all tokens.
    pub(crate) fn all_logits(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        scratch: &mut HeadScratch,
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        let HeadScratch { int8, logits, .. } = scratch;
        self.memory.fit(&mut out.values, x.rows * w.rows)?;
        let mut at = 0;
        for first in (0..x.rows).step_by(HEAD_TOKENS) {
            let rows = first..x.rows.min(first + HEAD_TOKENS);
            self.linear_rows(x, rows, w, int8, logits);
            let Some(buffer) = logits.buffer() else { return self.gpu.check() };
            let piece = (buffer, 0, 4 * logits.len());
            self.gpu.read(&[piece], |bytes| at += put_floats(&mut out.values[at..], bytes))?;
        }
        out.push_full(x.rows);
        Ok(())
    }

    /// The logits that were asked for, and others; `false` where so many lie close together that all may as well be computed.
    pub(crate) fn largest(
        &self,
        x: &CudaTensor,
        w: &CudaWeight,
        asked: &Asked,
        scratch: &mut HeadScratch,
        out: &mut Logits,
    ) -> Result<bool, BackendError> {
        self.find(x, w, asked, scratch);
        let mut entries = Vec::new();
        self.found(asked, scratch, |_, pairs| {
            entries.clear();
            entries.extend(pairs.iter().map(|[id, bits]| (*id, f32::from_bits(*bits))));
            self.push_list(&mut entries, out)
        })
    }

    /// Has the logits found that were asked for.
    pub(crate) fn find(&self, x: &CudaTensor, w: &CudaWeight, asked: &Asked, scratch: &mut HeadScratch) {
        let (gpu, m, vocab) = (&self.gpu, x.rows, w.rows);
        let HeadScratch { int8, logits, lower, upper, queries, digits, bins, found, best } = scratch;
        bins.shape(gpu, m, BINS);
        // Counts and pairs; a word more where the number of tokens is odd.
        found.shape(gpu, m, 2 + 2 * ROOM);
        let screen = w.screen.as_ref();
        let (counted, taken) = match screen {
            Some(screen) => {
                let (q, tokens) = self.int8_of(x, &(0..m), int8);
                for bound in [&mut *lower, &mut *upper] {
                    bound.shape(gpu, m, vocab);
                }
                queries.shape(gpu, m, QUERY_BYTES / 4);
                let words = int8_words(x.cols);
                let sizes = [x.cols, words].map(|n| n as u64);
                digits.shape(gpu, m, words);
                let addresses = [
                    x.address(),
                    q,
                    tokens,
                    digits.address(),
                    queries.address(),
                    bins.address(),
                    found.address(),
                ];
                let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
                gpu.run(gpu.kernels.screen_query, [m, 1, 1], 256, 0, &params);
                // Rule 2 rounds once for each sixteenth of the columns, and folds; conversions round some times more.
                let slack = (x.cols.div_ceil(16) + 32) as f32 * f32::EPSILON;
                let addresses = [
                    screen.codes.address(),
                    q,
                    digits.address(),
                    tokens,
                    screen.rows.address(),
                    queries.address(),
                    lower.address(),
                    upper.address(),
                ];
                let sizes = [vocab, words / 16, m].map(|n| n as u64);
                let params: Vec<u64> =
                    addresses.into_iter().chain(sizes).chain([u64::from(slack.to_bits())]).collect();
                if m <= 8 {
                    gpu.run(gpu.kernels.screen_8, [vocab.div_ceil(16), 1, 1], 128, 0, &params);
                } else {
                    let grid = [vocab.div_ceil(128), m.div_ceil(64), 1];
                    gpu.run(gpu.kernels.screen_64, grid, 256, 4 * 2 * TILE_COLS * 64, &params);
                }
                (lower.address(), upper.address())
            }
            None => {
                for (buffer, n) in [(&*bins, bins.len()), (&*found, m)] {
                    gpu.run(gpu.kernels.clear, elements(n), 256, 0, &[buffer.address(), n as u64]);
                }
                self.linear_rows(x, 0..m, w, int8, logits);
                (logits.address(), logits.address())
            }
        };
        // Each block reads or writes all bins: fewer of them where there are many tokens.
        let grid = [vocab.div_ceil(2048).min((512 / m).max(4)), m, 1];
        gpu.run(gpu.kernels.select_count, grid, 256, 0, &[counted, bins.address(), vocab as u64]);
        let pairs = asked.also.len() / 2;
        if pairs > 0 {
            let logits = if screen.is_some() { 0 } else { logits.address() };
            let also = gpu.upload(&bytes_of(&asked.also));
            let sizes = [pairs, vocab, ROOM, m].map(|n| n as u64);
            let params: Vec<u64> = [also, logits, found.address()].into_iter().chain(sizes).collect();
            gpu.run(gpu.kernels.select_also, [pairs.div_ceil(128), 1, 1], 128, 0, &params);
        }
        let wanted = gpu.upload(&bytes_of(asked.wanted.as_flattened()));
        let params = [taken, bins.address(), wanted, found.address(), vocab as u64, ROOM as u64];
        gpu.run(gpu.kernels.select_take, grid, 256, 0, &params);
        if let (Some(screen), [part]) = (screen, &w.parts[..]) {
            let addresses = [x.address(), part.data.address(), found.address()];
            let sizes = [screen.row_words, x.cols, ROOM].map(|n| n as u64);
            let params: Vec<u64> = addresses.into_iter().chain(sizes).collect();
            // Enough blocks for a device of its own, or for as many tokens.
            let blocks = (256 / m).max(8);
            gpu.run(screen.exact, [blocks, m, 1], 256, 0, &params);
        }
        let each = asked.each();
        best.shape(gpu, m, 2 + 2 * each);
        let params = [found.address(), wanted, best.address(), ROOM as u64, each as u64];
        gpu.run(gpu.kernels.select_best, [ROOM / RANKED, m, 1], word(RANKED), 0, &params);
    }

    /// Reads what was found of some tokens: each one's number, and its pairs of an id and the bits of a logit, an id twice where it was asked
    /// for and is among the largest. `false` where there was no room for all of one.
    pub(crate) fn found(
        &self,
        asked: &Asked,
        scratch: &HeadScratch,
        mut take: impl FnMut(usize, &[Pair]) -> Result<(), BackendError>,
    ) -> Result<bool, BackendError> {
        let Some(buffer) = scratch.best.buffer() else { return self.gpu.check().map(|()| false) };
        let (m, each) = (asked.wanted.len(), asked.each());
        let head = m.next_multiple_of(2);
        let mut words = Vec::new();
        self.gpu.read(&[(buffer, 0, 4 * (head + 2 * m * each))], |bytes| {
            words.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
        })?;
        let (counts, pairs) = words.split_at(head);
        if counts[..m].iter().any(|count| *count as usize > ROOM) {
            return Ok(false);
        }
        let tokens = pairs.as_chunks::<2>().0.chunks(each).zip(counts).zip(&asked.wanted);
        for (token, ((pairs, count), [k, also])) in tokens.enumerate() {
            take(token, &pairs[..(*count).min(k + also) as usize])?;
        }
        Ok(true)
    }

    /// Enters a token's logits.
    pub(crate) fn push_list(
        &self,
        entries: &mut Vec<(u32, f32)>,
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        entries.sort_unstable_by_key(|(id, _)| *id);
        entries.dedup_by_key(|(id, _)| *id);
        let (ids, values) = (out.ids.len(), out.values.len());
        self.memory.grow(&mut out.ids, ids + entries.len())?;
        self.memory.grow(&mut out.values, values + entries.len())?;
        let places = out.ids[ids..].iter_mut().zip(&mut out.values[values..]);
        places.zip(entries).for_each(|((id, value), entry)| (*id, *value) = *entry);
        out.rows.push((ids..out.ids.len(), values..out.values.len()));
        Ok(())
    }
}
