//! Answers on their way from the engine, and what responses say of them.

use crate::frame::Client;
use crate::state::{Served, Ticket};
use crate::worker::Subscription;
use crate::{ApiError, Server};
use bitnet_inference::engine::{Event, Logprob, News, Request};
use bitnet_inference::{FinishReason, Timings};
use bitnet_tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};
use utoipa::ToSchema;

/// Answers on their way: to one prompt or several.
pub(crate) struct Answers {
    /// One for each prompt, with the number of its first choice.
    subscriptions: Vec<(Subscription, usize)>,
    ticket: Ticket,
}

impl Answers {
    pub async fn submit(
        server: &Arc<Server>,
        model: &Served,
        requests: Vec<Request>,
        client: &Client,
    ) -> Result<Self, ApiError> {
        let ticket = server.ticket(client.trace.clone())?;
        let wanted = requests.iter().map(|r| r.choices).fold(0, usize::saturating_add);
        let most = server.options.answers_limit;
        if wanted > most {
            return Err(ApiError::bad(format!("{wanted} answers were asked for; {most} can be had at once")));
        }
        let mut first = 0;
        let mut answers = Self { subscriptions: Vec::new(), ticket };
        for request in requests {
            let choices = request.choices;
            let subscription = model.worker.submit(request, client.trace.clone()).await?;
            answers.subscriptions.push((subscription, first));
            first += choices;
        }
        Ok(answers)
    }

    /// The next event of any of them, its choice counted through all prompts; `None` when all have ended.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| {
            let mut open = false;
            for (subscription, first) in &mut self.subscriptions {
                match subscription.poll(context) {
                    Poll::Ready(Some(event)) => {
                        return Poll::Ready(Some(Event { choice: *first + event.choice, ..event }));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Whether, behind the last event, some have not ended.
    pub fn is_cut_off(&self) -> bool {
        self.subscriptions.iter().any(|(subscription, _)| subscription.is_open())
    }

    /// Ends them where they are; the events that say so are still to come.
    pub fn cancel(&self) {
        self.subscriptions.iter().for_each(|(subscription, _)| subscription.cancel());
    }

    /// What keeps their request open, after they have ended.
    pub fn into_ticket(self) -> Ticket {
        self.ticket
    }

    /// Waits for all of them.
    pub async fn collect(mut self, choices: usize) -> Result<Vec<Answer>, ApiError> {
        let mut answers: Vec<Answer> = (0..choices).map(|_| Answer::default()).collect();
        while let Some(event) = self.next().await {
            answers[event.choice].take(event.news)?;
        }
        if self.is_cut_off() { Err(ApiError::stopped()) } else { Ok(answers) }
    }
}

/// A whole answer.
#[derive(Default)]
pub(crate) struct Answer {
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprob>,
    pub prompt: Vec<Logprob>,
    pub end: Option<(FinishReason, Timings)>,
    /// The stop string that ended it.
    pub stop: Option<String>,
}

impl Answer {
    pub fn take(&mut self, news: News) -> Result<(), ApiError> {
        match news {
            News::Prompt(all) => self.prompt.extend(all),
            // None of the routes asks for one.
            News::Embedding(_) => {}
            News::Piece { id, text, logprob } => {
                self.text += &text;
                self.ids.extend(id);
                self.logprobs.extend(logprob);
            }
            News::Finished { reason, stop, timings } => {
                (self.end, self.stop) = (Some((reason, timings)), stop)
            }
            News::Failed(e) => return Err(ApiError::from(&*e)),
        }
        Ok(())
    }

    pub fn reason(&self) -> Option<&'static str> {
        self.end.map(|(reason, _)| reason.name())
    }

    pub fn timings(&self) -> Option<TimingsBody> {
        self.end.as_ref().map(|(_, timings)| timings.into())
    }
}

/// Tokens of answers, summed up.
#[derive(Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Tokens of the prompt that the cache held already.
    cached_tokens: usize,
}

impl Usage {
    /// Adds an answer; its prompt only with the first choice of one.
    pub fn add(&mut self, timings: &Timings, first: bool) {
        self.completion_tokens += timings.tokens;
        if first {
            self.prompt_tokens += timings.prompt_tokens + timings.cached_tokens;
            self.prompt_tokens_details.cached_tokens += timings.cached_tokens;
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// llama.cpp's `timings`.
#[derive(Serialize, ToSchema)]
#[schema(as = Timings)]
pub(crate) struct TimingsBody {
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: f64,
    cache_n: usize,
    /// Tokens guessed ahead, where any were, and those that were right.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_accepted: Option<usize>,
}

impl From<&Timings> for TimingsBody {
    fn from(t: &Timings) -> Self {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        Self {
            prompt_n: t.prompt_tokens,
            prompt_ms: ms(t.prompt),
            prompt_per_second: t.prompt_per_second(),
            predicted_n: t.tokens,
            predicted_ms: ms(t.generation),
            predicted_per_second: t.tokens_per_second(),
            cache_n: t.cached_tokens,
            draft_n: (t.drafted > 0).then_some(t.drafted),
            draft_n_accepted: (t.drafted > 0).then_some(t.accepted),
        }
    }
}

/// The text of a token, and its bytes where it is whole characters.
pub(crate) fn token(tokenizer: &Tokenizer, id: u32) -> (String, Option<Vec<u8>>) {
    let text = tokenizer.decode(&[id], false).unwrap_or_default();
    let bytes = (!text.contains('\u{fffd}')).then(|| text.clone().into_bytes());
    (text, bytes)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
