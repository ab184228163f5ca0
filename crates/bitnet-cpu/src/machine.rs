//! What a machine is made of: memory and the processors near to it, caches.

use crate::cores::numbers;
use std::path::Path;

/// A machine as far as its operating system tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors by the memory that they are near to, those that this process may use. Empty where nothing is known of it.
    pub nodes: Vec<Node>,
    /// Caches of the first processor, the nearest first.
    pub caches: Vec<Cache>,
}

/// Processors with memory of their own (NUMA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The system's number of it.
    pub number: u32,
    /// Processors, ascending.
    pub processors: Vec<u32>,
    /// Bytes of memory, where that is known.
    pub memory: Option<u64>,
}

/// A cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// 1 is the nearest.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// Bytes.
    pub bytes: u64,
    /// How many processors share it.
    pub shared_by: usize,
}

impl Machine {
    /// This one. Nodes and caches are known on Linux.
    pub fn detect() -> Self {
        Self::read(Path::new("/"))
    }

    /// The one whose `proc` and `sys` lie in a folder.
    fn read(root: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let list = |path: &str| text(path).map(|list| numbers(&list).collect::<Vec<u32>>());
        let status = text("proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let allowed: Option<Vec<u32>> = allowed.map(|list| numbers(list).collect());
        let node = |number: u32| {
            let mut processors = list(&format!("sys/devices/system/node/node{number}/cpulist"))?;
            processors.retain(|cpu| allowed.as_ref().is_none_or(|allowed| allowed.contains(cpu)));
            let info = text(&format!("sys/devices/system/node/node{number}/meminfo")).unwrap_or_default();
            let memory = kilobytes(&info, "MemTotal:");
            (!processors.is_empty()).then_some(Node { number, processors, memory })
        };
        let nodes = list("sys/devices/system/node/online").unwrap_or_default().into_iter().filter_map(node);
        let nodes: Vec<Node> = nodes.collect();
        let first = nodes.first().map_or(0, |node| node.processors[0]);
        let cache = |index: u32| {
            let part = |name| text(&format!("sys/devices/system/cpu/cpu{first}/cache/index{index}/{name}"));
            Some(Cache {
                level: part("level")?.trim().parse().ok()?,
                kind: part("type")?.trim().to_owned(),
                bytes: size(part("size")?.trim())?,
                shared_by: part("shared_cpu_list").map_or(1, |list| numbers(&list).count()),
            })
        };
        let caches = (0..16).map_while(cache).collect();
        Self { nodes, caches }
    }

    /// The processors that each of so many threads is to stay on: those of a node, nodes by their numbers of processors, neighbouring
    /// threads together. `None` where there is one node, and threads may wander.
    pub(crate) fn places(&self, threads: usize) -> Option<Vec<Vec<u32>>> {
        let all: usize = self.nodes.iter().map(|node| node.processors.len()).sum();
        if self.nodes.len() < 2 {
            return None;
        }
        // Thread `i` has processor `i * all / threads` of all in a row, and stays on that one's node.
        let node_of = |thread: usize| {
            let mut at = thread * all / threads;
            self.nodes.iter().find(|node| {
                let here = at < node.processors.len();
                at = at.saturating_sub(node.processors.len());
                here
            })
        };
        (0..threads).map(|thread| Some(node_of(thread)?.processors.clone())).collect()
    }
}

/// The number behind a key of `meminfo`, as bytes.
fn kilobytes(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.split_once(key))?.1;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of a size such as `2048K`.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Keeps the calling thread on some processors, where the system can.
pub(crate) fn stay_on(processors: &[u32]) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        for cpu in
            processors.iter().map(|cpu| *cpu as usize).filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU)
        {
            set.set(cpu);
        }
        // A processor that has gone meanwhile is no reason not to compute.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processors;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of two nodes with four processors each, of which this process may use six.
    fn two_nodes() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/status", "Name:\tbitnet\nCpus_allowed_list:\t0-3,6,7\n");
        write("sys/devices/system/node/online", "0-2\n");
        for (node, cpus) in [(0, "0-3"), (1, "4-7"), (2, "")] {
            write(&format!("sys/devices/system/node/node{node}/cpulist"), &format!("{cpus}\n"));
            write(
                &format!("sys/devices/system/node/node{node}/meminfo"),
                &format!("Node {node} MemTotal:  1024 kB\n"),
            );
        }
        for (index, part, text) in [
            (0, "level", "1"),
            (0, "type", "Data"),
            (0, "size", "48K"),
            (0, "shared_cpu_list", "0"),
            (1, "level", "3"),
            (1, "type", "Unified"),
            (1, "size", "32M"),
            (1, "shared_cpu_list", "0-3"),
        ] {
            write(&format!("sys/devices/system/cpu/cpu0/cache/index{index}/{part}"), text);
        }
        root
    }

    #[test]
    fn a_machine_is_read_from_its_files() {
        let machine = Machine::read(two_nodes().path());
        let node = |number, processors: &[u32]| Node {
            number,
            processors: processors.to_vec(),
            memory: Some(1 << 20),
        };
        assert_eq!(machine.nodes, [node(0, &[0, 1, 2, 3]), node(1, &[6, 7])]);
        let cache =
            |level, kind: &str, bytes, shared_by| Cache { level, kind: kind.to_owned(), bytes, shared_by };
        assert_eq!(machine.caches, [cache(1, "Data", 48 << 10, 1), cache(3, "Unified", 32 << 20, 4)]);
        assert_eq!(Machine::read(Path::new("/nowhere")), Machine::default());
        assert_eq!(
            (size("x"), size("12Q"), size("3"), size("99999999999999999999G")),
            (None, None, Some(3), None)
        );
    }

    #[test]
    fn threads_are_shared_out_among_nodes() {
        let machine = Machine::read(two_nodes().path());
        let (first, second) = (vec![0, 1, 2, 3], vec![6, 7]);
        let of = |threads| machine.places(threads).unwrap();
        assert_eq!(of(1), std::slice::from_ref(&first));
        assert_eq!(of(3), [first.clone(), first.clone(), second.clone()]);
        let six = of(6);
        assert_eq!((&six[..4], &six[4..]), (&vec![first.clone(); 4][..], &vec![second.clone(); 2][..]));
        let twelve = of(12);
        assert_eq!((&twelve[7], &twelve[8]), (&first, &second));
        assert_eq!(Machine { nodes: machine.nodes[..1].to_vec(), ..machine }.places(4), None);
        assert_eq!(Machine::default().places(4), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let here = Machine::detect().nodes[0].processors[0];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                stay_on(&[here]);
                let set = rustix::thread::sched_getaffinity(None).unwrap();
                assert_eq!((set.count(), set.is_set(here as usize)), (1, true));
                // One that there is not changes nothing.
                stay_on(&[1 << 30]);
                assert_eq!(rustix::thread::sched_getaffinity(None).unwrap().count(), 1);
            });
        });
    }
}
