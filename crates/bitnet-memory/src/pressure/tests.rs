use super::parse::Version;
use super::*;
use proptest::prelude::*;
use std::path::PathBuf;

/// Made-up files below a directory of their own, which goes with it.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("bitnet-memory-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn monitor(&self) -> Monitor {
        let system = System::at(&self.0);
        Monitor::new(MonitorOptions { system, interval: Duration::ZERO, ..MonitorOptions::default() })
    }

    fn limits(&self) -> Vec<Limit> {
        System::at(&self.0).read().limits
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn limit(kind: LimitKind, limit_bytes: u64, used_bytes: u64) -> Limit {
    Limit { kind, limit_bytes, used_bytes, idle_bytes: 0 }
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

#[test]
fn a_machine_says_what_is_available() {
    let info = "MemTotal:       24684084 kB\nMemFree:         7088284 kB\nMemAvailable:   22946564 kB\n";
    let tree = Tree::new("machine").with("proc/meminfo", info);
    let want = limit(LimitKind::Machine, 24_684_084 << 10, (24_684_084 - 22_946_564) << 10);
    assert_eq!(tree.limits(), [want]);
    assert_eq!(Tree::new("nothing").limits(), []);
}

#[test]
fn limits_of_the_process_are_read() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max data size             1048576              unlimited            bytes     \n\
        Max address space         2097152              4194304              bytes     \n";
    let tree = Tree::new("process")
        .with("proc/self/limits", limits)
        .with("proc/self/status", "Name:\tbitnet\nVmSize:\t     512 kB\nVmData:\t     256 kB\n");
    let want = [limit(LimitKind::AddressSpace, 2 * MIB, MIB / 2), limit(LimitKind::Data, MIB, MIB / 4)];
    assert_eq!(tree.limits(), want);
    let tree = tree.with(
        "proc/self/limits",
        "Max address space         unlimited            unlimited            bytes\n",
    );
    assert_eq!(tree.limits(), []);
}

#[test]
fn of_groups_within_each_other_the_nearest_limit_counts() {
    let tree = Tree::new("v2")
        .with("proc/self/cgroup", "0::/outer/inner\n")
        .with("proc/self/mountinfo", "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n")
        .with("sys/fs/cgroup/outer/memory.max", "1073741824\n")
        .with("sys/fs/cgroup/outer/memory.current", "1000000000\n")
        .with("sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 500000000\n")
        .with("sys/fs/cgroup/outer/inner/memory.max", "max\n")
        .with("sys/fs/cgroup/outer/inner/memory.high", "2147483648\n")
        .with("sys/fs/cgroup/outer/inner/memory.current", "900000000\n")
        .with(
            "sys/fs/cgroup/outer/inner/memory.pressure",
            "some avg10=12.50 avg60=0 total=1\nfull avg10=2.00 avg60=0\n",
        )
        .with("proc/pressure/memory", "some avg10=90.00\n");
    assert_eq!(tree.limits(), [limit(LimitKind::ControlGroup, GIB, 500_000_000)]);
    let stalls = System::at(&tree.0).read().stalls;
    assert_eq!(stalls, Some(Stalls { some: 0.125, full: 0.02 }), "those of the group");
}

#[test]
fn the_first_version_and_a_container_are_understood() {
    // The container sees its own group at the place of the mount.
    let tree = Tree::new("v1")
        .with("proc/self/cgroup", "5:cpu:/\n4:memory:/docker/abc\n0::/\n")
        .with(
            "proc/self/mountinfo",
            "35 31 0:32 /docker/abc /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,memory\n",
        )
        .with("sys/fs/cgroup/a b/memory.limit_in_bytes", "1048576\n")
        .with("sys/fs/cgroup/a b/memory.usage_in_bytes", "700000\n")
        .with("sys/fs/cgroup/a b/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n");
    assert_eq!(tree.limits(), [limit(LimitKind::ControlGroup, MIB, 600_000)]);
    // What version 1 says where there is no limit.
    let tree = tree.with("sys/fs/cgroup/a b/memory.limit_in_bytes", "9223372036854771712\n");
    assert_eq!(tree.limits(), []);
}

#[test]
#[cfg(target_os = "linux")]
fn this_machine_has_memory() {
    let limits = System::default().read().limits;
    let machine = limits.iter().find(|limit| limit.kind == LimitKind::Machine).unwrap();
    assert!(machine.limit_bytes > 64 * MIB && machine.used_bytes > 0);
}

proptest! {
    #[test]
    fn whatever_files_say_there_is_an_answer(text in "(?s)(MemTotal: |VmSize:|0::|4:memory:/|some avg10=| - cgroup2 |[0-9]{1,25}|.|\n){0,40}") {
        let _ = (parse::kib_line(&text, "MemTotal"), parse::named(&text, "some"), parse::limit(&text));
        let _ = (parse::soft_limit(&text, "VmSize:"), parse::stalls(&text));
        for version in [Version::One, Version::Two] {
            let _ = (parse::group(&text, version), parse::mount(&text, version));
        }
    }
}

/// A file of a machine with so much of a gibibyte left.
fn left(tree: Tree, mib: u64) -> Tree {
    tree.with("proc/meminfo", &format!("MemTotal: {} kB\nMemAvailable: {} kB\n", 1 << 20, mib << 10))
}

#[test]
fn a_level_rises_at_once_and_falls_slowly() {
    let tree = left(Tree::new("levels"), 500);
    let monitor = tree.monitor();
    assert_eq!(monitor.pressure().level, Level::None);
    let tree = left(tree, 20);
    let pressure = monitor.pressure();
    assert_eq!(pressure.level, Level::Critical);
    assert_eq!(
        pressure.admit(&Need::default()).unwrap_err().to_string(),
        "memory is short: 20 of 1024 MiB machine memory are left, 31 MiB are needed; end other programs, or choose a smaller \
         model or --ctx-size"
    );
    // Little better is not better.
    let tree = left(tree, 33);
    assert!((0..10).all(|_| monitor.pressure().level == Level::Critical));
    let _tree = left(tree, 900);
    let levels: Vec<Level> = (0..9).map(|_| monitor.pressure().level).collect();
    let (c, h, m, n) = (Level::Critical, Level::High, Level::Moderate, Level::None);
    assert_eq!(levels, [c, c, h, h, h, m, m, m, n]);
    assert_eq!(monitor.pressure().admit(&Need::default()), Ok(()));
}

#[test]
fn what_work_needs_has_to_be_there() {
    let tree = left(Tree::new("need"), 500)
        .with(
            "proc/self/limits",
            "Max address space         1073741824           unlimited            bytes\n",
        )
        .with("proc/self/status", "VmSize:\t 1000000 kB\n");
    let pressure = tree.monitor().pressure();
    assert_eq!(pressure.admit(&Need::default()), Ok(()));
    let mapped = pressure.admit(&Need { mapped_bytes: 20 * MIB, ..Need::default() }).unwrap_err();
    assert_eq!((mapped.kind, mapped.left_bytes), (LimitKind::AddressSpace, GIB - (1_000_000 << 10)));
    assert_eq!(pressure.admit(&Need { resident_bytes: 400 * MIB, ..Need::default() }), Ok(()));
    let resident = pressure.admit(&Need { resident_bytes: 480 * MIB, ..Need::default() }).unwrap_err();
    assert_eq!(resident.kind, LimitKind::Machine);
}

#[test]
fn waiting_for_memory_is_pressure_too() {
    let tree =
        left(Tree::new("stalls"), 900).with("proc/pressure/memory", "some avg10=20.00\nfull avg10=1.00\n");
    let pressure = tree.monitor().pressure();
    assert_eq!((pressure.level, pressure.missing_bytes(Level::Moderate)), (Level::Moderate, u64::MAX));
    let tree = tree.with("proc/pressure/memory", "some avg10=20.00\nfull avg10=11.00\n");
    assert_eq!(tree.monitor().pressure().level, Level::High);
}

#[test]
fn files_are_read_once_in_an_interval() {
    let tree = left(Tree::new("interval"), 900);
    let system = System::at(&tree.0);
    let monitor =
        Monitor::new(MonitorOptions { system, interval: Duration::from_secs(10), ..Default::default() });
    let now = Instant::now();
    let first = monitor.pressure_at(now);
    let _tree = left(tree, 1);
    assert_eq!(monitor.pressure_at(now + Duration::from_secs(9)), first);
    assert_eq!(monitor.pressure_at(now + Duration::from_secs(10)).level, Level::Critical);
}

/// A device of 80 GiB with so many MiB free, and as many that its backend keeps.
struct Device(u64, u64);

impl DeviceMemory for Device {
    fn name(&self) -> &str {
        "cuda:0"
    }
    fn usage(&self) -> Option<DeviceUsage> {
        Some(DeviceUsage { total_bytes: 80 * GIB, free_bytes: self.0 * MIB, idle_bytes: self.1 * MIB })
    }
    fn snapshot(&self) -> crate::Snapshot {
        crate::Snapshot::default()
    }
    fn release(&self) -> u64 {
        self.1 * MIB
    }
}

#[test]
fn devices_have_limits_too_for_as_long_as_they_are_there() {
    let tree = left(Tree::new("device"), 900);
    let monitor = tree.monitor();
    let (one, other): (Arc<dyn DeviceMemory>, Arc<dyn DeviceMemory>) =
        (Arc::new(Device(100, 30)), Arc::new(Device(100, 20)));
    [&one, &other, &one].iter().for_each(|device| monitor.watch(device));
    let pressure = monitor.pressure();
    assert_eq!(pressure.level, Level::Moderate, "little is left, and no reason to refuse what fits");
    let tightest = pressure.tightest.clone().unwrap();
    assert_eq!(tightest.kind, LimitKind::Device("cuda:0".to_owned()));
    assert_eq!((tightest.left_bytes(), tightest.usable_bytes()), (100 * MIB, 150 * MIB));
    assert_eq!(pressure.limits.len(), 2, "one device, which two backends have");
    let need = |mib: u64| pressure.admit(&Need { device_bytes: mib * MIB, ..Need::default() });
    assert_eq!(need(150), Ok(()));
    assert_eq!(
        need(151).unwrap_err().to_string(),
        "memory is short: 150 of 81920 MiB memory of cuda:0 are left, 151 MiB are needed; choose a smaller model or --ctx-size, or \
         another --device"
    );
    drop((one, other));
    assert_eq!(monitor.pressure().limits.len(), 1);
}

/// What another crate reads on other systems is here what the files say, but for what happens in between.
#[test]
#[cfg(target_os = "linux")]
fn other_systems_say_the_same() {
    let (files, other) = (System::default().read().limits, other::machine().unwrap());
    let machine = files.iter().find(|limit| limit.kind == LimitKind::Machine).unwrap();
    assert_eq!(machine.limit_bytes, other.limit_bytes);
    assert!(machine.used_bytes.abs_diff(other.used_bytes) < machine.limit_bytes / 4, "{machine:?} {other:?}");
}

#[test]
fn responses_come_in_order_until_enough_is_free() {
    let mut responses = Responses::<Vec<(&str, u64)>>::default();
    let give = |name: &'static str, bytes: u64| {
        move |log: &mut Vec<(&str, u64)>, missing: u64| {
            log.push((name, missing));
            bytes
        }
    };
    responses.register(Stage::Shrink, 9, "prefixes", give("prefixes", 100 * MIB));
    responses.register(Stage::Trim, 0, "late", give("late", 2 * MIB));
    responses.register(Stage::Trim, 5, "early", give("early", 3 * MIB));
    responses.register(Stage::Shrink, 0, "spared", give("spared", 1));
    let mut log = Vec::new();
    let tree = left(Tree::new("responses"), 500);
    let monitor = tree.monitor();
    assert_eq!((responses.run(&mut log, &monitor.pressure()), log.as_slice()), (vec![], &[][..]));
    // 204 MiB are the threshold of the first level, 102 of the second.
    let tree = left(tree, 200);
    let freed = responses.run(&mut log, &monitor.pressure());
    assert_eq!(freed, [Freed { name: "early", bytes: 3 * MIB }, Freed { name: "late", bytes: 2 * MIB }]);
    assert_eq!(std::mem::take(&mut log).iter().map(|l| l.0).collect::<Vec<_>>(), ["early", "late"]);
    let _tree = left(tree, 90);
    let freed = responses.run(&mut log, &monitor.pressure());
    assert_eq!(freed.iter().map(|f| f.name).collect::<Vec<_>>(), ["early", "late", "prefixes"]);
    assert!(log[2].1 < 13 * MIB && log[0].1 > 100 * MIB, "{log:?}");
}

/// Paths that leave the group's folder are not followed out of it.
#[test]
fn a_group_outside_of_the_mount_has_the_files_of_the_mount() {
    let tree = Tree::new("outside")
        .with("proc/self/cgroup", "0::/../elsewhere\n")
        .with("proc/self/mountinfo", "29 23 0:26 /own /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        .with("sys/fs/cgroup/memory.max", "4096\n")
        .with("sys/fs/cgroup/memory.current", "1\n");
    assert_eq!(tree.limits(), [limit(LimitKind::ControlGroup, 4096, 1)]);
    let tree = tree.with("proc/self/mountinfo", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    assert_eq!(tree.limits(), [limit(LimitKind::ControlGroup, 4096, 1)]);
}
