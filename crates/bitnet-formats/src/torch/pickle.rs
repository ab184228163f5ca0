//! Pickles, read by a machine that executes nothing.
//!
//! A pickle is a program. This reader knows the instructions that build containers, numbers and strings, and a short list of
//! names that PyTorch's own files use; a pickle that asks for any other name, or calls anything, is refused. What it builds
//! are nodes that refer to each other by number, so that neither nesting nor sharing costs more than the bytes that ask for it.

use std::collections::HashMap;

/// Bytes of a pickle; that of a hundred thousand tensors has about 20 MB.
const MAX_BYTES: usize = 64 << 20;
/// Things that a pickle builds, each of which takes about a hundred bytes.
const MAX_NODES: usize = 1 << 22;

/// A number of a node.
pub(super) type Id = usize;

/// A thing that a pickle builds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `None`, or something whose value does not matter here.
    Opaque,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Known),
    /// What `persistent_id` stands for: a storage.
    Persistent(Id),
    Tensor(Tensor),
}

/// A tensor over a storage, as yet unchecked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// A [`Node::Persistent`].
    pub(super) storage: Id,
    /// First element of the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// In elements.
    pub(super) strides: Vec<u64>,
    /// The element type of a storage without one.
    pub(super) dtype: Option<&'static str>,
}

/// A name that pickles may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    Size,
    Device,
    /// A class of storages, or an element type, with safetensors' name of the type; empty for untyped storages.
    Element(&'static str),
}

/// Names that pickles may mention.
const KNOWN: &[(&str, &str, Known)] = &[
    ("collections", "OrderedDict", Known::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Known::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v3", Known::RebuildTensorV3),
    ("torch._utils", "_rebuild_parameter", Known::RebuildParameter),
    ("torch", "Size", Known::Size),
    ("torch", "device", Known::Device),
    ("torch.storage", "UntypedStorage", Known::Element("")),
    ("torch", "UntypedStorage", Known::Element("")),
    ("torch", "DoubleStorage", Known::Element("F64")),
    ("torch", "FloatStorage", Known::Element("F32")),
    ("torch", "HalfStorage", Known::Element("F16")),
    ("torch", "BFloat16Storage", Known::Element("BF16")),
    ("torch", "LongStorage", Known::Element("I64")),
    ("torch", "IntStorage", Known::Element("I32")),
    ("torch", "ShortStorage", Known::Element("I16")),
    ("torch", "CharStorage", Known::Element("I8")),
    ("torch", "ByteStorage", Known::Element("U8")),
    ("torch", "BoolStorage", Known::Element("BOOL")),
    ("torch", "float64", Known::Element("F64")),
    ("torch", "float32", Known::Element("F32")),
    ("torch", "float16", Known::Element("F16")),
    ("torch", "bfloat16", Known::Element("BF16")),
    ("torch", "int64", Known::Element("I64")),
    ("torch", "int32", Known::Element("I32")),
    ("torch", "int16", Known::Element("I16")),
    ("torch", "int8", Known::Element("I8")),
    ("torch", "uint8", Known::Element("U8")),
    ("torch", "uint16", Known::Element("U16")),
    ("torch", "uint32", Known::Element("U32")),
    ("torch", "uint64", Known::Element("U64")),
    ("torch", "bool", Known::Element("BOOL")),
];

/// What a pickle has built.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
    /// Bytes of the pickle; more may follow.
    pub(super) len: usize,
}

impl Pickle {
    pub(super) fn node(&self, id: Id) -> &Node {
        // Ids are made by `Machine::push` only.
        &self.nodes[id]
    }
}

