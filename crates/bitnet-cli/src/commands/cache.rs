//! `bitnet cache`: how full it is, and making room.

use crate::failure::Failure;
use crate::hub::HubFlags;
use bitnet_hub::{Hub, PruneOptions};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::json;
use std::io::Write;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet cache stats
  bitnet cache prune --max-size 20GB --dry-run")]
pub struct Cache {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Where the cache is, how much is in it, how much is free
    Stats(Stats),
    /// Remove interrupted downloads and contents that no snapshot has; with --max-size also snapshots
    Prune(Prune),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet cache stats --json | jq .size_bytes")]
struct Stats {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet cache prune --max-size 20GB --dry-run
  bitnet cache prune --max-size 20GB

Snapshots of models go, least recently used first, until no more than --max-size is left; never one that a running \
bitnet uses. Data sets and everything else in the cache stay.")]
struct Prune {
    /// How much may stay: 20GB, 500MB, 1.5TB, or GiB and so on
    #[arg(long, value_name = "SIZE", env = "BITNET_MAX_SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
}

impl Cache {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        match self.action {
            Action::Stats(stats) => stats.execute(),
            Action::Prune(prune) => prune.execute(quiet),
        }
    }
}

impl Stats {
    fn execute(self) -> Result<(), Failure> {
        let stats = Hub::new(self.hub.settings()?).stats()?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let object = json!({
                "cache": stats.cache,
                "repos": stats.repos,
                "snapshots": stats.snapshots,
                "blobs": stats.blobs,
                "size_bytes": stats.size_bytes,
                "leftover_bytes": stats.leftover_bytes,
                "free_bytes": stats.free_bytes,
            });
            writeln!(out, "{object}")?;
            return Ok(());
        }
        writeln!(out, "cache       {}", stats.cache.display())?;
        writeln!(out, "models      {} repositories, {} snapshots", stats.repos, stats.snapshots)?;
        writeln!(out, "size        {} in {} files", HumanBytes(stats.size_bytes), stats.blobs)?;
        writeln!(
            out,
            "leftovers   {} (`bitnet cache prune` removes them)",
            HumanBytes(stats.leftover_bytes)
        )?;
        writeln!(out, "disk        {} free", HumanBytes(stats.free_bytes))?;
        Ok(())
    }
}

impl Prune {
    fn execute(self, quiet: bool) -> Result<(), Failure> {
        let options = PruneOptions { max_bytes: self.max_size, dry_run: self.dry_run };
        let removed = Hub::new(self.hub.settings()?).prune(&options)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let object = json!({
                "removed": removed.snapshots,
                "in_use": removed.in_use,
                "freed_bytes": removed.freed_bytes,
                "dry_run": self.dry_run,
            });
            writeln!(out, "{object}")?;
            return Ok(());
        }
        let (verb, freed) =
            if self.dry_run { ("would remove", "would be free") } else { ("removed", "freed") };
        for snapshot in &removed.snapshots {
            writeln!(out, "{verb} {snapshot}")?;
        }
        if !quiet {
            removed.in_use.iter().for_each(|s| eprintln!("{s} stays: a running program uses it"));
        }
        writeln!(out, "{} {freed}", HumanBytes(removed.freed_bytes))?;
        Ok(())
    }
}

/// `20GB` is 20 thousand million bytes, `20GiB` 20 times 2 to the 30th.
fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "tib" => 1_099_511_627_776.0,
        _ => return Err("a size is a number and a unit, such as 20GB".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "a size is a number and a unit, such as 20GB".to_owned())?;
    Ok((number * unit) as u64)
}
