//! Where the toolkit's memory comes from.
//!
//! This crate knows [sources](Source) of memory (the heap, maps of pages, in time devices) and what lies between them and whoever
//! computes. It knows no tensor, no model and no other crate of the toolkit, prints nothing and reads no environment.
//!
//! ```
//! use bitnet_memory::{Block, Pages, Source};
//! let block = Pages::default().allocate(1 << 20).expect("a megabyte");
//! assert!(block.len_bytes() >= 1 << 20);
//! ```

mod arena;
mod error;
mod pressure;
mod source;
mod tag;

pub use arena::{
    Arena, ArenaError, ArenaOptions, Budget, Defragmenter, Fragmentation, Maintenance, Pinned, Placement,
    Read, Relocatable, Write,
};
pub use error::OutOfMemory;
pub use pressure::{
    DeviceMemory, Freed, Level, Limit, LimitKind, Monitor, MonitorOptions, Need, Pressure, Readings,
    Responses, Shortage, Stage, Stalls, System, Threshold, Thresholds,
};
pub use source::{ALIGN, Block, Failing, Heap, HeapBlock, HostBlock, Limited, Pages, PagesBlock, Source};
pub use tag::Tag;
