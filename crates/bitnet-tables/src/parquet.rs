//! Parquet, without Arrow: its rows are all that is needed, and half of what has to be built.

use crate::{Place, Row, Rows, TableError, chosen, pages};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub(crate) fn open(path: &Path, wanted: Option<&[&str]>) -> Result<(Vec<String>, Rows), TableError> {
    let file = File::open(path).map_err(|source| TableError::Io { path: path.to_owned(), source })?;
    let name = path.to_owned();
    let damaged = move |what: String| TableError::Damaged { path: name.clone(), what: line(&what) };
    let reader = caught(|| {
        let pages = file.try_clone()?;
        let reader = SerializedFileReader::new(file)?;
        pages::check(pages, reader.metadata()).map_err(ParquetError::General)?;
        Ok(reader)
    });
    let reader = reader.map_err(&damaged)?;
    let schema = reader.metadata().file_metadata().schema().clone();
    let fields = schema.get_fields();
    let names: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
    let places = chosen(path, &names, wanted)?;
    let columns: Vec<String> = places.iter().map(|i| names[*i].clone()).collect();
    if columns.is_empty() {
        return Ok((columns, Box::new(std::iter::empty())));
    }
    let parts = places.iter().map(|i| fields[*i].clone()).collect();
    let mut rows = caught(move || {
        let part = Type::group_type_builder(schema.name()).with_fields(parts).build()?;
        RowIter::from_file_into(Box::new(reader)).project(Some(part))
    })
    .map_err(&damaged)?;
    let (mut number, mut ended) = (0, false);
    let rows = std::iter::from_fn(move || {
        let next = (!ended).then(|| caught(|| rows.next().transpose()))?;
        number += 1;
        match next {
            Ok(None) => None,
            Ok(Some(record)) => {
                let cells = record.get_column_iter().map(|(_, field)| value(field)).collect();
                Some(Ok(Row { place: Place::Row(number), cells: Ok(cells) }))
            }
            Err(what) => {
                ended = true;
                Some(Err(damaged(format!("row {number}: {what}"))))
            }
        }
    });
    Ok((columns, Box::new(rows)))
}

/// The reader answers some damaged files with panics.
fn caught<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|e| match e {
            ParquetError::General(what) => what,
            other => other.to_string(),
        }),
        Err(_) => Err("it is damaged".to_owned()),
    }
}

/// A message in one line.
fn line(what: &str) -> String {
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => json!(b),
        Field::Byte(n) => json!(n),
        Field::Short(n) => json!(n),
        Field::Int(n) => json!(n),
        Field::Long(n) => json!(n),
        Field::UByte(n) => json!(n),
        Field::UShort(n) => json!(n),
        Field::UInt(n) => json!(n),
        Field::ULong(n) => json!(n),
        Field::Float(n) => json!(n),
        Field::Double(n) => json!(n),
        Field::Str(text) => json!(text),
        // Some writers do not say that their texts are texts.
        Field::Bytes(bytes) => json!(String::from_utf8_lossy(bytes.data())),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v))).collect())
        }
        // Dates, times, decimals: as they are printed.
        other => json!(other.to_string()),
    }
}

fn object(row: &Record) -> Value {
    Value::Object(
        row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect::<Map<_, _>>(),
    )
}
