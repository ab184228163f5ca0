//! What goes wrong with drivers and devices, as the stand-in for the driver's library makes it (`shim/`); on a real one nothing is run.
//! `scripts/test-cuda-shim.sh` runs this once for each fault.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_core::{
    ActivationPrecision, At, AttentionShape, Backend, BackendError, DenseMatrix, DenseType, KvSpec, KvType,
    Matrix, Memory, Purpose, TrainingDevice,
};
use bitnet_cuda::{CudaBackend, CudaError, CudaRows, CudaTraining, devices, free_memory};
use bitnet_memory::Tag;

fn table<B: Backend>(b: &B) -> B::Weight {
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let rows = DenseMatrix::new(1, 3, DenseType::F32, bytes.into()).unwrap();
    b.prepare(&[Matrix::Dense(rows)], ActivationPrecision::Float, Purpose::Product).unwrap()
}

/// A cache of so many bytes.
fn kv_of(bytes: usize) -> KvSpec {
    let shape = AttentionShape { heads: 4, kv_heads: 4, head_dim: 128 };
    let (key, value) = (KvType::F16, KvType::F16);
    KvSpec { layers: 1, shape, capacity: bytes / (2 * 2 * 4 * 128), key, value }
}

/// Two devices that share rows.
fn two_by_rows() -> CudaRows {
    CudaRows::new([0, 1].map(|number| CudaBackend::new(number).unwrap()).into(), vec![1.0, 1.0]).unwrap()
}

fn step<B: Backend>(b: &B, w: &B::Weight) -> Result<Vec<f32>, BackendError> {
    let (mut x, mut out) = (b.tensor(), Vec::new());
    b.embed(w, &[0, 0], &mut x)?;
    b.download(&x, &mut out)?;
    Ok(out)
}

