//! Choices are kept, and what is kept in the cache needs no compiler.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

fn device() -> DeviceDetails {
    DeviceDetails {
        name: "a GPU".to_owned(),
        capability: (9, 0),
        memory: 1 << 30,
        processors: 1,
        driver: 13_000,
    }
}

fn kernel(rows: usize) -> FixedKernel {
    format!("gemv rows={rows} tiles=20 up=0 act=0").parse().unwrap()
}

#[test]
fn what_was_measured_is_added_to_what_was_known() {
    let shape = ProductShape { rows: 64, cols: 128, tokens: 24, gated: false };
    let tuning = Tuning::new(Choices { products: [(shape, "one".to_owned())].into(), fixed: vec![] }, None);
    let other = ProductShape { gated: true, ..shape };
    assert_eq!((tuning.best(&shape).as_deref(), tuning.best(&other)), (Some("one"), None));
    tuning.set_best(other, "two");
    assert_eq!(tuning.best(&other).as_deref(), Some("two"));
    let products = tuning.choices().products;
    assert_eq!((products[&shape].as_str(), products[&other].as_str()), ("one", "two"));
}

#[test]
fn what_the_cache_has_is_ready_when_a_gpu_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache { folder: folder.path().to_owned(), max_bytes: 1 << 20 };
    let (known, other) = (kernel(32), kernel(64));
    let key = |driver| format!("kernels {SOURCES_HASH}, sm_90, driver {driver}: {known}");
    cache.put(&key(13_000), b"code").unwrap();
    let choices = Choices { fixed: vec![known.clone()], ..Choices::default() };
    let tuning = Tuning::new(choices.clone(), Some(cache.clone()));
    assert_eq!(tuning.compile(&known), Err(CompileError::NoDevice));
    tuning.open(&device());
    assert_eq!(tuning.trouble(), None);
    assert_eq!(tuning.images("sm_90"), [(known.clone(), b"code"[..].into())]);
    assert!(tuning.images("sm_80").is_empty());
    // What is no longer wanted is not run, and what is wanted is run when it is compiled.
    let version = tuning.version();
    tuning.want(vec![other]);
    assert!(tuning.version() > version && tuning.images("sm_90").is_empty());
}

#[test]
fn kernels_are_noted_where_that_is_asked() {
    let tuning = Tuning::default();
    tuning.note(vec![kernel(32)]);
    assert!(tuning.met().is_empty() && !tuning.observes());
    tuning.observe();
    tuning.note(vec![kernel(32), kernel(64), kernel(32)]);
    assert_eq!(tuning.met(), [kernel(32), kernel(64)]);
}

#[test]
fn identities_tell_drivers_and_architectures_apart() {
    let one = Tuning::identity(&device());
    assert!(one.starts_with("a GPU, sm_90, driver 13000, kernels "), "{one}");
    assert_ne!(one, Tuning::identity(&DeviceDetails { driver: 13_010, ..device() }));
    assert_ne!(one, Tuning::identity(&DeviceDetails { capability: (10, 0), ..device() }));
}
