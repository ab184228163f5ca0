//! Protocol buffers: fields with numbers, one after the other.

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    Number(u64),
    /// Text, bytes, a message, or packed numbers; and where it begins in the message.
    Bytes(&'a [u8], usize),
    /// Four or eight bytes, which nothing here asks for.
    Fixed,
}

/// The fields of a message.
pub(super) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.message.get(self.at)?;
            self.at += 1;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn skip(&mut self, len: u64) -> Option<&'a [u8]> {
        let end = self.at.checked_add(usize::try_from(len).ok()?)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.skip(8).map(|_| Field::Fixed)?,
            2 => {
                let len = self.varint()?;
                let at = self.at;
                Field::Bytes(self.skip(len)?, at)
            }
            5 => self.skip(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    /// The field's number and value, or how far the message could be read.
    type Item = Result<(u64, Field<'a>), usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.at;
        if from >= self.message.len() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.at = self.message.len();
        }
        Some(field.ok_or(from))
    }
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a number.
pub(super) fn put_number(out: &mut Vec<u8>, field: u64, n: u64) {
    put_varint(out, field << 3);
    put_varint(out, n);
}

/// Appends text, bytes or a message.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: impl AsRef<[u8]>) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.as_ref().len() as u64);
    out.extend(bytes.as_ref());
}

/// Appends an f32.
pub(super) fn put_float(out: &mut Vec<u8>, field: u64, value: f32) {
    put_varint(out, field << 3 | 5);
    out.extend(value.to_le_bytes());
}

/// Values of a field of packed numbers.
pub(super) fn packed(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut reader = fields(bytes);
    let mut values = Vec::new();
    while reader.at < bytes.len() {
        values.push(reader.varint()?);
    }
    Some(values)
}