/// Reads the pickle at the beginning of some bytes.
///
/// # Errors
/// In words: what the pickle asks for, and where.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = loop {
        if let Some(root) = machine.step()? {
            break root;
        }
        if machine.at > MAX_BYTES || machine.nodes.len() > MAX_NODES {
            return Err(format!(
                "it has more than {MAX_NODES} values or {} MiB beside its tensors",
                MAX_BYTES >> 20
            ));
        }
    };
    Ok(Pickle { nodes: machine.nodes, root, len: machine.at })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Entries that calls have copied out of lists.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it is cut off at byte {}", self.bytes.len()))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u64, String> {
        self.number::<1>().map(|b| b[0].into())
    }

    fn word(&mut self) -> Result<u64, String> {
        self.number().map(|b| u32::from_le_bytes(b).into())
    }

    fn long(&mut self) -> Result<u64, String> {
        self.number().map(u64::from_le_bytes)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or("a line in it does not end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name in it is no text".to_owned())
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("it takes more off its stack than it put there".to_owned());
        }
        self.stack.pop().ok_or_else(|| "its stack is empty".to_owned())
    }

    fn top(&mut self) -> Result<Id, String> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(id)
    }

    /// Everything above the last mark.
    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("it has no mark where it needs one")?;
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, len: u64) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Node::Text(text));
        Ok(())
    }

    fn raw(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.take(len)?.to_vec();
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<(), String> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    /// A whole number of any length, little-endian; only those of 64 bits are kept.
    fn integer(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.take(len)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let node = match bytes.len() {
            0..=8 => {
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(wide))
            }
            _ => Node::Opaque,
        };
        self.push(node);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(all) => all.extend(items),
            // A set.
            Node::Opaque => {}
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        let Node::Dict(all) = &mut self.nodes[dict] else {
            return Err("it gives keys to what is no dictionary".to_owned());
        };
        all.extend(items.as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v)));
        match items.len() % 2 {
            0 => Ok(()),
            _ => Err("it has a key without a value".to_owned()),
        }
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), String> {
        let known = KNOWN.iter().find(|(m, n, _)| *m == module && *n == name);
        let (.., known) = known.ok_or_else(|| {
            let shown = |s: &str| s.chars().take(80).collect::<String>().escape_debug().to_string();
            format!("it asks for {}.{}, which is no part of a file of tensors", shown(module), shown(name))
        })?;
        self.push(Node::Name(*known));
        Ok(())
    }

    fn put(&mut self, key: u64) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, key: u64) -> Result<(), String> {
        let id =
            *self.memo.get(&key).ok_or_else(|| format!("it refers to its memo {key}, which is empty"))?;
        self.stack.push(id);
        Ok(())
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.nodes[id] {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Notes that a call copies entries: what is mentioned again and again may not be copied as often.
    fn copy(&mut self, entries: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(entries);
        match self.copied > self.at {
            true => Err("it makes more of its lists than it has bytes".to_owned()),
            false => Ok(()),
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        let size = |id: &Id| match self.nodes[*id] {
            Node::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        self.items(id)?.iter().map(size).collect()
    }

    /// What a call of a known name gives.
    fn call(&mut self) -> Result<(), String> {
        let (tuple, callee) = (self.pop()?, self.pop()?);
        let Node::Name(known) = self.nodes[callee] else {
            return Err("it calls what is no name".to_owned());
        };
        let arguments = self.items(tuple).ok_or("it calls a name without arguments")?;
        // These give back what they are given.
        if let (Known::Size, &[same]) | (Known::RebuildParameter, &[same, ..]) = (known, arguments) {
            self.stack.push(same);
            return Ok(());
        }
        let entries = |ids: &[Id]| ids.iter().map(|id| self.items(*id).map_or(0, <[Id]>::len)).sum();
        let copied = match (known, arguments) {
            (Known::OrderedDict, ids) => entries(ids),
            (Known::RebuildTensor | Known::RebuildTensorV3, [_, _, sizes @ ..]) => entries(sizes),
            _ => 0,
        };
        self.copy(copied)?;
        let arguments = self.items(tuple).unwrap_or_default();
        let node = match (known, arguments) {
            (Known::OrderedDict, []) => Node::Dict(Vec::new()),
            (Known::OrderedDict, [pairs]) => {
                let pairs = self.items(*pairs).ok_or("an OrderedDict is made of what is no list")?;
                let pair = |id: &Id| match self.items(*id) {
                    Some([k, v]) => Some((*k, *v)),
                    _ => None,
                };
                Node::Dict(
                    pairs
                        .iter()
                        .map(pair)
                        .collect::<Option<_>>()
                        .ok_or("an OrderedDict is made of no pairs")?,
                )
            }
            (Known::Device, _) => Node::Opaque,
            (Known::RebuildTensor, [storage, offset, shape, strides, ..]) => Node::Tensor(
                self.tensor([*storage, *offset, *shape, *strides], None)
                    .ok_or("a tensor of it makes no sense")?,
            ),
            (Known::RebuildTensorV3, [storage, offset, shape, strides, _, _, dtype, ..]) => {
                let dtype = match self.nodes[*dtype] {
                    Node::Name(Known::Element(name)) if !name.is_empty() => Some(name),
                    _ => None,
                };
                Node::Tensor(
                    self.tensor([*storage, *offset, *shape, *strides], dtype)
                        .ok_or("a tensor of it makes no sense")?,
                )
            }
            _ => return Err(format!("it calls {known:?} in a way that no file of tensors does")),
        };
        self.push(node);
        Ok(())
    }

    fn tensor(
        &self,
        [storage, offset, shape, strides]: [Id; 4],
        dtype: Option<&'static str>,
    ) -> Option<Tensor> {
        let (Node::Persistent(_), Node::Int(offset)) = (&self.nodes[storage], &self.nodes[offset]) else {
            return None;
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let offset = u64::try_from(*offset).ok()?;
        (shape.len() == strides.len()).then_some(Tensor { storage, offset, shape, strides, dtype })
    }

    /// One instruction; the root when it was the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let at = self.at;
        match self.byte()? as u8 {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("it is a pickle of protocol {version}; up to 5 are known"));
                }
            }
            // A frame's length says nothing that is needed.
            0x95 => self.long().map(|_| ())?,
            b'(' => self.marks.push(self.stack.len()),
            b'.' => return self.pop().map(Some),
            b'0' => self.pop().map(|_| ())?,
            b'1' => self.above_mark().map(|_| ())?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::Opaque),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'I' => {
                let node = match self.line()? {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    n => Node::Int(n.parse().map_err(|_| "a number in it is none".to_owned())?),
                };
                self.push(node);
            }
            b'J' => {
                let n = i32::from_le_bytes(self.number()?);
                self.push(Node::Int(n.into()));
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Node::Int(n as i64));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.number()?);
                self.push(Node::Int(n.into()));
            }
            b'L' => {
                let n = self.line()?;
                let n = n.strip_suffix('L').unwrap_or(n).parse().map(Node::Int).unwrap_or(Node::Opaque);
                self.push(n);
            }
            0x8a => {
                let len = self.byte()?;
                self.integer(len)?;
            }
            0x8b => {
                let len = self.word()?;
                self.integer(len)?;
            }
            b'F' => {
                let f = self.line()?.parse().map_err(|_| "a number in it is none".to_owned())?;
                self.push(Node::Float(f));
            }
            b'G' => {
                let f = f64::from_be_bytes(self.number()?);
                self.push(Node::Float(f));
            }
            b'V' => {
                let text = self.line()?.to_owned();
                self.push(Node::Text(text));
            }
            0x8c | b'U' => {
                let len = self.byte()?;
                self.text(len)?;
            }
            b'X' | b'T' => {
                let len = self.word()?;
                self.text(len)?;
            }
            0x8d => {
                let len = self.long()?;
                self.text(len)?;
            }
            b'C' => {
                let len = self.byte()?;
                self.raw(len)?;
            }
            b'B' => {
                let len = self.word()?;
                self.raw(len)?;
            }
            0x8e | 0x96 => {
                let len = self.long()?;
                self.raw(len)?;
            }
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.above_mark()?;
                self.push(Node::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            // Sets hold no tensors.
            0x8f => self.push(Node::Opaque),
            0x90 => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            0x91 => {
                self.above_mark()?;
                self.push(Node::Opaque);
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.above_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.above_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.insert(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.insert(&items)?;
            }
            b'q' => {
                let key = self.byte()?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.word()?;
                self.put(key)?;
            }
            b'p' => {
                let key = self.line()?.parse().map_err(|_| "a memo's number in it is none".to_owned())?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'h' => {
                let key = self.byte()?;
                self.get(key)?;
            }
            b'j' => {
                let key = self.word()?;
                self.get(key)?;
            }
            b'g' => {
                let key = self.line()?.parse().map_err(|_| "a memo's number in it is none".to_owned())?;
                self.get(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                    return Err("it asks for a name that is no text".to_owned());
                };
                let (module, name) = (module.clone(), name.clone());
                self.name(&module, &name)?;
            }
            b'R' => self.call()?,
            b'b' => {
                // PyTorch hangs metadata on its dictionaries; nothing else has attributes here.
                let (_, object) = (self.pop()?, self.top()?);
                if !matches!(self.nodes[object], Node::Dict(_) | Node::Tensor(_)) {
                    return Err("it sets attributes of what is no dictionary or tensor".to_owned());
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            b'P' => return Err("it names a storage by a line of text".to_owned()),
            op @ (b'i' | b'o' | 0x81 | 0x92) => {
                return Err(format!(
                    "it makes an object of a class of its own (instruction {op:#04x} at byte {at})"
                ));
            }
            op @ (0x82..=0x84) => {
                return Err(format!(
                    "it refers to a registry of extensions (instruction {op:#04x} at byte {at})"
                ));
            }
            op => return Err(format!("instruction {op:#04x} at byte {at} is not known")),
        }
        Ok(None)
    }
}
