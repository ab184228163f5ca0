use super::*;
use crate::{Buffer, Config, Pool, Profile, Tag, Tracking};

struct Value {
    _buffer: Buffer<f32>,
    inputs: Mutex<Vec<Arc<Value>>>,
}

#[test]
fn circles_are_found_while_they_live() {
    let pool =
        Pool::with(Default::default(), Config { tracking: Tracking::Debug, ..Profile::Training.into() });
    let graph = pool.graph().unwrap();
    let value = || {
        let buffer = pool.zeroed(16, Tag::Activations).unwrap();
        Arc::new(Value { _buffer: buffer, inputs: Mutex::default() })
    };
    let values: Vec<Arc<Value>> = (0..6).map(|_| value()).collect();
    let nodes: Vec<NodeId> = values.iter().enumerate().map(|(i, v)| graph.node(format!("n{i}"), v)).collect();
    let hold = |a: usize, b: usize| {
        values[a].inputs.lock().unwrap().push(Arc::clone(&values[b]));
        graph.holds(nodes[a], nodes[b]);
    };
    // A chain with a diamond, no circle.
    [(1, 0), (2, 0), (3, 1), (3, 2)].iter().for_each(|(a, b)| hold(*a, *b));
    assert!(graph.cycles().is_empty());
    hold(0, 3);
    hold(5, 5);
    hold(4, 3);
    assert_eq!(graph.cycles(), [vec!["n0", "n1", "n2", "n3"], vec!["n5"]]);
    // They are still there when nobody else has them, and so is their memory.
    let first = Arc::downgrade(&values[0]);
    drop(values);
    assert_eq!(graph.cycles().len(), 2);
    assert_eq!(pool.live().len(), 5);
    // Who breaks a circle gets all of it back.
    first.upgrade().unwrap().inputs.lock().unwrap().clear();
    assert_eq!(graph.cycles(), [vec!["n5"]]);
    assert_eq!(pool.live().len(), 1);
    assert!(Pool::new(Profile::Training).graph().is_none());
}
