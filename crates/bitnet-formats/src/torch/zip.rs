//! The zip archives that PyTorch writes: entries are stored as they are, so that tensors can be read where they lie.

use std::collections::HashMap;
use std::ops::Range;

/// What every archive begins with.
pub(super) const MAGIC: [u8; 4] = *b"PK\x03\x04";

const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
/// Bytes of a comment behind the end record.
const MAX_COMMENT: usize = 1 << 16;

fn le(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    Some(field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Where the bytes of each entry lie, by its name.
///
/// # Errors
/// In words.
pub(super) fn entries(file: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let cut = || "its directory lies outside the file".to_owned();
    let from = file.len().saturating_sub(MAX_COMMENT + 22);
    let end = file[from..].windows(4).rposition(|w| w == END).map(|at| from + at);
    // The last field of the record is the length of a comment.
    let is_whole = |end: &usize| le(file, end + 20, 2).is_some_and(|n| file.len() - end - 22 >= n as usize);
    let end = end.filter(is_whole).ok_or("it is cut off: it has no directory at its end")?;
    let (mut count, mut at) =
        (le(file, end + 10, 2).ok_or_else(cut)?, le(file, end + 16, 4).ok_or_else(cut)?);
    if let Some(locator) = end.checked_sub(20).filter(|at| file[*at..].starts_with(&LOCATOR_64)) {
        let record = le(file, locator + 8, 8).and_then(|at| usize::try_from(at).ok()).ok_or_else(cut)?;
        if !file.get(record..).is_some_and(|r| r.starts_with(&END_64)) {
            return Err(cut());
        }
        count = le(file, record + 32, 8).ok_or_else(cut)?;
        at = le(file, record + 48, 8).ok_or_else(cut)?;
    }
    let mut at = usize::try_from(at).map_err(|_| cut())?;
    let mut entries = HashMap::new();
    for _ in 0..count {
        let (name, range, next) = entry(file, at)?;
        at = next;
        if entries.insert(name.clone(), range).is_some() {
            return Err(format!("entry {name:?} stands there twice"));
        }
    }
    Ok(entries)
}

/// The entry of the directory at a position: its name, its bytes, and where the next one is.
fn entry(file: &[u8], at: usize) -> Result<(String, Range<usize>, usize), String> {
    let cut = || "its directory lies outside the file".to_owned();
    let field = |offset: usize, len: usize| le(file, at.checked_add(offset)?, len).map(|n| n as usize);
    if !file.get(at..).is_some_and(|f| f.starts_with(&ENTRY)) {
        return Err("its directory is damaged".to_owned());
    }
    let method = field(10, 2).ok_or_else(cut)?;
    let (mut packed, mut size) = (field(20, 4).ok_or_else(cut)?, field(24, 4).ok_or_else(cut)?);
    let lens = [28, 30, 32].map(|offset| field(offset, 2).unwrap_or(0));
    let mut local = field(42, 4).ok_or_else(cut)?;
    let name_at = at + 46;
    let extra_at = name_at + lens[0];
    let next = extra_at + lens[1] + lens[2];
    let name = file.get(name_at..extra_at).ok_or_else(cut)?;
    let name = std::str::from_utf8(name).map_err(|_| "the name of an entry is no text")?.to_owned();
    let mut extra = file.get(extra_at..extra_at + lens[1]).ok_or_else(cut)?;
    while let (Some(kind), Some(len)) = (le(extra, 0, 2), le(extra, 2, 2)) {
        let field = extra.get(4..4 + len as usize).ok_or_else(cut)?;
        if kind == 1 {
            // 64-bit values stand here for those fields that are full, in this order.
            let mut values = field.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize);
            for field in [&mut size, &mut packed, &mut local] {
                if *field == u32::MAX as usize {
                    *field = values.next().ok_or_else(cut)?;
                }
            }
        }
        extra = &extra[4 + len as usize..];
    }
    if method != 0 || packed != size {
        return Err(format!(
            "entry {name:?} is compressed, which PyTorch never does; unpack it and pack it without"
        ));
    }
    if !file.get(local..).is_some_and(|f| f.starts_with(&MAGIC)) {
        return Err(format!("entry {name:?} lies outside the file"));
    }
    let local_field = |offset: usize| le(file, local + offset, 2).map(|n| n as usize);
    let start = local_field(26).zip(local_field(28)).map(|(name, extra)| local + 30 + name + extra);
    let range = start.and_then(|start| Some(start..start.checked_add(size)?));
    let range = range.filter(|r| r.end <= file.len());
    Ok((name.clone(), range.ok_or_else(|| format!("entry {name:?} lies outside the file"))?, next))
}
