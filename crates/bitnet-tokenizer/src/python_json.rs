//! JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which is what chat templates were made for.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// `", "` and `": "` between elements.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// One line, or lines indented by `indent` spaces.
pub(crate) fn dumps(value: &Value, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine))?,
        Some(n) => {
            let spaces = " ".repeat(n.min(64));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_pythons() {
        let value = serde_json::json!({"a": [1, "é<"], "b": {}, "c": []});
        assert_eq!(dumps(&value, None).unwrap(), r#"{"a": [1, "é<"], "b": {}, "c": []}"#);
        let lines = "{\n  \"a\": [\n    1,\n    \"é<\"\n  ],\n  \"b\": {},\n  \"c\": []\n}";
        assert_eq!(dumps(&value, Some(2)).unwrap(), lines);
    }
}
