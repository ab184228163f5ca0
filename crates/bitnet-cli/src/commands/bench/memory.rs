//! The largest memory that this process held, from Linux's files (nothing elsewhere), and what a model's pool was asked for.

use super::table::{Column, lines, size};
use bitnet_inference::memory;
use bitnet_memory::{Config, Pool, Profile, Snapshot, Tracking};
use clap::ValueEnum;
use std::io::{Result, Write};
use std::sync::Arc;

/// How much is counted.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Off,
    Minimal,
    Standard,
    Detailed,
    Debug,
}

/// A pool for a model that counts so much.
pub fn pool(level: Level) -> Arc<Pool> {
    let tracking = match level {
        Level::Off => Tracking::Off,
        Level::Minimal => Tracking::Minimal,
        Level::Standard => Tracking::Standard,
        Level::Detailed => Tracking::Detailed,
        Level::Debug => Tracking::Debug,
    };
    memory(Config { tracking, ..Profile::Inference.into() })
}

/// Requests of one purpose or size.
struct Line {
    name: String,
    live: usize,
    peak: usize,
    requests: u64,
    source: u64,
}

/// What a pool has counted, as far as it was to.
pub(super) fn write(whose: &str, memory: &Snapshot, out: &mut impl Write) -> Result<()> {
    let total = |bytes: usize| size(bytes as u64);
    let (held, peak) = (total(memory.held_bytes), total(memory.held_peak_bytes));
    write!(out, "\n{whose}: {held} held, {peak} at most")?;
    if memory.used_peak_bytes > 0 {
        write!(out, "; {} in use, {} at most", total(memory.used_bytes), total(memory.used_peak_bytes))?;
    }
    writeln!(out, "; the system was asked {} times", memory.source_requests)?;
    let tags = memory.tags.iter().map(|t| Line {
        name: match &t.lifetimes {
            Some(l) => format!("{} (half live at most {:.1} ms)", t.tag, l.median_ns as f64 / 1e6),
            None => t.tag.to_string(),
        },
        live: t.asked_bytes,
        peak: t.peak_bytes,
        requests: t.taken,
        source: t.source_requests,
    });
    let classes = memory.classes.iter().map(|c| Line {
        name: c
            .bytes
            .map_or_else(|| "its own size".to_owned(), |bytes| format!("to {} KiB", bytes as f64 / 1024.0)),
        live: c.asked_bytes,
        peak: c.peak_bytes,
        requests: c.taken,
        source: c.source_requests,
    });
    for (title, list) in [("for", tags.collect::<Vec<_>>()), ("pieces", classes.collect())] {
        if list.is_empty() {
            continue;
        }
        let column = |title, right, cell: &dyn Fn(&Line) -> String| Column {
            title,
            right,
            cells: list.iter().map(cell).collect(),
        };
        let columns = [
            column(title, false, &|line| line.name.clone()),
            column("live", true, &|line| total(line.live)),
            column("peak", true, &|line| total(line.peak)),
            column("requests", true, &|line| line.requests.to_string()),
            column("hits", true, &|line| (line.requests - line.source).to_string()),
            column("from the system", true, &|line| line.source.to_string()),
        ];
        writeln!(out)?;
        lines(&columns, list.len(), out)?;
    }
    Ok(())
}

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
