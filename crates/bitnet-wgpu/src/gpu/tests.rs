//! What goes between the host and a device, and buffers that go from hand to hand while commands are recorded.

use super::transfer::{CHUNK, ROOM};
use super::*;
use bitnet_memory::Profile;

/// The first adapter; says so where there is none.
fn gpu() -> Option<Gpu> {
    if crate::adapters().is_empty() {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "no adapter");
        println!("not run: no adapter");
        return None;
    }
    Some(Gpu::open(0, Profile::Inference.into()).unwrap())
}

fn bytes_of(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(|value| (value as f32).to_le_bytes()).collect()
}

fn storage(gpu: &Gpu, bytes: usize) -> Buffer {
    gpu.large(Tag::Scratch, bytes, "a test").unwrap()
}

fn read(gpu: &Gpu, buffer: &Buffer) -> Vec<u8> {
    let mut out = Vec::new();
    gpu.read(&[(buffer, 0, buffer.bytes())], |bytes| out.extend_from_slice(bytes)).unwrap();
    out
}

/// Records that `n` words of one become words of the other, `first` and what follows.
fn place(gpu: &Gpu, from: Part<'_>, to: &Buffer, n: u32, first: u32) {
    gpu.run(Kernel::Place, &[to.all(), from], &[n, n, n, 0, first, 0], [1, 1, 1]);
}

/// What was dropped is somebody else's at once. What the host writes there comes behind the commands that use it still.
#[test]
fn a_buffer_that_recorded_commands_use_is_written_behind_them() {
    let Some(gpu) = gpu() else { return };
    let contents: Vec<Vec<u8>> = (0..4u32).map(|i| bytes_of((0..64).map(|w| 1000 * i + w))).collect();
    let mut buffer = storage(&gpu, 256);
    gpu.write(&buffer, 0, &contents[0]).unwrap();
    let mut copies = Vec::new();
    for next in &contents[1..] {
        let copy = storage(&gpu, 256);
        place(&gpu, buffer.all(), &copy, 64, 0);
        copies.push(copy);
        let known = buffer.handle().clone();
        drop(buffer);
        buffer = storage(&gpu, 256);
        assert!(*buffer.handle() == known, "the pool gives what it got last");
        gpu.write(&buffer, 0, next).unwrap();
    }
    assert_eq!(locked(&gpu.state).submissions, 0, "nothing of it had to be sent off");
    copies.push(buffer);
    for (copy, want) in copies.iter().zip(&contents) {
        assert_eq!(read(&gpu, copy), *want);
    }
}

/// Gifts share a buffer; when there are too many for it, there is another one, and what holds on to the first still reads what it was given.
#[test]
fn gifts_are_what_they_were_however_many_there_are() {
    let Some(gpu) = gpu() else { return };
    let gift = |i: u32| bytes_of((0..1024).map(|w| 1024 * i + w));
    let out = storage(&gpu, 4096 * 40);
    for round in 0..3 {
        let first = gpu.give(&gift(round));
        for i in 1..40 {
            let given = gpu.give(&gift(100 * round + i));
            place(&gpu, given.part(), &out, 1024, 1024 * i);
        }
        assert!(gpu.give(&gift(100 * round + 39)).offset > 0, "it is there already");
        place(&gpu, first.part(), &out, 1024, 0);
        assert!(first.room.bytes() == ROOM || round > 0, "another one was needed");
        let got = read(&gpu, &out);
        assert_eq!(got[..4096], gift(round));
        for i in 1..40 {
            assert_eq!(got[4096 * i as usize..][..4096], gift(100 * round + i), "{round} {i}");
        }
    }
}

/// What is large goes in parts, and takes no more of the memory that the host sees than a few of these.
#[test]
fn what_is_large_goes_in_parts() {
    let Some(gpu) = gpu() else { return };
    let content = bytes_of((0..(6 * CHUNK / 4 + 77) as u32).map(|w| w.wrapping_mul(0x9e37_79b9)));
    let large = storage(&gpu, content.len() + 12);
    gpu.fill(&large, |put| {
        put(&content[..12])?;
        content.chunks(1_000_000).try_for_each(put)
    })
    .unwrap();
    let mut out = Vec::new();
    // Out of order, so that parts end within pieces.
    let from = [(&large, 12 + CHUNK, content.len() - CHUNK), (&large, 12, CHUNK), (&large, 0, 12)];
    gpu.read(&from, |bytes| out.extend_from_slice(bytes)).unwrap();
    assert!(out == [&content[CHUNK..], &content[..CHUNK], &content[..12]].concat());
    for pool in [&gpu.uploads, &gpu.downloads] {
        let held = pool.snapshot().held_peak_bytes;
        assert!((1..=5 * CHUNK).contains(&held), "{held}");
    }
}

#[test]
fn memory_that_was_used_is_zero_where_that_is_asked_for() {
    let Some(gpu) = gpu() else { return };
    let buffer = storage(&gpu, 1000);
    gpu.write(&buffer, 0, &[7; 1000]).unwrap();
    let known = buffer.handle().clone();
    drop(buffer);
    let zeroed = gpu.zeroed(Tag::Scratch, 1000, "a test").unwrap();
    assert!(*zeroed.handle() == known && !zeroed.is_fresh());
    assert_eq!(read(&gpu, &zeroed), [0; 1000]);
}

/// Where the driver has none, the pool's free memory goes back first, also what commands under way use until they are done.
#[test]
fn a_request_that_is_refused_is_an_error_and_nothing_more() {
    let Some(gpu) = gpu() else { return };
    let kept = storage(&gpu, 4096);
    gpu.write(&kept, 0, &[3; 4096]).unwrap();
    drop(storage(&gpu, 5000));
    gpu.serve(0);
    let refused = gpu.large(Tag::Kv, 9000, "a test").err();
    assert!(
        matches!(refused, Some(BackendError::OutOfMemory { bytes: 9000, what: "a test" })),
        "{refused:?}"
    );
    assert_eq!(gpu.storage.snapshot().free_bytes, 0, "it was given up for the request");
    // What is read back needs memory too; so do gifts, which fail the step.
    assert!(matches!(gpu.read(&[(&kept, 0, 4096)], |_| {}), Err(BackendError::OutOfMemory { .. })));
    gpu.give(&[1; 16]);
    assert!(gpu.has_failed());
    gpu.serve(usize::MAX);
    assert!(matches!(gpu.check(), Err(BackendError::OutOfMemory { .. })));
    assert_eq!(read(&gpu, &kept), [3; 4096]);
    // More than there can be is no more than that.
    for bytes in [usize::MAX, 1 << 50] {
        assert!(matches!(gpu.large(Tag::Kv, bytes, "a test"), Err(BackendError::OutOfMemory { .. })));
    }
    assert!(gpu.check().is_ok());
}
