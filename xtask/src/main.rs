//! Developer chores: `cargo xtask synth` writes random models of published shapes.
#![forbid(unsafe_code)]

mod synth;

use clap::Parser;
use std::process::ExitCode;

/// Chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Cli {
    /// Write a model with random weights in the shape of a published one
    Synth(synth::Synth),
}

fn main() -> ExitCode {
    let Cli::Synth(synth) = Cli::parse();
    match synth.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
