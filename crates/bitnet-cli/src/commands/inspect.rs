//! `bitnet inspect`: what a model is made of, from its headers.

use super::report::Report;
use crate::args::ModelPath;
use crate::failure::Failure;
use clap::Args;
use std::io::Write;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet inspect model.gguf
  bitnet inspect model-directory --tensors
  bitnet inspect model.gguf --json | jq .types")]
pub struct Inspect {
    #[command(flatten)]
    model: ModelPath,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = &*self.model.locate(quiet)?;
        let checkpoint = bitnet_formats::open(path)?;
        let report = Report::new(path, &checkpoint)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        match self.json {
            true => writeln!(out, "{}", report.json())?,
            false => report.print(&mut out, self.tensors)?,
        }
        Ok(out.flush()?)
    }
}
