//! A clock that is read in a few nanoseconds.

use std::time::Instant;

/// Ticks of the processor on x86, nanoseconds elsewhere.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: reads counters; every x86-64 processor has them.
        unsafe {
            let mut aux = 0;
            let ticks = core::arch::x86_64::__rdtscp(&mut aux);
            core::arch::x86_64::_mm_lfence();
            ticks
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Nanoseconds a tick, and ticks between two looks with nothing between.
pub fn calibrate() -> (f64, u64) {
    let (begin, first) = (Instant::now(), ticks());
    while begin.elapsed().as_millis() < 50 {}
    let ns = begin.elapsed().as_nanos() as f64 / (ticks() - first) as f64;
    let nothing = (0..10_000).map(|_| {
        let first = ticks();
        ticks() - first
    });
    (ns, nothing.min().unwrap_or(0))
}
