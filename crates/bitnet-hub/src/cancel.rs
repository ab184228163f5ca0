//! Stopping what runs on other threads.

use crate::HubError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that ends a pull between two reads; what has arrived stays for the next one.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flags: Vec<Arc<AtomicBool>>,
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self { flags: vec![Arc::default()] }
    }

    /// A flag that somebody else sets.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self { flags: vec![flag] }
    }

    /// Sets it.
    pub fn cancel(&self) {
        if let Some(own) = self.flags.last() {
            own.store(true, Ordering::Relaxed);
        }
    }

    /// A flag that is also set when this one is, but not the other way round.
    pub(crate) fn child(&self) -> Self {
        let mut flags = self.flags.clone();
        flags.push(Arc::default());
        Self { flags }
    }

    pub(crate) fn check(&self) -> Result<(), HubError> {
        match self.flags.iter().any(|f| f.load(Ordering::Relaxed)) {
            true => Err(HubError::Cancelled),
            false => Ok(()),
        }
    }
}
