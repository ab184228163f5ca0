//! `bitnet rm`: a model out of the cache.

use crate::failure::Failure;
use crate::hub::HubFlags;
use bitnet_hub::{Hub, Reference};
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;
use std::io::Write;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet rm org/repo              all snapshots of it
  bitnet rm org/repo@v1.0         one snapshot; what others share stays
  bitnet rm org/repo:Q2_0         one file of the snapshot of main
  bitnet rm hf://datasets/org/name    a data set that was trained on

What a running bitnet uses is not removed. Programs in Python do not say what they use.")]
pub struct Rm {
    /// org/repo[:file-or-quant][@revision]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubFlags,
}

impl Rm {
    pub fn execute(self) -> Result<(), Failure> {
        let reference: Reference = self.model.parse()?;
        let removed = Hub::new(self.hub.settings()?).remove(&reference)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({"removed": removed.snapshots, "freed_bytes": removed.freed_bytes}))?;
        } else {
            writeln!(out, "removed {reference}: {} freed", HumanBytes(removed.freed_bytes))?;
        }
        Ok(())
    }
}
