//! The format before PyTorch 1.6: five pickles one behind the other, then storages.

use super::pickle::{self, Known, Node};
use super::{Contents, tensors};
use bitnet_core::Bytes;
use std::collections::HashMap;

/// What the first pickle holds.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a file begins with a pickle of the magic number: protocol, a long of ten bytes.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..4) == Some(&[0x8a, 10]) && bytes.get(4..14) == Some(&MAGIC)
}

pub(super) fn read(bytes: &Bytes) -> Result<Contents, String> {
    if !looks_like(bytes) {
        return Err("it begins neither as a zip archive nor with PyTorch's magic number".to_owned());
    }
    let mut at = 0;
    let mut next = || {
        let pickle = pickle::read(&bytes[at..])?;
        at += pickle.len;
        Ok::<_, String>(pickle)
    };
    // The magic number, the version, and what machine it was written on.
    let (_, version, machine) = (next()?, next()?, next()?);
    if *version.node(version.root) != Node::Int(1001) {
        return Err("its version is not 1001".to_owned());
    }
    if let Node::Dict(pairs) = machine.node(machine.root) {
        let little = pairs.iter().find(|(k, _)| *machine.node(*k) == Node::Text("little_endian".to_owned()));
        if little.is_some_and(|(_, v)| *machine.node(*v) == Node::Bool(false)) {
            return Err("its numbers are big-endian".to_owned());
        }
    }
    let (main, keys) = (next()?, next()?);
    let Node::List(order) = keys.node(keys.root) else {
        return Err("its storages are not listed".to_owned());
    };
    let mut sizes = HashMap::new();
    for node in &main.nodes {
        if let Node::Persistent(id) = node
            && let Node::Tuple(parts) = main.node(*id)
            && let [_, class, key, ..] = parts[..]
            && let (Node::Name(Known::Element(dtype)), Node::Text(key)) = (main.node(class), main.node(key))
        {
            sizes.insert(key.as_str(), tensors::element_bytes(dtype));
        }
    }
    let mut storages: HashMap<String, Bytes> = HashMap::new();
    for key in order {
        let Node::Text(key) = keys.node(*key) else {
            return Err("the key of a storage is no text".to_owned());
        };
        let cut = || format!("storage {key:?} is cut off");
        let count =
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(cut)?;
        let size = sizes
            .get(key.as_str())
            .copied()
            .flatten()
            .ok_or_else(|| format!("storage {key:?} has no type"))?;
        let len = usize::try_from(count).ok().and_then(|n| n.checked_mul(size)).ok_or_else(cut)?;
        let end = (at + 8).checked_add(len).ok_or_else(cut)?;
        storages.insert(key.clone(), bytes.slice(at + 8..end).ok_or_else(cut)?);
        at = end;
    }
    tensors::collect(&main, &|key| storages.get(key).cloned(), bytes.len())
}
