//! The writer: version 3, tensor by tensor, in the order they were announced.

use super::dialect::DIALECTS;
use super::metadata::{Metadata, Value};
use super::{ALIGNMENT, MAGIC, types};
use crate::atomic::AtomicFile;
use crate::{FormatError, TensorType};
use std::path::Path;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
    /// The type of its data.
    pub ttype: TensorType,
}

/// Writes a file that appears under its name when it is whole.
pub struct Writer {
    file: AtomicFile,
    /// Name and bytes of every tensor.
    tensors: Vec<(String, usize)>,
    next: usize,
    /// Bytes of the present tensor that are written.
    written: usize,
}

impl Writer {
    /// Begins a file. Where tensors have a type that stands for two layouts, a key is added that says which.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Self, FormatError> {
        let fail = |what: String| FormatError::Write { path: path.to_owned(), what };
        let mut head = Vec::from(MAGIC);
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        let told = DIALECTS.iter().filter(|d| metadata.get(d.key).is_none()).filter_map(|d| d.told(tensors));
        let told: Vec<(String, Value)> = told.collect();
        head.extend(((metadata.0.len() + told.len()) as u64).to_le_bytes());
        for (key, value) in metadata.0.iter().chain(&told) {
            put_string(&mut head, key);
            head.extend(value.id().to_le_bytes());
            put(&mut head, value).map_err(|what| fail(format!("{key}: {what}")))?;
        }
        let (mut offset, mut sizes) = (0usize, Vec::with_capacity(tensors.len()));
        for t in tensors {
            let (id, len) = types::id(&t.ttype).zip(types::bytes(&t.ttype, &t.shape)).ok_or_else(|| {
                fail(format!("{} {:?} of {:?} cannot be written", t.ttype.name(), t.name, t.shape))
            })?;
            put_string(&mut head, &t.name);
            head.extend((t.shape.len() as u32).to_le_bytes());
            for dim in t.shape.iter().rev() {
                head.extend((*dim as u64).to_le_bytes());
            }
            head.extend(id.to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += len.next_multiple_of(ALIGNMENT);
            sizes.push((t.name.clone(), len));
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        let mut file = AtomicFile::create(path)?;
        file.write(&head)?;
        Ok(Self { file, tensors: sizes, next: 0, written: 0 })
    }

    /// Writes the next bytes of the present tensor; when it is full, the next one is at hand.
    pub fn write(&mut self, data: &[u8]) -> Result<(), FormatError> {
        let fail =
            |file: &AtomicFile, what: String| FormatError::Write { path: file.target().to_owned(), what };
        let Some((name, len)) = self.tensors.get(self.next) else {
            return Err(fail(&self.file, format!("{} bytes more than its tensors take", data.len())));
        };
        if data.len() > len - self.written {
            return Err(fail(&self.file, format!("tensor {name:?} takes {len} bytes, there are more")));
        }
        self.file.write(data)?;
        self.written += data.len();
        if self.written == *len {
            self.file.write(&vec![0; len.next_multiple_of(ALIGNMENT) - len])?;
            (self.next, self.written) = (self.next + 1, 0);
        }
        Ok(())
    }

    /// Flushes and gives the file its name.
    pub fn finish(self) -> Result<(), FormatError> {
        if let Some((name, _)) = self.tensors.get(self.next) {
            let what = format!("tensor {name:?} was not written");
            return Err(FormatError::Write { path: self.file.target().to_owned(), what });
        }
        self.file.finish()
    }
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) -> Result<(), &'static str> {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_string(out, v),
        Value::Strings(v) => {
            out.extend(8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| put_string(out, s));
        }
        Value::Array(v) => {
            // An empty array has to have some type; strings are the usual ones.
            let id = v.first().map_or(8, Value::id);
            if v.iter().any(|v| v.id() != id) {
                return Err("the elements of an array must have one type");
            }
            out.extend(id.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().try_for_each(|v| put(out, v))?;
        }
    }
    Ok(())
}
