//! `bitnet ls`: the models of the cache.

use crate::failure::Failure;
use crate::hub::HubFlags;
use bitnet_hub::{CachedSnapshot, Hub};
use clap::Args;
use indicatif::{HumanBytes, HumanDuration};
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet ls
  bitnet ls --json | jq -r '.[].path'

The cache is the one of all the hub's clients: what transformers or huggingface_hub downloaded is listed too.")]
pub struct Ls {
    /// Print one JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
}

impl Ls {
    pub fn execute(self) -> Result<(), Failure> {
        let mut found = Hub::new(self.hub.settings()?).scan();
        found.sort_by(|a, b| a.repo.cmp(&b.repo).then(b.last_used.cmp(&a.last_used)));
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", Value::from_iter(found.iter().map(object)))?;
            return Ok(());
        }
        let width = found.iter().map(|s| s.repo.as_str().len()).max().unwrap_or(0).max(5);
        writeln!(
            out,
            "{:<width$}  {:<12}  {:<12}  {:>10}  {:>5}  LAST USED",
            "MODEL", "REVISION", "COMMIT", "SIZE", "FILES"
        )?;
        for s in &found {
            let refs = if s.refs.is_empty() { "-".to_owned() } else { s.refs.join(",") };
            let size = HumanBytes(s.size_bytes()).to_string();
            let (repo, commit, files) = (s.repo.as_str(), &s.commit[..12], s.files.len());
            writeln!(out, "{repo:<width$}  {refs:<12}  {commit:<12}  {size:>10}  {files:>5}  {}", ago(s))?;
        }
        Ok(())
    }
}

fn object(s: &CachedSnapshot) -> Value {
    json!({
        "repo": s.repo.as_str(),
        "commit": s.commit,
        "refs": s.refs,
        "size_bytes": s.size_bytes(),
        "files": s.files.iter().map(|f| json!({"name": f.name, "size_bytes": f.size_bytes})).collect::<Vec<_>>(),
        "last_used": s.last_used.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs(),
        "path": s.path,
    })
}

fn ago(s: &CachedSnapshot) -> String {
    match s.last_used.elapsed() {
        Ok(time) if time >= Duration::from_secs(60) => format!("{} ago", HumanDuration(time)),
        _ => "now".to_owned(),
    }
}
