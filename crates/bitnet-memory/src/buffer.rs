//! Numbers in memory of a pool.

use crate::error::OutOfMemory;
use crate::pool::{Piece, Pool, Release};
use crate::source::{ALIGN, Block, Host, HostBlock, Source};
use crate::tag::Tag;
use bytemuck::Pod;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// `len` elements of a type that any bytes are, aligned to [`ALIGN`] bytes; returns to its pool when dropped. Shared, it is an
/// `Arc<Buffer<T>>`.
///
/// ```
/// use bitnet_memory::{Pool, Profile, Tag};
/// let pool = Pool::new(Profile::Inference);
/// let mut x = pool.zeroed::<f32>(3, Tag::Activations)?;
/// x.copy_from_slice(&[1.0, 2.0, 3.0]);
/// pool.fit(&mut x, 2)?; // Shorter: in the same place.
/// assert_eq!(*x, [1.0, 2.0]);
/// pool.grow(&mut x, 1000)?; // Longer: somewhere else, with what there was.
/// assert_eq!(x[..2], [1.0, 2.0]);
/// # Ok::<(), bitnet_memory::OutOfMemory>(())
/// ```
pub struct Buffer<T: Pod, S: Source<Block: HostBlock> = Host> {
    start: NonNull<T>,
    len: usize,
    /// `None` for a buffer of no elements that never had a pool.
    piece: Option<Piece<S>>,
}

// SAFETY: it owns its elements, which are plain data; a piece goes from thread to thread.
unsafe impl<T: Pod + Send, S: Source<Block: HostBlock>> Send for Buffer<T, S> {}
// SAFETY: as above; sharing gives shared slices.
unsafe impl<T: Pod + Sync, S: Source<Block: HostBlock>> Sync for Buffer<T, S> {}

impl<T: Pod, S: Source<Block: HostBlock>> Buffer<T, S> {
    /// `piece` has room for `len` elements.
    fn new(piece: Piece<S>, len: usize) -> Self {
        const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
        assert!(len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= piece.capacity_bytes()));
        Self { start: piece.start().cast(), len, piece: Some(piece) }
    }

    /// Elements there is room for without another piece of memory.
    pub fn capacity(&self) -> usize {
        self.piece.as_ref().map_or(0, |piece| piece.capacity_bytes() / size_of::<T>())
    }

    /// Gives the pages that lie in a range of elements back to the system, where it takes them one by one; tells how many bytes. They are
    /// zero until they are written again. The pool counts them as held all the while.
    pub fn discard(&mut self, range: Range<usize>) -> usize {
        let Some(piece) = self.piece.as_ref().filter(|_| range.start <= range.end && range.end <= self.len)
        else {
            return 0;
        };
        let bytes = |element: usize| piece.offset() + element * size_of::<T>();
        // SAFETY: the range lies in the buffer's own piece, which is borrowed for writing; zero is an element like any other.
        unsafe { piece.block().discard(bytes(range.start)..bytes(range.end)) }
    }

    /// Makes it empty; its memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Says when the memory goes back to the source once the buffer is dropped.
    pub fn release(&mut self, when: Release) {
        if let Some(piece) = &mut self.piece {
            piece.release(when);
        }
    }
}

impl<S: Source<Block: HostBlock>> Pool<S> {
    /// `len` elements whose values are what was there before: for who writes them all.
    #[inline]
    pub fn buffer<T: Pod>(&self, len: usize, tag: Tag) -> Result<Buffer<T, S>, OutOfMemory> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut buffer = Buffer::new(self.piece(bytes, tag)?, len);
        if self.is_debug() {
            bytemuck::cast_slice_mut::<T, u8>(&mut buffer).fill(0xff);
        }
        Ok(buffer)
    }

    /// `len` elements, all zero. Memory that comes new from the source is so already and is not touched.
    pub fn zeroed<T: Pod>(&self, len: usize, tag: Tag) -> Result<Buffer<T, S>, OutOfMemory> {
        let piece = self.piece(len.saturating_mul(size_of::<T>()), tag)?;
        let is_zero = piece.is_fresh();
        let mut buffer = Buffer::new(piece, len);
        if !is_zero {
            bytemuck::cast_slice_mut::<T, u8>(&mut buffer).fill(0);
        }
        Ok(buffer)
    }

    /// Makes a buffer `len` elements long: where it has room, it stays in its place, and else gets another, whose contents are what was
    /// there before. The tag is that of the buffer; one that never had a pool is for activations.
    #[inline]
    pub fn fit<T: Pod>(&self, buffer: &mut Buffer<T, S>, len: usize) -> Result<(), OutOfMemory> {
        if len <= buffer.capacity() {
            buffer.len = len;
            return Ok(());
        }
        let tag = buffer.piece.as_ref().map_or(Tag::Activations, Piece::tag);
        // The old place first: it may be a part of what is needed.
        *buffer = Buffer::default();
        *buffer = self.buffer(len, tag)?;
        Ok(())
    }

    /// As [`fit`](Self::fit), but the elements that there are stay, also when there is no memory for more.
    pub fn grow<T: Pod>(&self, buffer: &mut Buffer<T, S>, len: usize) -> Result<(), OutOfMemory> {
        if len <= buffer.capacity() {
            buffer.len = len;
            return Ok(());
        }
        let tag = buffer.piece.as_ref().map_or(Tag::Activations, Piece::tag);
        let mut grown = self.buffer(len, tag)?;
        grown[..buffer.len].copy_from_slice(buffer);
        *buffer = grown;
        Ok(())
    }
}

impl<T: Pod, S: Source<Block: HostBlock>> Default for Buffer<T, S> {
    /// No elements, of no pool.
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0, piece: None }
    }
}

impl<T: Pod, S: Source<Block: HostBlock>> Deref for Buffer<T, S> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the piece has room for `len` elements from `start` on, aligned for them (`new`, `fit`), initialized, and any bytes are
        // elements; without a piece there are none.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod, S: Source<Block: HostBlock>> DerefMut for Buffer<T, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the piece is the buffer's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod + fmt::Debug, S: Source<Block: HostBlock>> fmt::Debug for Buffer<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
