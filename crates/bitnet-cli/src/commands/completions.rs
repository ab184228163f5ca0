//! `bitnet completions` and `bitnet man`: what the parser knows, for shells and readers.

use crate::failure::Failure;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet completions bash > ~/.local/share/bash-completion/completions/bitnet
  bitnet completions zsh > ~/.zfunc/_bitnet
  bitnet completions fish > ~/.config/fish/completions/bitnet.fish")]
pub struct Completions {
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn execute(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "bitnet", &mut script);
        Ok(std::io::stdout().write_all(&script)?)
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet man /usr/local/share/man/man1
  bitnet man pages && man -l pages/bitnet-run.1")]
pub struct Man {
    /// Where the pages go: bitnet.1, bitnet-run.1 and so on
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let at = |e: std::io::Error| Failure::Runtime(format!("{}: {e}", self.folder.display()));
        std::fs::create_dir_all(&self.folder).map_err(at)?;
        clap_mangen::generate_to(crate::Cli::command(), &self.folder).map_err(at)?;
        if !quiet {
            eprintln!("pages written to {}", self.folder.display());
        }
        Ok(())
    }
}
