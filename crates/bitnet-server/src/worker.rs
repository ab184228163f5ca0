//! The thread that steps the engine, and the way to it.

use crate::ApiError;
use crate::metrics::Metrics;
use crate::trace::{Making, Trace};
use bitnet_inference::engine::{Engine, Event, News, Pools, Request, RequestId, Stats};
use bitnet_inference::{DeviceInfo, GenerateError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

enum Order {
    Submit(Box<Submission>),
    Cancel(RequestId),
    /// Anything else, between two steps.
    Do(Box<dyn FnOnce(&mut Engine) + Send>),
}

struct Submission {
    request: Request,
    trace: Option<Arc<Trace>>,
    /// For the subscription, to cancel with. The thread has none of its own: it would never end.
    orders: Sender<Order>,
    reply: oneshot::Sender<Result<Subscription, GenerateError>>,
}

/// The way to the engine's thread. It ends when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Worker {
    orders: Sender<Order>,
    seen: Arc<Mutex<Seen>>,
    stopped: Arc<AtomicBool>,
}

/// What was last seen of the engine.
struct Seen {
    stats: Stats,
    device: DeviceInfo,
    pools: Pools,
}

/// News of one request. Whoever drops it cancels what is not finished.
pub(crate) struct Subscription {
    request: RequestId,
    events: UnboundedReceiver<Event>,
    orders: Sender<Order>,
    /// Answers that have not ended.
    open: usize,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.open > 0 {
            self.cancel();
        }
    }
}

impl Subscription {
    /// Ends the answers where they are.
    pub fn cancel(&self) {
        // The thread is gone only when the server ends.
        let _ = self.orders.send(Order::Cancel(self.request));
    }

    /// Whether answers are open; behind the last event, the engine has stopped under them.
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    /// The next event; `None` once every answer has ended.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        let event = self.events.poll_recv(context);
        if let Poll::Ready(Some(Event { news: News::Finished { .. } | News::Failed(_), .. })) = &event {
            self.open -= 1;
        }
        event
    }
}

impl Worker {
    /// A thread for an engine; every answer ends where it is once `ending` is set.
    pub fn start(engine: Engine, metrics: Arc<Metrics>, ending: Arc<AtomicBool>) -> std::io::Result<Self> {
        let (orders, inbox) = channel();
        let seen = Seen { stats: engine.stats(), device: engine.device().clone(), pools: engine.pools() };
        let seen = Arc::new(Mutex::new(seen));
        let stopped = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            engine,
            inbox,
            subscribers: HashMap::new(),
            traced: HashMap::new(),
            metrics,
            seen: Arc::clone(&seen),
            ending,
            stopped: Arc::clone(&stopped),
        };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || desk.work())?;
        Ok(Self { orders, seen, stopped })
    }

    /// Whether the thread is gone while somebody still has a way to it: it has panicked.
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub async fn submit(
        &self,
        request: Request,
        trace: Option<Arc<Trace>>,
    ) -> Result<Subscription, ApiError> {
        let (reply, answer) = oneshot::channel();
        let order = Submission { request, trace, orders: self.orders.clone(), reply };
        self.orders.send(Order::Submit(Box::new(order))).map_err(|_| ApiError::stopped())?;
        Ok(answer.await.map_err(|_| ApiError::stopped())??)
    }

    /// Asks or tells the engine something between two steps.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Do(Box::new(move |engine| {
            // A reply that nobody waits for is of no use to anybody.
            let _ = reply.send(work(engine));
        }));
        self.orders.send(order).map_err(|_| ApiError::stopped())?;
        answer.await.map_err(|_| ApiError::stopped())
    }

    pub fn stats(&self) -> Stats {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).stats
    }

    /// What the engine runs on.
    pub fn device(&self) -> DeviceInfo {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).device.clone()
    }

    /// Where its memory comes from.
    pub fn pools(&self) -> Pools {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).pools.clone()
    }
}

struct Desk {
    engine: Engine,
    inbox: Receiver<Order>,
    subscribers: HashMap<RequestId, UnboundedSender<Event>>,
    traced: HashMap<RequestId, Making>,
    metrics: Arc<Metrics>,
    seen: Arc<Mutex<Seen>>,
    ending: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Told before subscribers hear of it, so that whoever does finds the server saying the same.
        self.stopped.store(true, Ordering::SeqCst);
        let stats = &mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).stats;
        *stats = Stats { running: 0, waiting: 0, held_blocks: 0, ..*stats };
    }
}

impl Desk {
    fn work(mut self) {
        let mut events = Vec::new();
        loop {
            // With nothing to do, it sleeps until somebody comes.
            if self.engine.is_idle() {
                match self.inbox.recv() {
                    Ok(order) => self.take(order),
                    Err(_) => return,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(order) => self.take(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            // A model that is unloaded has nobody left who could tell it, only whoever waits for its answers.
            if self.ending.load(Ordering::SeqCst) {
                let all: Vec<RequestId> = self.subscribers.keys().copied().collect();
                all.into_iter().for_each(|id| self.engine.cancel(id));
            }
            self.engine.step(&mut events);
            self.look();
            for event in events.drain(..) {
                self.metrics.event(&event);
                if self.traced.get_mut(&event.request).is_some_and(|making| making.event(&event)) {
                    self.traced.remove(&event.request);
                }
                if let Some(subscriber) = self.subscribers.get(&event.request) {
                    // Whoever does not listen any more has gone; its order to cancel is under way.
                    let _ = subscriber.send(event);
                }
            }
            // A subscriber is kept while its receiver is: answers end at their own times.
            self.subscribers.retain(|_, subscriber| !subscriber.is_closed());
        }
    }

    /// Has others see where the engine stands.
    fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.stats = self.engine.stats();
        let pools = self.engine.pools();
        // A move may be to where it was, with weights in other pools.
        if seen.device != *self.engine.device() || !seen.pools.are(&pools) {
            (seen.device, seen.pools) = (self.engine.device().clone(), pools);
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Submit(submission) => {
                let Submission { request, trace, orders, reply } = *submission;
                let begun = self.engine.submit(&request).map(|id| {
                    let (subscriber, events) = unbounded_channel();
                    self.metrics.submitted(id, request.choices);
                    self.subscribers.insert(id, subscriber);
                    self.traced.extend(trace.map(|trace| (id, Making::new(trace, request.choices))));
                    Subscription { request: id, events, orders, open: request.choices }
                });
                // Whoever hangs up before the reply is read drops the subscription in it, which cancels.
                let _ = reply.send(begun);
            }
            Order::Cancel(id) => self.engine.cancel(id),
            Order::Do(work) => work(&mut self.engine),
        }
    }
}

#[cfg(test)]
mod tests;
