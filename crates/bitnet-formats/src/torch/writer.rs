//! The writer: one zip archive, as PyTorch writes them since version 1.6, that `torch.load(weights_only=True)` reads.

pub use crate::safetensors_file::TensorInfo;

use super::zip::MAGIC;
use crate::FormatError;
use crate::atomic::AtomicFile;
use std::path::Path;

/// Writes a dictionary of tensors one after the other, in the order they were announced. The file appears under its name
/// when it is whole.
pub struct Writer {
    archive: Archive,
    /// Names and bytes of entries still to come, the next one last.
    waiting: Vec<(String, u64)>,
}

impl Writer {
    /// Begins a file.
    pub fn create(path: &Path, tensors: &[TensorInfo]) -> Result<Self, FormatError> {
        let fail = |t: &TensorInfo| FormatError::Write {
            path: path.to_owned(),
            what: format!(
                "tensor {:?} of type {} and shape {:?} cannot be written",
                t.name, t.dtype, t.shape
            ),
        };
        let mut pickle = Vec::from(*b"\x80\x02ccollections\nOrderedDict\n)R(");
        let mut waiting = Vec::new();
        for (key, t) in tensors.iter().enumerate() {
            let len = t.bytes().ok_or_else(|| fail(t))?;
            describe(&mut pickle, t, key).ok_or_else(|| fail(t))?;
            waiting.push((format!("data/{key}"), len as u64));
        }
        pickle.extend(*b"u.");
        waiting.reverse();
        let mut archive = Archive { file: AtomicFile::create(path)?, at: 0, entries: Vec::new(), open: None };
        for (name, bytes) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("version", b"3\n")] {
            archive.begin(name, bytes.len() as u64)?;
            archive.data(bytes)?;
        }
        let mut writer = Self { archive, waiting };
        writer.next()?;
        Ok(writer)
    }

    /// Begins the next entry, passing over those that are empty.
    fn next(&mut self) -> Result<(), FormatError> {
        while self.archive.open.is_none() {
            let Some((name, len)) = self.waiting.pop() else { break };
            self.archive.begin(&name, len)?;
            if len == 0 {
                self.archive.data(&[])?;
            }
        }
        Ok(())
    }

    /// Writes the next bytes of the present tensor; when it is full, the next one is at hand.
    pub fn write(&mut self, data: &[u8]) -> Result<(), FormatError> {
        if data.is_empty() {
            return Ok(());
        }
        self.archive.data(data)?;
        self.next()
    }

    /// Flushes to the disk what is there so far.
    pub fn sync(&mut self) -> Result<(), FormatError> {
        self.archive.file.sync()
    }

    /// Writes the directory and gives the file its name.
    pub fn finish(self) -> Result<(), FormatError> {
        if let Some(open) = &self.archive.open {
            let what = format!("{} bytes of entry {:?} were not written", open.left, open.entry.name);
            return Err(FormatError::Write { path: self.archive.file.target().to_owned(), what });
        }
        self.archive.finish()
    }
}

/// The key, and the call that makes a tensor of a storage.
fn describe(pickle: &mut Vec<u8>, t: &TensorInfo, key: usize) -> Option<()> {
    let class = match t.dtype {
        "F32" => "FloatStorage",
        "F16" => "HalfStorage",
        "BF16" => "BFloat16Storage",
        "U8" => "ByteStorage",
        _ => return None,
    };
    let text = |out: &mut Vec<u8>, s: &str| -> Option<()> {
        out.push(b'X');
        out.extend(u32::try_from(s.len()).ok()?.to_le_bytes());
        out.extend(s.as_bytes());
        Some(())
    };
    let number = |out: &mut Vec<u8>, n: usize| match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 9]);
            out.extend((n as u64).to_le_bytes());
            out.push(0);
        }
    };
    text(pickle, &t.name)?;
    pickle.extend(*b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage")?;
    pickle.extend(format!("ctorch\n{class}\n").bytes());
    text(pickle, &key.to_string())?;
    text(pickle, "cpu")?;
    number(pickle, t.shape.iter().product());
    pickle.extend(*b"tQJ\0\0\0\0(");
    t.shape.iter().for_each(|n| number(pickle, *n));
    pickle.extend(*b"t(");
    for i in 0..t.shape.len() {
        number(pickle, t.shape[i + 1..].iter().product());
    }
    pickle.extend(*b"t\x89ccollections\nOrderedDict\n)RtR");
    Some(())
}

/// An entry of the archive's directory.
struct Entry {
    name: String,
    len: u64,
    crc: u32,
    /// Where its local header lies.
    at: u64,
}

struct Open {
    entry: Entry,
    left: u64,
}

struct Archive {
    file: AtomicFile,
    at: u64,
    entries: Vec<Entry>,
    open: Option<Open>,
}

const FOLDER: &str = "archive/";
/// PyTorch maps files and wants tensors aligned so.
const ALIGNMENT: u64 = 64;
/// The check sum and the length of an entry follow its data.
const DESCRIPTOR_FOLLOWS: u16 = 8;
/// What stands where a 64-bit field elsewhere takes over.
const FULL: u32 = u32::MAX;

fn is_large(n: u64) -> bool {
    n >= u64::from(FULL)
}

fn narrow(n: u64) -> [u8; 4] {
    u32::try_from(n).unwrap_or(FULL).to_le_bytes()
}

