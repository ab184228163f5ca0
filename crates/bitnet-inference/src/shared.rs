//! A model for many tasks at once: an engine on a thread of its own, and streams of what it answers.

use crate::engine::{Engine, EngineOptions, Event, News, Request, RequestId};
use crate::{
    DeviceOptions, FinishReason, Forms, GenerateError, GenerateOptions, Model, ModelConfig, ModelFiles,
    OpenError, Piece, Prepared, Timings,
};
use bitnet_tokenizer::Tokenizer;
use futures_core::Stream;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What the engine's thread is asked for.
enum Order {
    /// An answer, and where its news go.
    Answer(Box<Request>, Arc<Mailbox>),
    /// To go on with other weights, and to say how it went.
    Move(Box<Prepared>, Sender<Result<(), OpenError>>),
}

/// A model whose engine runs on a thread of its own. Clones are the same model; the thread ends when the last of them is gone and all
/// answers have ended.
#[derive(Clone)]
pub struct SharedModel {
    orders: Sender<Order>,
    tokenizer: Option<Arc<Tokenizer>>,
    forms: Option<Arc<Forms>>,
    config: Arc<ModelConfig>,
    files: ModelFiles,
}

/// News between the engine's thread and a stream.
#[derive(Default)]
struct Mailbox(Mutex<Letters>);

#[derive(Default)]
struct Letters {
    news: VecDeque<News>,
    waker: Option<Waker>,
    /// The engine's thread has gone.
    closed: bool,
}

impl Mailbox {
    fn open(&self) -> MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, news: News) {
        let waker = {
            let mut letters = self.open();
            letters.news.push_back(news);
            letters.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The pieces of an answer as they come. It works with any executor; dropped, it cancels the answer.
pub struct AnswerStream {
    mailbox: Arc<Mailbox>,
    tokens: Vec<u32>,
    finish: Option<(FinishReason, Timings)>,
    over: bool,
}

impl Model {
    /// Moves the model to a thread of its own, where many answers are made at once.
    ///
    /// # Errors
    /// The operating system would not start a thread.
    pub fn share(self, options: EngineOptions) -> std::io::Result<SharedModel> {
        let engine = self.into_engine(options);
        let (orders, inbox) = channel();
        let shared = SharedModel {
            orders,
            tokenizer: engine.tokenizer().cloned(),
            forms: engine.forms().cloned(),
            config: Arc::new(engine.config().clone()),
            files: engine.files(),
        };
        let desk = Desk { engine, inbox, subscribers: HashMap::new() };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || desk.work())?;
        Ok(shared)
    }
}

impl SharedModel {
    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Ids of a text, with what the model expects in front of it.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        Ok(self.tokenizer().ok_or(GenerateError::NoTokenizer)?.encode(text, true)?)
    }

    /// Continues a prompt. A form is compiled before this returns; whatever else is wrong with the request is the stream's first item.
    /// `batch` and `cancel` of the options are left aside: steps are the engine's, and a stream that is dropped is cancelled.
    ///
    /// # Errors
    /// The form is wrong.
    pub fn generate_stream(
        &self,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<AnswerStream, GenerateError> {
        let compile = |form| self.forms.as_ref().ok_or(GenerateError::NoTokenizer)?.compile(form);
        let form = options.form.as_ref().map(compile).transpose()?;
        Ok(self.submit(Request { prompt: prompt.to_vec(), form, ..options.into() }))
    }

    /// Moves the model to another device while it answers: weights are prepared on the calling thread, and the answers that are being
    /// made then go on there ([`Engine::move_to`]). `progress` is told how many of how many layers are ready.
    ///
    /// # Errors
    /// The device cannot be used, or has too little memory; the model then stays where it is.
    pub fn move_to(
        &self,
        device: &DeviceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), OpenError> {
        let prepared = self.files.prepare(device, progress)?;
        let (reply, moved) = channel();
        self.orders.send(Order::Move(Box::new(prepared), reply)).map_err(|_| OpenError::Stopped)?;
        moved.recv().map_err(|_| OpenError::Stopped)?
    }

    /// The answer to a request, of which only the first choice is made.
    pub fn submit(&self, request: Request) -> AnswerStream {
        let mailbox = Arc::new(Mailbox::default());
        let order = Order::Answer(Box::new(Request { choices: 1, ..request }), Arc::clone(&mailbox));
        if self.orders.send(order).is_err() {
            mailbox.open().closed = true;
        }
        AnswerStream { mailbox, tokens: Vec::new(), finish: None, over: false }
    }
}

impl AnswerStream {
    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish.map(|(reason, _)| reason)
    }

    /// What it took, once it has ended.
    pub fn timings(&self) -> Option<Timings> {
        self.finish.map(|(_, timings)| timings)
    }

    /// Tokens of the answer so far, the end token among them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl Stream for AnswerStream {
    type Item = Result<Piece, Arc<GenerateError>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut letters = this.mailbox.open();
        while !this.over {
            match letters.news.pop_front() {
                Some(News::Prompt(_) | News::Embedding(_)) => {}
                Some(News::Piece { id, text, .. }) => {
                    this.tokens.extend(id);
                    return Poll::Ready(Some(Ok(Piece { id, text })));
                }
                Some(News::Finished { reason, timings, .. }) => {
                    (this.finish, this.over) = (Some((reason, timings)), true);
                }
                Some(News::Failed(e)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(e)));
                }
                None if letters.closed => {
                    this.over = true;
                    return Poll::Ready(Some(Err(Arc::new(GenerateError::Stopped))));
                }
                None => {
                    letters.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(None)
    }
}

/// What the engine's thread has.
struct Desk {
    engine: Engine,
    inbox: Receiver<Order>,
    subscribers: HashMap<RequestId, Arc<Mailbox>>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        for mailbox in self.subscribers.values() {
            let mut letters = mailbox.open();
            letters.closed = true;
            letters.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Desk {
    fn work(mut self) {
        let mut events = Vec::<Event>::new();
        loop {
            // With nothing to do, it sleeps until somebody comes.
            if self.engine.is_idle() {
                match self.inbox.recv() {
                    Ok(order) => self.take(order),
                    Err(_) => return,
                }
            }
            // Answers whose streams are still there are made to their end when nobody can come any more.
            while let Ok(order) = self.inbox.try_recv() {
                self.take(order);
            }
            // A stream holds the other half of its mailbox.
            for (id, _) in self.subscribers.iter().filter(|(_, mailbox)| Arc::strong_count(mailbox) == 1) {
                self.engine.cancel(*id);
            }
            self.engine.step(&mut events);
            for event in events.drain(..) {
                let over = matches!(event.news, News::Finished { .. } | News::Failed(_));
                if let Some(mailbox) = self.subscribers.get(&event.request) {
                    mailbox.put(event.news);
                }
                if over {
                    self.subscribers.remove(&event.request);
                }
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Answer(request, mailbox) => match self.engine.submit(&request) {
                Ok(id) => drop(self.subscribers.insert(id, mailbox)),
                Err(e) => mailbox.put(News::Failed(Arc::new(e))),
            },
            Order::Move(prepared, reply) => {
                // Whoever asked may have gone, and the model has moved all the same.
                let _ = reply.send(self.engine.move_to(*prepared));
            }
        }
    }
}
