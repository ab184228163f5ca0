//! What systems say that have no files to read it from: macOS, Windows and the BSDs, through [sysinfo](https://docs.rs/sysinfo).

use super::system::{Limit, LimitKind};

/// The machine's memory; what the system could give to new work without paging counts as free.
pub(super) fn machine() -> Option<Limit> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    let limit_bytes = system.total_memory();
    let used_bytes = limit_bytes.saturating_sub(system.available_memory());
    (limit_bytes > 0).then(|| Limit::of_host(LimitKind::Machine, limit_bytes, used_bytes))
}
