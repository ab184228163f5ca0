//! Models of the hub, opened without waiting.

use crate::{Model, OpenError, OpenOptions};
use bitnet_hub::{Cached, Event, Hub, HubError, Reference, Task};

/// Why a model of the hub could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubOpenError {
    /// It could not be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// It was fetched, and cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A model, and its place in the cache, which stays for as long as this lives.
pub struct HubModel {
    /// The model.
    pub model: Model,
    /// Where its files lie, and of which commit they are.
    pub cached: Cached,
}

/// What happens until a model of the hub can be used.
#[derive(Clone, Debug)]
pub enum Progress {
    /// It is being fetched.
    Download(Event),
    /// It is being loaded: layers that are ready, and all.
    Layers(usize, usize),
}

/// Opens a model of the hub: from the cache, which is filled first where it lacks it. The revision is the reference's own.
///
/// The future works with any executor. Work begins at once, on a thread; dropping the future cancels it.
///
/// ```no_run
/// use bitnet_hub::{Hub, Settings};
/// use bitnet_inference::{OpenOptions, load_model_from_hub};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let hub = Hub::new(Settings::from_env(None)?);
/// let reference = "microsoft/bitnet-b1.58-2B-4T-gguf@main".parse()?;
/// let loaded = load_model_from_hub(&hub, &reference, OpenOptions::default(), |p| println!("{p:?}")).await?;
/// println!("{} layers of {}", loaded.model.config().layers, loaded.cached.commit);
/// # Ok(())
/// # }
/// ```
pub fn load_model_from_hub(
    hub: &Hub,
    reference: &Reference,
    options: OpenOptions,
    progress: impl Fn(Progress) + Sync + Send + 'static,
) -> Task<Result<HubModel, HubOpenError>> {
    let (hub, reference) = (hub.clone(), reference.clone());
    Task::begin(move |cancel| {
        let cached = hub.obtain(&reference, &|event| progress(Progress::Download(event)), cancel)?;
        let model =
            Model::open(&cached.path, &options, &mut |done, all| progress(Progress::Layers(done, all)))?;
        Ok(HubModel { model, cached })
    })
}
