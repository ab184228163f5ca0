use super::*;
use crate::source::{Failing, Heap};
use crate::{Profile, Tracking};

#[test]
fn buffers_of_a_step_are_apart_and_the_next_step_has_their_memory() {
    let pool = Pool::with(Heap, Profile::Balanced.into());
    let mut region = Region::default();
    for round in 0..4u8 {
        let before = pool.snapshot().tags.first().map_or(0, |tag| tag.taken);
        let step = region.begin(&pool);
        let mut buffers: Vec<&mut [u16]> =
            [0, 1, 31, 33, 10_000, 70_000, 3].iter().map(|len| step.buffer(*len).unwrap()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert!((buffer.as_ptr() as usize).is_multiple_of(ALIGN));
            buffer.fill(u16::from(round) * 100 + i as u16);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|x| *x == u16::from(round) * 100 + i as u16));
        }
        drop(step);
        // In the second step one piece is made of those of the first, and then nothing is taken.
        let taken = pool.snapshot().tags[0].taken - before;
        assert_eq!(taken > 0, round < 2, "round {round} took {taken} pieces");
    }
    assert!(region.capacity_bytes() >= 160_000);
    drop(region);
    assert_eq!(pool.snapshot().used_bytes, 0);
}

#[test]
fn a_step_without_memory_says_so_and_goes_on() {
    let pool = Pool::with(Failing::above(Heap, 200_000), Profile::Balanced.into());
    let mut region = Region::new(Tag::Activations);
    for _ in 0..3 {
        let step = region.begin(&pool);
        let x = step.zeroed::<u8>(60_000).unwrap();
        let refused = step.buffer::<u8>(1 << 20).map(|b| b.len());
        assert_eq!(refused, Err(OutOfMemory { bytes: 1 << 20, tag: Tag::Activations }));
        assert_eq!(step.buffer::<u64>(usize::MAX).map(|b| b.len()).unwrap_err().bytes, usize::MAX);
        let y = step.buffer::<u8>(60_000).unwrap();
        y.fill(3);
        assert!(x.iter().all(|x| *x == 0));
    }
}

#[test]
fn unwritten_memory_is_seen_at_the_debug_level() {
    let pool = Pool::with(Heap, crate::Config { tracking: Tracking::Debug, ..Profile::Balanced.into() });
    let mut region = Region::default();
    let step = region.begin(&pool);
    assert!(step.buffer::<f32>(10).unwrap().iter().all(|x| x.is_nan()));
    assert_eq!(step.zeroed::<f32>(2).unwrap(), [0.0; 2]);
}
