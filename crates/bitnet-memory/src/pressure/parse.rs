//! What Linux's files say. Whatever the text is, there is an answer; what is missing or no number is `None`.

/// The bytes of a line `Name:  123 kB`, as in `/proc/meminfo` and `/proc/self/status`.
pub(super) fn kib_line(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// The number of a line `name 123`, as in `memory.stat`.
pub(super) fn named(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

/// A file that is one number; version 2 of control groups says `max` where there is no limit, version 1 a number beyond all memory.
pub(super) fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// The soft limit in bytes of a line of `/proc/self/limits`.
pub(super) fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    limit(rest.split_ascii_whitespace().next()?)
}

/// Shares of the last ten seconds in which tasks waited for memory, as pressure stall information has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// Some of them, 0 to 1.
    pub some: f64,
    /// All of them at once, 0 to 1.
    pub full: f64,
}

/// `some avg10=1.50 ...` and `full avg10=...`.
pub(super) fn stalls(text: &str) -> Option<Stalls> {
    let share = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let percent: f64 =
            line.split_ascii_whitespace().find_map(|w| w.strip_prefix("avg10="))?.parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    };
    Some(Stalls { some: share("some ")?, full: share("full ").unwrap_or(0.0) })
}

/// The path of this process in a hierarchy of control groups: version 2's, or version 1's of memory.
pub(super) fn group(text: &str, version: Version) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match version {
            Version::Two => number == "0" && controllers.is_empty(),
            Version::One => controllers.split(',').any(|c| c == "memory"),
        };
        found.then_some(path)
    })
}

/// Which control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Where a hierarchy is mounted, and which group that place is: a container sees only its own part.
pub(super) fn mount(text: &str, version: Version) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let (kind, _, options) = (tail.next()?, tail.next()?, tail.next()?);
        let found = match version {
            Version::Two => kind == "cgroup2",
            Version::One => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
        };
        let mut fields = head.split(' ').skip(3);
        let (group, place) = (fields.next()?, fields.next()?);
        found.then(|| (unescaped(place), unescaped(group)))
    })
}

/// `\040` and its like are characters that would end a field.
fn unescaped(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|c| u8::from_str_radix(str::from_utf8(c).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
