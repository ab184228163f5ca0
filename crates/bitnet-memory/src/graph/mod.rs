//! Cycles of shared buffers, which nobody would ever drop.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What was registered of who holds whom: a check for programs whose nodes hold their inputs by `Arc`. Registering keeps nothing alive.
///
/// It belongs to a pool at [`Tracking::Debug`](crate::Tracking::Debug), and only knows what it is told.
#[derive(Default)]
pub struct Graph(Mutex<Nodes>);

#[derive(Default)]
struct Nodes {
    nodes: Vec<Node>,
    /// By the numbers of two nodes: the first holds the second.
    holds: Vec<(usize, usize)>,
}

struct Node {
    name: String,
    value: Weak<dyn Any + Send + Sync>,
}

/// A registered node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(usize);

impl Graph {
    /// Registers a node under a name for reports.
    pub fn node<T: Send + Sync + 'static>(&self, name: impl Into<String>, value: &Arc<T>) -> NodeId {
        let value: Arc<dyn Any + Send + Sync> = value.clone();
        let mut graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        graph.nodes.push(Node { name: name.into(), value: Arc::downgrade(&value) });
        NodeId(graph.nodes.len() - 1)
    }

    /// Notes that `holder` has an `Arc` of `held`.
    pub fn holds(&self, holder: NodeId, held: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).holds.push((holder.0, held.0));
    }

    /// The names of nodes that are alive and hold each other in a circle, one list for each set in which every node is reached from
    /// every other.
    pub fn cycles(&self) -> Vec<Vec<String>> {
        let graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lives: Vec<bool> = graph.nodes.iter().map(|node| node.value.strong_count() > 0).collect();
        let mut held_by = vec![Vec::new(); lives.len()];
        for (holder, held) in graph.holds.iter().filter(|(a, b)| lives[*a] && lives[*b]) {
            held_by[*holder].push(*held);
        }
        let reached: Vec<Vec<bool>> = (0..lives.len()).map(|node| reach(&held_by, node)).collect();
        let mut is_told = vec![false; lives.len()];
        let mut cycles = Vec::new();
        for node in 0..lives.len() {
            if is_told[node] || !reached[node][node] {
                continue;
            }
            let circle: Vec<usize> =
                (0..lives.len()).filter(|other| reached[node][*other] && reached[*other][node]).collect();
            circle.iter().for_each(|node| is_told[*node] = true);
            cycles.push(circle.into_iter().map(|node| graph.nodes[node].name.clone()).collect());
        }
        cycles
    }
}

/// The nodes that one holds, at whatever distance.
fn reach(holds: &[Vec<usize>], from: usize) -> Vec<bool> {
    let (mut reached, mut open) = (vec![false; holds.len()], vec![from]);
    while let Some(node) = open.pop() {
        for held in &holds[node] {
            if !std::mem::replace(&mut reached[*held], true) {
                open.push(*held);
            }
        }
    }
    reached
}
