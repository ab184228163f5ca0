//! The Hugging Face hub: models and files of data sets by name, the cache that all of the hub's clients share, credentials.
//!
//! It knows HTTP, the cache's folders and which files a model is made of. It does not know what is in those files.
//!
//! ```no_run
//! use bitnet_hub::{Cancel, Hub, Patterns, Reference, Settings};
//! # fn main() -> Result<(), bitnet_hub::HubError> {
//! let hub = Hub::new(Settings::from_env(None)?);
//! let reference: Reference = "microsoft/bitnet-b1.58-2B-4T-gguf".parse()?;
//! let model = hub.pull(&reference, &Patterns::default(), &|event| eprintln!("{event:?}"), &Cancel::new())?;
//! println!("{} of commit {}", model.path.display(), model.commit);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod cache;
mod cancel;
mod download;
mod error;
mod event;
mod http;
mod partial;
mod pull;
mod reference;
mod remove;
mod scan;
mod select;
mod settings;
mod task;
pub mod wire;

pub use cache::{Lease, Origin, snapshot_of};
pub use cancel::Cancel;
pub use error::HubError;
pub use event::{Event, Events, PlannedFile};
pub use pull::Cached;
pub use reference::{MAIN, Reference, RepoId, RepoKind};
pub use remove::{PruneOptions, Removed};
pub use scan::{CacheStats, CachedFile, CachedSnapshot};
pub use select::{Patterns, Place, Selection, by_patterns, select};
pub use settings::{ENDPOINT, Settings, Token, checked_endpoint};
pub use task::Task;

/// The hub, and the cache on this machine. A clone shares its connections.
#[derive(Clone)]
pub struct Hub {
    client: http::Client,
}

impl Hub {
    /// A hub; nothing is asked and nothing made yet.
    pub fn new(settings: Settings) -> Self {
        Self { client: http::Client::new(&settings) }
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        self.client.settings()
    }

    /// Whether the hub answers: asks it for the name of a model.
    ///
    /// # Errors
    /// Why it does not.
    pub fn reach(&self) -> Result<(), HubError> {
        let url = format!("{}/api/models?limit=1", self.settings().endpoint);
        self.client.get(&url, &|_| {}, &Cancel::new()).map(drop)
    }
}
