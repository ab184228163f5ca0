//! What the server tells of itself while it runs, on standard error.

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

#[derive(Args, Clone, Debug)]
pub struct LogFlags {
    /// Form of the log
    #[arg(
        long,
        value_enum,
        default_value_t = LogFormat::Text,
        env = "BITNET_LOG_FORMAT",
        help_heading = "Logs and traces"
    )]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or such levels of modules, like warn,bitnet_server=debug [default: info, with -q warn]
    #[arg(long, value_name = "LEVEL", env = "BITNET_LOG_LEVEL", help_heading = "Logs and traces")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for a reader
    Text,
    /// An object on each line
    Json,
}

impl LogFlags {
    /// Logs from now on.
    pub fn start(&self, quiet: bool) -> Result<(), Failure> {
        let level = self.log_level.as_deref().unwrap_or(if quiet { "warn" } else { "info" });
        let filter =
            EnvFilter::try_new(level).map_err(|e| Failure::Usage(format!("--log-level {level}: {e}")))?;
        let builder = SubscriberBuilder::default()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        // A second log in one process is nobody's wish.
        let _ = match self.log_format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}
