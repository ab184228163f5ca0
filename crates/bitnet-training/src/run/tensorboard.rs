//! Event files of TensorBoard: TFRecords (a length, a payload, and a masked CRC-32C of each) of `Event` messages in protobuf's wire format.
//!
//! A handful of fields are written, so the messages are put together here: a protobuf library, its compiler and TensorFlow's schemas would
//! be many times the code.

#[cfg(test)]
mod tests;

use crate::TrainError;
use bitnet_formats::write_file;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What begins every file.
const VERSION: &[u8] = b"brain.Event:2";

/// A file that grows by an event at a time.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the file of a folder behind its events of steps up to `step`, or a new one. Events of later steps, which will be taken again,
    /// and what a killed process has left of one, go.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let entries = std::fs::read_dir(folder).map_err(TrainError::io(folder))?;
        let ours = |path: &PathBuf| path.to_string_lossy().ends_with(".bitnet");
        let before = entries.flatten().map(|e| e.path()).find(ours);
        let name = format!("events.out.tfevents.{:010}.bitnet", now() as u64);
        let path = before.unwrap_or_else(|| folder.join(name));
        let bytes = std::fs::read(&path).unwrap_or_default();
        let mut kept: Vec<u8> =
            records(&bytes).take_while(|r| step_of(r.1) <= step).flat_map(|r| r.0).copied().collect();
        if kept.is_empty() {
            kept = record(&event(0, 3, VERSION));
        }
        write_file(&path, &kept)?;
        let file = File::options().append(true).open(&path).map_err(TrainError::io(&path))?;
        Ok(Self { path, file })
    }

    /// Adds numbers of a step, by their tags.
    pub(super) fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), TrainError> {
        let summary = values.iter().flat_map(|(tag, value)| {
            let mut inner = bytes(1, tag.as_bytes());
            inner.push(2 << 3 | 5);
            inner.extend((*value as f32).to_le_bytes());
            bytes(1, &inner)
        });
        self.add(step, &summary.collect::<Vec<u8>>())
    }

    /// Adds a text of a step, which TensorBoard takes for markdown.
    pub(super) fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<(), TrainError> {
        // TensorProto: DT_STRING, one dimension of one element.
        let shape = bytes(2, &number(1, 1));
        let tensor = [number(1, 7), bytes(2, &shape), bytes(8, text.as_bytes())].concat();
        // SummaryMetadata: the plugin, and that the data are tensors.
        let metadata = [bytes(1, &bytes(1, b"text")), number(4, 2)].concat();
        let value = [bytes(1, tag.as_bytes()), bytes(9, &metadata), bytes(8, &tensor)].concat();
        self.add(step, &bytes(1, &value))
    }

    /// Adds a summary.
    fn add(&mut self, step: u64, summary: &[u8]) -> Result<(), TrainError> {
        self.file.write_all(&record(&event(step, 5, summary))).map_err(TrainError::io(&self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// An event of this moment with one more field.
fn event(step: u64, field: u64, payload: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(now().to_le_bytes());
    event.extend(number(2, step));
    event.extend(bytes(field, payload));
    event
}

/// The step of an event that was written here: behind the time.
fn step_of(event: &[u8]) -> u64 {
    let (mut step, mut shift) = (0, 0);
    for byte in event.iter().skip(10) {
        step |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    step
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field that is a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is a text, bytes or a message.
fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), payload, &masked(payload).to_le_bytes()].concat()
}

/// The whole records of a file, each with its payload, up to the first that is none.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = bytes.first_chunk::<8>()?;
        let end = usize::try_from(u64::from_le_bytes(*length)).ok()?.checked_add(12)?;
        let (payload, check) = (bytes.get(12..end)?, bytes.get(end..)?.first_chunk::<4>()?);
        let whole = bytes[8..12] == masked(length).to_le_bytes() && *check == masked(payload).to_le_bytes();
        let (record, rest) = bytes.split_at(end + 4);
        bytes = rest;
        whole.then_some((record, payload))
    })
}

/// CRC-32C, turned and moved: checksums of what holds checksums are weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// Castagnoli's polynomial, reflected.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut value, mut bit) = (i as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0x82F6_3B78 } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}
