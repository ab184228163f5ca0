//! The reader. Nothing the file says is believed before the bytes behind it have been seen.

use super::dialect::{Candidate, DIALECTS};
use super::metadata::{Metadata, Strings, Value};
use super::types::{self, Kind};
use super::{ALIGNMENT, MAGIC};
use crate::{Checkpoint, FormatError, Header, Tensor, TensorType};
use bitnet_core::Bytes;
use bitnet_quant::packing::{Packing, TileTable};
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

/// Elements of all arrays together; the largest vocabularies have a few hundred thousand.
const MAX_ELEMENTS: usize = 1 << 22;
/// Bytes of a key or a tensor's name.
const MAX_NAME: usize = u16::MAX as usize;
/// The format's number for strings.
const STRING: u32 = 8;
/// Arrays within arrays.
const MAX_DEPTH: usize = 4;
/// Dimensions of a tensor.
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: usize = 1 << 20;
/// Bytes of metadata and tensor descriptions; the largest vocabularies take 20 MB. What is read of them takes a few times as
/// much memory, however large the file is.
const MAX_HEADER: usize = 1 << 28;

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// Array elements that may still be read.
    elements: usize,
}

impl<'a> Cursor<'a> {
    fn fail(&self, what: impl Into<String>) -> FormatError {
        FormatError::gguf(self.path, what)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let what = format!(
                "it is cut off: {len} bytes should follow at byte {}, the file has {}",
                self.at,
                self.bytes.len()
            );
            return Err(self.fail(what));
        };
        if end > MAX_HEADER {
            return Err(self.fail(format!("its header goes on behind byte {MAX_HEADER}")));
        }
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self, what: &str) -> Result<usize, FormatError> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| self.fail(format!("{what} is {n}")))
    }

    fn string(&mut self, what: &str, max: usize) -> Result<Cow<'a, str>, FormatError> {
        let len = self.size(what)?;
        if len > max {
            return Err(
                self.fail(format!("{what} of {len} bytes at byte {}; at most {max} are taken", self.at))
            );
        }
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.into()),
            // Vocabularies of some converters hold raw bytes; a name must be text.
            Err(_) if max > MAX_NAME => Ok(String::from_utf8_lossy(bytes)),
            Err(_) => Err(self.fail(format!("{what} before byte {} is not UTF-8", self.at))),
        }
    }

    fn value(&mut self, id: u32, depth: usize) -> Result<Value, FormatError> {
        Ok(match id {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            STRING => Value::String(self.string("a string", usize::MAX)?.into_owned()),
            9 => {
                if depth == MAX_DEPTH {
                    return Err(self.fail(format!("arrays are nested deeper than {MAX_DEPTH}")));
                }
                let (element, count) = (self.u32()?, self.size("the length of an array")?);
                // Every element takes at least a byte, so the count is no larger than what is left.
                if count > self.bytes.len() - self.at || count > self.elements {
                    let what = format!("an array of {count} elements before byte {}", self.at);
                    return Err(self.fail(what + "; there is no room for them"));
                }
                self.elements -= count;
                if element == STRING {
                    let mut strings = Strings::with_capacity(count);
                    for _ in 0..count {
                        strings.push(&self.string("a string", usize::MAX)?);
                    }
                    return Ok(Value::Strings(strings));
                }
                Value::Array((0..count).map(|_| self.value(element, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.fail(format!("value type {id} before byte {} is not known", self.at))),
        })
    }

    fn metadata(&mut self, count: usize) -> Result<Metadata, FormatError> {
        let mut metadata = Metadata::default();
        let mut keys = HashSet::new();
        for _ in 0..count {
            let key = self.string("a key", MAX_NAME)?.into_owned();
            let id = self.u32()?;
            let value = self.value(id, 0)?;
            if !keys.insert(key.clone()) {
                return Err(self.fail(format!("the key {key:?} stands there twice")));
            }
            metadata.0.push((key, value));
        }
        Ok(metadata)
    }

    fn description(&mut self) -> Result<Description, FormatError> {
        let name = self.string("a tensor's name", MAX_NAME)?.into_owned();
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            return Err(
                self.fail(format!("tensor {name:?} has {dims} dimensions; at most {MAX_DIMS} are taken"))
            );
        }
        // The file has the fastest dimension first.
        let mut shape = (0..dims).map(|_| self.size("a dimension")).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        if shape.is_empty() {
            // bitnet.cpp's converter writes single numbers so.
            shape.push(1);
        }
        if shape.contains(&0) {
            return Err(self.fail(format!("tensor {name:?} has shape {shape:?}")));
        }
        Ok(Description { name, shape, id: self.u32()?, offset: self.size("an offset")? })
    }
}

struct Description {
    name: String,
    /// Rows first.
    shape: Vec<usize>,
    id: u32,
    /// From the beginning of the data.
    offset: usize,
}

/// Reads a whole file; `path` is what errors call it.
///
/// # Errors
/// [`FormatError`] names what is wrong.
pub fn read(path: &Path, bytes: Bytes) -> Result<Checkpoint, FormatError> {
    read_with(path, bytes, &ReadOptions::default())
}

/// What a file does not say of itself.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Tiles of TL1 and TL2 tensors, by their shapes.
    pub tiles: TileTable,
    /// The layout of the tensors whose type stands for two: one of `I2_S`, `I2_S_ARM`, `Q2_0_G64` and `Q2_0_G128`.
    pub layout: Option<&'static Packing>,
}

