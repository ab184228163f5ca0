//! The allocators that are compared, behind one face that costs none of them anything.

use bitnet_memory::{Piece, Pool, Tag};
use std::alloc::{GlobalAlloc, Layout};

/// Something that gives memory and takes it back.
pub trait Allocator {
    /// What it gives.
    type Memory;
    /// So many bytes.
    fn take(&self, bytes: usize) -> Self::Memory;
    /// Takes them back.
    fn put(&self, memory: Self::Memory);
    /// Where they are.
    fn start(memory: &Self::Memory) -> *mut u8;
}

impl Allocator for Pool {
    type Memory = Piece<bitnet_memory::Host>;

    #[inline(always)]
    fn take(&self, bytes: usize) -> Self::Memory {
        self.piece(bytes, Tag::Activations).expect("memory")
    }

    #[inline(always)]
    fn put(&self, memory: Self::Memory) {
        drop(memory);
    }

    fn start(memory: &Self::Memory) -> *mut u8 {
        memory.start().as_ptr()
    }
}

/// An allocator of whole programs. It is asked for 16-byte alignment, as `malloc` is: the 64 of the pool would slow it down.
pub struct Global<A>(pub A);

/// The size and alignment that `bytes` are asked for with.
#[inline(always)]
fn layout(bytes: usize) -> Layout {
    // SAFETY: 16 is a power of two, and no trace has sizes near the largest number.
    unsafe { Layout::from_size_align_unchecked(bytes, 16) }
}

impl<A: GlobalAlloc> Allocator for Global<A> {
    type Memory = (*mut u8, usize);

    #[inline(always)]
    fn take(&self, bytes: usize) -> Self::Memory {
        // SAFETY: traces have no allocations of no bytes.
        let start = unsafe { self.0.alloc(layout(bytes)) };
        assert!(!start.is_null(), "memory");
        (start, bytes)
    }

    #[inline(always)]
    fn put(&self, (start, bytes): Self::Memory) {
        // SAFETY: `take` got it for this layout.
        unsafe { self.0.dealloc(start, layout(bytes)) }
    }

    fn start(memory: &Self::Memory) -> *mut u8 {
        memory.0
    }
}

/// mimalloc by its own `malloc` and `free`: as an allocator of a Rust program it takes the way of aligned memory, which is slower.
pub struct Mimalloc;

impl Allocator for Mimalloc {
    type Memory = *mut u8;

    #[inline(always)]
    fn take(&self, bytes: usize) -> Self::Memory {
        // SAFETY: it may be asked for any size.
        let start = unsafe { libmimalloc_sys::mi_malloc(bytes) };
        assert!(!start.is_null(), "memory");
        start.cast()
    }

    #[inline(always)]
    fn put(&self, start: Self::Memory) {
        // SAFETY: `take` got it.
        unsafe { libmimalloc_sys::mi_free(start.cast()) }
    }

    fn start(memory: &Self::Memory) -> *mut u8 {
        *memory
    }
}

/// What is told of itself: nothing. What a replay costs with it, the replay costs.
pub struct Nothing;

impl Allocator for Nothing {
    type Memory = (*mut u8, usize);

    #[inline(always)]
    fn take(&self, bytes: usize) -> Self::Memory {
        (std::hint::black_box(std::ptr::dangling_mut()), bytes)
    }

    #[inline(always)]
    fn put(&self, memory: Self::Memory) {
        std::hint::black_box(memory);
    }

    fn start(memory: &Self::Memory) -> *mut u8 {
        memory.0
    }
}
