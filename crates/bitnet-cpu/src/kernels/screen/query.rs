//! The vector that rows are scored against, in int8.

use crate::memory::{OutOfMemory, Scratch};

/// Elements that share a scale: a block of `Q6_K`.
pub(super) const BLOCK: usize = 256;

/// One token's vector.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "others' instructions take signed codes"))]
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    /// `[blocks * 256]`, padded with zeros.
    pub(super) z: &'a [i8],
    /// `[blocks]`: what a block's integers are multiplied with.
    pub(super) scales: &'a [f32],
    /// `[blocks]`: the sums of sixteen neighbouring elements of `z`, negative, for codes that are 32 too large.
    pub(super) sums: &'a [[i16; BLOCK / 16]],
    /// `[blocks]`: 128 times the sums of what meets in one of sixteen lanes of four bytes, for codes that are 128 too large.
    pub(super) lanes: &'a [[i32; 16]],
    /// At least the vector's norm.
    pub(super) norm: f32,
    /// At least the norm of what `z` misses, and what rounding adds to a row's error per unit of its norm.
    pub(super) miss: f32,
}

/// Vectors of several tokens: what a [`Query`] has, token after token.
pub(super) struct Queries<'a> {
    /// Of a token.
    blocks: usize,
    z: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [[i16; BLOCK / 16]],
    lanes: &'a mut [[i32; 16]],
    /// Norm and miss.
    norms: &'a mut [[f32; 2]],
}

impl<'a> Queries<'a> {
    /// Room for the vectors of so many tokens, of `cols` elements.
    pub(super) fn new(tokens: usize, cols: usize, scratch: &'a Scratch<'_>) -> Result<Self, OutOfMemory> {
        let blocks = cols.div_ceil(BLOCK);
        Ok(Self {
            blocks,
            z: scratch.buffer(tokens * blocks * BLOCK)?,
            scales: scratch.buffer(tokens * blocks)?,
            sums: scratch.buffer(tokens * blocks)?,
            lanes: scratch.buffer(tokens * blocks)?,
            norms: scratch.buffer(tokens)?,
        })
    }

    /// That of a token.
    pub(super) fn get(&self, token: usize) -> Query<'_> {
        let blocks = token * self.blocks..(token + 1) * self.blocks;
        let [norm, miss] = self.norms[token];
        Query {
            z: &self.z[blocks.start * BLOCK..blocks.end * BLOCK],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks.clone()],
            lanes: &self.lanes[blocks],
            norm,
            miss,
        }
    }

    /// Takes over a token's vector; false when it holds NaN, an infinity, or numbers of extreme size.
    pub(super) fn set(&mut self, token: usize, x: &[f32]) -> bool {
        let blocks = token * self.blocks..(token + 1) * self.blocks;
        let z = &mut self.z[blocks.start * BLOCK..blocks.end * BLOCK];
        z.fill(0);
        let of_blocks = self.scales[blocks.clone()]
            .iter_mut()
            .zip(&mut self.sums[blocks.clone()])
            .zip(&mut self.lanes[blocks]);
        let (mut norm, mut miss) = (0.0f64, 0.0f64);
        let blocks = x.chunks(BLOCK).zip(z.chunks_exact_mut(BLOCK));
        for ((x, z), ((scale, sums), lanes)) in blocks.zip(of_blocks) {
            let absmax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            *scale = absmax / 127.0;
            let inverse = if *scale > f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 };
            for (x, z) in x.iter().zip(&mut *z) {
                *z = (x * inverse).round_ties_even() as i8;
                let r = f64::from(*x) - f64::from(*z) * f64::from(*scale);
                norm += f64::from(*x) * f64::from(*x);
                miss += r * r;
            }
            for (sum, z) in sums.iter_mut().zip(z.as_chunks::<16>().0) {
                *sum = -z.iter().map(|z| i16::from(*z)).sum::<i16>();
            }
            *lanes = [0; 16];
            for (i, z) in z.iter().enumerate() {
                lanes[i % 64 / 4] += 128 * i32::from(*z);
            }
        }
        let (norm, miss) = (norm.sqrt(), miss.sqrt());
        // A lane of an exact product is a chain of n/16 fused steps and four additions; a score is a chain of as many blocks,
        // with a handful of operations each. Every operation is off by 2^-24 of what was summed so far, which no sum of
        // magnitudes, and so no product of norms, falls short of. Numbers too small for a normal f32 add 2^-149 each.
        let steps = (x.len() / 16 + 4 * self.blocks + 64) as f64;
        let rounding = steps * f64::from(f32::EPSILON) * (norm + miss) + steps * 1e-40;
        self.norms[token] = [up(norm), up(miss + rounding)];
        norm < 1e30
    }
}

/// The next f32 above, with room for a few more operations.
pub(super) fn up(x: f64) -> f32 {
    ((x * (1.0 + 1e-6)) as f32).next_up()
}
