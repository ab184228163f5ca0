//! What a device's time goes to.

use std::cmp::Reverse;
use std::time::Duration;

/// What operations of one kind took on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationTime {
    /// The kind, as the backend calls it.
    pub name: String,
    /// How many there were.
    pub count: u64,
    /// What all of them took together. Where a device overlaps operations, their times count twice.
    pub time: Duration,
}

impl OperationTime {
    /// Joins those of one name, the longest first.
    pub fn joined(all: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        for one in all {
            match joined.iter_mut().find(|other| other.name == one.name) {
                Some(other) => {
                    other.count += one.count;
                    other.time += one.time;
                }
                None => joined.push(one),
            }
        }
        joined.sort_by_key(|one| Reverse(one.time));
        joined
    }
}
