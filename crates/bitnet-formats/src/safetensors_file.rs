//! safetensors: a JSON header and raw tensors.

use crate::atomic::AtomicFile;
use crate::{FormatError, Tensor, TensorType};
use bitnet_core::{Bytes, DenseType};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Whether a file begins as safetensors do: the length of a header that starts with a brace.
pub(crate) fn looks_like(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// Reads the header of a file and checks it; tensors come in the order of their data.
pub fn read(path: &Path, bytes: &Bytes) -> Result<Vec<Tensor>, FormatError> {
    let fail = |what: String| FormatError::Safetensors { path: path.to_owned(), what };
    let (header_len, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| fail(e.to_string()))?;
    // The data begins behind the eight bytes of the length and the header.
    let start = header_len + 8;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let (from, to) = info.data_offsets;
        let data = from
            .checked_add(start)
            .zip(to.checked_add(start))
            .and_then(|(from, to)| bytes.slice(from..to))
            .ok_or_else(|| fail(format!("tensor {name:?} lies outside the file")))?;
        let ttype = match info.dtype {
            Dtype::F32 => TensorType::Dense(DenseType::F32),
            Dtype::F16 => TensorType::Dense(DenseType::F16),
            Dtype::BF16 => TensorType::Dense(DenseType::BF16),
            Dtype::U8 => TensorType::U8,
            other => TensorType::Other(dtype_name(other)),
        };
        tensors.push(Tensor { name, shape: info.shape.clone(), ttype, data: data.into() });
    }
    Ok(tensors)
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BOOL => "BOOL",
        Dtype::I8 => "I8",
        Dtype::I16 => "I16",
        Dtype::U16 => "U16",
        Dtype::I32 => "I32",
        Dtype::U32 => "U32",
        Dtype::I64 => "I64",
        Dtype::U64 => "U64",
        Dtype::F64 => "F64",
        _ => "an element type of its own",
    }
}

/// What a tensor to be written is.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// `F32`, `F16`, `BF16`, `U32`, `U8` or `I8`.
    pub dtype: &'static str,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    pub(crate) fn bytes(&self) -> Option<usize> {
        let size = match self.dtype {
            "F32" | "U32" => 4,
            "F16" | "BF16" => 2,
            "U8" | "I8" => 1,
            _ => return None,
        };
        self.shape.iter().try_fold(size, |n: usize, d| n.checked_mul(*d))
    }
}

/// Writes a file tensor by tensor, in the order they were announced. It appears under its name when it is whole.
pub struct Writer {
    file: AtomicFile,
    tensors: Vec<TensorInfo>,
    next: usize,
    /// Bytes of the present tensor that are written.
    written: usize,
}

impl Writer {
    /// Begins a file; `metadata` are the strings of `__metadata__`.
    pub fn create(
        path: &Path,
        metadata: &[(String, String)],
        tensors: Vec<TensorInfo>,
    ) -> Result<Self, FormatError> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            let metadata: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            header.insert("__metadata__".to_owned(), Value::Object(metadata));
        }
        let mut offset = 0usize;
        for t in &tensors {
            let end =
                t.bytes().and_then(|len| offset.checked_add(len)).ok_or_else(|| FormatError::Write {
                    path: path.to_owned(),
                    what: format!(
                        "tensor {:?} of type {} and shape {:?} cannot be written",
                        t.name, t.dtype, t.shape
                    ),
                })?;
            let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, end]});
            if header.insert(t.name.clone(), entry).is_some() {
                return Err(FormatError::Duplicate { path: path.to_owned(), tensor: t.name.clone() });
            }
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = AtomicFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        Ok(Self { file, tensors, next: 0, written: 0 })
    }

    /// Writes the next bytes of the present tensor; when it is full, the next one is at hand.
    pub fn write(&mut self, data: &[u8]) -> Result<(), FormatError> {
        let fail =
            |file: &AtomicFile, what: String| FormatError::Write { path: file.target().to_owned(), what };
        if data.is_empty() {
            return Ok(());
        }
        // Tensors without elements are passed over.
        while self.tensors.get(self.next).and_then(TensorInfo::bytes) == Some(0) {
            self.next += 1;
        }
        let Some((t, len)) = self.tensors.get(self.next).and_then(|t| t.bytes().map(|len| (t, len))) else {
            return Err(fail(&self.file, format!("{} bytes more than its tensors take", data.len())));
        };
        if data.len() > len - self.written {
            return Err(fail(&self.file, format!("tensor {:?} takes {len} bytes, there are more", t.name)));
        }
        self.file.write(data)?;
        self.written += data.len();
        if self.written == len {
            (self.next, self.written) = (self.next + 1, 0);
        }
        Ok(())
    }

    /// Flushes to the disk what is there so far.
    pub fn sync(&mut self) -> Result<(), FormatError> {
        self.file.sync()
    }

    /// Flushes and gives the file its name.
    pub fn finish(self) -> Result<(), FormatError> {
        if let Some(missing) = self.tensors[self.next..].iter().find(|t| t.bytes() != Some(0)) {
            let what = format!("tensor {:?} was not written", missing.name);
            return Err(FormatError::Write { path: self.file.target().to_owned(), what });
        }
        self.file.finish()
    }
}
