//! The largest memory that this process held, from Linux's files; nothing elsewhere.

/// Begins again. Where the kernel does not do that, later peaks are those of the whole process.
pub fn forget_peak() {
    // Best effort: without it the figure is too large, never too small.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Resident bytes at most since [`forget_peak`], pages of mapped files included.
pub fn peak_bytes() -> Option<u64> {
    bitnet_training::process_memory().map(|memory| memory.peak_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_peak_is_at_least_what_is_held() {
        forget_peak();
        let held = std::hint::black_box(vec![1u8; 8 << 20]);
        assert!(peak_bytes().is_some_and(|peak| peak >= held.len() as u64));
    }
}
