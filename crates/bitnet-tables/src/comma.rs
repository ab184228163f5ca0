//! CSV: the first line has the names.

use crate::{MAX_BYTES, Place, Row, Rows, TableError, chosen};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::Value;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// Bytes that the reader takes at a time.
const BUFFER: u64 = 1 << 16;

/// A file of which one row cannot take more than its due: a quote that nobody closes would take all that follows.
struct Bounded {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        let what = "a row has more than 128 MiB; is there a quote that nobody closes?";
        self.left.set(left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, what))?);
        Ok(read)
    }
}

pub(crate) fn open(path: &Path, wanted: Option<&[&str]>) -> Result<(Vec<String>, Rows), TableError> {
    let name = path.to_owned();
    let file = File::open(path).map_err(|source| TableError::Io { path: name.clone(), source })?;
    let fail = move |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
            TableError::Damaged { path: name.clone(), what: e.to_string() }
        }
        csv::ErrorKind::Io(source) => TableError::Io { path: name.clone(), source },
        other => TableError::Damaged { path: name.clone(), what: format!("{other:?}") },
    };
    let left = Rc::new(Cell::new(MAX_BYTES + BUFFER));
    let mut reader = ReaderBuilder::new()
        .flexible(true)
        .buffer_capacity(BUFFER as usize)
        .from_reader(Bounded { file, left: Rc::clone(&left) });
    let header = reader.byte_headers().map_err(&fail)?;
    // Spreadsheets begin files with a mark of the byte order.
    let names: Vec<String> = header
        .iter()
        .map(|name| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').to_owned())
        .collect();
    let places = chosen(path, &names, wanted)?;
    let columns = places.iter().map(|i| names[*i].clone()).collect();
    let mut ended = false;
    let rows = std::iter::from_fn(move || {
        let mut record = ByteRecord::new();
        left.set(MAX_BYTES + BUFFER);
        match (!ended).then(|| reader.read_byte_record(&mut record))? {
            Ok(true) => {
                let place = Place::Line(line(&record, reader.position().line()));
                Some(Ok(Row { place, cells: cells(&record, names.len(), &places) }))
            }
            Ok(false) => None,
            Err(e) => {
                ended = true;
                Some(Err(fail(e)))
            }
        }
    });
    Ok((columns, Box::new(rows)))
}

/// The line in which a record begins; `next` is the one behind it. The reader's own count begins with empty lines before it.
fn line(record: &ByteRecord, next: u64) -> u64 {
    let breaks = record.as_slice().iter().filter(|b| **b == b'\n').count() as u64;
    record.position().map_or(0, |p| p.line()).max(next.saturating_sub(breaks + 1))
}

fn cells(record: &ByteRecord, columns: usize, places: &[usize]) -> Result<Vec<Value>, String> {
    if record.len() != columns {
        return Err(format!("it has {} cells, and there are {columns} columns", record.len()));
    }
    let text = |i: &usize| match std::str::from_utf8(&record[*i]) {
        Ok(text) => Ok(Value::from(text)),
        Err(e) => Err(format!("cell {} is not UTF-8 from byte {} on", i + 1, e.valid_up_to())),
    };
    places.iter().map(text).collect()
}
