use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[test]
fn every_element_is_visited_once_by_any_number_of_threads() {
    for threads in 0..=8 {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads.max(1));
        for len in [0, 1, 5, 1000] {
            let mut data = vec![0u32; len];
            for round in 0..200 {
                pool.chunks_mut(&mut data, 3, &|i, chunk| {
                    for (j, x) in chunk.iter_mut().enumerate() {
                        assert_eq!(*x as usize, round * (3 * i + j));
                        *x += (3 * i + j) as u32;
                    }
                });
            }
        }
    }
}

#[test]
fn a_slow_thread_loses_its_pieces_to_the_others() {
    let pool = Pool::new(2).unwrap();
    let visits: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
    let caller = thread::current().id();
    pool.ranges(64, 1, &|range| {
        // The caller stays in its first range until the worker has done all others.
        if thread::current().id() == caller && range.start == 0 {
            while visits[range.end..].iter().any(|v| v.load(Ordering::Acquire) == 0) {
                thread::yield_now();
            }
        }
        range.for_each(|i| {
            visits[i].fetch_add(1, Ordering::Release);
        });
    });
    assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1));
}

#[test]
fn jobs_of_several_callers_do_not_mix() {
    let pool = Pool::new(4).unwrap();
    thread::scope(|scope| {
        for caller in 1..=3usize {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..300 {
                    let mut data = vec![0usize; 37];
                    pool.chunks_mut(&mut data, 2, &|i, chunk| chunk.fill(caller * round + i));
                    assert!(data.iter().enumerate().all(|(i, x)| *x == caller * round + i / 2));
                }
            });
        }
    });
}

/// Waits until all workers of a pool sleep.
fn until_asleep(pool: &Pool) {
    while pool.crew.asleep() < pool.threads() - 1 {
        thread::yield_now();
    }
}

#[test]
fn of_two_pools_the_one_that_waits_leaves_the_processors_to_the_other() {
    let all = thread::available_parallelism().map_or(1, usize::from).max(2);
    let (first, second) = (Pool::new(all).unwrap(), Pool::new(all).unwrap());
    for (waits, works) in [(&first, &second), (&second, &first)] {
        waits.ranges(1000, 1, &|_| {});
        until_asleep(waits);
        let (own, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..50 {
            works.ranges(1000, 1, &|_| {
                most.fetch_max(own.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                assert_eq!(waits.crew.asleep(), all - 1, "nobody of the other pool is awake");
                own.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert!(most.into_inner() <= all, "as many threads work as there are processors");
    }
}

#[test]
fn a_small_job_wakes_no_more_threads_than_it_has_pieces() {
    let pool = Pool::new(8).unwrap();
    for (pieces, most) in [(1, 0), (2, 1), (3, 2), (5, 4), (500, 7)] {
        until_asleep(&pool);
        let before = pool.crew.woken();
        pool.ranges(pieces, 1, &|_| {});
        assert_eq!(pool.crew.woken() - before, most, "{pieces} pieces");
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        for bad in [0, 17, 99] {
            let job = || pool.ranges(100, 1, &|range| assert!(!range.contains(&bad), "piece {bad}"));
            let panic = catch_unwind(AssertUnwindSafe(job)).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("piece {bad}")));
            let count = AtomicUsize::new(0);
            pool.ranges(100, 7, &|range| {
                count.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn workers_stay_where_a_topology_puts_them() {
    let here = Machine::detect().nodes[0].processors[0];
    let before = rustix::thread::sched_getaffinity(None).unwrap().count();
    let pool = Pool::on(3, Some(vec![vec![here]; 3]), memory(Profile::Inference.into())).unwrap();
    let caller = thread::current().id();
    let seen = AtomicUsize::new(0);
    while seen.load(Ordering::Relaxed) == 0 {
        pool.ranges(300, 1, &|range| {
            if thread::current().id() != caller {
                let set = rustix::thread::sched_getaffinity(None).unwrap();
                assert!(set.count() == 1 && set.is_set(here as usize));
                seen.fetch_add(range.len(), Ordering::Relaxed);
            }
            thread::yield_now();
        });
    }
    assert_eq!(rustix::thread::sched_getaffinity(None).unwrap().count(), before);
}

#[test]
fn each_thread_has_its_own_room() {
    for threads in [1, 2, 3] {
        let pool = Pool::new(threads).unwrap();
        let mut room = vec![0usize; threads * 2];
        pool.ranges_with(&mut room, 1000, 1, &|room, range| {
            assert_eq!(room[0], room[1], "nobody else is here");
            room[0] += range.len();
            thread::yield_now();
            room[1] += range.len();
        });
        assert_eq!(room.iter().step_by(2).sum::<usize>(), 1000);
    }
}
