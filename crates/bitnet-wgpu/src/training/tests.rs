//! What memory of an adapter has of its own: limits, ranges, reuse, and failures. The numbers are the conformance suite's affair.

use super::*;
use bitnet_core::{DeviceSide, DeviceStore, DeviceValues, Factor};
use bitnet_memory::Tag;
use bitnet_testkit::tensors::Noise;

/// The first adapter; says so where there is none.
fn device() -> Option<WgpuTraining> {
    if crate::adapters().is_empty() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
        return None;
    }
    Some(WgpuTraining::new(0).unwrap())
}

/// The same on which bindings have 64 KiB at most.
fn narrow() -> Option<WgpuTraining> {
    let mut device = device()?;
    device.gpu.limit_bindings(1 << 16);
    Some(device)
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut noise = Noise(seed);
    (0..len).map(|_| noise.unit() as f32).collect()
}

fn put(device: &WgpuTraining, values: &[f32]) -> Memory {
    let memory = device.memory(4 * values.len(), Tag::Activations).unwrap();
    put_at(device, &memory, 0, values);
    memory
}

fn put_at(device: &WgpuTraining, memory: &Memory, first: usize, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    device.upload(memory, 4 * first, &bytes);
}

fn get(device: &WgpuTraining, memory: &Memory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes()];
    device.download(memory, 0, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// What is larger than a binding may be is computed in pieces, which changes no number.
#[test]
fn pieces_give_what_the_whole_gives() {
    let (Some(one), Some(other)) = (device(), narrow()) else { return };
    let [whole, pieces] = [one, other].map(|device| {
        let (m, n, k) = (300, 210, 100);
        let (a, b, c) = (floats(1, m * k), floats(2, n * k), floats(3, m * n));
        let (a, b, c) = (put(&device, &a), put(&device, &b), put(&device, &c));
        let (rows, columns) = (put(&device, &floats(4, m)), put(&device, &floats(5, n)));
        let side = |memory| DeviceSide {
            values: DeviceValues::F32(At::start(memory)),
            stride: k,
            columns: false,
            factors: None,
        };
        let product = |store, c| Product {
            terms: Terms::F32,
            sizes: (m, n, k),
            a: side(&a),
            b: side(&b),
            store,
            c: At::start(c),
            stride: n,
            first: 0,
        };
        device.product(&product(DeviceStore::Add { scale: Factor::Columns(At::start(&columns)) }, &c));
        let d = device.memory(4 * m * n, Tag::Activations).unwrap();
        let rows = Some(At::start(&rows));
        device.product(&product(DeviceStore::Set { rows, scale: Factor::Value(0.5) }, &d));
        let len = m * n;
        device.mix(At::start(&c), 0.5, At::start(&d), 0.25, At::start(&d), len);
        device.adam(&AdamStep {
            p: At::start(&c),
            gradient: At::start(&d),
            m: At::start(&put(&device, &floats(6, len))),
            v: At::start(&put(&device, &vec![0.1; len])),
            len,
            scale: 1.0,
            pull: 0.0,
            keep: 1.0,
            step: 0.1,
            root: 1.0,
            first: (0.9, 0.1),
            second: (0.99, 0.01),
            eps: 1e-8,
        });
        let parts = device.memory(12 * m, Tag::Activations).unwrap();
        let ids: Vec<u32> = (0..m as u32).map(|i| i % n as u32).collect();
        device.cross_entropy(At::start(&d), n, &ids, &floats(7, m), At::start(&parts));
        let length = device.length(At::start(&c), len).unwrap();
        let squares = get(&device, &c).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        assert!((length / squares.sqrt() - 1.0).abs() < 1e-6, "{length}");
        [&c, &d, &parts].map(|memory| get(&device, memory))
    });
    for (whole, pieces) in whole.iter().zip(&pieces) {
        assert!(whole.iter().any(|v| *v != 0.0));
        assert!(whole.iter().map(|v| v.to_bits()).eq(pieces.iter().map(|v| v.to_bits())));
    }
}

/// Parameters lie in one memory, of which an operation sees a part; what it writes may be another part of it.
#[test]
fn operands_may_be_parts_of_one_memory() {
    let Some(device) = narrow() else { return };
    let (m, n, far) = (5, 70, 100_003);
    let (x, w) = (floats(1, m * n), floats(2, n));
    let norm = |x, w| DeviceNorm { x, w, sizes: (m, n), eps: 1e-5 };
    let alone = [put(&device, &x), put(&device, &w), device.memory(4 * m * n, Tag::Activations).unwrap()];
    device.norm(norm(At::start(&alone[0]), At::start(&alone[1])), At::start(&alone[2]));

    let all = put(&device, &vec![0.0; far + 2 * m * n + n]);
    let at = |first| At { memory: &all, first };
    put_at(&device, &all, far, &x);
    put_at(&device, &all, 7, &w);
    device.norm(norm(at(far), at(7)), at(far + m * n + n));
    assert!(device.failure().is_none());
    let all = get(&device, &all);
    assert_eq!(all[far + m * n + n..], get(&device, &alone[2]));
    assert_eq!((&all[far..far + m * n], &all[7..7 + n]), (&x[..], &w[..]));
}

/// What cannot be is told once, by whoever asks first; what was asked for afterwards is not done.
#[test]
fn what_cannot_be_is_told_and_no_panic() {
    let (Some(device), Some(stranger)) = (narrow(), device()) else { return };
    let (large, small) = (device.memory(1 << 20, Tag::Activations).unwrap(), put(&device, &[1.0; 4]));
    let to = device.memory(4 * 20_000, Tag::Activations).unwrap();
    // Rows of a table that lie too far apart to be seen together.
    device.gather(At::start(&large), &[0, 2], 10_000, At::start(&to));
    device.fill(At::start(&small), 4, 2.0);
    let failure = device.failure();
    assert!(matches!(&failure, Some(BackendError::Unsupported { .. })), "{failure:?}");
    assert!(device.failure().is_none());
    assert_eq!(get(&device, &small), [1.0; 4]);

    device.fill(At { memory: &small, first: 3 }, 2, 2.0);
    let outcome = device.download(&small, 0, &mut [0; 4]);
    assert!(
        matches!(&outcome, Err(BackendError::Device { why, .. }) if why.contains("12 to 20")),
        "{outcome:?}"
    );
    assert!(device.failure().is_none());

    let theirs = stranger.memory(16, Tag::Activations).unwrap();
    device.fill(At::start(&theirs), 4, 2.0);
    let outcome = device.length(At::start(&small), 4);
    assert!(
        matches!(&outcome, Err(BackendError::Device { why, .. }) if why.contains("another")),
        "{outcome:?}"
    );
    assert_eq!(device.length(At::start(&small), 4).unwrap(), 2.0);
}

#[test]
fn a_device_that_is_lost_is_told_and_no_panic() {
    let Some(device) = device() else { return };
    let memory = put(&device, &[1.0; 4]);
    device.gpu.lose();
    device.fill(At::start(&memory), 4, 2.0);
    device.upload(&memory, 0, &[0; 16]);
    let outcome = device.download(&memory, 0, &mut [0; 16]);
    assert!(matches!(outcome, Err(BackendError::Device { .. })), "{outcome:?}");
    assert!(device.memory(1 << 20, Tag::Activations).is_err() && device.failure().is_some());
    assert!(device.length(At::start(&memory), 4).is_err());
}

/// Squares of these are no numbers, or nothing.
#[test]
fn lengths_of_what_is_very_large_or_small_are_right() {
    let Some(device) = device() else { return };
    for size in [1e30, 1e-30, 1.0] {
        let values: Vec<f32> = floats(9, 40_000).iter().map(|v| v * size).collect();
        let want = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let got = device.length(At::start(&put(&device, &values)), values.len()).unwrap();
        assert!((got / want - 1.0).abs() < 1e-6, "{size}: {got} for {want}");
    }
    for odd in [f32::NAN, f32::INFINITY] {
        let mut values = vec![1.0; 40_000];
        values[33_333] = odd;
        assert!(!device.length(At::start(&put(&device, &values)), values.len()).unwrap().is_finite());
    }
    assert_eq!(device.length(At::start(&put(&device, &[0.0; 9])), 9).unwrap(), 0.0);
    assert_eq!(device.length(At::start(&put(&device, &[])), 0).unwrap(), 0.0);
}

/// Memory that went back is given again, and counted by what it is for.
#[test]
fn memory_that_is_given_back_is_given_again() {
    let Some(device) = device() else { return };
    let used =
        |tag: Tag| device.device_memory().tags.iter().find(|t| t.tag == tag).map_or(0, |t| t.asked_bytes);
    let optimizer = device.memory(100_000, Tag::Optimizer).unwrap();
    assert_eq!(used(Tag::Optimizer), 100_004);
    let step = || {
        let (x, w, y) =
            (put(&device, &floats(1, 6400)), put(&device, &floats(2, 64)), put(&device, &[0.0; 6400]));
        let norm = DeviceNorm { x: At::start(&x), w: At::start(&w), sizes: (100, 64), eps: 1e-5 };
        device.norm(norm, At::start(&y));
        let dx = device.memory(4 * 6400, Tag::Activations).unwrap();
        device.norm_backward(norm, At::start(&y), false, At::start(&dx), Some(At::start(&w)));
        device.gather(At::start(&x), &[3, 1, 2], 64, At::start(&y));
        device.length(At::start(&dx), 6400).unwrap()
    };
    let want = step();
    step();
    let (requests, _) = device.gpu.counts();
    (0..5).for_each(|_| assert_eq!(step(), want));
    assert_eq!(device.gpu.counts().0, requests, "a step like others asks for nothing");
    drop(optimizer);
    assert_eq!((used(Tag::Optimizer), used(Tag::Activations)), (0, 0));
}

/// Every request for memory may be refused: that is told, and the next step is right.
#[test]
fn whatever_is_refused_is_told_and_the_next_step_is_right() {
    if device().is_none() {
        return;
    }
    let keeps_nothing = Config { keep_bytes: 0, at_hand_bytes: 0, ..Profile::Training.into() };
    let device = WgpuTraining::with(0, keeps_nothing).unwrap();
    let step = || -> Result<Vec<u8>, BackendError> {
        let memory = |len: usize| device.memory(4 * len, Tag::Activations);
        let (x, w, y, dx, dw) = (memory(6400)?, memory(64)?, memory(6400)?, memory(6400)?, memory(64)?);
        put_at(&device, &x, 0, &floats(1, 6400));
        put_at(&device, &w, 0, &floats(2, 64));
        device.fill(At::start(&dw), 64, 0.0);
        let norm = DeviceNorm { x: At::start(&x), w: At::start(&w), sizes: (100, 64), eps: 1e-5 };
        device.norm(norm, At::start(&y));
        device.norm_backward(norm, At::start(&y), false, At::start(&dx), Some(At::start(&dw)));
        device.gather(At::start(&dx), &[3, 1, 2], 64, At::start(&y));
        let length = device.length(At::start(&dw), 64)?;
        let mut out = vec![0; y.bytes()];
        device.download(&y, 0, &mut out)?;
        out.extend(length.to_le_bytes());
        Ok(out)
    };
    let want = step().unwrap();
    let mut refusals = 0;
    for nth in 0.. {
        device.gpu.serve(nth);
        let outcome = step();
        device.gpu.serve(usize::MAX);
        let is_done = match outcome {
            Ok(got) => {
                assert!(got == want, "request {nth}");
                true
            }
            Err(e) => {
                assert!(matches!(e, BackendError::OutOfMemory { .. }), "request {nth}: {e}");
                false
            }
        };
        // What was kept from a step that nobody asked about is told once.
        let kept = device.failure();
        assert!(kept.is_none_or(|e| matches!(e, BackendError::OutOfMemory { .. })));
        assert!(step().unwrap() == want, "after request {nth}");
        if is_done {
            break;
        }
        refusals += 1;
    }
    println!("{refusals} requests were refused");
    assert!(refusals > 8, "{refusals}");
}
