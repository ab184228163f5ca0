//! What memory that is short changes: who waits and what is computed again, and no token.

#![cfg(target_os = "linux")]

use super::*;
use bitnet_memory::{Level, Monitor, MonitorOptions, System};
use tempfile::TempDir;

/// A machine of a gibibyte, as its files say.
struct Machine(TempDir);

impl Machine {
    /// With so many MiB left, and an engine on it.
    fn with_engine(left_mib: usize) -> (Self, Engine) {
        let machine = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(machine.0.path().join("proc")).unwrap();
        machine.leave(left_mib);
        let system = System::at(machine.0.path());
        let options = MonitorOptions { system, interval: Duration::ZERO, ..MonitorOptions::default() };
        let mut engine = engine(1024, EngineOptions::default(), None);
        engine.watch_memory(Arc::new(Monitor::new(options)));
        (machine, engine)
    }

    fn leave(&self, mib: usize) {
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", 1 << 20, mib << 10);
        std::fs::write(self.0.path().join("proc/meminfo"), text).unwrap();
    }
}

fn request(first: u32) -> Request {
    let sampling = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let prompt = (first..first + 130).collect();
    Request { prompt, sampling, max_tokens: Some(6), ignore_eos: true, ..Request::default() }
}

/// The ids of each request's answer.
fn answers(engine: &mut Engine, mut events: Vec<Event>) -> BTreeMap<RequestId, Vec<u32>> {
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let mut answers = BTreeMap::<_, Vec<u32>>::new();
    for event in events {
        match event.news {
            News::Piece { id, .. } => answers.entry(event.request).or_default().extend(id),
            News::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    answers
}

#[test]
fn without_memory_requests_are_refused_until_there_is_some() {
    let (machine, mut engine) = Machine::with_engine(10);
    let Err(GenerateError::Memory(shortage)) = engine.submit(&request(3)) else { panic!("it was taken") };
    assert_eq!((shortage.limit_bytes, shortage.left_bytes), (1 << 30, 10 << 20));
    assert_eq!(engine.stats().memory_pressure, Level::Critical);
    machine.leave(900);
    assert!((0..9).any(|_| engine.submit(&request(3)).is_ok()), "a level ends after some readings");
    assert_eq!(answers(&mut engine, Vec::new()).len(), 1);
}

#[test]
fn prefixes_go_back_to_the_system_and_are_computed_again() {
    let (machine, mut engine) = Machine::with_engine(900);
    engine.submit(&request(3)).unwrap();
    let first = answers(&mut engine, Vec::new());
    engine.submit(&request(3)).unwrap();
    let again = answers(&mut engine, Vec::new());
    let hits = engine.stats().prefix_hits;
    assert!(hits > 0 && engine.stats().memory_freed_bytes == 0);
    // Between the second level and the third.
    machine.leave(90);
    engine.step(&mut Vec::new());
    let block = engine.decoder().block_bytes() as u64;
    let freed = engine.stats().memory_freed_bytes;
    assert!((2 * block..=4 * block).contains(&freed), "{freed} bytes, a block has {block}");
    engine.submit(&request(3)).unwrap();
    let anew = answers(&mut engine, Vec::new());
    assert_eq!(engine.stats().prefix_hits, hits, "nothing was found");
    let ids = |answers: BTreeMap<RequestId, Vec<u32>>| answers.into_values().collect::<Vec<_>>();
    let (first, again, anew) = (ids(first), ids(again), ids(anew));
    assert_eq!((&first, &first), (&again, &anew));
}

#[test]
fn of_several_answers_all_but_one_wait_and_end_as_they_would_have() {
    let (_, mut plenty) = Machine::with_engine(900);
    (0..3).for_each(|i| assert!(plenty.submit(&request(3 + i)).is_ok()));
    let want = answers(&mut plenty, Vec::new());
    let (machine, mut engine) = Machine::with_engine(900);
    (0..3).for_each(|i| assert!(engine.submit(&request(3 + i)).is_ok()));
    let mut events = Vec::new();
    (0..2).for_each(|_| engine.step(&mut events));
    assert_eq!(engine.stats().running, 3);
    machine.leave(10);
    (0..2).for_each(|_| engine.step(&mut events));
    assert_eq!((engine.stats().running, engine.stats().waiting, engine.stats().preempted), (1, 2, 2));
    assert_eq!(answers(&mut engine, events), want);
}
