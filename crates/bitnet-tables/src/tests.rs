use super::*;
use ::parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::Type;
use serde_json::json;
use std::sync::Arc;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

type Cells = Result<Vec<Value>, String>;

fn read(path: &Path, wanted: Option<&[&str]>) -> Result<Vec<(String, Cells)>, TableError> {
    Table::open(path, wanted)?.map(|row| row.map(|r| (r.place.to_string(), r.cells))).collect()
}

fn texts(values: &[&str]) -> Vec<ByteArray> {
    values.iter().map(|v| ByteArray::from(v.as_bytes().to_vec())).collect()
}

/// Two rows: a number, a text (one is missing), and a list of messages.
fn talk(compression: Compression) -> Vec<u8> {
    let text = |name| {
        let builder = Type::primitive_type_builder(name, Physical::BYTE_ARRAY);
        let text = builder.with_repetition(Repetition::OPTIONAL).with_logical_type(Some(LogicalType::String));
        Arc::new(text.build().unwrap())
    };
    let group = |name, repetition, logical, fields| {
        let builder = Type::group_type_builder(name).with_repetition(repetition).with_fields(fields);
        Arc::new(builder.with_logical_type(logical).build().unwrap())
    };
    let element = group("element", Repetition::OPTIONAL, None, vec![text("role"), text("content")]);
    let list = group("list", Repetition::REPEATED, None, vec![element]);
    let messages = group("messages", Repetition::OPTIONAL, Some(LogicalType::List), vec![list]);
    let id = Type::primitive_type_builder("id", Physical::INT64).with_repetition(Repetition::REQUIRED);
    let fields = vec![Arc::new(id.build().unwrap()), text("text"), messages];
    let schema = Type::group_type_builder("schema").with_fields(fields).build().unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(properties)).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[7, 8], None, None).unwrap();
    column.close().unwrap();
    let long = "ships at night ".repeat(200);
    let roles = ["user", "assistant", "user"];
    for (values, levels, repeats) in [
        (texts(&[&long]), &[1, 0][..], None),
        (texts(&roles), &[4, 4, 4], Some(&[0, 1, 0][..])),
        (texts(&["hi", "ho", "ha"]), &[4, 4, 4], Some(&[0, 1, 0])),
    ] {
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(levels), repeats).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn values_have_their_types_and_columns_are_chosen() {
    let folder = Folder::new();
    let zstd = Compression::ZSTD(Default::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        let path = folder.write("a.parquet", talk(compression));
        let rows = read(&path, None).unwrap();
        let long = "ships at night ".repeat(200);
        let said = |role: &str, content: &str| json!({"role": role, "content": content});
        let want = [
            vec![json!(7), json!(long), json!([said("user", "hi"), said("assistant", "ho")])],
            vec![json!(8), Value::Null, json!([said("user", "ha")])],
        ];
        assert_eq!(
            rows,
            [(": row 1".to_owned(), Ok(want[0].clone())), (": row 2".to_owned(), Ok(want[1].clone()))]
        );
        let some = Table::open(&path, Some(&["messages", "prompt"])).unwrap();
        assert_eq!(some.columns(), ["messages"]);
        assert_eq!(read(&path, Some(&["messages"])).unwrap()[1].1.as_ref().unwrap()[..], want[1][2..]);
        assert!(read(&path, Some(&["prompt"])).unwrap().is_empty());
    }
}

#[test]
fn rows_of_text_stand_in_lines_and_bad_ones_are_told() {
    let folder = Folder::new();
    let path =
        folder.write("a.csv", b"\xEF\xBB\xBFid,text\n1,\"a\n\"\"b\"\"\"\n\n2\n3,\xFF\n4,c\r\n".as_slice());
    let rows = read(&path, Some(&["text"])).unwrap();
    let places: Vec<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    assert_eq!(places, [":2", ":5", ":6", ":7"]);
    assert_eq!(rows[0].1, Ok(vec![json!("a\n\"b\"")]));
    assert_eq!(rows[1].1, Err("it has 1 cells, and there are 2 columns".to_owned()));
    assert_eq!(rows[2].1, Err("cell 2 is not UTF-8 from byte 0 on".to_owned()));
    assert_eq!(rows[3].1, Ok(vec![json!("c")]));
    let path = folder.write("b.csv", "text,text\n1,2\n");
    assert!(read(&path, Some(&["text"])).unwrap_err().to_string().ends_with("two columns \"text\""));
    assert_eq!(read(&path, None).unwrap()[0].1, Ok(vec![json!("1"), json!("2")]));
    assert!(read(&folder.write("c.csv", ""), None).unwrap().is_empty());
}

#[test]
fn a_quote_that_nobody_closes_does_not_take_all() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "text\n\"");
    // Bytes that are not on the disk.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES * 3).unwrap();
    let error = read(&path, None).unwrap_err().to_string();
    assert!(error.contains("a quote that nobody closes"), "{error}");
}

#[test]
fn what_is_no_table_is_refused() {
    let folder = Folder::new();
    for (name, bytes) in [("a.parquet", &b"PAR1 or not"[..]), ("b.parquet", b""), ("c.xml", b"")] {
        assert!(read(&folder.write(name, bytes), None).is_err(), "{name}");
    }
    assert!(matches!(read(Path::new("/nowhere.csv"), None), Err(TableError::Io { .. })));
    assert!(matches!(read(Path::new("/nowhere.parquet"), None), Err(TableError::Io { .. })));
}

/// Every byte of a small file, changed: a reason in one line, or rows, and no more memory than the file may ask for.
#[test]
fn damaged_files_are_errors() {
    let folder = Folder::new();
    for compression in [Compression::SNAPPY, Compression::ZSTD(Default::default())] {
        let whole = talk(compression);
        let (mut refused, mut read_on) = (0, 0);
        for at in (0..whole.len()).step_by(2) {
            for with in [0xFF, whole[at] ^ 1] {
                let mut bytes = whole.clone();
                bytes[at] = with;
                match read(&folder.write("a.parquet", &bytes), None) {
                    Ok(_) => read_on += 1,
                    Err(e) => {
                        assert!(!e.to_string().contains('\n'), "{e}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 50 && read_on > 50, "{refused} {read_on}");
    }
}

/// Headers of pages that claim more than their bytes can become.
#[test]
fn pages_that_claim_too_much_are_refused() {
    let folder = Folder::new();
    let whole = talk(Compression::SNAPPY);
    let file = std::fs::File::open(folder.write("a.parquet", &whole)).unwrap();
    let reader = ::parquet::file::serialized_reader::SerializedFileReader::new(file).unwrap();
    let metadata = ::parquet::file::reader::FileReader::metadata(&reader).clone();
    // The header of the column's first page: its type, then its length when it is unpacked.
    let at = metadata.row_group(0).column(1).dictionary_page_offset().unwrap() as usize;
    assert_eq!((whole[at], whole[at + 2]), (0x15, 0x15));
    for (length, words) in [
        // 2^31 - 1 and 2^27: in five bytes, over the fields that follow.
        ([0xFE, 0xFF, 0xFF, 0xFF, 0x0F], "a page has 2147483647 bytes, and 134217728 are taken at most"),
        ([0x80, 0x80, 0x80, 0x80, 0x01], "cannot become one of 134217728"),
    ] {
        let mut bytes = whole.clone();
        bytes[at + 3..at + 8].copy_from_slice(&length);
        bytes[at + 8] = 0;
        let error = read(&folder.write("a.parquet", &bytes), None).unwrap_err().to_string();
        assert!(error.contains("row group 1, column \"text\": ") && error.contains(words), "{error}");
    }
}
