//! Work on several threads whose results are taken in order, few of them at a time.

use std::sync::mpsc::sync_channel;
use std::thread;

/// Does `work` for `0..jobs` on `threads` threads and hands the results to `take` in order. A thread is at most one result
/// ahead, so there are never more than two results a thread.
pub(crate) fn ordered<T: Send, E: Send>(
    jobs: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.clamp(1, jobs.max(1));
    if threads == 1 {
        return (0..jobs).try_for_each(|i| take(i, work(i)?));
    }
    thread::scope(|scope| {
        let results: Vec<_> = (0..threads)
            .map(|first| {
                let (sender, receiver) = sync_channel(0);
                let work = &work;
                scope.spawn(move || {
                    for i in (first..jobs).step_by(threads) {
                        let done = work(i);
                        let failed = done.is_err();
                        // Nobody listens any more where another job has failed.
                        if sender.send(done).is_err() || failed {
                            break;
                        }
                    }
                });
                receiver
            })
            .collect();
        for i in 0..jobs {
            // A thread that ended early has panicked; the scope passes that on.
            let Ok(done) = results[i % threads].recv() else { break };
            take(i, done?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_error_ends_it() {
        for threads in [1, 2, 3, 7] {
            let mut got = Vec::new();
            let end = ordered(
                20,
                threads,
                |i| if i == 13 { Err(i) } else { Ok(i * i) },
                |i, r| {
                    got.push((i, r));
                    Ok(())
                },
            );
            assert_eq!(end, Err(13));
            assert_eq!(got, (0..13).map(|i| (i, i * i)).collect::<Vec<_>>());
            assert_eq!(ordered(5, threads, Ok, |i, _| if i == 2 { Err(9) } else { Ok(()) }), Err(9));
        }
    }
}
