//! Scores of many tokens on AMX: 64 rows times sixteen tokens times 256 columns at a time.
//!
//! Rows of `Q6_K` become bytes first, with one scale for every 256: `round(q * sc / 32)`. What that misses is part of their bound
//! ([`coarse_code`](super::coarse_code)), so more rows are computed than one token's finer scores would let through; reading the rows once for all
//! tokens is worth that.

use super::query::{BLOCK, Query};
use super::{GROUP, ROUND_UP};
use crate::Isa;
use crate::kernels::ternary::{Registers, Shapes};
use crate::layout::Line;
use crate::memory::{OutOfMemory, Scratch};
use std::arch::asm;
use std::arch::x86_64::*;

/// Tokens that are scored side by side: a register's columns of four bytes.
pub(super) const TOKENS: usize = 16;
/// Registers of 64 columns that a block takes.
const STEPS: usize = BLOCK / 64;
/// Lines of a register.
const LINES: usize = 16;
/// Rows of a register.
const ROWS: usize = 16;

/// What a step of [`coarse_code`](super::coarse_code) is worth, in units of the block's own scale.
pub(super) const COARSE: f32 = 32.0;

/// Up to [`TOKENS`] tokens, arranged for the registers.
pub(super) struct Tokens<'a> {
    /// `[blocks][steps][16 lines][tokens][4]`.
    z: &'a [Line],
    /// `[blocks][tokens]`: what a block's integers are multiplied with.
    scales: &'a [[f32; TOKENS]],
    /// `[blocks][tokens]`: 128 times the sum of a block of `z`, for codes that are 128 too large.
    excess: &'a [[i32; TOKENS]],
    /// `[tokens]`: see [`Query`].
    norm: [f32; TOKENS],
    miss: [f32; TOKENS],
}

impl<'a> Tokens<'a> {
    /// Vectors of `cols` elements.
    pub(super) fn new<'q>(
        queries: impl Iterator<Item = Query<'q>>,
        cols: usize,
        scratch: &'a Scratch<'_>,
    ) -> Result<Self, OutOfMemory> {
        let blocks = cols.div_ceil(BLOCK);
        let z = scratch.zeroed::<Line>(blocks * STEPS * LINES)?;
        let (scales, excess) = (scratch.zeroed(blocks)?, scratch.zeroed(blocks)?);
        let (mut norm, mut miss) = ([0.0; TOKENS], [0.0; TOKENS]);
        for (t, query) in queries.enumerate() {
            (norm[t], miss[t]) = (query.norm, query.miss);
            for (z, line) in query.z.as_chunks::<4>().0.iter().zip(&mut *z) {
                line.0[4 * t..4 * t + 4].copy_from_slice(&z.map(|z| z as u8));
            }
            for (b, z) in query.z.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (scales, excess): (&mut [f32; TOKENS], &mut [i32; TOKENS]) =
                    (&mut scales[b], &mut excess[b]);
                scales[t] = query.scales[b];
                excess[t] = 128 * z.iter().map(|z| i32::from(*z)).sum::<i32>();
            }
        }
        Ok(Self { z, scales, excess, norm, miss })
    }
}

/// Scores of a group's rows for the tokens of a chunk: `[rows][tokens]`.
pub(super) type GroupScores = [[f32; TOKENS]; GROUP];

/// The rows of a group, and what comes behind them in memory.
pub(super) enum Rows<'a> {
    /// `Q6_K` blocks, `[GROUP, row_bytes]`.
    Q6K { rows: &'a [u8], row_bytes: usize },
    /// Codes plus 128, `[GROUP, width]`, and a scale for each row.
    Bytes { rows: &'a [Line], width: usize, scales: &'a [f32] },
}

/// What a thread uses for a group.
pub(super) struct Local<'a> {
    codes: [[u8; BLOCK]; GROUP],
    sums: [[i32; TOKENS]; GROUP],
    scales: [f32; GROUP],
    /// By chunks of tokens.
    pub(super) scores: &'a mut [GroupScores],
    registers: Registers,
}

impl<'a> Local<'a> {
    pub(super) fn new(scores: &'a mut [GroupScores]) -> Self {
        Self {
            codes: [[0; BLOCK]; GROUP],
            sums: [[0; TOKENS]; GROUP],
            scales: [0.0; GROUP],
            scores,
            registers: Registers::new(&Shapes::full()),
        }
    }

