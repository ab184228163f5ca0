//! How many threads are worth having.

use std::collections::HashSet;
use std::thread;

/// Physical cores this process may use: what it is allowed, less the second threads of a core where the operating system
/// tells them apart. Two hardware threads of one core share its vector units, so the second one only costs.
pub(crate) fn physical_cores() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    siblings().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Distinct sets of sibling threads, from sysfs; `None` where there is none.
fn siblings() -> Option<usize> {
    let mut sets = HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let path = entry.ok()?.path().join("topology/thread_siblings_list");
        if let Ok(list) = std::fs::read_to_string(path) {
            sets.insert(list);
        }
    }
    (!sets.is_empty()).then_some(sets.len())
}
