//! `metrics.jsonl`: a line an event.

use crate::TrainError;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file behind its lines of steps up to `step`; lines of later steps, which will be taken again, go.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let of_past = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = before.lines().filter(of_past).flat_map(|line| [line, "\n"]).collect();
        bitnet_formats::write_file(path, kept.as_bytes())?;
        let file = File::options().append(true).open(path).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write(&mut self, line: Value) -> Result<(), TrainError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(TrainError::io(&self.path))
    }
}