    /// Scores of a group's rows for all tokens.
    pub(super) fn score(&mut self, rows: &Rows<'_>, chunks: &[Tokens<'_>]) {
        self.scores.iter_mut().for_each(|scores| *scores = [[0.0; TOKENS]; GROUP]);
        let blocks = chunks.first().map_or(0, |tokens| tokens.scales.len());
        for block in 0..blocks {
            let (codes, stride) = match rows {
                Rows::Q6K { rows, row_bytes } => {
                    assert_eq!((rows.len(), *row_bytes), (GROUP * row_bytes, blocks * 210));
                    // SAFETY: registers exist only where AMX does, and with it AVX-512.
                    unsafe { recode(rows, *row_bytes, block, &mut self.codes, &mut self.scales) };
                    (self.codes.as_ptr().cast::<u8>(), BLOCK)
                }
                Rows::Bytes { rows, width, scales } => {
                    assert_eq!((rows.len(), *width), (GROUP * width, blocks * STEPS));
                    self.scales.copy_from_slice(scales);
                    for line in &rows[block * GROUP * STEPS..][..GROUP * STEPS] {
                        // The next group arrives meanwhile; a prefetch of an address outside of the rows does nothing.
                        // SAFETY: SSE is part of the architecture.
                        unsafe {
                            _mm_prefetch::<_MM_HINT_T1>(
                                std::ptr::from_ref(line).wrapping_add(rows.len()).cast(),
                            );
                        }
                    }
                    (rows[block * STEPS..].as_ptr().cast::<u8>(), width * size_of::<Line>())
                }
            };
            for (tokens, scores) in chunks.iter().zip(&mut *self.scores) {
                let z = &tokens.z[block * STEPS * LINES..][..STEPS * LINES];
                // SAFETY: the assertions above have seen that 64 rows have 256 codes each behind `codes`, and `z` has as many lines as
                // registers read.
                unsafe { multiply(&self.registers, codes, stride, z, &mut self.sums) };
                let (excess, scale) = (&tokens.excess[block], &tokens.scales[block]);
                // SAFETY: as for recoding.
                unsafe { add(&self.sums, excess, scale, &self.scales, scores) };
            }
        }
    }

    /// The largest lower and the largest upper bound of a group's rows for the tokens of a chunk; `norms` and `errors` are those of
    /// [`super::Screen`].
    pub(super) fn extremes(
        &self,
        chunk: usize,
        tokens: &Tokens<'_>,
        norms: &[f32],
        errors: &[f32],
    ) -> [[f32; TOKENS]; 2] {
        // SAFETY: as for recoding.
        unsafe { extremes(&self.scores[chunk], tokens, norms, errors) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(x: __m512, out: &mut [f32; 16]) {
    // SAFETY: `out` is 64 writable bytes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(x: &[i32; 16]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn extremes(
    scores: &[[f32; TOKENS]; GROUP],
    tokens: &Tokens<'_>,
    norms: &[f32],
    errors: &[f32],
) -> [[f32; TOKENS]; 2] {
    let (norm, miss) = (load_f32(&tokens.norm), load_f32(&tokens.miss));
    let mut lower = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut upper = lower;
    for ((score, w), e) in scores.iter().zip(norms).zip(errors) {
        let (score, codes) = (load_f32(score), _mm512_mul_ps(_mm512_set1_ps(w + e), miss));
        let bound = _mm512_add_ps(codes, _mm512_mul_ps(_mm512_set1_ps(*e), norm));
        let bound = _mm512_mul_ps(bound, _mm512_set1_ps(ROUND_UP));
        lower = _mm512_max_ps(lower, _mm512_sub_ps(score, bound));
        upper = _mm512_max_ps(upper, _mm512_add_ps(score, bound));
    }
    let mut out = [[0.0; TOKENS]; 2];
    store_f32(lower, &mut out[0]);
    store_f32(upper, &mut out[1]);
    out
}

/// Adds the integers of a block to the scores.
#[target_feature(enable = "avx512f,avx512bw")]
fn add(
    sums: &[[i32; TOKENS]; GROUP],
    excess: &[i32; TOKENS],
    scale: &[f32; TOKENS],
    rows: &[f32; GROUP],
    scores: &mut [[f32; TOKENS]; GROUP],
) {
    let (excess, scale) = (load_i32(excess), load_f32(scale));
    for ((sums, row), score) in sums.iter().zip(rows).zip(scores) {
        let integers = _mm512_cvtepi32_ps(_mm512_sub_epi32(load_i32(sums), excess));
        let product = _mm512_mul_ps(integers, scale);
        store_f32(_mm512_fmadd_ps(product, _mm512_set1_ps(*row), load_f32(score)), score);
    }
}

/// The codes of a block of 64 rows, and what a step of them is worth.
#[target_feature(enable = "avx512f,avx512bw,avx2,f16c")]
fn recode(
    rows: &[u8],
    row_bytes: usize,
    block: usize,
    codes: &mut [[u8; BLOCK]; GROUP],
    scales: &mut [f32; GROUP],
) {
    let (nibble, pair, zero) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30), _mm512_setzero_si512());
    let ups = _mm512_inserti64x4::<1>(_mm512_set1_epi16(4), _mm256_set1_epi16(2));
    let downs = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(2));
    let (middle, bias) = (_mm512_set1_epi16(32 << 8), _mm512_set1_epi8(-128));
    // Word `i` of a vector belongs to the sixteen numbers `i / 8`.
    let eighth = _mm512_set_epi16(
        3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
    );
    for (r, (row, codes)) in rows.chunks_exact(row_bytes).zip(codes).enumerate() {
        let raw: &[u8; 210] = row[210 * block..][..210].as_array().expect("a row has whole blocks");
        // Group after group, all of the next one is asked for while this one is scored.
        let ahead = rows.as_ptr().wrapping_add(rows.len() + (block * GROUP + r) * 210);
        for line in 0..4 {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
        }
        // SAFETY: `raw` has sixteen scales from byte 192 on.
        let levels = unsafe { _mm_loadu_si128(raw.as_ptr().add(192).cast()) };
        // Times 4: with codes times 256, the upper half of a product doubled is theirs divided by 32.
        let levels = _mm512_castsi256_si512(_mm256_slli_epi16::<2>(_mm256_cvtepi8_epi16(levels)));
        for half in 0..2 {
            // SAFETY: 64 bytes from 64 or 0 on, and 32 from 128 or 160 on, lie inside of the block.
            let (low, high) = unsafe {
                (
                    _mm512_loadu_si512(raw.as_ptr().add(64 * half).cast()),
                    _mm256_loadu_si256(raw.as_ptr().add(128 + 32 * half).cast()),
                )
            };
            let high = _mm512_broadcast_i64x4(high);
            // Shifts of 16-bit words: what crosses into the other byte is masked away.
            let up = _mm512_and_si512(_mm512_sllv_epi16(high, ups), pair);
            let down = _mm512_and_si512(_mm512_srlv_epi16(high, downs), pair);
            let first = _mm512_or_si512(_mm512_and_si512(low, nibble), up);
            let second = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), down);
            for (i, q) in [first, second].into_iter().enumerate() {
                let part = 2 * half + i;
                let level = _mm512_permutexvar_epi16(
                    _mm512_add_epi16(eighth, _mm512_set1_epi16(4 * part as i16)),
                    levels,
                );
                let left = _mm512_sub_epi16(_mm512_unpacklo_epi8(zero, q), middle);
                let right = _mm512_sub_epi16(_mm512_unpackhi_epi8(zero, q), middle);
                let coarse =
                    _mm512_packs_epi16(_mm512_mulhrs_epi16(left, level), _mm512_mulhrs_epi16(right, level));
                // SAFETY: `codes` has 64 bytes for each of four parts.
                unsafe {
                    _mm512_storeu_si512(
                        codes.as_mut_ptr().add(64 * part).cast(),
                        _mm512_xor_si512(coarse, bias),
                    );
                }
            }
        }
        let d = i32::from(u16::from_le_bytes([raw[208], raw[209]]));
        scales[r] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(d))) * COARSE;
    }
}

