//! The models of a server: which there are, which are loaded, which a request means.

use crate::aside::aside;
use crate::metrics::Metrics;
use crate::options::{ModelCard, Opened};
use crate::state::Served;
use crate::{ApiError, Server};
use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};
use utoipa::ToSchema;

/// Loads a model; run whenever it is needed again. An error is told to whoever asked for it.
pub type Open = dyn Fn() -> Result<Opened, String> + Send + Sync;

/// In the order in which they came: the first one loaded is meant by a request that names none.
#[derive(Default)]
pub(crate) struct Models(RwLock<Vec<Slot>>);

struct Slot {
    id: String,
    open: Option<Arc<Open>>,
    state: State,
    /// Outlives the model, so that counters never go back.
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
enum State {
    Unloaded,
    Loading,
    Loaded(Arc<Served>),
    Failed(String),
}

/// What is known of a model from outside.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelStatus {
    pub id: String,
    pub status: Status,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelState)]
pub(crate) struct Status {
    /// `loaded`, `loading`, `unloaded` or `failed`.
    value: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A model that counts: its card and queue where it is loaded.
pub(crate) type Counted = (String, Arc<Metrics>, Option<Arc<Served>>);

impl Models {
    fn read<T>(&self, see: impl FnOnce(&[Slot]) -> T) -> T {
        see(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Vec<Slot>) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a model, or puts it into the place that was kept for it.
    pub fn put(
        &self,
        id: &str,
        served: impl FnOnce(Arc<Metrics>) -> std::io::Result<Served>,
    ) -> std::io::Result<()> {
        self.write(|slots| {
            let at = slots.iter().position(|slot| slot.id == id).unwrap_or_else(|| {
                let metrics = Arc::new(Metrics::new());
                slots.push(Slot { id: id.to_owned(), open: None, state: State::Loading, metrics });
                slots.len() - 1
            });
            slots[at].state = State::Loaded(Arc::new(served(Arc::clone(&slots[at].metrics))?));
            Ok(())
        })
    }

    /// Says how a model is loaded again.
    fn reopen(&self, id: &str, open: Arc<Open>) {
        self.write(|slots| {
            slots
                .iter_mut()
                .filter(|slot| slot.id == id)
                .for_each(|slot| slot.open = Some(Arc::clone(&open)));
        });
    }

    fn set(&self, id: &str, state: State) {
        self.write(|slots| {
            slots.iter_mut().filter(|slot| slot.id == id).for_each(|slot| slot.state = state.clone())
        });
    }

    /// The model that a name means; no name means the first one loaded.
    pub fn find(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return self.first() };
        self.read(|slots| {
            // Ollama's clients say a version of every model.
            let plain = name.strip_suffix(":latest");
            let slot = slots.iter().find(|slot| slot.id == name || plain == Some(&slot.id));
            match slot.map(|slot| &slot.state) {
                Some(State::Loaded(served)) => Ok(Arc::clone(served)),
                Some(State::Loading) => Err(ApiError::loading()),
                Some(State::Failed(why)) => {
                    let message = format!("the model {name:?} could not be loaded: {why}");
                    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("model_failed"))
                }
                Some(State::Unloaded) => {
                    let message = format!("the model {name:?} is not loaded; POST /models/load loads it");
                    Err(unknown(message, "model_not_loaded"))
                }
                None if slots.is_empty() => Err(ApiError::loading()),
                None => {
                    let ids: Vec<String> = slots.iter().map(|slot| format!("{:?}", slot.id)).collect();
                    let message = format!("there is no model {name:?}; {} is served", ids.join(", "));
                    Err(unknown(message, "model_not_found"))
                }
            }
        })
    }