/// The same of a file that does not say everything.
///
/// # Errors
/// [`FormatError`] names what is wrong; also where there is nothing to which [`ReadOptions::layout`] could apply.
pub fn read_with(path: &Path, bytes: Bytes, options: &ReadOptions) -> Result<Checkpoint, FormatError> {
    let mut cursor = Cursor { path, bytes: &bytes, at: 0, elements: MAX_ELEMENTS };
    cursor.take(MAGIC.len())?;
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(cursor.fail(format!("its version is {version}; 2 and 3 are known")));
    }
    let tensors = cursor.size("the number of tensors")?;
    let keys = cursor.size("the number of keys")?;
    let metadata = cursor.metadata(keys)?;
    if let Some(parts) = metadata.get("split.count").and_then(Value::as_u64).filter(|n| *n > 1) {
        let what = format!("it is one of {parts} parts; `llama-gguf-split --merge` joins them");
        return Err(cursor.fail(what));
    }
    let mut descriptions = Vec::new();
    for _ in 0..tensors {
        descriptions.push(cursor.description()?);
    }
    let alignment = match metadata
        .get("general.alignment")
        .map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    {
        None => ALIGNMENT,
        Some(Some(a)) if a.is_power_of_two() && a <= MAX_ALIGNMENT => a,
        Some(a) => return Err(cursor.fail(format!("general.alignment is {a:?}; it must be a power of two"))),
    };
    let start = cursor.at.next_multiple_of(alignment);
    let tensors = place(path, &bytes, start, alignment, descriptions, &metadata, options)?;
    // Vocabularies are megabytes, and the header holds copies.
    if let Some(header) = bytes.slice(0..cursor.at) {
        header.release();
    }
    Checkpoint::new(path, Header::Gguf { version, metadata }, tensors)
        .map_err(|tensor| FormatError::Duplicate { path: path.to_owned(), tensor })
}

/// Finds the data of every tensor: inside the file, aligned, none over another.
fn place(
    path: &Path,
    bytes: &Bytes,
    start: usize,
    alignment: usize,
    descriptions: Vec<Description>,
    metadata: &Metadata,
    options: &ReadOptions,
) -> Result<Vec<Tensor>, FormatError> {
    let total = bytes.len().saturating_sub(start);
    let mut order: Vec<usize> = (0..descriptions.len()).collect();
    order.sort_by_key(|i| descriptions[*i].offset);
    // How far each tensor could reach: to the next one's beginning or the end of the file.
    let mut rooms: Vec<&[u8]> = vec![&[]; descriptions.len()];
    for (n, i) in order.iter().enumerate() {
        let end = order.get(n + 1).map_or(total, |next| descriptions[*next].offset.min(total));
        let from = descriptions[*i].offset.min(end);
        rooms[*i] = bytes.get(start + from..start + end).unwrap_or_default();
    }
    let layouts = layouts(path, metadata, options.layout, &descriptions, &rooms, alignment)?;
    let mut tensors = Vec::with_capacity(descriptions.len());
    for (d, room) in descriptions.into_iter().zip(rooms) {
        let room = room.len();
        let fail = |what: String| FormatError::gguf(path, format!("tensor {:?} {what}", d.name));
        let elements = || d.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
        let tiled = types::tiled(d.id, &d.shape, &options.tiles);
        let (ttype, len) = match (types::kind(d.id), tiled) {
            (_, Some(t)) => (t, types::bytes(&t, &d.shape)),
            (Kind::Known(t), None) => (t, types::bytes(&t, &d.shape)),
            (Kind::Two(dialects), None) => {
                let layout = layouts.iter().find(|p| dialects.has(p)).unwrap_or(&dialects.layouts[0].packing);
                let t = TensorType::Ternary(layout);
                (t, types::bytes(&t, &d.shape))
            }
            (Kind::Plain(name, size), None) => {
                (TensorType::Other(name), elements().and_then(|n| n.checked_mul(size)))
            }
            (Kind::Refused(name, hint), None) => {
                let (path, tensor) = (path.to_owned(), d.name.clone());
                return Err(FormatError::TensorType { path, tensor, id: d.id, name, hint });
            }
        };
        let Some(len) = len else {
            return Err(fail(format!("has shape {:?}, which {} cannot hold", d.shape, ttype.name())));
        };
        if !d.offset.is_multiple_of(alignment) {
            return Err(fail(format!("begins at {}, which is not aligned to {alignment}", d.offset)));
        }
        if len > room {
            let what =
                format!("takes {len} bytes, there is room for {room} before the next one or the file's end");
            return Err(fail(what));
        }
        let from = start + d.offset;
        let data = bytes.slice(from..from + len).ok_or_else(|| fail("lies outside the file".to_owned()))?;
        tensors.push(Tensor { name: d.name, shape: d.shape, ttype, data: data.into() });
    }
    Ok(tensors)
}

/// The layout of each type that stands for two.
fn layouts(
    path: &Path,
    metadata: &Metadata,
    asked: Option<&'static Packing>,
    descriptions: &[Description],
    rooms: &[&[u8]],
    alignment: usize,
) -> Result<Vec<&'static Packing>, FormatError> {
    let mut found = Vec::new();
    for dialects in &DIALECTS {
        let tensors: Vec<Candidate<'_>> = descriptions
            .iter()
            .zip(rooms)
            .filter(|(d, _)| d.id == dialects.id)
            .map(|(d, room)| Candidate { name: &d.name, shape: &d.shape, room })
            .collect();
        if !tensors.is_empty() {
            let layout = dialects.find(asked, metadata, &tensors, alignment);
            found.push(layout.map_err(|what| FormatError::gguf(path, what))?);
        }
    }
    match asked.filter(|asked| !found.iter().any(|f| f.name == asked.name)) {
        Some(asked) => {
            Err(FormatError::gguf(path, format!("it has no tensors that could be {}", asked.name)))
        }
        None => Ok(found),
    }
}
