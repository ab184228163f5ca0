//! The models of a server: which there are, which are loaded, which a request means.

use crate::aside::aside;
use crate::metrics::Metrics;
use crate::options::{ModelCard, Opened};
use crate::state::Served;
use crate::{ApiError, Server};
use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use bitnet_inference::Placement;
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

impl Slot {
    /// The model, where it is loaded and has an engine that runs.
    fn served(&self) -> Option<&Arc<Served>> {
        match &self.state {
            State::Loaded(served) if !served.worker.has_stopped() => Some(served),
            _ => None,
        }
    }

    /// Why it cannot be used before it is loaded again.
    fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Failed(why) => Some(why),
            State::Loaded(served) if served.worker.has_stopped() => Some("its engine has stopped"),
            _ => None,
        }
    }
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

    /// The model, or the adapter of one, that a name means; no name means the first model loaded.
    pub fn find(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return self.first() };
        self.read(|slots| {
            // Ollama's clients say a version of every model.
            let plain = name.strip_suffix(":latest");
            let slot = slots.iter().find(|slot| slot.id == name || plain == Some(&slot.id));
            let adapter = || slots.iter().find_map(|slot| slot.served()?.adapters.named(name));
            if let Some(served) = slot.map_or_else(adapter, |slot| slot.served().cloned()) {
                return Ok(served);
            }
            match slot.map(|slot| (&slot.state, slot.failure())) {
                Some((_, Some(why))) => Err(failed(name, why)),
                Some((State::Unloaded, _)) => {
                    let message = format!("the model {name:?} is not loaded; POST /models/load loads it");
                    Err(unknown(message, "model_not_loaded"))
                }
                Some(_) => Err(ApiError::loading()),
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
            let loaded = slots.iter().find_map(|slot| slot.served().cloned());
            loaded.ok_or_else(|| {
                if slots.is_empty() || slots.iter().any(|s| matches!(s.state, State::Loading)) {
                    return ApiError::loading();
                }
                let failure = slots.iter().find_map(|slot| Some(failed(&slot.id, slot.failure()?)));
                failure.unwrap_or_else(|| {
                    let message = "no model is loaded; POST /models/load loads one";
                    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("model_not_loaded")
                })
            })
        })
    }

    /// All that a request may name: models that are loaded, each with its adapters behind it.
    pub fn served(&self) -> Vec<Arc<Served>> {
        let with_adapters = |served: &Arc<Served>| [vec![Arc::clone(served)], served.adapters.all()].concat();
        self.read(|slots| slots.iter().filter_map(Slot::served).flat_map(with_adapters).collect())
    }

    /// Whether a model is called so, loaded or not, or an adapter.
    pub fn has(&self, name: &str) -> bool {
        let called = |slot: &Slot| {
            slot.id == name || slot.served().is_some_and(|served| served.adapters.named(name).is_some())
        };
        self.read(|slots| slots.iter().any(called))
    }

    /// A model whose engine has stopped by itself.
    pub fn stopped(&self) -> Option<String> {
        self.read(|slots| {
            let stopped = |s: &&Slot| matches!(&s.state, State::Loaded(_)) && s.served().is_none();
            slots.iter().find(stopped).map(|slot| slot.id.clone())
        })
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
            let error = slot.failure().map(str::to_owned);
            let value = match &slot.state {
                _ if error.is_some() => "failed",
                State::Unloaded => "unloaded",
                State::Loading => "loading",
                _ => "loaded",
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
                _ if slot.served().is_some() => Ok(None),
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

fn failed(id: &str, why: &str) -> ApiError {
    let message = format!("the model {id:?} has failed: {why}; POST /models/load loads it again");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("model_failed")
}

pub(crate) fn unknown(message: String, code: &'static str) -> ApiError {
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
pub(crate) struct LoadRequest {
    model: String,
    /// Where it is to run: `cpu`, `cuda:0`, `wgpu:0`, or some of its layers on each of several, `cuda:0,cuda:1`. One that is loaded moves there, and goes on answering meanwhile.
    device: Option<String>,
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct ModelRequest {
    model: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Success {
    success: bool,
}

impl Success {
    pub fn reply() -> Json<Self> {
        Json(Self { success: true })
    }
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

/// Loads one of the models that the server was started with, or moves it to another device.
#[utoipa::path(
    post, path = "/models/load", tag = "llama.cpp", request_body = LoadRequest,
    responses((status = 200, body = Success), ApiError)
)]
pub(crate) async fn load(
    Shared(server): Shared<Arc<Server>>,
    crate::json::Json(LoadRequest { model, device }): crate::json::Json<LoadRequest>,
) -> Result<Json<Success>, ApiError> {
    let _open = server.ticket(None)?;
    let wrong = |why: String| ApiError::field("device", why);
    let device =
        device.as_deref().map(str::parse::<Placement>).transpose().map_err(|e| wrong(e.to_string()))?;
    let (asked, id) = (Arc::clone(&server), model.clone());
    aside(move || asked.load_again(&id)).await?;
    if let Some(device) = device {
        let served = server.named(Some(&model))?;
        let files = served.files.clone();
        let to = files.opened_on().on(device);
        let prepared =
            aside(move || files.prepare(&to, &mut |_, _| {}).map_err(|e| wrong(chain(&e)))).await?;
        // What goes on the engine's thread is done to its end, whether or not the client is still there.
        let moved = served.worker.with(move |engine| engine.move_to(prepared)).await?;
        moved.map_err(|e| wrong(chain(&e)))?;
    }
    Ok(Success::reply())
}

/// An error and what is behind it, in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
    Ok(Success::reply())
}
