//! Adapters: llama.cpp's route for their scales, and vLLM's for loading and unloading them.

use crate::aside::aside;
use crate::fields::Lora;
use crate::json::Json;
use crate::models::{Success, unknown};
use crate::state::Served;
use crate::{ApiError, Server};
use axum::extract::State;
use bitnet_inference::OpenError;
use bitnet_inference::engine::{AdapterInfo, AdapterUse, OpenedAdapter};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use utoipa::ToSchema;

/// Adapters of a model at once at most: each takes memory.
const MOST: usize = 64;

/// The adapters of a model, each of which is served under a name of its own.
#[derive(Default)]
pub(crate) struct Adapters {
    named: RwLock<Vec<Named>>,
    /// Where those came from that the model was opened with.
    opened: Vec<PathBuf>,
}

struct Named {
    id: u32,
    served: Arc<Served>,
}

impl Adapters {
    /// Those that a model was opened with, under the names of their folders.
    pub fn new(model: &Served, adapters: &[AdapterInfo]) -> Self {
        let name = |path: &Path| path.file_name().map_or_else(|| path.into(), PathBuf::from);
        let named = |a: &AdapterInfo| Named::new(model, a.id, name(&a.path).display().to_string());
        Self {
            named: RwLock::new(adapters.iter().map(named).collect()),
            opened: adapters.iter().map(|a| a.path.clone()).collect(),
        }
    }

    fn read<T>(&self, see: impl FnOnce(&[Named]) -> T) -> T {
        see(&self.named.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Vec<Named>) -> T) -> T {
        change(&mut self.named.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<Arc<Served>> {
        self.read(|all| all.iter().find(|a| a.served.card.id == name).map(|a| Arc::clone(&a.served)))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Served>> {
        self.read(|all| all.iter().map(|a| Arc::clone(&a.served)).collect())
    }

    fn name_of(&self, id: u32) -> Option<String> {
        self.read(|all| all.iter().find(|a| a.id == id).map(|a| a.served.card.id.clone()))
    }

    /// Takes a name away, and gives the number of the adapter that had it.
    fn remove(&self, name: &str) -> Option<u32> {
        self.write(|all| {
            let at = all.iter().position(|a| a.served.card.id == name)?;
            Some(all.remove(at).id)
        })
    }

    /// Serves an adapter of a model under a name.
    fn insert(&self, model: &Served, id: u32, name: String) -> Result<(), ApiError> {
        self.write(|all| {
            check(all, &name)?;
            all.push(Named::new(model, id, name));
            Ok(())
        })
    }

    /// The folder that a path means, if clients may load what is there: an adapter that the model was opened with, or one in the
    /// folder for adapters, which neither dots nor links lead out of.
    fn allowed(&self, path: &Path, folder: Option<&Path>) -> Option<PathBuf> {
        if self.opened.iter().any(|opened| opened == path) {
            return Some(path.to_owned());
        }
        let folder = folder?.canonicalize().ok()?;
        folder.join(path).canonicalize().ok().filter(|path| path.starts_with(&folder))
    }
}

impl Named {
    fn new(model: &Served, id: u32, name: String) -> Self {
        Self { id, served: Arc::new(model.through(id, name)) }
    }
}

/// Refuses a name that is taken, or an adapter too many.
fn check(all: &[Named], name: &str) -> Result<(), ApiError> {
    if all.iter().any(|a| a.served.card.id == name) {
        return Err(taken(name));
    }
    if all.len() >= MOST {
        let message = format!("{MOST} adapters are loaded; no more can be had at once");
        return Err(ApiError::bad(message).with_code("too_many_adapters"));
    }
    Ok(())
}

fn taken(name: &str) -> ApiError {
    let message = format!("{name:?} is the name of a model or an adapter already");
    ApiError { param: Some("lora_name".to_owned()), ..ApiError::bad(message) }.with_code("already_loaded")
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Adapter {
    id: u32,
    /// What requests may say for `model`.
    name: Option<String>,
    path: String,
    scale: f32,
}

/// The adapters of the first model, each with its scale for requests that do not say.
#[utoipa::path(
    get, path = "/lora-adapters", tag = "llama.cpp", responses((status = 200, body = Vec<Adapter>), ApiError)
)]
pub(crate) async fn list(State(server): State<Arc<Server>>) -> Result<axum::Json<Vec<Adapter>>, ApiError> {
    let model = server.named(None)?;
    let adapters = model.worker.with(|engine| engine.adapters().to_vec()).await?;
    let one = |a: &AdapterInfo| Adapter {
        id: a.id,
        name: model.adapters.name_of(a.id),
        path: a.path.display().to_string(),
        scale: a.scale,
    };
    Ok(axum::Json(adapters.iter().map(one).collect()))
}

/// Sets those scales; as in llama.cpp, adapters that are not named get 0.
#[utoipa::path(
    post, path = "/lora-adapters", tag = "llama.cpp", request_body = Vec<Lora>,
    responses((status = 200, body = Success), ApiError)
)]
pub(crate) async fn set(
    State(server): State<Arc<Server>>,
    Json(scales): Json<Vec<Lora>>,
) -> Result<axum::Json<Success>, ApiError> {
    let scales: Vec<AdapterUse> = scales.into_iter().map(AdapterUse::from).collect();
    server.named(None)?.worker.with(move |engine| engine.set_adapter_scales(&scales)).await??;
    Ok(Success::reply())
}

