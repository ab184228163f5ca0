//! `GET /v1/ws`: requests of chat and text completions over one socket, any number of them at once.
//!
//! A message is the body of such a request, with an `id` of the client's choosing; the chunks that come back are those of a
//! stream of server-sent events and carry that `id`. `{"id", "done": true}` follows the last, or `{"id", "error"}` says why there
//! are none. `{"cancel": id}` ends an answer where it is: its last chunk says `cancelled`.

use crate::frame::{Client, fresh_id};
use crate::openai::chat::Chat;
use crate::openai::completions::Completion;
use crate::origin::check_origin;
use crate::state::Ticket;
use crate::stream::Feed;
use crate::{ApiError, Server};
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Messages that wait for a slow reader; whoever makes more waits too.
const WAITING: usize = 64;

/// A WebSocket: each message is the body of a chat or text completion with an `id`; its chunks come back.
#[utoipa::path(
    get, path = "/v1/ws", tag = "OpenAI",
    responses((status = 101, description = "The protocol changes"), ApiError)
)]
pub(crate) async fn open(
    State(server): State<Arc<Server>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    // Browsers let any page open a socket; what tells a page's origin is this header alone.
    check_origin(&server, &headers)?;
    if server.is_draining() {
        return Err(ApiError::ending());
    }
    let upgrade = upgrade.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let limit = server.options.body_limit;
    Ok(upgrade.max_message_size(limit).on_upgrade(move |socket| talk(server, client, socket)))
}

/// Answers that are being made, and how to end them.
type Running = HashMap<String, oneshot::Sender<()>>;

/// A message on its way out. The last one of a request keeps it open until it is sent.
type Letter = (Value, Option<Ticket>);

async fn talk(server: Arc<Server>, client: Client, socket: WebSocket) {
    let (mut sink, mut messages) = socket.split();
    let (out, mut outbox) = mpsc::channel::<Letter>(WAITING);
    let mut running = Running::new();
    // Whoever hangs up drops these, and with them the requests.
    let mut tasks: JoinSet<String> = JoinSet::new();
    let write = async move {
        while let Some((value, _ticket)) = outbox.recv().await {
            if sink.send(Message::Text(value.to_string().into())).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if let Err((id, e)) = take(&server, &client, &text, &mut running, &mut tasks, &out) {
                            let _ = out.send((failed(&id, &e), None)).await;
                        }
                    }
                    Some(Ok(Message::Binary(_))) => {
                        let refusal = failed(&None, &ApiError::bad("a message is a text"));
                        let _ = out.send((refusal, None)).await;
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                },
                Some(Ok(id)) = tasks.join_next() => drop(running.remove(&id)),
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

fn failed(id: &Option<String>, error: &ApiError) -> Value {
    let mut value = error.body();
    value["id"] = json!(id);
    value
}

type Refused = (Option<String>, ApiError);

/// Begins what a message asks for, or ends it.
fn take(
    server: &Arc<Server>,
    client: &Client,
    text: &str,
    running: &mut Running,
    tasks: &mut JoinSet<String>,
    out: &mpsc::Sender<Letter>,
) -> Result<(), Refused> {
    let body: Value = serde_json::from_str(text)
        .map_err(|e| (None, ApiError::bad(format!("the message is not JSON: {e}"))))?;
    let word = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    if let Some(id) = word("cancel") {
        // One that has ended already needs no end.
        if let Some(end) = running.remove(&id) {
            let _ = end.send(());
        }
        return Ok(());
    }
    let id = word("id").unwrap_or_else(|| fresh_id("ws"));
    if running.contains_key(&id) {
        let message = format!("{id:?} is being answered; every request needs an id of its own");
        return Err((Some(id), ApiError::field("id", message)));
    }
    if let Err(e) = server.admit(client) {
        return Err((Some(id), e));
    }
    let (end, ended) = oneshot::channel();
    running.insert(id.clone(), end);
    let (server, client, out) = (Arc::clone(server), client.clone(), out.clone());
    tasks.spawn(async move {
        let last = match begin(&server, &client, &id, body).await {
            Ok(feed) => answer(feed, &id, ended, &out).await,
            Err(e) => (failed(&Some(id.clone()), &e), None),
        };
        let _ = out.send(last).await;
        id
    });
    Ok(())
}

async fn begin(server: &Arc<Server>, client: &Client, id: &str, body: Value) -> Result<Feed, ApiError> {
    fn parse<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
        serde_json::from_value(body)
            .map_err(|e| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))
    }
    let id = Some(id.to_owned());
    if body.get("messages").is_some() {
        let (asked, form) = parse::<Chat>(body)?.ask(server, client, id).await?;
        Ok(Feed::new(asked.answers, form))
    } else {
        let (answers, form) = parse::<Completion>(body)?.ask(server, client, id).await?;
        Ok(Feed::new(answers, form))
    }
}

/// Sends the chunks of an answer, and gives what tells of its end.
async fn answer(
    mut feed: Feed,
    id: &str,
    ended: oneshot::Receiver<()>,
    out: &mpsc::Sender<Letter>,
) -> Letter {
    let mut ended = std::pin::pin!(ended);
    let mut open = true;
    loop {
        let chunks = tokio::select! {
            chunks = feed.next() => chunks,
            _ = &mut ended, if open => {
                open = false;
                feed.cancel();
                continue;
            }
        };
        let Some(chunks) = chunks else {
            return (json!({"id": id, "done": true}), Some(feed.into_ticket()));
        };
        for mut chunk in chunks {
            if chunk.get("error").is_some() {
                chunk["id"] = id.into();
                return (chunk, Some(feed.into_ticket()));
            }
            if out.send((chunk, None)).await.is_err() {
                // The socket is gone; so is this task in a moment.
                return (Value::Null, None);
            }
        }
    }
}
