//! What screening keeps of a matrix's rows.

use super::query::up;
use crate::Isa;
use crate::kernels::dense;
use crate::layout::Line;
use crate::memory::{Buffer, kept};
use crate::pool::{Pool, Shares};
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::{BackendError, DenseMatrix, DenseType};
use bitnet_memory::Tag;
use half::f16;

/// Fewer rows are computed faster than screened.
pub(super) const SMALLEST_HEAD: usize = 4096;

/// Int8 codes of float rows, plus 128, so that they are unsigned.
pub(super) struct ByteRows {
    /// `[rows, width]`.
    pub(super) data: Buffer<Line>,
    /// Cache lines of a row: whole blocks of 256.
    pub(super) width: usize,
    /// `[rows]`.
    pub(super) scales: Buffer<f32>,
}

/// Row norms, and codes where the file's own are not integers.
pub(crate) struct Screen {
    pub(super) codes: Option<ByteRows>,
    /// `[rows]`: at least the norm of a row's codes, scaled.
    pub(super) norms: Buffer<f32>,
    /// `[rows]`: at least the norm of what the codes miss; empty when that is nothing.
    pub(super) errors: Buffer<f32>,
    /// `[rows]`: the same for the coarser codes that many tokens are scored with at once; empty where there are none.
    pub(super) coarse: Buffer<f32>,
    /// The largest of `norms` and `errors` together.
    pub(super) largest: f32,
}

impl Screen {
    /// `None` for types that are read as fast whole: blocks of eight and four bits.
    pub(super) fn new(isa: Isa, pool: &Pool, w: &DenseMatrix) -> Result<Option<Self>, BackendError> {
        let (rows, cols) = (w.rows(), w.cols());
        let copied = match w.dtype() {
            DenseType::Q6_K => false,
            DenseType::F32 | DenseType::F16 | DenseType::BF16 => true,
            _ => return Ok(None),
        };
        let floats = |what| kept::<f32>(pool.memory(), rows, Tag::Weights, what);
        let mut norms = floats("row norms of the head")?;
        let (mut errors, mut coarse, mut codes) = (Buffer::default(), Buffer::default(), None);
        if !copied && super::scores_many(isa) {
            coarse = floats("row norms of the head")?;
        }
        let width = if copied { cols.div_ceil(256) * 4 } else { 0 };
        if copied {
            errors = floats("row norms of the head")?;
            let data = kept(pool.memory(), rows * width, Tag::Weights, "the int8 copy of the head")?;
            codes = Some(ByteRows { data, width, scales: floats("row scales of the head")? });
        }
        let norms_out = Shares::new(&mut norms);
        let errors_out = Shares::new(&mut errors);
        let has_coarse = !coarse.is_empty();
        let coarse_out = Shares::new(&mut coarse);
        let (data_out, scales_out) = match &mut codes {
            Some(c) => (Shares::new(&mut c.data), Shares::new(&mut c.scales)),
            None => (Shares::new(&mut []), Shares::new(&mut [])),
        };
        pool.ranges(rows, 256, &|range| {
            let mut values = vec![0.0; if copied { cols } else { 0 }];
            for row in range {
                // SAFETY: a row is visited once.
                let norm = unsafe { &mut norms_out.slice(row, 1)[0] };
                if !copied {
                    let squares = dispatch(isa, BlockSquares(w.row(row)));
                    *norm = up(squares.codes.sqrt());
                    if has_coarse {
                        // SAFETY: as above.
                        let coarse = unsafe { &mut coarse_out.slice(row, 1)[0] };
                        *coarse = up(squares.missed.sqrt());
                    }
                    continue;
                }
                dense::row(isa, w, row, &mut values);
                // SAFETY: as above.
                let (error, scale, codes) = unsafe {
                    let lines = data_out.slice(row * width, width);
                    (&mut errors_out.slice(row, 1)[0], &mut scales_out.slice(row, 1)[0], lines)
                };
                (*scale, *norm, *error) = dispatch(isa, Encode { values: &values, lines: codes });
            }
        });
        let largest = norms.iter().chain(&*errors).fold(0.0f32, |m, v| m.max(*v)) * 2.0;
        Ok(Some(Self { codes, norms, errors, coarse, largest }))
    }

