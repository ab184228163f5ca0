//! A step: who ends, who gets a seat, what is guessed, how many tokens each runs and where they lie, and what comes of the logits.

use super::draft;
use super::memory::workspace_bytes;
use super::processors::{Processors, Turn};
use super::sequence::Sequence;
use super::{Engine, Event, News};
use crate::{Device, DeviceInfo, FinishReason, GenerateError};
use bitnet_core::{KV_BLOCK, LogitsRow};
use bitnet_memory::Level;
use bitnet_model::{ModelError, Span};
use std::sync::Arc;
use std::time::Instant;

impl Engine {
    /// Runs one step, if there is anything to do, and adds what came of it to `events`.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        self.step_at(Instant::now(), events);
    }

    /// Runs a step at a time.
    pub(super) fn step_at(&mut self, now: Instant, events: &mut Vec<Event>) {
        let begin = Instant::now();
        self.end_all(FinishReason::Deadline, |s| s.deadline.is_some_and(|at| at <= now));
        let pressure = self.relieve();
        if pressure.is_some_and(|pressure| pressure.level == Level::Critical) && !self.running.is_empty() {
            if self.running.len() > 1 {
                self.send_back();
            }
        } else {
            self.admit();
        }
        if !self.running.is_empty() {
            let turn = self.processors();
            match self.guess() {
                Err(e) => self.step_failed(e),
                Ok(()) => {
                    self.plan();
                    self.make_room();
                    if !self.running.is_empty() {
                        self.run(begin);
                    }
                }
            }
            drop(turn);
        }
        self.let_adapters_go();
        events.append(&mut self.events);
        self.rest();
    }

    /// Gives seats to those who wait, while there are seats, blocks, and tokens in the budget.
    fn admit(&mut self) {
        while let Some(next) = self.queue.next() {
            let seats: usize = self.running.iter().map(|s| 1 + s.siblings.len()).sum();
            let tokens = self.running.len();
            if seats + 1 + next.siblings.len() > self.options.seats
                || (tokens >= self.options.budget && tokens > 0)
            {
                return;
            }
            let prefix = match next.cache_prompt {
                true => self.cache.blocks.find(&next.adapters, &next.ids),
                false => Default::default(),
            };
            // What a prefix holds and nobody uses is not there to be given away.
            let idle = prefix.blocks.iter().filter(|b| self.cache.blocks.holders(**b) == 0).count();
            let need =
                (next.ids.len() + 1).div_ceil(KV_BLOCK).min(self.cache.blocks.count()) - prefix.blocks.len();
            if need + idle > self.cache.blocks.available() && !self.running.is_empty() {
                return;
            }
            let mut sequence = self.queue.pop().expect("somebody is next");
            if sequence.cache_prompt && !sequence.preempted {
                self.stats.prefix_queries += sequence.ids.len() as u64;
            }
            let place = self.cache.enter(&sequence.adapters, prefix);
            if !sequence.preempted {
                self.stats.prefix_hits += place.computed as u64;
            }
            sequence.admitted(place);
            let at = self.running.partition_point(|s| s.priority >= sequence.priority);
            self.running.insert(at, sequence);
        }
    }

    /// Waits until other engines leave it as many processors as it has threads there, if it takes turns with them.
    fn processors(&self) -> Option<Turn<'static>> {
        let DeviceInfo { device, threads, .. } = &self.device;
        (self.options.take_turns && device.has(Device::Cpu)).then(|| Processors::of_process().turn(*threads))
    }

    /// Guesses what the answers in the making go on with.
    fn guess(&mut self) -> Result<(), ModelError> {
        let capacity = self.common.capacity;
        if let Some(draft) = &mut self.draft {
            return draft.guess(&mut self.running, self.options.budget, capacity);
        }
        for sequence in &mut self.running {
            let guesses = draft::lookup(&sequence.ids, sequence.most_guesses(capacity));
            sequence.guess_all(guesses);
        }
        Ok(())
    }

    /// Settles how many tokens of each sequence the next step runs.
    fn plan(&mut self) {
        let decoding = self.running.iter().filter(|s| s.is_decoding()).count();
        let mut left = self.options.budget.saturating_sub(decoding);
        let mut sharing = self.running.len() - decoding;
        for sequence in &mut self.running {
            if sequence.is_decoding() {
                sequence.plan(1);
                continue;
            }
            let share = (left / sharing).max(1);
            sequence.plan(share.min(sequence.missing()));
            left = left.saturating_sub(sequence.chunk);
            sharing -= 1;
        }
    }

    /// Gives every sequence the blocks that its step writes to. When there are none left, the last one goes back to wait.
    fn make_room(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if self.cache.make_room(&mut sequence.place, sequence.chunk) {
                at += 1;
                continue;
            }
            self.send_back();
        }
    }

    /// Sends the answer that was admitted last back to wait.
    fn send_back(&mut self) {
        let mut last = self.running.pop().expect("somebody is running");
        self.release(&mut last);
        last.preempted = true;
        self.stats.preempted += 1;
        self.queue.push(last);
    }

    /// Runs the step and hands out its logits.
    fn run(&mut self, begin: Instant) {
        let spans: Vec<Span<'_>> = self
            .running
            .iter()
            .map(|s| Span {
                start: s.place.computed,
                ids: &s.ids[s.place.computed..s.place.computed + s.chunk],
                blocks: &s.place.blocks,
                needs: &s.needs,
                states: s.states.clone(),
                adapters: &s.adapters,
            })
            .collect();
        let tokens = self.running.iter().map(|s| s.chunk).sum();
        self.largest_step = self.largest_step.max(workspace_bytes(self.config(), tokens));
        let decoding = Instant::now();
        let decoded = self.cache.decoder.batch(&spans, &mut self.logits, &mut self.states);
        let took = begin.elapsed();
        self.stats.steps += 1;
        self.stats.decoder_time += decoding.elapsed();
        if let Err(e) = decoded {
            return self.step_failed(e);
        }
        let (logits, states) = (std::mem::take(&mut self.logits), std::mem::take(&mut self.states));
        let mut rows = logits.rows();
        let mut state_rows = states.chunks_exact(self.cache.decoder.config().hidden);
        for mut sequence in std::mem::take(&mut self.running) {
            sequence.pool(state_rows.by_ref().take(sequence.states.len()), &mut self.events);
            let rows: Vec<LogitsRow<'_>> = rows.by_ref().take(sequence.needs.len()).collect();
            self.stats.drafted += sequence.guesses as u64;
            self.queue.charge(&sequence.client, sequence.chunk);
            let len = sequence.len();
            let ran = sequence.ran(&rows, took, &self.common, &mut self.events);
            self.settle(&mut sequence, len + ran.as_ref().unwrap_or(&0));
            match ran {
                Err(e) => self.fail(sequence, &Arc::new(e)),
                Ok(right) => {
                    self.stats.accepted += right as u64;
                    if sequence.is_past_prompt() {
                        self.fork(&mut sequence, rows.last());
                    }
                    self.seat(sequence);
                }
            }
        }
        drop(rows);
        (self.logits, self.states) = (logits, states);
    }

    /// Goes on with a sequence in the next step, or ends it.
    fn seat(&mut self, sequence: Sequence) {
        match sequence.finish {
            // Without an answer it ends with its prompt.
            Some(reason) if sequence.is_past_prompt() => self.end(sequence, reason),
            _ => self.running.push(sequence),
        }
    }

    /// Puts a sequence's places in order behind a step: what it took back is forgotten, and what the draft model computed beyond
    /// the first `right` ids too.
    fn settle(&mut self, sequence: &mut Sequence, right: usize) {
        let last = sequence.len() - 1;
        if sequence.finish.is_none() {
            self.cache.rewind(&mut sequence.place, last);
        }
        self.cache.link(&mut sequence.place, &sequence.ids);
        if let Some(draft) = &mut self.draft {
            draft.cache.rewind(&mut sequence.draft, right.min(last));
        }
    }

    /// Begins the further answers to a prompt that is computed, with the row of logits behind it.
    fn fork(&mut self, first: &mut Sequence, row: Option<&LogitsRow<'_>>) {
        for mut sequence in std::mem::take(&mut first.siblings) {
            let place = self.cache.share(&first.place);
            let begun = sequence.begin(first, place, row, &self.common, &mut self.events);
            let len = sequence.len();
            self.settle(&mut sequence, len);
            match begun {
                Ok(()) => self.seat(sequence),
                Err(e) => self.fail(sequence, &Arc::new(e)),
            }
        }
    }

    /// Ends what fulfils a condition.
    pub(super) fn end_all(&mut self, reason: FinishReason, condition: impl Fn(&Sequence) -> bool) {
        let mut ended = self.queue.remove(&condition);
        ended.extend(self.running.extract_if(.., |s| condition(s)));
        for sequence in ended {
            self.end(sequence, reason);
        }
    }

    fn end(&mut self, mut sequence: Sequence, reason: FinishReason) {
        for sibling in std::mem::take(&mut sequence.siblings) {
            self.end(sibling, reason);
        }
        self.release(&mut sequence);
        sequence.end(reason, &mut self.events);
    }

    fn fail(&mut self, mut sequence: Sequence, error: &Arc<GenerateError>) {
        for sibling in std::mem::take(&mut sequence.siblings) {
            self.fail(sibling, error);
        }
        self.release(&mut sequence);
        self.events.push(sequence.event(News::Failed(Arc::clone(error))));
    }

    /// Ends all that run.
    pub(super) fn fail_all(&mut self, error: GenerateError) {
        let error = Arc::new(error);
        for sequence in std::mem::take(&mut self.running) {
            self.fail(sequence, &error);
        }
    }

    /// Gives back a sequence's blocks.
    fn release(&mut self, sequence: &mut Sequence) {
        sequence.drop_guesses();
        self.cache.leave(&mut sequence.place, &sequence.ids);
        if let Some(draft) = &mut self.draft {
            draft.cache.leave(&mut sequence.draft, &sequence.ids);
        }
    }
}
