//! Limits of this process and how much of them is used, read from the system's files.

use super::parse::{self, Stalls, Version};
use crate::Snapshot;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// What sets a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitKind {
    /// The machine's memory; what is not available to new work is used.
    Machine,
    /// A control group: `memory.max`, or `memory.high` where that is less. File pages that were not read lately count as free.
    ControlGroup,
    /// `RLIMIT_AS` (`ulimit -v`): everything that is mapped, whether it is in memory or not.
    AddressSpace,
    /// `RLIMIT_DATA` (`ulimit -d`): what is mapped for writing and not shared.
    Data,
    /// A device's memory, under the device's name.
    Device(String),
}

impl std::fmt::Display for LimitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Machine => f.write_str("machine memory"),
            Self::ControlGroup => f.write_str("control group"),
            Self::AddressSpace => f.write_str("address space"),
            Self::Data => f.write_str("data segment"),
            Self::Device(name) => write!(f, "memory of {name}"),
        }
    }
}

impl LimitKind {
    /// What gives more room.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Machine => "end other programs, or choose a smaller model or --ctx-size",
            Self::ControlGroup => "raise the group's memory.max, or choose a smaller model or --ctx-size",
            Self::AddressSpace => "raise ulimit -v, or choose a smaller model or --ctx-size",
            Self::Data => "raise ulimit -d, or choose a smaller model or --ctx-size",
            Self::Device(_) => "choose a smaller model or --ctx-size, or another --device",
        }
    }
}

/// A limit and its use, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whose.
    pub kind: LimitKind,
    /// All there is.
    pub limit_bytes: u64,
    /// What is used of it.
    pub used_bytes: u64,
    /// Of that, what pools keep of a device's memory for their next requests, which is there for new work.
    pub idle_bytes: u64,
}

impl Limit {
    /// One of the host's: what its pools keep counts as used.
    pub(super) fn of_host(kind: LimitKind, limit_bytes: u64, used_bytes: u64) -> Self {
        Self { kind, limit_bytes, used_bytes, idle_bytes: 0 }
    }

    /// What is left.
    pub fn left_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }

    /// What is left for new work.
    pub fn usable_bytes(&self) -> u64 {
        self.left_bytes().saturating_add(self.idle_bytes)
    }
}

/// What a backend says of its device's memory.
pub trait DeviceMemory: Send + Sync {
    /// The device, as in `cuda:0`.
    fn name(&self) -> &str;
    /// How it is used, by all processes; `None` where the driver does not say.
    fn usage(&self) -> Option<DeviceUsage>;
    /// What the backend's pool has counted of its own.
    fn snapshot(&self) -> Snapshot;
    /// Gives what the pool keeps without use back to the device; tells how many bytes.
    fn release(&self) -> u64;
}

/// How the memory of a device is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceUsage {
    /// All of it.
    pub total_bytes: u64,
    /// What no process has.
    pub free_bytes: u64,
    /// What this backend has and does not use.
    pub idle_bytes: u64,
}

/// What was read at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Every limit that there is.
    pub limits: Vec<Limit>,
    /// The control group's stalls, else the machine's.
    pub stalls: Option<Stalls>,
}

/// Where readings come from: Linux's files; on other systems, what they say of the machine's memory.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self::at("/")
    }
}

/// No file that is read here comes near; one that does is cut off.
const MOST_BYTES: u64 = 256 * 1024;

/// Groups within each other that are looked at.
const MOST_GROUPS: usize = 64;

impl System {
    /// With `proc` and `sys` below a directory: `/`, or made-up files of a test.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All limits of this process that the system knows.
    pub fn read(&self) -> Readings {
        let status = self.text("proc/self/status");
        let limits = self.text("proc/self/limits");
        let (group, group_stalls) = self.control_group();
        let machine = self.machine();
        #[cfg(not(target_os = "linux"))]
        let machine =
            machine.or_else(|| if self.root == Path::new("/") { super::other::machine() } else { None });
        let found = [
            machine,
            group,
            limit_of(&limits, "Max address space", &status, "VmSize", LimitKind::AddressSpace),
            limit_of(&limits, "Max data size", &status, "VmData", LimitKind::Data),
        ];
        Readings {
            limits: found.into_iter().flatten().collect(),
            stalls: group_stalls.or_else(|| parse::stalls(&self.text("proc/pressure/memory")?)),
        }
    }

    fn machine(&self) -> Option<Limit> {
        let info = self.text("proc/meminfo")?;
        let limit_bytes = parse::kib_line(&info, "MemTotal")?;
        let available = parse::kib_line(&info, "MemAvailable")?;
        let used_bytes = limit_bytes.saturating_sub(available);
        Some(Limit::of_host(LimitKind::Machine, limit_bytes, used_bytes))
    }

    /// The limit of all groups around this process of which least is left, and the stalls of the innermost.
    fn control_group(&self) -> (Option<Limit>, Option<Stalls>) {
        let own = self.text("proc/self/cgroup").unwrap_or_default();
        let mounts = self.text("proc/self/mountinfo").unwrap_or_default();
        let (mut tightest, mut stalls) = (None::<Limit>, None);
        for version in [Version::Two, Version::One] {
            let Some(group) = parse::group(&own, version) else { continue };
            let Some((place, mounted)) = parse::mount(&mounts, version) else { continue };
            // Below the group that is mounted; where the process is not, files of the mounted group are what there is.
            let inside = |below: &&Path| below.components().all(|c| matches!(c, Component::Normal(_)));
            let below = Path::new(group).strip_prefix(&mounted).ok().filter(inside).unwrap_or(Path::new(""));
            let top = PathBuf::from(place.trim_start_matches('/'));
            for inner in below.ancestors().take(MOST_GROUPS) {
                let folder = top.join(inner);
                if let Some(limit) = self.group_limit(&folder, version)
                    && tightest.as_ref().is_none_or(|t| limit.left_bytes() < t.left_bytes())
                {
                    tightest = Some(limit);
                }
                stalls = stalls.or_else(|| parse::stalls(&self.text(folder.join("memory.pressure"))?));
            }
        }
        (tightest, stalls)
    }

    fn group_limit(&self, folder: &Path, version: Version) -> Option<Limit> {
        let number = |name: &&str| parse::limit(&self.text(folder.join(name))?);
        // Version 1's soft limit is none as long as the machine has memory.
        let (limits, current, idle): (&[&str], _, _) = match version {
            Version::Two => (&["memory.max", "memory.high"], "memory.current", "inactive_file"),
            Version::One => (&["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"),
        };
        let (limit_bytes, current) = (limits.iter().filter_map(number).min()?, number(&current)?);
        let idle =
            self.text(folder.join("memory.stat")).and_then(|text| parse::named(&text, idle)).unwrap_or(0);
        Some(Limit::of_host(LimitKind::ControlGroup, limit_bytes, current.saturating_sub(idle)))
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.root.join(path)).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn limit_of(
    limits: &Option<String>,
    limit: &str,
    status: &Option<String>,
    used: &str,
    kind: LimitKind,
) -> Option<Limit> {
    let limit_bytes = parse::soft_limit(limits.as_ref()?, limit)?;
    Some(Limit::of_host(kind, limit_bytes, parse::kib_line(status.as_ref()?, used)?))
}
