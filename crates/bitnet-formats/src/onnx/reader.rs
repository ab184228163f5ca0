//! The reader: initializers of a graph as tensors, in place.

use super::ELEMENTS;
use super::wire::{Field, fields, packed};
use crate::data::Strided;
use crate::map::map;
use crate::{FormatError, Tensor, TensorData, TensorType};
use bitnet_core::{Bytes, DenseType};
use bitnet_quant::packing::I8;
use std::collections::HashMap;
use std::path::{Component, Path};

/// Dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// The tensors of a file.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Weights of the model: what has a name below `model.` or `lm_head.`, or stands in a product of such a name.
    pub model: Vec<Tensor>,
    /// Constants of the graph.
    pub others: Vec<Tensor>,
}

/// Whether a file begins as ONNX models do: with the version of the format, a small number.
pub(crate) fn looks_like(bytes: &[u8]) -> bool {
    matches!(bytes, [8, 1..=32, ..])
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a Bytes,
    /// Files with tensors beside this one.
    beside: HashMap<String, Bytes>,
}

/// Reads a file; tensors may lie in others beside it.
///
/// # Errors
/// [`FormatError::Onnx`] says what is wrong.
pub fn read(path: &Path, file: &Bytes) -> Result<Contents, FormatError> {
    let mut reader = Reader { path, file, beside: HashMap::new() };
    let mut contents = Contents { model: Vec::new(), others: Vec::new() };
    let mut found = Vec::new();
    let mut products = HashMap::new();
    // Messages that stand twice are joined, as everywhere in protocol buffers.
    for (message, start) in reader.messages(file, 0, 7)? {
        for (initializer, at) in reader.messages(message, start, 5)? {
            found.push(reader.tensor(initializer, at)?);
        }
        for (node, _) in reader.messages(message, start, 1)? {
            if let Some((weight, name)) = product(node) {
                products.insert(weight, name);
            }
        }
    }
    if found.is_empty() {
        return Err(reader.fail("it has no graph with initializers"));
    }
    // Many initializers may name one range of a file; what may be copied of them is no more than there is.
    let mut room = file.len() + reader.beside.values().map(|file| file.len()).sum::<usize>();
    for mut tensor in found {
        let is_weight = |name: &str| name.starts_with("model.") || name.starts_with("lm_head.");
        if !is_weight(&tensor.name)
            && let Some(name) = products.get(&tensor.name).filter(|name| is_weight(name))
        {
            // Exporters fold the transposition of a linear layer into its weight and forget the name.
            room = room
                .checked_sub(tensor.data.len())
                .ok_or_else(|| reader.fail("its products share more weights than its files hold"))?;
            tensor = transposed(tensor).map_err(|what| reader.fail(what))?;
            tensor.name.clone_from(name);
        }
        match is_weight(&tensor.name) {
            true => contents.model.push(tensor),
            false => contents.others.push(tensor),
        }
    }
    Ok(contents)
}

/// The second input of a product, and what it is in the module that the product's name tells of:
/// `/model/layers.0/mlp/up_proj/MatMul`.
fn product(node: &[u8]) -> Option<(String, String)> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let (mut inputs, mut name, mut op) = (Vec::new(), None, None);
    for field in fields(node) {
        match field.ok()? {
            (1, Field::Bytes(b, _)) => inputs.push(text(b)?),
            (3, Field::Bytes(b, _)) => name = text(b),
            (4, Field::Bytes(b, _)) => op = text(b),
            _ => {}
        }
    }
    let name = name?;
    let path = name.strip_prefix('/')?.strip_suffix("/MatMul")?;
    (op? == "MatMul" && inputs.len() == 2)
        .then(|| (inputs.swap_remove(1), format!("{}.weight", path.replace('/', "."))))
}

fn transposed(t: Tensor) -> Result<Tensor, String> {
    let wrong = || format!("tensor {:?} of a product is no matrix of floats", t.name);
    let ([rows, cols], TensorType::Dense(dtype)) = (&t.shape[..], t.ttype) else { return Err(wrong()) };
    let (shape, strides) = (vec![*cols, *rows], vec![1, *cols]);
    let view = Strided::new(&t.bytes(), 0, dtype.block().1, shape.clone(), strides).ok_or_else(wrong)?;
    Ok(Tensor { shape, data: TensorData::Strided(view), ..t })
}

impl<'a> Reader<'a> {
    fn fail(&self, what: impl Into<String>) -> FormatError {
        FormatError::Onnx { path: self.path.to_owned(), what: what.into() }
    }