    /// Bytes it occupies.
    pub(crate) fn len_bytes(&self) -> usize {
        let codes = self.codes.as_ref().map_or(0, |c| size_of_val(&*c.data) + size_of_val(&*c.scales));
        let floats = self.norms.len() + self.errors.len() + self.coarse.len();
        codes + floats * size_of::<f32>()
    }
}

/// Sums of squares of a row of `Q6_K` blocks.
struct Squares {
    /// Of its numbers, which rounding to f32 makes larger by less than `up` has room for.
    codes: f64,
    /// Of what [`super::coarse_code`] misses of them.
    missed: f64,
}

/// [`Squares`] of a row. There is nothing in it but integers, which the compiler keeps in lanes of the instruction set.
struct BlockSquares<'a>(&'a [u8]);

impl Kernel for BlockSquares<'_> {
    type Output = Squares;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> Squares {
        let mut sums = Squares { codes: 0.0, missed: 0.0 };
        for raw in self.0.as_chunks::<210>().0 {
            // A product has 13 bits and is missed by 32 at most, so sixteen squares of either fit.
            let (mut codes, mut missed) = ([0u32; 16], [0i16; 16]);
            for (group, scale) in raw[192..208].iter().enumerate() {
                // Sixteen codes that share a scale: eight such groups in each half of the block.
                let (half, quarter, part) = (group / 8, group % 8 / 2, group % 2 * 16);
                let low: &[u8; 16] =
                    raw[64 * half + 32 * (quarter % 2) + part..].first_chunk().expect("the low digits");
                let high: &[u8; 16] = raw[128 + 32 * half + part..].first_chunk().expect("the high digits");
                let scale = i16::from(*scale as i8);
                for i in 0..16 {
                    let low = i16::from(low[i]) >> (4 * (quarter / 2)) & 15;
                    let high = i16::from(high[i]) >> (2 * quarter) & 3;
                    let product = ((low | high << 4) - 32) * scale;
                    let miss = product - 32 * super::coarse_code(product);
                    missed[i] += miss * miss;
                    codes[i] += (i32::from(product) * i32::from(product)) as u32;
                }
            }
            let d = f64::from(f16::from_le_bytes([raw[208], raw[209]]).to_f32());
            sums.codes += d * d * codes.iter().map(|sum| u64::from(*sum)).sum::<u64>() as f64;
            sums.missed += d * d * missed.iter().map(|sum| i64::from(*sum)).sum::<i64>() as f64;
        }
        sums
    }
}

/// Sum of squares, in lanes that the compiler can keep apart.
#[inline(always)]
fn square_sum(values: &[f32]) -> f64 {
    let (blocks, tail) = values.as_chunks::<16>();
    let mut lanes = [0.0f64; 16];
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
}

/// Makes int8 codes of a row; returns their scale, and the norms of codes and of what they miss.
struct Encode<'a> {
    values: &'a [f32],
    lines: &'a mut [Line],
}

impl Kernel for Encode<'_> {
    type Output = (f32, f32, f32);

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> (f32, f32, f32) {
        let Self { values, lines } = self;
        lines.fill(Line([128; 64]));
        let absmax = values.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
        let scale = absmax / 127.0;
        if scale <= f32::MIN_POSITIVE {
            // Too small to be coded: the whole row is what the codes miss.
            return (0.0, 0.0, up(square_sum(values).sqrt()));
        }
        let inverse = 1.0 / scale;
        let (mut codes, mut missed) = ([0.0f32; 64], [0.0f32; 64]);
        let (mut norm, mut error) = (0.0f64, 0.0f64);
        for (part, line) in values.chunks(64).zip(lines) {
            for (i, v) in part.iter().enumerate() {
                let c = (v * inverse).round_ties_even();
                line.0[i] = (c as i32 + 128) as u8;
                codes[i] = c * scale;
                missed[i] = v - codes[i];
            }
            norm += square_sum(&codes[..part.len()]);
            error += square_sum(&missed[..part.len()]);
        }
        // Products and differences were rounded to f32: each is off by less than 2^-23 of the largest value.
        let rounding = f64::from(absmax) * f64::from(f32::EPSILON) * (values.len() as f64).sqrt();
        (scale, up(norm.sqrt() + rounding), up(error.sqrt() + rounding))
    }
}
