//! Where the toolkit's memory comes from.
//!
//! This crate knows [sources](Source) of memory (the heap, maps of pages, in time devices), the [`Pool`] between them and whoever
//! computes, an [`Arena`] whose blocks may move, and how short memory is ([`Monitor`]). It knows no tensor, no model and no other crate of the toolkit, prints nothing and reads no environment.
//!
//! ```
//! use bitnet_memory::{Pool, Profile, Tag};
//! let pool = Pool::new(Profile::Adaptive);
//! let x = pool.zeroed::<f32>(1 << 20, Tag::Activations)?;
//! assert_eq!((x.len(), x.as_ptr() as usize % bitnet_memory::ALIGN), (1 << 20, 0));
//! # Ok::<(), bitnet_memory::OutOfMemory>(())
//! ```

mod arena;
mod buffer;
mod error;
mod graph;
mod pool;
mod pressure;
mod source;
mod step;
mod tag;
mod track;

pub use arena::{
    Arena, ArenaError, ArenaOptions, Budget, Defragmenter, Fragmentation, Maintenance, Pinned, Placement,
    Read, Relocatable, Write,
};
pub use buffer::Buffer;
pub use error::OutOfMemory;
pub use graph::{Graph, NodeId};
pub use pool::{
    Config, Decision, DevicePool, DeviceSource, Learned, LearnedClass, Piece, Pool, Profile, Release, Tier,
};
pub use pressure::{
    DeviceMemory, DeviceUsage, Freed, Level, Limit, LimitKind, Monitor, MonitorOptions, Need, Pressure,
    Readings, Responses, Shortage, Stage, Stalls, System, Threshold, Thresholds,
};
pub use source::{
    ALIGN, AnyBlock, Block, Failing, Heap, HeapBlock, Host, HostBlock, Limited, Pages, PagesBlock, Resident,
    Source,
};
pub use step::{Region, Step};
pub use tag::Tag;
pub use track::{ClassUse, Lifetimes, LivePiece, Snapshot, TagUse, Tracking};
