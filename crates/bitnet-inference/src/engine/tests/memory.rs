//! What memory that is short changes: who waits and what is computed again, and no token.

#![cfg(target_os = "linux")]

use super::moving::with_device;
use super::*;
use bitnet_memory::{DeviceMemory, DeviceUsage, Level, LimitKind, Monitor, MonitorOptions, Snapshot, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
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
    Request {
        prompt: (first..first + 130).collect(),
        max_tokens: Some(6),
        ignore_eos: true,
        sampling: SamplerOptions { temperature: 0.0, ..SamplerOptions::default() },
        ..Request::default()
    }
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
    assert!(freed >= 2 * block, "{freed} bytes, a block has {block}");
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

/// A device of a gibibyte with so many bytes free, whose pool keeps some.
struct Gpu {
    free: AtomicU64,
    idle: AtomicU64,
}

impl DeviceMemory for Gpu {
    fn name(&self) -> &str {
        "cuda:0"
    }
    fn usage(&self) -> Option<DeviceUsage> {
        let (free_bytes, idle_bytes) = (self.free.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed));
        Some(DeviceUsage { total_bytes: 1 << 30, free_bytes, idle_bytes })
    }
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
    fn release(&self) -> u64 {
        let idle = self.idle.swap(0, Ordering::Relaxed);
        self.free.fetch_add(idle, Ordering::Relaxed);
        idle
    }
}

#[test]
fn a_device_takes_what_fits_and_gives_back_what_it_keeps() {
    let (_machine, engine) = Machine::with_engine(900);
    let monitor = engine.watch.as_ref().unwrap().monitor();
    let gpu = Arc::new(Gpu { free: AtomicU64::new(900 << 20), idle: AtomicU64::new(5000) });
    let mut engine = with_device(engine, gpu.clone());
    engine.watch_memory(monitor);
    engine.submit(&request(3)).unwrap();
    answers(&mut engine, Vec::new());
    assert_eq!((engine.stats().memory_freed_bytes, gpu.idle.load(Ordering::Relaxed)), (0, 5000));
    // Another program takes nearly all: what is kept serves the request, then goes.
    gpu.free.store(100, Ordering::Relaxed);
    engine.submit(&request(3)).unwrap();
    assert_eq!(engine.stats().memory_pressure, Level::Moderate);
    answers(&mut engine, Vec::new());
    assert_eq!((gpu.free.load(Ordering::Relaxed), gpu.idle.load(Ordering::Relaxed)), (5100, 0));
    assert!(engine.stats().memory_freed_bytes >= 5000, "and the host's");
    let Err(GenerateError::Memory(shortage)) = engine.submit(&request(3)) else { panic!("it was taken") };
    assert_eq!((shortage.kind, shortage.left_bytes), (LimitKind::Device("cuda:0".to_owned()), 5100));
    gpu.free.store(900 << 20, Ordering::Relaxed);
    engine.submit(&request(3)).unwrap();
    answers(&mut engine, Vec::new());
}

#[test]
fn what_the_pool_keeps_goes_when_memory_is_short_and_nothing_runs() {
    let (machine, mut engine) = Machine::with_engine(900);
    engine.submit(&request(3)).unwrap();
    let want = answers(&mut engine, Vec::new()).into_values().collect::<Vec<_>>();
    let kept = engine.pools().host[0].snapshot().free_bytes;
    // The first level.
    machine.leave(190);
    engine.submit(&Request { prompt: vec![5], ..request(3) }).unwrap();
    answers(&mut engine, Vec::new());
    // Less some pieces whose neighbours are in use.
    let left = engine.pools().host[0].snapshot().free_bytes;
    assert!(left < kept / 2, "{left} of {kept} bytes");
    engine.submit(&request(3)).unwrap();
    assert_eq!(answers(&mut engine, Vec::new()).into_values().collect::<Vec<_>>(), want);
}
