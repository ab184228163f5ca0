//! Answers as streams of chunks.

use crate::ApiError;
use crate::answer::Answers;
use crate::state::Ticket;
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bitnet_inference::engine::{Event, Logprob, News};
use bitnet_inference::{FinishReason, Timings};
use futures_util::stream::unfold;
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;

/// Silence after which a comment shows that the stream is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A token of an answer, or text that was held back until its end.
pub(crate) struct Piece {
    pub id: Option<u32>,
    pub text: String,
    pub logprob: Option<Logprob>,
}

/// How an answer ended.
pub(crate) struct End {
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
    pub timings: Timings,
}

/// Makes the chunks of a stream; answers are told by the number of their choice.
pub(crate) trait Chunks: Send {
    /// Those before any event.
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// Those of log-probabilities of a prompt.
    fn prompt(&mut self, _choice: usize, _logprobs: &[Logprob]) -> Vec<Value> {
        Vec::new()
    }
    /// Those of a piece.
    fn piece(&mut self, choice: usize, piece: Piece) -> Vec<Value>;
    /// Those of an answer's end.
    fn finished(&mut self, choice: usize, end: End) -> Vec<Value>;
    /// Those behind the last answer's.
    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// An error as a chunk.
    fn error(&self, error: &ApiError) -> Value {
        error.body()
    }
}

/// How chunks become bytes.
#[derive(Clone, Copy)]
pub(crate) enum Wire {
    /// Server-sent events, and `[DONE]` behind them.
    Events,
    /// Server-sent events whose end is told by the last chunk.
    OpenEvents,
    /// Server-sent events that have their chunk's type for a name.
    NamedEvents,
    /// A chunk on each line.
    Lines,
}

impl Wire {
    fn content_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            _ => "text/event-stream",
        }
    }

    fn bytes(self, chunk: &Value) -> String {
        match self {
            Self::Events | Self::OpenEvents => format!("data: {chunk}\n\n"),
            Self::NamedEvents => {
                format!("event: {}\ndata: {chunk}\n\n", chunk["type"].as_str().unwrap_or("error"))
            }
            Self::Lines => format!("{chunk}\n"),
        }
    }

    fn last(self) -> &'static str {
        if matches!(self, Self::Events) { "data: [DONE]\n\n" } else { "" }
    }

    fn keep_alive(self) -> &'static str {
        // An empty line is no JSON, and every reader of lines skips it.
        if matches!(self, Self::Lines) { "\n" } else { ": keep-alive\n\n" }
    }
}

/// The chunks of answers in the making. Dropping it cancels them.
pub(crate) struct Feed {
    answers: Answers,
    chunks: Box<dyn Chunks>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Over,
}

impl Feed {
    pub fn new(answers: Answers, chunks: impl Chunks + 'static) -> Self {
        Self { answers, chunks: Box::new(chunks), state: State::New }
    }

    /// The next chunks, none of them an empty list; `None` behind the last. May be dropped before it is ready.
    pub async fn next(&mut self) -> Option<Vec<Value>> {
        loop {
            let chunks = match self.state {
                State::Over => return None,
                State::New => {
                    self.state = State::Open;
                    self.chunks.begin()
                }
                State::Open => match self.answers.next().await {
                    Some(event) => self.event(event),
                    None if self.answers.is_cut_off() => self.fail(&ApiError::stopped()),
                    None => {
                        self.state = State::Over;
                        self.chunks.end()
                    }
                },
            };
            if !chunks.is_empty() {
                return Some(chunks);
            }
        }
    }

    /// What keeps its request open, for whoever has to send its last chunks still.
    pub fn into_ticket(self) -> Ticket {
        self.answers.into_ticket()
    }

    /// Ends the answers where they are; their last chunks are still to come.
    pub fn cancel(&self) {
        self.answers.cancel();
    }

    fn event(&mut self, event: Event) -> Vec<Value> {
        let choice = event.choice;
        match event.news {
            News::Prompt(logprobs) => self.chunks.prompt(choice, &logprobs),
            News::Piece { id, text, logprob } => self.chunks.piece(choice, Piece { id, text, logprob }),
            News::Finished { reason, stop, timings } => {
                self.chunks.finished(choice, End { reason, stop, timings })
            }
            News::Failed(e) => self.fail(&ApiError::from(&*e)),
            // No stream asks for one.
            News::Embedding(_) => Vec::new(),
        }
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Value> {
        self.state = State::Over;
        vec![self.chunks.error(error)]
    }

    /// A response of all chunks. After an error there is no `[DONE]`.
    pub fn response(self, wire: Wire) -> Response {
        let body = unfold((self, false), move |(mut feed, ended)| async move {
            if ended {
                return None;
            }
            let Ok(next) = tokio::time::timeout(KEEP_ALIVE, feed.next()).await else {
                return Some((wire.keep_alive().to_owned(), (feed, false)));
            };
            match next {
                Some(chunks) => {
                    let failed = chunks.iter().any(|chunk| chunk.get("error").is_some_and(Value::is_object));
                    Some((chunks.iter().map(|c| wire.bytes(c)).collect(), (feed, failed)))
                }
                None => (!wire.last().is_empty()).then(|| (wire.last().to_owned(), (feed, true))),
            }
        });
        let body = Body::from_stream(futures_util::StreamExt::map(body, Ok::<_, Infallible>));
        ([(header::CONTENT_TYPE, wire.content_type()), (header::CACHE_CONTROL, "no-cache")], body)
            .into_response()
    }
}
