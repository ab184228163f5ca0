//! Memory that lives for a step.

#[cfg(test)]
mod tests;

use crate::error::OutOfMemory;
use crate::pool::{Piece, Pool};
use crate::source::{ALIGN, Host, HostBlock, Source};
use crate::tag::Tag;
use bytemuck::Pod;
use std::cell::{Cell, RefCell};

/// The least that is taken from the pool at once.
const LEAST: usize = 64 << 10;

/// Memory for one step after the other: what a [`Step`] hands out comes back whole when it ends, without a word for each buffer.
///
/// A region takes more from the pool as steps need it, and makes one piece of all of it before the next one, so that from the second
/// step on a buffer is an addition.
///
/// ```
/// use bitnet_memory::{Pool, Profile, Region};
/// let pool = Pool::new(Profile::Training);
/// let mut region = Region::default();
/// for _ in 0..3 {
///     let step = region.begin(&pool);
///     let (x, y) = (step.zeroed::<f32>(100)?, step.zeroed::<f32>(100)?);
///     x[0] = 1.0;
///     y.copy_from_slice(x);
/// }
/// # Ok::<(), bitnet_memory::OutOfMemory>(())
/// ```
///
/// No buffer outlives its step:
///
/// ```compile_fail,E0505
/// use bitnet_memory::{Pool, Profile, Region};
/// let pool = Pool::new(Profile::Training);
/// let mut region = Region::default();
/// let step = region.begin(&pool);
/// let x = step.zeroed::<f32>(100).unwrap();
/// drop(step);
/// x[0] = 1.0;
/// ```
pub struct Region<S: Source<Block: HostBlock> = Host> {
    pieces: Vec<Piece<S>>,
    tag: Tag,
}

/// A step: hands out memory until it ends.
pub struct Step<'r, S: Source<Block: HostBlock> = Host> {
    region: RefCell<&'r mut Region<S>>,
    pool: &'r Pool<S>,
    /// Bytes of the last piece that are handed out.
    used: Cell<usize>,
}

impl<S: Source<Block: HostBlock>> Default for Region<S> {
    fn default() -> Self {
        Self::new(Tag::Scratch)
    }
}

impl<S: Source<Block: HostBlock>> Region<S> {
    /// Nothing yet, for what the tag says.
    pub fn new(tag: Tag) -> Self {
        Self { pieces: Vec::new(), tag }
    }

    /// Bytes that it holds.
    pub fn capacity_bytes(&self) -> usize {
        self.pieces.iter().map(Piece::capacity_bytes).sum()
    }

    /// Begins a step with all of the memory free.
    pub fn begin<'r>(&'r mut self, pool: &'r Pool<S>) -> Step<'r, S> {
        if self.pieces.len() > 1 {
            let bytes = self.capacity_bytes();
            self.pieces.clear();
            // Should there be no such piece, the step finds out what there is.
            self.pieces.extend(pool.piece(bytes, self.tag));
        }
        Step { region: RefCell::new(self), pool, used: Cell::new(0) }
    }
}

impl<S: Source<Block: HostBlock>> Step<'_, S> {
    /// `len` elements whose values are what was there before: for who writes them all.
    #[allow(clippy::mut_from_ref, reason = "no two calls give the same memory")]
    pub fn buffer<T: Pod>(&self, len: usize) -> Result<&mut [T], OutOfMemory> {
        const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
        let mut region = self.region.borrow_mut();
        let no_memory = OutOfMemory { bytes: len.saturating_mul(size_of::<T>()), tag: region.tag };
        let bytes = no_memory.bytes.checked_next_multiple_of(ALIGN).ok_or(no_memory)?;
        let room = region.pieces.last().map_or(0, |piece| piece.capacity_bytes() - self.used.get());
        if bytes > room || region.pieces.is_empty() {
            let twice = region.pieces.last().map_or(LEAST, |piece| 2 * piece.capacity_bytes());
            let tag = region.tag;
            let piece = self.pool.piece(bytes.max(twice), tag).or_else(|_| self.pool.piece(bytes, tag))?;
            region.pieces.push(piece);
            self.used.set(0);
        }
        let piece = region.pieces.last().expect("a piece, since there is room");
        // SAFETY: the piece has `bytes` bytes behind those that are handed out, which are initialized, aligned to `ALIGN` as all lengths
        // are multiples of it, and any bytes are elements. They belong to this slice until the step ends: `used` only grows while the
        // piece is the last one, earlier pieces are not looked at again, and none is dropped before `begin` borrows the region anew.
        let buffer = unsafe {
            std::slice::from_raw_parts_mut(piece.start().add(self.used.get()).cast::<T>().as_ptr(), len)
        };
        self.used.set(self.used.get() + bytes);
        if self.pool.is_debug() {
            bytemuck::cast_slice_mut::<T, u8>(buffer).fill(0xff);
        }
        Ok(buffer)
    }

    /// `len` elements, all zero.
    #[allow(clippy::mut_from_ref, reason = "no two calls give the same memory")]
    pub fn zeroed<T: Pod>(&self, len: usize) -> Result<&mut [T], OutOfMemory> {
        let buffer = self.buffer(len)?;
        bytemuck::cast_slice_mut::<T, u8>(buffer).fill(0);
        Ok(buffer)
    }
}
