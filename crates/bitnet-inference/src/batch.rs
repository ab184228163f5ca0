//! Many prompts at once.

use crate::engine::{Event, News, Request, RequestId};
use crate::{FinishReason, GenerateError, GenerateOptions, Model, Timings};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, the end token among them.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub timings: Timings,
}

/// An answer that is being put together; `None` until it has ended.
#[derive(Default)]
struct Open {
    text: String,
    tokens: Vec<u32>,
    ended: Option<Result<Answer, Arc<GenerateError>>>,
}

impl Open {
    fn take(&mut self, news: News) {
        match news {
            News::Prompt(_) | News::Embedding(_) => {}
            News::Piece { id, text, .. } => {
                self.tokens.extend(id);
                self.text += &text;
            }
            News::Finished { reason, timings, .. } => {
                let (text, tokens) = (std::mem::take(&mut self.text), std::mem::take(&mut self.tokens));
                self.ended = Some(Ok(Answer { text, tokens, finish: reason, timings }));
            }
            News::Failed(e) => self.ended = Some(Err(e)),
        }
    }
}

impl Model {
    /// Continues many prompts, as many at once as the engine has seats and its cache has room for; answers are in the order of
    /// prompts, and each is the one that [`Model::generate`] gives. A cache for several contexts makes it faster
    /// ([`LoadOptions::cache`](crate::LoadOptions::cache)).
    ///
    /// ```no_run
    /// # use bitnet_inference::{GenerateOptions, Model};
    /// # fn example(model: &mut Model) -> Result<(), Box<dyn std::error::Error>> {
    /// let prompts = [model.encode("One, two,")?, model.encode("A, B,")?];
    /// for answer in model.batch(&prompts, &GenerateOptions::default()) {
    ///     println!("{}", answer?.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch<P: AsRef<[u32]>>(
        &mut self,
        prompts: &[P],
        options: &GenerateOptions,
    ) -> Vec<Result<Answer, Arc<GenerateError>>> {
        let engine = &mut self.engine;
        engine.set_budget(options.batch.max(1));
        let request = match engine.request(options.clone()) {
            Ok(request) => request,
            Err(e) => {
                let e = Arc::new(e);
                return prompts.iter().map(|_| Err(Arc::clone(&e))).collect();
            }
        };
        let mut answers: Vec<Open> = prompts.iter().map(|_| Open::default()).collect();
        let mut rows: HashMap<RequestId, usize> = HashMap::new();
        let (mut next, mut events) = (0, Vec::<Event>::new());
        loop {
            while next < prompts.len() && engine.stats().waiting < engine.options().seats {
                let prompt = prompts[next].as_ref().to_vec();
                match engine.submit(&Request { prompt, ..request.clone() }) {
                    Ok(id) => {
                        rows.insert(id, next);
                    }
                    Err(e) => answers[next].ended = Some(Err(Arc::new(e))),
                }
                next += 1;
            }
            if engine.is_idle() {
                break;
            }
            if options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                rows.keys().for_each(|id| engine.cancel(*id));
            }
            engine.step(&mut events);
            for event in events.drain(..) {
                if let Some(row) = rows.get(&event.request) {
                    answers[*row].take(event.news);
                }
            }
        }
        answers.into_iter().map(|open| open.ended.expect("an idle engine has ended every answer")).collect()
    }
}
