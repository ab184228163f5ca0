//! What pages of a Parquet file claim, before anything is allocated for them.
//!
//! The reader gives a page as much memory as its header says it has when it is unpacked, and a dictionary as many values. So headers
//! are read here first (Thrift's compact protocol), and what no packed page of its length could hold is refused.

use crate::MAX_BYTES;
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// What Snappy makes of a byte at most: copies of 64 bytes take 3.
const MOST_OF_A_BYTE: u64 = 24;

/// Structures in structures of a header; its own have four.
const DEPTH: usize = 8;

/// Bytes of a header. Statistics are in it, the least and the greatest value of a page.
const HEADER: u64 = 1 << 24;

type Found<T> = Result<T, String>;

/// Checks every page of every column.
pub(crate) fn check(file: File, metadata: &ParquetMetaData) -> Found<()> {
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let mut file = BufReader::with_capacity(1 << 12, file);
    for (number, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            column_pages(&mut file, size, column).map_err(|what| {
                format!("row group {}, column {:?}: {what}", number + 1, column.column_path().string())
            })?;
        }
    }
    Ok(())
}

fn column_pages(file: &mut BufReader<File>, size: u64, column: &ColumnChunkMetaData) -> Found<()> {
    let data = column.data_page_offset();
    let first = column.dictionary_page_offset().filter(|at| *at > 0 && *at < data).unwrap_or(data);
    let number = |n: i64| u64::try_from(n).map_err(|_| "it has a negative place or length".to_owned());
    let (mut at, length) = (number(first)?, number(column.compressed_size())?);
    let end = at.checked_add(length).filter(|end| *end <= size).ok_or("it ends behind the file's end")?;
    file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
    while at < end {
        let mut header = Header { from: file.by_ref().take(HEADER.min(end - at)), read: 0 };
        let page = header.page()?;
        let read = header.read;
        page.check(column.compression())?;
        at = at.saturating_add(read).saturating_add(page.packed);
        // Where the next header begins; this one was read through a buffer.
        file.seek_relative(i64::try_from(page.packed).map_err(|e| e.to_string())?)
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What a header says.
#[derive(Default)]
struct Page {
    /// Bytes in the file.
    packed: u64,
    /// Bytes when it is unpacked.
    unpacked: u64,
    /// Values of a dictionary.
    values: u64,
}

impl Page {
    fn check(&self, compression: Compression) -> Found<()> {
        let Self { packed, unpacked, values } = *self;
        if unpacked > MAX_BYTES {
            return Err(format!("a page has {unpacked} bytes, and {MAX_BYTES} are taken at most"));
        }
        if compression == Compression::SNAPPY && unpacked > MOST_OF_A_BYTE * packed.saturating_add(8) {
            return Err(format!("a page of {packed} bytes cannot become one of {unpacked}"));
        }
        // Every value takes a bit at least.
        if values > 8 * unpacked {
            return Err(format!("a dictionary of {unpacked} bytes cannot have {values} values"));
        }
        Ok(())
    }
}

/// Thrift's compact protocol.
struct Header<R> {
    from: R,
    read: u64,
}

impl<R: Read> Header<R> {
    fn byte(&mut self) -> Found<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte).map_err(|_| "a page's header is cut off")?;
        self.read += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Found<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a page's header has a number that does not end".to_owned())
    }

    fn signed(&mut self) -> Found<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn count(&mut self) -> Found<u64> {
        u64::try_from(self.signed()?).map_err(|_| "a page's header has a negative length".to_owned())
    }

    /// Number and type of the next field; `None` at the end of a structure.
    fn field(&mut self, last: &mut i64) -> Found<Option<(i64, u8)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *last = match byte >> 4 {
            0 => self.signed()?,
            delta => last.wrapping_add(i64::from(delta)),
        };
        Ok(Some((*last, byte & 0x0F)))
    }

    /// PageHeader: 2 is the length unpacked, 3 packed, 7 the header of a dictionary, whose 1 is the number of values.
    fn page(&mut self) -> Found<Page> {
        let (mut page, mut last) = (Page::default(), 0);
        while let Some((number, kind)) = self.field(&mut last)? {
            match (number, kind) {
                (2, 5) => page.unpacked = self.count()?,
                (3, 5) => page.packed = self.count()?,
                (7, 12) => {
                    let mut inner = 0;
                    while let Some(field) = self.field(&mut inner)? {
                        match field {
                            (1, 5) => page.values = self.count()?,
                            (_, kind) => self.skip(kind, DEPTH)?,
                        }
                    }
                }
                _ => self.skip(kind, DEPTH)?,
            }
        }
        Ok(page)
    }

    fn skip_bytes(&mut self, count: u64) -> Found<()> {
        let skipped = std::io::copy(&mut self.from.by_ref().take(count), &mut std::io::sink());
        match skipped {
            Ok(n) if n == count => {
                self.read += count;
                Ok(())
            }
            _ => Err("a page's header is cut off".to_owned()),
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Found<()> {
        let depth = depth.checked_sub(1).ok_or("a page's header is too deep")?;
        match kind {
            // Truth is in the type.
            1 | 2 => Ok(()),
            3 => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                (0..count).try_for_each(|_| match head & 0x0F {
                    1 | 2 => self.skip_bytes(1),
                    kind => self.skip(kind, depth),
                })
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
            // A page's header has no maps.
            kind => Err(format!("a page's header has a field of type {kind}")),
        }
    }
}