impl Archive {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.at += bytes.len() as u64;
        self.file.write(bytes)
    }

    fn begin(&mut self, name: &str, len: u64) -> Result<(), FormatError> {
        let name = format!("{FOLDER}{name}");
        let mut extra = Vec::new();
        if is_large(len) {
            extra.extend([1, 0, 16, 0]);
            extra.extend([0; 16]);
        }
        // A field that says nothing moves the data to where it should lie.
        let data = self.at + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = data.next_multiple_of(ALIGNMENT) - data;
        extra.extend(*b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');
        let entry = Entry { name: name.clone(), len, crc: 0, at: self.at };
        let mut header = Vec::from(MAGIC);
        header.extend((if is_large(len) { 45u16 } else { 20 }).to_le_bytes());
        header.extend(DESCRIPTOR_FOLLOWS.to_le_bytes());
        // Stored, without a date; check sum and lengths come later.
        header.extend([0; 18]);
        header.extend((name.len() as u16).to_le_bytes());
        header.extend((extra.len() as u16).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(extra);
        self.put(&header)?;
        self.open = Some(Open { entry, left: len });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let left = self.open.as_ref().map_or(0, |o| o.left);
        if bytes.len() as u64 > left {
            let what = format!("{} bytes more than its tensors take", bytes.len() as u64 - left);
            return Err(FormatError::Write { path: self.file.target().to_owned(), what });
        }
        self.put(bytes)?;
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.left -= bytes.len() as u64;
        open.entry.crc = crc32(open.entry.crc, bytes);
        if open.left > 0 {
            self.open = Some(open);
            return Ok(());
        }
        let entry = open.entry;
        let mut descriptor = Vec::from(*b"PK\x07\x08");
        descriptor.extend(entry.crc.to_le_bytes());
        for _ in 0..2 {
            match is_large(entry.len) {
                true => descriptor.extend(entry.len.to_le_bytes()),
                false => descriptor.extend(narrow(entry.len)),
            }
        }
        self.entries.push(entry);
        self.put(&descriptor)
    }

    fn finish(mut self) -> Result<(), FormatError> {
        let directory = self.at;
        let mut out = Vec::new();
        for e in &self.entries {
            let mut wide = Vec::new();
            if is_large(e.len) {
                wide.extend(e.len.to_le_bytes());
                wide.extend(e.len.to_le_bytes());
            }
            if is_large(e.at) {
                wide.extend(e.at.to_le_bytes());
            }
            out.extend(*b"PK\x01\x02");
            let version = if wide.is_empty() { 20u16 } else { 45 };
            out.extend(version.to_le_bytes());
            out.extend(version.to_le_bytes());
            out.extend(DESCRIPTOR_FOLLOWS.to_le_bytes());
            out.extend([0; 6]);
            out.extend(e.crc.to_le_bytes());
            out.extend(narrow(e.len));
            out.extend(narrow(e.len));
            out.extend((e.name.len() as u16).to_le_bytes());
            let extra = if wide.is_empty() { 0 } else { 4 + wide.len() as u16 };
            out.extend(extra.to_le_bytes());
            out.extend([0; 10]);
            out.extend(narrow(e.at));
            out.extend(e.name.as_bytes());
            if extra > 0 {
                out.extend(1u16.to_le_bytes());
                out.extend((wide.len() as u16).to_le_bytes());
                out.extend(wide);
            }
        }
        let (count, len) = (self.entries.len() as u64, out.len() as u64);
        if is_large(directory) || count >= u64::from(u16::MAX) {
            let record = directory + len;
            out.extend(*b"PK\x06\x06");
            out.extend(44u64.to_le_bytes());
            out.extend([45, 0, 45, 0]);
            out.extend([0; 8]);
            for n in [count, count, len, directory] {
                out.extend(n.to_le_bytes());
            }
            out.extend(*b"PK\x06\x07");
            out.extend([0; 4]);
            out.extend(record.to_le_bytes());
            out.extend(1u32.to_le_bytes());
        }
        out.extend(*b"PK\x05\x06");
        out.extend([0; 4]);
        let short = u16::try_from(count).unwrap_or(u16::MAX);
        out.extend(short.to_le_bytes());
        out.extend(short.to_le_bytes());
        out.extend(narrow(len));
        out.extend(narrow(directory));
        out.extend([0; 2]);
        self.put(&out)?;
        self.file.finish()
    }
}

/// Tables for eight bytes at a time.
static CRC: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut t = 1;
    while t < 8 {
        let mut i = 0;
        while i < 256 {
            let before = tables[t - 1][i];
            tables[t][i] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            i += 1;
        }
        t += 1;
    }
    tables
}

/// The check sum of zip archives, continued.
fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (eights, tail) = bytes.as_chunks::<8>();
    for eight in eights {
        let word = u64::from_le_bytes(*eight) ^ u64::from(crc);
        crc = word
            .to_le_bytes()
            .iter()
            .zip(CRC.iter().rev())
            .fold(0, |crc, (b, table)| crc ^ table[usize::from(*b)]);
    }
    for b in tail {
        crc = crc >> 8 ^ CRC[0][((crc ^ u32::from(*b)) & 0xff) as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_sums_are_those_of_zip() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(crc32(crc32(0, &bytes[..13]), &bytes[13..]), crc32(0, &bytes));
    }
}
