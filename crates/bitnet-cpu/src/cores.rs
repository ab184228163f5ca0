//! What the processor is, and how many threads are worth having.

use std::collections::HashSet;
use std::thread;

/// Physical cores this process may use: the processors it is allowed, less the second threads of a core where the operating
/// system tells them apart, and no more than the share of time that its control group grants (one and a half processors
/// count as one). Two hardware threads of one core share its vector units, so the second one only costs.
pub fn physical_cores() -> usize {
    // Counts allowed processors and, on Linux, the quota in `cpu.max`.
    let granted = thread::available_parallelism().map_or(1, usize::from);
    siblings().map_or(granted, |cores| cores.clamp(1, granted))
}

/// What the processor calls itself; the architecture's name where it does not say.
pub fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let part = || Some(format!("{} part {}", field("CPU implementer")?, field("CPU part")?));
    field("model name").or_else(part).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Distinct sets of sibling threads among the allowed processors, from Linux's files; `None` where there are none.
fn siblings() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let sets: HashSet<String> = numbers(allowed)
        .filter_map(|cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            std::fs::read_to_string(path).ok()
        })
        .collect();
    (!sets.is_empty()).then_some(sets.len())
}

/// The numbers of a list such as `0-3,8`; parts that are not understood count as nothing.
pub(crate) fn numbers(list: &str) -> impl Iterator<Item = u32> {
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(numbers(" 0-3,8,10-11\n").collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(numbers("7").collect::<Vec<_>>(), [7]);
        assert_eq!(numbers("x,2-").count(), 0);
    }

    #[test]
    fn there_is_one_core_and_no_more_than_processors() {
        let granted = thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=granted).contains(&physical_cores()));
    }
}
