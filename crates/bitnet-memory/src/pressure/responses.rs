//! What gives memory back when it is short, in the order in which it is asked.

use super::{Level, Pressure};

/// When something is asked to give memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// From [`Level::Moderate`] on: memory that holds nothing.
    Trim,
    /// From [`Level::High`] on: what could be computed again.
    Shrink,
}

impl Stage {
    /// The level from which on it is asked.
    pub fn level(self) -> Level {
        match self {
            Self::Trim => Level::Moderate,
            Self::Shrink => Level::High,
        }
    }
}

type Free<C> = Box<dyn FnMut(&mut C, u64) -> u64 + Send>;

struct Response<C> {
    stage: Stage,
    priority: u8,
    name: &'static str,
    free: Free<C>,
}

/// What gave how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The name it was registered under.
    pub name: &'static str,
    /// Bytes that went back to the system.
    pub bytes: u64,
}

/// Who can give memory back. `C` is what they work on, lent to each in turn, so that nobody needs a lock for it.
pub struct Responses<C>(Vec<Response<C>>);

impl<C> Default for Responses<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> Responses<C> {
    /// Registers a function that is told how many bytes are missing, and tells how many it gave back. Of a stage, higher priorities are
    /// asked first, then those that registered first.
    pub fn register(
        &mut self,
        stage: Stage,
        priority: u8,
        name: &'static str,
        free: impl FnMut(&mut C, u64) -> u64 + Send + 'static,
    ) {
        let rank = |stage, priority: u8| (stage, u8::MAX - priority);
        let at = self.0.partition_point(|r| rank(r.stage, r.priority) <= rank(stage, priority));
        self.0.insert(at, Response { stage, priority, name, free: Box::new(free) });
    }

    /// Asks those whose stage it is, until what is missing is there. Once for each reading is enough.
    pub fn run(&mut self, context: &mut C, pressure: &Pressure) -> Vec<Freed> {
        let mut freed: Vec<Freed> = Vec::new();
        for response in self.0.iter_mut().filter(|r| r.stage.level() <= pressure.level) {
            let so_far = freed.iter().map(|f| f.bytes).sum();
            let missing = pressure.missing_bytes(response.stage.level()).saturating_sub(so_far);
            if missing > 0 {
                freed.push(Freed { name: response.name, bytes: (response.free)(context, missing) });
            }
        }
        freed
    }
}
