//! From what a pickle has built to tensors with names.

use super::Contents;
use super::pickle::{self, Id, Known, Node, Pickle};
use crate::data::Strided;
use crate::{Tensor, TensorData, TensorType};
use bitnet_core::{Bytes, DenseType};

/// Dictionaries within dictionaries.
const MAX_DEPTH: usize = 16;
/// Entries of all dictionaries and lists that are looked at; a pickle may mention one of them any number of times.
const MAX_ENTRIES: usize = 1 << 20;
/// Bytes of a key, and of all names together.
const MAX_KEY: usize = 4096;
const MAX_NAMES: usize = 64 << 20;
/// The tensor by which the dictionary of the model is known, whatever stands in front of it.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Bytes of an element.
pub(super) fn element_bytes(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" => 1,
        // Untyped storages count bytes.
        "" => 1,
        _ => return None,
    })
}

/// All tensors that the root leads to; `storage` gives the bytes of a key, and all storages lie in `file_bytes`.
pub(super) fn collect(
    pickle: &Pickle,
    storage: &dyn Fn(&str) -> Option<Bytes>,
    file_bytes: usize,
) -> Result<Contents, String> {
    let mut walk = Walk { pickle, storage, found: Vec::new(), entries: 0, names: 0, room: file_bytes };
    walk.visit(pickle.root, &mut Vec::new())?;
    let found = walk.found;
    // The model is the dictionary nearest to the root that has the embedding.
    let place = |keys: &[String]| Some((keys.len(), keys.last()?.strip_suffix(EMBEDDING)?.to_owned()));
    let home =
        found.iter().filter_map(|(keys, _)| Some((keys, place(keys)?))).min_by_key(|(_, (depth, _))| *depth);
    let home = home.map(|(keys, (_, prefix))| (keys[..keys.len() - 1].to_vec(), prefix));
    let (mut model, mut others) = (Vec::new(), Vec::new());
    for (keys, mut tensor) in found {
        let name = match &home {
            Some((dict, prefix)) => match keys.strip_prefix(&dict[..]) {
                // What training wrappers put in front (`module.`, `_orig_mod.`) is in front of all of them.
                Some([name]) => name.strip_prefix(prefix.as_str()),
                _ => None,
            },
            None => None,
        };
        match name {
            Some(name) => {
                tensor.name = name.to_owned();
                model.push(tensor);
            }
            None => {
                tensor.name = keys.join(".");
                others.push(tensor);
            }
        }
    }
    Ok(Contents { model, others })
}

struct Walk<'a> {
    pickle: &'a Pickle,
    storage: &'a dyn Fn(&str) -> Option<Bytes>,
    /// Tensors with the keys that lead to them; their names are still empty.
    found: Vec<(Vec<String>, Tensor)>,
    entries: usize,
    /// Bytes of names so far.
    names: usize,
    /// Bytes that copies of tensors which do not lie in one piece may still take. Views of one storage, any number of them, cost
    /// a few bytes of a pickle each.
    room: usize,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id, keys: &mut Vec<String>) -> Result<(), String> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES || keys.len() > MAX_DEPTH {
            return Err(format!(
                "its dictionaries have more than {MAX_ENTRIES} entries or {MAX_DEPTH} levels"
            ));
        }
        match self.pickle.node(id) {
            Node::Dict(pairs) => {
                for (key, value) in pairs {
                    let key = match self.pickle.node(*key) {
                        Node::Text(text) if text.len() > MAX_KEY => {
                            return Err(format!("a key in it has more than {MAX_KEY} bytes"));
                        }
                        Node::Text(text) => text.clone(),
                        Node::Int(n) => n.to_string(),
                        // No tensor has a name of any other kind.
                        _ => continue,
                    };
                    keys.push(key);
                    self.visit(*value, keys)?;
                    keys.pop();
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                for (i, item) in items.iter().enumerate() {
                    keys.push(i.to_string());
                    self.visit(*item, keys)?;
                    keys.pop();
                }
            }
            Node::Tensor(tensor) => {
                self.names += keys.iter().map(|key| key.len() + 1).sum::<usize>();
                if self.names > MAX_NAMES {
                    return Err(format!("the names of its tensors take more than {} MiB", MAX_NAMES >> 20));
                }
                let name = || keys.join(".");
                let tensor = self.tensor(tensor).map_err(|what| format!("tensor {:?} {what}", name()))?;
                self.found.push((keys.clone(), tensor));
            }
            _ => {}
        }
        Ok(())
    }

    fn tensor(&mut self, t: &pickle::Tensor) -> Result<Tensor, String> {
        let parts = match self.pickle.node(t.storage) {
            Node::Persistent(id) => self.pickle.node(*id),
            _ => &Node::Opaque,
        };
        let unknown = || "has no storage that is known".to_owned();
        let Node::Tuple(parts) = parts else { return Err(unknown()) };
        let [_, class, key, ..] = parts[..] else { return Err(unknown()) };
        let (Node::Name(Known::Element(class)), Node::Text(key)) =
            (self.pickle.node(class), self.pickle.node(key))
        else {
            return Err(unknown());
        };
        let dtype = t.dtype.unwrap_or(class);
        let size = element_bytes(dtype).filter(|_| !dtype.is_empty()).ok_or("has no element type")?;
        let storage =
            (self.storage)(key).ok_or_else(|| format!("lies in storage {key:?}, which is not there"))?;
        let outside = || format!("lies outside its storage of {} bytes", storage.len());
        let sizes = |v: &[u64]| v.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
        let (shape, strides) = sizes(&t.shape).zip(sizes(&t.strides)).ok_or_else(outside)?;
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(outside)?;
        let len = count.checked_mul(size).filter(|len| *len <= storage.len()).ok_or_else(outside)?;
        let start = usize::try_from(t.offset).ok().and_then(|o| o.checked_mul(size)).ok_or_else(outside)?;
        let data = match len == 0 || is_contiguous(&shape, &strides) {
            true => start.checked_add(len).and_then(|end| storage.slice(start..end)).map(TensorData::from),
            false => {
                self.room = self.room.checked_sub(len).ok_or("is one of too many views of one storage")?;
                Strided::new(&storage, start, size, shape.clone(), strides).map(TensorData::Strided)
            }
        };
        let data = data.ok_or_else(outside)?;
        let ttype = match dtype {
            "F32" => TensorType::Dense(DenseType::F32),
            "F16" => TensorType::Dense(DenseType::F16),
            "BF16" => TensorType::Dense(DenseType::BF16),
            "U8" => TensorType::U8,
            other => TensorType::Other(other),
        };
        Ok(Tensor { name: String::new(), shape, ttype, data })
    }
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut next = Some(1usize);
    shape.iter().zip(strides).rev().all(|(dim, stride)| {
        let fits = *dim <= 1 || Some(*stride) == next;
        next = next.and_then(|n| n.checked_mul(*dim));
        fits
    })
}