    /// All messages in a field of a message that begins at `start` of the file, with their own beginnings.
    fn messages<'m>(
        &self,
        message: &'m [u8],
        start: usize,
        number: u64,
    ) -> Result<Vec<(&'m [u8], usize)>, FormatError> {
        let mut found = Vec::new();
        for field in fields(message) {
            match field.map_err(|at| self.fail(format!("it is damaged at byte {}", start + at)))? {
                (n, Field::Bytes(bytes, at)) if n == number => found.push((bytes, start + at)),
                _ => {}
            }
        }
        Ok(found)
    }

    fn tensor(&mut self, message: &[u8], start: usize) -> Result<Tensor, FormatError> {
        let damaged = |at: usize| format!("it is damaged at byte {}", start + at);
        let (mut dims, mut kind, mut name, mut data, mut external, mut elsewhere) =
            (Vec::new(), 0, String::new(), None, HashMap::new(), false);
        for field in fields(message) {
            match field.map_err(|at| self.fail(damaged(at)))? {
                (1, Field::Number(n)) => dims.push(n),
                (1, Field::Bytes(b, at)) => dims.extend(packed(b).ok_or_else(|| self.fail(damaged(at)))?),
                (2, Field::Number(n)) => kind = n,
                (8, Field::Bytes(b, _)) => name = String::from_utf8_lossy(b).into_owned(),
                // Numbers as they are; f32 may also stand in a field of its own, which looks the same when it is packed.
                (9 | 4, Field::Bytes(b, at)) if !b.is_empty() => {
                    data = Some(start + at..start + at + b.len())
                }
                (13, Field::Bytes(b, _)) => {
                    let (key, value) = entry(b).ok_or_else(|| self.fail(damaged(0)))?;
                    external.insert(key, value);
                }
                (14, Field::Number(n)) => elsewhere = n == 1,
                _ => {}
            }
            if dims.len() > MAX_DIMS {
                return Err(self.fail(format!("a tensor has more than {MAX_DIMS} dimensions")));
            }
        }
        let fail = |what: String| self.fail(format!("tensor {name:?} {what}"));
        let element = ELEMENTS.iter().find(|(id, ..)| *id == kind);
        let (_, dtype, size) =
            element.ok_or_else(|| fail(format!("has elements of type {kind}, which is not known")))?;
        let shape = dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<_>>>();
        let shape = shape.ok_or_else(|| fail(format!("has shape {dims:?}")))?;
        let count = shape.iter().try_fold(*size, |n, d| n.checked_mul(*d));
        let need = count.ok_or_else(|| fail(format!("has shape {dims:?}")))?;
        let data = match (elsewhere, data) {
            (true, _) => self.external(&name, &external, need)?,
            (false, Some(range)) => {
                self.file.slice(range).ok_or_else(|| fail("lies outside the file".to_owned()))?
            }
            (false, None) if need == 0 => Bytes::from(Vec::new()),
            (false, None) => {
                return Err(fail("has its numbers neither as raw data nor in another file".to_owned()));
            }
        };
        if data.len() != need {
            let got = data.len();
            return Err(
                self.fail(format!("tensor {name:?} of shape {shape:?} takes {need} bytes, there are {got}"))
            );
        }
        let ttype = match *dtype {
            "F32" => TensorType::Dense(DenseType::F32),
            "F16" => TensorType::Dense(DenseType::F16),
            "BF16" => TensorType::Dense(DenseType::BF16),
            "U8" => TensorType::U8,
            "I8" if shape.len() == 2 => TensorType::Ternary(&I8),
            other => TensorType::Other(other),
        };
        Ok(Tensor { name, shape, ttype, data: data.into() })
    }

    /// Bytes of a tensor in another file of the same directory.
    fn external(
        &mut self,
        name: &str,
        keys: &HashMap<String, String>,
        need: usize,
    ) -> Result<Bytes, FormatError> {
        let fail = |what: &str| self.fail(format!("tensor {name:?} {what}"));
        let location = keys.get("location").ok_or_else(|| fail("lies in a file without a name"))?;
        // A file from a stranger leads nowhere else.
        if !matches!(Path::new(location).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(fail("lies in a file that is not in the model's directory"));
        }
        let number = |key: &str, other: usize| keys.get(key).map_or(Some(other), |v| v.parse().ok());
        let (offset, len) =
            number("offset", 0).zip(number("length", need)).ok_or_else(|| fail("lies nowhere"))?;
        if !self.beside.contains_key(location) {
            let dir = self.path.parent().unwrap_or(Path::new("."));
            self.beside.insert(location.clone(), map(&dir.join(location))?);
        }
        let bytes = offset.checked_add(len).and_then(|end| self.beside[location].slice(offset..end));
        bytes.ok_or_else(|| self.fail(format!("tensor {name:?} lies outside {location:?}")))
    }
}

/// A key and its value.
fn entry(message: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in fields(message) {
        match field.ok()? {
            (1, Field::Bytes(b, _)) => key = std::str::from_utf8(b).ok()?.to_owned(),
            (2, Field::Bytes(b, _)) => value = std::str::from_utf8(b).ok()?.to_owned(),
            _ => {}
        }
    }
    Some((key, value))
}
