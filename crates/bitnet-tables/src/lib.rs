//! Rows of CSV and Parquet files, one after the other, as JSON values.
//!
//! It knows what tables are made of, and believes no file about how much memory it needs. It does not know what is in the cells.
//!
//! ```
//! # fn main() -> Result<(), bitnet_tables::TableError> {
//! # let path = std::env::temp_dir().join(format!("bitnet-tables-{}.csv", std::process::id()));
//! # std::fs::write(&path, "id,text\n1,\"a\nb\"\n2\n3,c\n").unwrap();
//! let table = bitnet_tables::Table::open(&path, Some(&["text"]))?;
//! assert_eq!(table.columns(), ["text"]);
//! let rows = table.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(rows[0].cells.as_ref().unwrap()[0], "a\nb");
//! // Where a row stands, and what is wrong with one.
//! assert_eq!(rows[1].place, bitnet_tables::Place::Line(4));
//! assert_eq!(rows[1].cells.as_ref().unwrap_err(), "it has 1 cells, and there are 2 columns");
//! # std::fs::remove_file(path).unwrap();
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod comma;
mod pages;
mod parquet;
#[cfg(test)]
mod tests;

use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// Bytes that a row of a CSV file, or a page of a column of a Parquet file, may have.
pub const MAX_BYTES: u64 = 1 << 27;

/// Why a table cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The operating system refused.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what its name says, or it is damaged.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The name ends in neither `.csv` nor `.parquet`.
    #[error("{} ends in neither .csv nor .parquet", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
}

/// Where a row stands, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The line in which it begins.
    Line(u64),
    /// Its number.
    Row(u64),
}

/// As it stands behind the name of the file.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Row(row) => write!(f, ": row {row}"),
        }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// A value for each column, or what is wrong with this row alone. Cells of CSV files are texts; those of Parquet files have their
    /// types: lists, groups and maps become JSON's, dates and decimals are texts, bytes are taken for UTF-8.
    pub cells: Result<Vec<Value>, String>,
}

type Rows = Box<dyn Iterator<Item = Result<Row, TableError>>>;

/// A file whose rows are read as they are asked for.
pub struct Table {
    columns: Vec<String>,
    rows: Rows,
}

impl Table {
    /// Opens a file, whose kind the end of its name says. Of its columns those that are `wanted` and there are read, or all.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn open(path: &Path, wanted: Option<&[&str]>) -> Result<Self, TableError> {
        let (columns, rows) = match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => comma::open(path, wanted)?,
            Some("parquet") => parquet::open(path, wanted)?,
            _ => return Err(TableError::Extension { path: path.to_owned() }),
        };
        Ok(Self { columns, rows })
    }

    /// Names of the columns that are read.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }
}

/// An error ends the rows.
impl Iterator for Table {
    type Item = Result<Row, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

/// The places of columns that are wanted. A name that stands twice names none.
fn chosen(path: &Path, names: &[String], wanted: Option<&[&str]>) -> Result<Vec<usize>, TableError> {
    let is_wanted = |name: &str| wanted.is_none_or(|w| w.contains(&name));
    let places: Vec<usize> = (0..names.len()).filter(|i| is_wanted(&names[*i])).collect();
    let twice = places.iter().find(|i| wanted.is_some() && names[..**i].contains(&names[**i]));
    match twice {
        Some(i) => {
            let what = format!("it has two columns {:?}", names[*i]);
            Err(TableError::Damaged { path: path.to_owned(), what })
        }
        None => Ok(places),
    }
}