#[test]
fn a_fault_is_an_error_that_says_what_it_is() {
    match std::env::var("BITNET_FAULT").as_deref() {
        Ok("no device") => {
            assert_eq!(devices(), Err(CudaError::NoDevice));
            assert_eq!(CudaBackend::new(0).err(), Some(CudaError::NoDevice));
        }
        Ok("old driver") => {
            let error = devices().unwrap_err();
            assert_eq!(error, CudaError::TooOld { found: 12_040, needed: 13_000 });
            let text = error.to_string();
            assert!(text.contains("CUDA 12.4;") && text.contains("580"), "{text}");
        }
        Ok("two devices") => {
            assert_eq!(devices().unwrap().len(), 2);
            assert!(CudaBackend::new(1).is_ok());
            assert_eq!(CudaBackend::new(2).err(), Some(CudaError::NoSuchDevice { number: 2, found: 2 }));
        }
        Ok("exclusive") => {
            // Another process is there: the GPU is listed, and cannot be opened.
            assert_eq!(devices().unwrap().len(), 1);
            let in_use = CudaError::InUse { name: "shim".to_owned() };
            assert_eq!(CudaBackend::new(0).err(), Some(in_use.clone()));
            assert_eq!(free_memory(0), Err(in_use.clone()));
            assert!(CudaTraining::new(0).is_err());
            let text = in_use.to_string();
            assert!(text.contains("another process") && text.contains("nvidia-smi -c DEFAULT"), "{text}");
        }
        Ok("prohibited") => {
            let error = CudaBackend::new(0).err().unwrap();
            assert_eq!(error, CudaError::Closed { name: "shim".to_owned() });
            assert!(error.to_string().contains("nvidia-smi -c DEFAULT"), "{error}");
        }
        Ok("another process") => {
            // It takes all that is left of 64 MiB from the fourth request for memory on, and gives it back before the ninth.
            assert_eq!(free_memory(0), Ok(64 << 20));
            assert_eq!(free_memory(1), Err(CudaError::NoSuchDevice { number: 1, found: 1 }));
            let b = CudaBackend::new(0).unwrap();
            let w = table(&b);
            let (mut caches, mut refusals, mut free) = (Vec::new(), 0, Vec::new());
            while caches.len() < 12 {
                match b.kv(kv_of(1 << 20)) {
                    Ok(cache) => caches.push(cache),
                    Err(BackendError::OutOfMemory { .. }) => refusals += 1,
                    Err(e) => panic!("{e}"),
                }
                free.push(free_memory(0).unwrap());
                assert!(refusals < 12, "the memory comes back: {free:?}");
            }
            assert!(refusals > 0 && free.contains(&0) && free.last() > Some(&0), "{free:?}");
            assert_eq!(step(&b, &w).unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        }
        Ok("little memory") => {
            let b = CudaBackend::new(0).unwrap();
            let w = table(&b);
            assert!(matches!(b.kv(kv_of(8 << 30)), Err(BackendError::OutOfMemory { .. })));
            // In the middle of a step: the step fails, and the next one does not.
            let (mut x, mut wide) = (b.tensor(), Vec::new());
            b.embed(&w, &[0; 60_000], &mut x).unwrap();
            let mut parts: Vec<_> = (0..16).map(|_| b.tensor()).collect();
            for part in &mut parts {
                b.embed(&w, &[0; 60_000], part).unwrap_or(());
            }
            let mut joined = b.tensor();
            b.join(&parts, &mut joined);
            let outcome = b.download(&joined, &mut wide);
            assert!(matches!(outcome, Err(BackendError::OutOfMemory { .. })), "{outcome:?}");
            drop((parts, joined, x));
            assert_eq!(step(&b, &w).unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        }
        Ok("failed launch") => {
            let b = CudaBackend::new(0).unwrap();
            let w = table(&b);
            let outcome = (0..8).map(|_| step(&b, &w)).find(Result::is_err).unwrap();
            assert!(matches!(outcome, Err(BackendError::Device { .. })), "{outcome:?}");
            // The driver gives the context up; all that follows says so, and nothing panics.
            assert!(step(&b, &w).is_err());
            assert!(CudaTraining::new(0).is_err());
        }
        Ok("failed launch on another device") => {
            let [first, second] = [0, 1].map(|number| CudaBackend::new(number).unwrap());
            let w = table(&first);
            let (mut x, mut y, mut out) = (first.tensor(), second.tensor(), Vec::new());
            // All launches are the first one's, and all that is read is of the second.
            let mut pass = || -> Result<Vec<f32>, BackendError> {
                first.embed(&w, &[0, 0], &mut x)?;
                first.scale(&mut x, 2.0);
                assert!(second.receive(&first, &x, &mut y)?);
                second.download(&y, &mut out)?;
                Ok(out.clone())
            };
            let outcome = (0..8).map(|_| pass()).find(|outcome| match outcome {
                Ok(values) => {
                    assert_eq!(*values, [2.0, 4.0, 6.0, 2.0, 4.0, 6.0]);
                    false
                }
                Err(_) => true,
            });
            let Some(Err(BackendError::Device { device, .. })) = &outcome else { panic!("{outcome:?}") };
            assert_eq!(device, "cuda:0");
            assert!(step(&second, &table(&second)).is_ok(), "the other one goes on");
        }
        Ok("little memory on one of two") => {
            let b = two_by_rows();
            let (w, norm) = (table(&b), b.vector(&[1.0; 3]).unwrap());
            // Somebody else fills the second one.
            let other = CudaBackend::new(1).unwrap();
            let mut held = Vec::new();
            for bytes in [1 << 20, 1 << 17] {
                held.extend(std::iter::from_fn(|| other.kv(kv_of(bytes)).ok()));
            }
            assert!(free_memory(1).unwrap() < 1 << 18 && free_memory(0).unwrap() > 8 << 20);
            // One device has enough for this.
            let (mut x, mut normed, mut out) = (b.tensor(), b.tensor(), Vec::new());
            let outcome = b.embed(&w, &[0; 8000], &mut x).and_then(|()| {
                b.rms_norm(&x, &norm, 1.0, &mut normed);
                b.download(&normed, &mut out)
            });
            assert!(matches!(outcome, Err(BackendError::OutOfMemory { .. })), "{outcome:?}");
            held.clear();
            drop(other);
            // The step was lost on both, and the next one is not.
            assert_eq!(step(&b, &w).unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
            b.embed(&w, &[0; 8000], &mut x).unwrap();
            b.rms_norm(&x, &norm, 1.0, &mut normed);
            b.download(&normed, &mut out).unwrap();
            assert_eq!(out.len(), 24_000);
        }
        Ok("failed launch of rows") => {
            let b = two_by_rows();
            let w = table(&b);
            let outcome = (0..24).map(|_| step(&b, &w)).find(Result::is_err).unwrap();
            let Err(BackendError::Device { device, .. }) = &outcome else { panic!("{outcome:?}") };
            assert!(device == "cuda:0" || device == "cuda:1", "{device}");
            assert!(step(&b, &w).is_err(), "a driver gives the context up");
        }
        Ok("failed launch of training") => {
            let device = CudaTraining::new(0).unwrap();
            let memory = device.memory(16, Tag::Activations).unwrap();
            (0..8).for_each(|_| device.fill(At::start(&memory), 4, 1.0));
            // A launch fails when something waits for it; that is told once, and all that follows fails anew.
            let outcome = device.download(&memory, 0, &mut [0; 16]);
            assert!(matches!(outcome, Err(BackendError::Device { .. })), "{outcome:?}");
            assert!(device.failure().is_none());
            device.fill(At::start(&memory), 4, 1.0);
            assert!(device.failure().is_some() && device.failure().is_none());
            assert!(device.memory(1 << 20, Tag::Activations).is_err());
        }
        Ok("little memory for training") => {
            let device = CudaTraining::new(0).unwrap();
            let told = |outcome: Result<Memory, BackendError>| {
                matches!(outcome, Err(BackendError::OutOfMemory { .. }))
            };
            let [one, two] = [0; 2].map(|_| device.memory(9 << 20, Tag::Activations).unwrap());
            assert!(told(device.memory(9 << 20, Tag::Activations)));
            // What went back is of no size that is asked for next, and makes room for it.
            drop(two);
            let other = device.memory(7 << 20, Tag::Activations).unwrap();
            assert!(device.failure().is_none());
            // An operation that finds no room for itself fails, and with it what is read; nothing else does.
            let room = device.memory(2 << 20, Tag::Activations).unwrap();
            let ids = vec![0; 1 << 20];
            device.gather(At::start(&one), &ids, 1, At::start(&other));
            let outcome = device.download(&other, 0, &mut [0; 4]);
            assert!(matches!(outcome, Err(BackendError::OutOfMemory { .. })), "{outcome:?}");
            drop(room);
            device.fill(At::start(&other), 1, 2.0);
            let mut read = [0; 4];
            device.download(&other, 0, &mut read).unwrap();
            assert_eq!(f32::from_le_bytes(read), 2.0);
        }
        _ => println!("not run: no fault was asked for"),
    }
}
