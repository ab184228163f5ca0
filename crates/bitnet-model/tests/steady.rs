//! A decode step that is like those before it allocates nothing, on no thread, whatever their number: it asks neither the program's
//! allocator nor the source of the model's pool, also where it begins a block of the cache. With one thread it asks nothing of the system
//! at all. (With several, a thread that has waited too long for the next job sleeps, and is woken.)

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{KV_BLOCK, LogitsNeed};
use bitnet_cpu::{CpuBackend, CpuOptions};
use bitnet_model::{Decoder, LoadOptions, StepOutput, Transformer, load};
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Steps that find out how much memory is needed, and as many behind them that are watched: they begin the second block of the cache.
const STEPS: usize = KV_BLOCK - 20;
/// What the sealed process writes after its steps.
const DONE: &str = "all steps done";

/// A model whose products leave out zeros and whose head is large enough to be screened.
fn spec() -> Spec {
    Spec {
        arch: Arch::BITNET_B158,
        hidden: 256,
        ffn: 256,
        head_dim: 64,
        vocab: 5000,
        embedding: Store::Q6_K,
        projections: Store::I2_S,
        ..Spec::default()
    }
}

fn open(file: &Path, threads: usize) -> Transformer<CpuBackend> {
    let backend = CpuBackend::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
    let checkpoint = bitnet_formats::open(file).unwrap();
    load(Arc::new(backend), &checkpoint, &LoadOptions::default(), &mut |_, _| {}).unwrap()
}

fn run(model: &mut dyn Decoder, out: &mut StepOutput) {
    for id in 0..STEPS {
        model.step(&[id as u32], out).unwrap();
    }
}

fn output() -> StepOutput {
    StepOutput { need: LogitsNeed::Top { k: 1, also: Vec::new() }, ..StepOutput::default() }
}

/// How often the model's pool has asked for more.
fn source_requests(model: &dyn Decoder) -> u64 {
    model.memory()[0].snapshot().source_requests
}

fn nothing_is_allocated(file: &Path) {
    for threads in [1, 2, 3] {
        let (mut model, mut out) = (open(file, threads), output());
        run(&mut model, &mut out);
        assert!(!out.ids.is_empty(), "the head was not screened");
        let (before, heap) = (source_requests(&model), Region::new(HEAP));
        run(&mut model, &mut out);
        let change = heap.change();
        assert!(model.position() > KV_BLOCK, "a block was begun");
        assert_eq!((change.allocations, change.reallocations), (0, 0), "{threads} threads: {change:?}");
        assert_eq!(source_requests(&model), before, "{threads} threads");
        println!("{threads} threads: no allocations in {STEPS} steps");
    }
}

/// Runs itself once more, and has the kernel end that process when it asks for anything but to write.
#[cfg(target_os = "linux")]
fn no_system_calls(file: &Path) {
    use std::os::unix::process::ExitStatusExt;
    let itself = std::env::current_exe().unwrap();
    let child = std::process::Command::new(itself).arg(SEALED).arg(file).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    if child.status.success() {
        return println!("not run: system calls, which this kernel does not refuse: {out}");
    }
    assert_eq!(out, DONE, "{err}");
    // Even to end is more than it may ask for.
    assert_eq!(child.status.signal(), Some(9));
    println!("no system calls by decode steps of one thread");
}

#[cfg(target_os = "linux")]
const SEALED: &str = "--sealed";

#[cfg(target_os = "linux")]
fn sealed(file: &Path) {
    use rustix::thread::{SecureComputingMode, set_secure_computing_mode};
    let (mut model, mut out) = (open(file, 1), output());
    run(&mut model, &mut out);
    let stdout = std::io::stdout();
    if let Err(e) = set_secure_computing_mode(SecureComputingMode::Strict) {
        return println!("{e}");
    }
    run(&mut model, &mut out);
    let _ = rustix::io::write(stdout, DONE.as_bytes());
}

/// Without a harness: its threads would take memory and make calls.
fn main() {
    #[cfg(target_os = "linux")]
    if let [_, flag, file] = &std::env::args().collect::<Vec<_>>()[..]
        && flag == SEALED
    {
        return sealed(file.as_ref());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = spec().build(1).write(folder.path());
    nothing_is_allocated(&file);
    #[cfg(target_os = "linux")]
    no_system_calls(&file);
    #[cfg(not(target_os = "linux"))]
    println!("not run: system calls, which only Linux lets us refuse");
}
