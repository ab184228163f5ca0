//! Hashes of files.

use crate::TrainError;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// SHA-256 of what a file has.
pub(crate) fn of_file(path: &Path) -> Result<[u8; 32], TrainError> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(TrainError::io(path))?);
    let mut hash = Sha256::new();
    loop {
        let piece = file.fill_buf().map_err(TrainError::io(path))?;
        if piece.is_empty() {
            return Ok(hash.finalize().into());
        }
        hash.update(piece);
        let len = piece.len();
        file.consume(len);
    }
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