/// `sums[row][token] = sum of code * z` over a block, codes being unsigned.
///
/// # Safety
/// From `codes` on, 64 rows with 256 readable bytes each begin every `stride` bytes; `z` has 64 lines.
#[inline]
unsafe fn multiply(
    _registers: &Registers,
    codes: *const u8,
    stride: usize,
    z: &[Line],
    sums: &mut [[i32; TOKENS]; GROUP],
) {
    // SAFETY: the caller's promise; a sum takes 64 bytes, and sixteen of them a register. All registers have sixteen rows of 64 bytes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{z} + {line}*1]",
            "tileloadd tmm5, [{a} + {stride}*1]",
            "tdpbusd tmm0, tmm5, tmm4",
            "tileloadd tmm6, [{b} + {stride}*1]",
            "tdpbusd tmm1, tmm6, tmm4",
            "tileloadd tmm7, [{c} + {stride}*1]",
            "tdpbusd tmm2, tmm7, tmm4",
            "tileloadd tmm5, [{d} + {stride}*1]",
            "tdpbusd tmm3, tmm5, tmm4",
            "add {z}, 1024",
            "add {a}, 64",
            "add {b}, 64",
            "add {c}, 64",
            "add {d}, 64",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {line}*1], tmm0",
            "add {out}, 1024",
            "tilestored [{out} + {line}*1], tmm1",
            "add {out}, 1024",
            "tilestored [{out} + {line}*1], tmm2",
            "add {out}, 1024",
            "tilestored [{out} + {line}*1], tmm3",
            z = inout(reg) z.as_ptr() => _,
            a = inout(reg) codes => _,
            b = inout(reg) codes.wrapping_add(ROWS * stride) => _,
            c = inout(reg) codes.wrapping_add(2 * ROWS * stride) => _,
            d = inout(reg) codes.wrapping_add(3 * ROWS * stride) => _,
            stride = in(reg) stride,
            line = in(reg) size_of::<Line>(),
            steps = inout(reg) STEPS => _,
            out = inout(reg) sums.as_mut_ptr() => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Whether many tokens can be scored at once.
pub(super) fn is_there(isa: Isa) -> bool {
    isa.includes(Isa::Amx)
}
