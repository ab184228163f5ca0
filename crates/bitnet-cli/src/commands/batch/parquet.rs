//! Parquet files, written without Arrow: rows are all that is needed.

use super::table::{Table, text};
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use serde_json::Value;
use std::fs::File;
use std::sync::Arc;

/// Writes a table. A column has the type that all its values have, and holds texts where they differ.
pub fn write(table: &Table, file: &mut File) -> std::io::Result<()> {
    let mut columns = Vec::new();
    for at in 0..table.names.len() {
        columns.push(Column::new(table.rows.iter().map(|row| &row[at])));
    }
    let fields = table.names.iter().zip(&columns).map(|(name, column)| column.field(name).map(Arc::new));
    let write = || -> Result<(), ParquetError> {
        let fields = fields.collect::<Result<_, _>>()?;
        let schema = Type::group_type_builder("answers").with_fields(fields).build()?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
        let mut group = writer.next_row_group()?;
        columns.iter().try_for_each(|column| column.write(&mut group))?;
        group.close()?;
        writer.close()?;
        Ok(())
    };
    write().map_err(std::io::Error::other)
}

/// The values of a column; `None` where a row has none.
enum Column {
    Bools(Vec<Option<bool>>),
    Whole(Vec<Option<i64>>),
    Numbers(Vec<Option<f64>>),
    Texts(Vec<Option<ByteArray>>),
}

impl Column {
    fn new<'a>(values: impl Iterator<Item = &'a Value> + Clone) -> Self {
        let all = |is: &dyn Fn(&Value) -> bool| values.clone().all(|v| v.is_null() || is(v));
        if all(&Value::is_null) {
            return Self::Texts(values.map(|_| None).collect());
        }
        if all(&Value::is_boolean) {
            return Self::Bools(values.map(Value::as_bool).collect());
        }
        if all(&Value::is_i64) {
            return Self::Whole(values.map(Value::as_i64).collect());
        }
        if all(&Value::is_number) {
            return Self::Numbers(values.map(Value::as_f64).collect());
        }
        let cell = |v: &Value| (!v.is_null()).then(|| ByteArray::from(text(v).into_bytes()));
        Self::Texts(values.map(cell).collect())
    }

    fn field(&self, name: &str) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Self::Bools(_) => (Physical::BOOLEAN, None),
            Self::Whole(_) => (Physical::INT64, None),
            Self::Numbers(_) => (Physical::DOUBLE, None),
            Self::Texts(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let builder = Type::primitive_type_builder(name, physical);
        builder.with_repetition(Repetition::OPTIONAL).with_logical_type(logical).build()
    }

    fn write<W: std::io::Write + Send>(
        &self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), ParquetError> {
        match self {
            Self::Bools(values) => put::<BoolType, _>(values, group),
            Self::Whole(values) => put::<Int64Type, _>(values, group),
            Self::Numbers(values) => put::<DoubleType, _>(values, group),
            Self::Texts(values) => put::<ByteArrayType, _>(values, group),
        }
    }
}

fn put<T: DataType, W: std::io::Write + Send>(
    values: &[Option<T::T>],
    group: &mut SerializedRowGroupWriter<'_, W>,
) -> Result<(), ParquetError> {
    let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
    let values: Vec<T::T> = values.iter().flatten().cloned().collect();
    let Some(mut column) = group.next_column()? else { return Ok(()) };
    column.typed::<T>().write_batch(&values, Some(&levels), None)?;
    column.close()
}