#[derive(Deserialize, ToSchema)]
#[schema(as = LoadAdapterRequest)]
pub(crate) struct Load {
    /// What it is to be called: requests say it for `model`.
    lora_name: String,
    /// Its folder, within the one that the server was given for adapters, or as the server was started with it.
    lora_path: String,
    /// The model it is for; the first one if none is named.
    model: Option<String>,
}

/// Loads an adapter. Requests go through it that name it as their `model` or its number in `lora`.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "vLLM", request_body = Load,
    responses((status = 200, body = Adapter), ApiError)
)]
pub(crate) async fn load(
    State(server): State<Arc<Server>>,
    Json(Load { lora_name: name, lora_path: path, model }): Json<Load>,
) -> Result<axum::Json<Adapter>, ApiError> {
    let _open = server.ticket(None)?;
    let model = server.named(model.as_deref())?;
    if let Some(base) = &model.base {
        return Err(ApiError::field("model", format!("{:?} is an adapter of {base:?}", model.card.id)));
    }
    if name.is_empty() {
        return Err(ApiError::field("lora_name", "an adapter needs a name"));
    }
    if server.models.has(&name) {
        return Err(taken(&name));
    }
    model.adapters.read(|all| check(all, &name))?;
    let Some(folder) = model.adapters.allowed(Path::new(&path), server.options.adapters.as_deref()) else {
        let message =
            format!("{path:?} is no adapter that clients may load; --lora-dir names a folder of such");
        return Err(not_found("lora_path", message));
    };
    let opened = aside(move || Ok(OpenedAdapter::open(&folder)?)).await?;
    // What goes on the engine's thread is done to its end, whether or not the client is still there.
    let given = name.clone();
    let owner = Arc::clone(&model);
    let id = model.worker.with(move |engine| {
        let id = engine.add_adapter(opened, 0.0)?;
        owner.adapters.insert(&owner, id, given).inspect_err(|_| drop(engine.unload_adapter(id)))?;
        Ok::<_, ApiError>(id)
    });
    Ok(axum::Json(Adapter { id: id.await??, name: Some(name), path, scale: 0.0 }))
}

#[derive(Deserialize, ToSchema)]
#[schema(as = UnloadAdapterRequest)]
pub(crate) struct Unload {
    lora_name: String,
}

/// Unloads an adapter. Answers that are made through it are finished first.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "vLLM", request_body = Unload,
    responses((status = 200, body = Success), ApiError)
)]
pub(crate) async fn unload(
    State(server): State<Arc<Server>>,
    Json(Unload { lora_name: name }): Json<Unload>,
) -> Result<axum::Json<Success>, ApiError> {
    let found = |model: Arc<Served>| Some((model.adapters.remove(&name)?, model));
    let Some((id, model)) = server.models.served().into_iter().find_map(found) else {
        return Err(not_found("lora_name", format!("there is no adapter {name:?}")));
    };
    model.worker.with(move |engine| engine.unload_adapter(id)).await??;
    Ok(Success::reply())
}

fn not_found(param: &str, message: String) -> ApiError {
    ApiError { param: Some(param.to_owned()), ..unknown(message, "adapter_not_found") }
}

impl From<OpenError> for ApiError {
    fn from(e: OpenError) -> Self {
        Self { param: Some("lora_path".to_owned()), ..Self::bad(e.to_string()) }.with_code("invalid_adapter")
    }
}