    fn first(&self) -> Result<Arc<Served>, ApiError> {
        self.read(|slots| {
            let loaded = slots.iter().find_map(|slot| match &slot.state {
                State::Loaded(served) => Some(Arc::clone(served)),
                _ => None,
            });
            loaded.ok_or_else(|| {
                match slots.is_empty() || slots.iter().any(|s| matches!(s.state, State::Loading)) {
                    true => ApiError::loading(),
                    false => ApiError::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "no model is loaded; POST /models/load loads one",
                    )
                    .with_code("model_not_loaded"),
                }
            })
        })
    }

    /// Those that are loaded.
    pub fn loaded(&self) -> Vec<Arc<Served>> {
        self.counted().into_iter().filter_map(|(.., served)| served).collect()
    }

    /// All, with what they have counted.
    pub fn counted(&self) -> Vec<Counted> {
        let one = |slot: &Slot| {
            let served = match &slot.state {
                State::Loaded(served) => Some(Arc::clone(served)),
                _ => None,
            };
            (slot.id.clone(), Arc::clone(&slot.metrics), served)
        };
        self.read(|slots| slots.iter().map(one).collect())
    }

    /// All, and how they are.
    pub fn list(&self) -> Vec<ModelStatus> {
        let one = |slot: &Slot| {
            let (value, error) = match &slot.state {
                State::Unloaded => ("unloaded", None),
                State::Loading => ("loading", None),
                State::Loaded(_) => ("loaded", None),
                State::Failed(why) => ("failed", Some(why.clone())),
            };
            ModelStatus { id: slot.id.clone(), status: Status { value, error } }
        };
        self.read(|slots| slots.iter().map(one).collect())
    }

    /// Takes a model that is not loaded for loading, and gives what loads it; `None` where it is loaded.
    fn begin(&self, id: &str) -> Result<Option<Arc<Open>>, ApiError> {
        self.write(|slots| {
            let absent = || unknown(format!("there is no model {id:?}"), "model_not_found");
            let slot = slots.iter_mut().find(|slot| slot.id == id).ok_or_else(absent)?;
            let open = || {
                slot.open.clone().ok_or_else(|| ApiError::absent("model", "the model cannot be loaded again"))
            };
            match slot.state {
                State::Loaded(_) => Ok(None),
                State::Loading => Err(ApiError::loading()),
                _ => {
                    let open = open()?;
                    slot.state = State::Loading;
                    Ok(Some(open))
                }
            }
        })
    }

    fn unload(&self, id: &str) -> Result<(), ApiError> {
        self.write(|slots| {
            let absent = || unknown(format!("there is no model {id:?}"), "model_not_found");
            let slot = slots.iter_mut().find(|slot| slot.id == id).ok_or_else(absent)?;
            match slot.state {
                State::Loading => return Err(ApiError::loading()),
                _ if slot.open.is_none() => {
                    return Err(ApiError::absent("model", "the model could not be loaded again"));
                }
                _ => slot.state = State::Unloaded,
            }
            Ok(())
        })
    }
}

fn unknown(message: String, code: &'static str) -> ApiError {
    let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code(code);
    ApiError { param: Some("model".to_owned()), ..error }
}

impl Server {
    /// Lets clients unload a model, and load it again with `open`.
    pub fn reopen(&self, id: &str, open: Arc<Open>) {
        self.models.reopen(id, open);
    }

    fn load_again(&self, id: &str) -> Result<(), ApiError> {
        let Some(open) = self.models.begin(id)? else { return Ok(()) };
        let loaded = open().and_then(|opened| {
            let card = ModelCard { id: id.to_owned(), ..opened.card };
            self.load(Opened { card, ..opened }).map_err(|e| e.to_string())
        });
        loaded.map_err(|why| {
            self.models.set(id, State::Failed(why.clone()));
            ApiError::internal(format!("{id:?}: {why}")).with_code("model_failed")
        })
    }
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct ModelRequest {
    model: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Success {
    success: bool,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ModelStatuses {
    data: Vec<ModelStatus>,
}

/// All models, loaded or not.
#[utoipa::path(get, path = "/models", tag = "llama.cpp", responses((status = 200, body = ModelStatuses), ApiError))]
pub(crate) async fn list(Shared(server): Shared<Arc<Server>>) -> Json<ModelStatuses> {
    Json(ModelStatuses { data: server.models.list() })
}

/// Loads one of the models that the server was started with.
#[utoipa::path(
    post, path = "/models/load", tag = "llama.cpp", request_body = ModelRequest,
    responses((status = 200, body = Success), ApiError)
)]
pub(crate) async fn load(
    Shared(server): Shared<Arc<Server>>,
    crate::json::Json(request): crate::json::Json<ModelRequest>,
) -> Result<Json<Success>, ApiError> {
    let _open = server.ticket(None)?;
    let asked = Arc::clone(&server);
    aside(move || asked.load_again(&request.model)).await?;
    Ok(Json(Success { success: true }))
}

/// Gives a model's memory back. Answers that it is making are finished first.
#[utoipa::path(
    post, path = "/models/unload", tag = "llama.cpp", request_body = ModelRequest,
    responses((status = 200, body = Success), ApiError)
)]
pub(crate) async fn unload(
    Shared(server): Shared<Arc<Server>>,
    crate::json::Json(request): crate::json::Json<ModelRequest>,
) -> Result<Json<Success>, ApiError> {
    server.models.unload(&request.model)?;
    Ok(Json(Success { success: true }))
}
