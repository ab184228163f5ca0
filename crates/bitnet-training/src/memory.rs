//! Memory of this process, from Linux's files; nothing elsewhere.

/// What the process holds, pages of mapped files included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Bytes that are resident now.
    pub resident_bytes: u64,
    /// The most that were, since the process began or its kernel was told to forget.
    pub peak_bytes: u64,
}

/// What this process holds; `None` where the system does not say.
pub fn process_memory() -> Option<ProcessMemory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(ProcessMemory { resident_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_held_is_told() {
        let held = std::hint::black_box(vec![1u8; 8 << 20]);
        let memory = process_memory().unwrap();
        assert!(memory.resident_bytes >= held.len() as u64 && memory.peak_bytes >= memory.resident_bytes / 2);
    }
}
