//! Examples of files.

use crate::TrainError;
use bitnet_tables::Table;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The longest line that is taken.
const MAX_LINE: usize = 1 << 27;

/// The largest file that is read as a whole.
const MAX_WHOLE: u64 = 1 << 30;

/// Examples that are handed on together.
const AT_A_TIME: usize = 1024;

/// Columns of tables, and keys of objects, that examples are made of.
const COLUMNS: [&str; 4] = ["text", "prompt", "completion", "messages"];

/// What a model is to learn from one row of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// Every token.
    Text(String),
    /// The tokens of the completion.
    Prompt {
        /// What stands before.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// The tokens of what the assistant says.
    Chat(Vec<Value>),
}

/// Rows that are no examples: how many, and where the first of them are, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// `file:line: reason` of the first.
    pub first: Vec<String>,
}

impl Skipped {
    /// Reasons that are kept.
    const KEPT: usize = 5;

    pub(crate) fn add(&mut self, place: &str, why: &str) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(format!("{place}: {why}"));
        }
    }

    /// Those of another file go behind these.
    pub(super) fn append(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(Self::KEPT);
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"count": self.count, "first": self.first})
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let first = value.get("first")?.as_array()?.iter().map(|text| text.as_str().map(str::to_owned));
        let count = usize::try_from(value.get("count")?.as_u64()?).ok()?;
        Some(Self { count, first: first.take(Self::KEPT).collect::<Option<_>>()? })
    }
}

/// An example, and where it stands.
pub(super) type Placed = (String, Example);

/// Hands the examples of a file on, some at a time.
pub(super) fn examples(
    path: &Path,
    skipped: &mut Skipped,
    each: &mut dyn FnMut(Vec<Placed>) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let mut rows = Rows { some: Vec::new(), skipped, each };
    match path.extension().and_then(|e| e.to_str()) {
        Some("txt") => text(path, &mut rows)?,
        Some("jsonl") => lines(path, &mut rows)?,
        Some("json") => list(path, &mut rows)?,
        Some("csv" | "parquet") => table(path, &mut rows)?,
        _ => {
            let what = format!("{} ends in none of .txt, .jsonl, .json, .csv and .parquet", path.display());
            return Err(TrainError::Data { what });
        }
    }
    (rows.each)(rows.some)
}

/// Where rows go.
struct Rows<'a> {
    some: Vec<Placed>,
    skipped: &'a mut Skipped,
    each: &'a mut dyn FnMut(Vec<Placed>) -> Result<(), TrainError>,
}

impl Rows<'_> {
    fn add(&mut self, place: String, example: Result<Example, String>) -> Result<(), TrainError> {
        match example {
            Ok(example) => self.some.push((place, example)),
            Err(why) => self.skipped.add(&place, &why),
        }
        match self.some.len() {
            AT_A_TIME => (self.each)(std::mem::take(&mut self.some)),
            _ => Ok(()),
        }
    }
}

/// A file that is read as a whole.
fn whole(path: &Path) -> Result<Vec<u8>, TrainError> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_WHOLE + 1).read_to_end(&mut bytes).map_err(TrainError::io(path))?;
    if bytes.len() as u64 > MAX_WHOLE {
        let what = format!(
            "{} has more than 1 GiB, and is read as a whole; divide it, or put a row a line into a .jsonl file",
            path.display()
        );
        return Err(TrainError::Data { what });
    }
    Ok(bytes)
}

fn text(path: &Path, rows: &mut Rows<'_>) -> Result<(), TrainError> {
    let text = String::from_utf8(whole(path)?)
        .map_err(|e| format!("it is not UTF-8 from byte {} on", e.utf8_error().valid_up_to()));
    let example = text.and_then(|text| match text.trim().is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(Example::Text(text)),
    });
    rows.add(path.display().to_string(), example)
}

fn lines(path: &Path, rows: &mut Rows<'_>) -> Result<(), TrainError> {
    let mut lines = BufReader::new(File::open(path).map_err(TrainError::io(path))?);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = lines.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
        if read.map_err(TrainError::io(path))? == 0 {
            return Ok(());
        }
        number += 1;
        let place = format!("{}:{number}", path.display());
        if line.len() > MAX_LINE {
            let what = format!("{place}: the line has more than {MAX_LINE} bytes");
            return Err(TrainError::Data { what });
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(&line).map_err(|e| format!("it is no JSON: {e}"));
        rows.add(place, value.and_then(of_value))?;
    }
}

fn list(path: &Path, rows: &mut Rows<'_>) -> Result<(), TrainError> {
    let name = path.display();
    let all: Vec<Value> = serde_json::from_slice(&whole(path)?)
        .map_err(|e| TrainError::Data { what: format!("{name} is no JSON list of objects: {e}") })?;
    for (i, value) in all.into_iter().enumerate() {
        rows.add(format!("{name}: element {}", i + 1), of_value(value))?;
    }
    Ok(())
}

fn table(path: &Path, rows: &mut Rows<'_>) -> Result<(), TrainError> {
    let table = Table::open(path, Some(&COLUMNS))?;
    let columns = table.columns().to_vec();
    if columns.is_empty() {
        let what = format!("{} has none of the columns {}", path.display(), COLUMNS.join(", "));
        return Err(TrainError::Data { what });
    }
    for row in table {
        let row = row?;
        let example = row.cells.and_then(|cells| of_value(object(&columns, cells)?));
        rows.add(format!("{}{}", path.display(), row.place), example)?;
    }
    Ok(())
}

/// A row of a table as an object. What is empty is not there, and conversations in texts are JSON.
fn object(columns: &[String], cells: Vec<Value>) -> Result<Value, String> {
    let mut object = Map::new();
    for (name, cell) in columns.iter().zip(cells) {
        let cell = match cell {
            Value::Null => continue,
            Value::String(text) if text.is_empty() => continue,
            Value::String(text) if name == "messages" => {
                serde_json::from_str(&text).map_err(|e| format!("its messages are no JSON: {e}"))?
            }
            other => other,
        };
        object.insert(name.clone(), cell);
    }
    Ok(Value::Object(object))
}

fn of_value(value: Value) -> Result<Example, String> {
    let text = |key: &str| match value.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("its {key} is no text")),
    };
    if let Some(messages) = value.get("messages") {
        let messages = messages.as_array().filter(|m| !m.is_empty()).ok_or("its messages are no list")?;
        for m in messages {
            if !["role", "content"].iter().all(|key| m.get(key).is_some_and(Value::is_string)) {
                return Err("a message lacks role or content".to_owned());
            }
        }
        if !messages.iter().any(|m| m["role"] == "assistant") {
            return Err("the assistant says nothing in it".to_owned());
        }
        return Ok(Example::Chat(messages.clone()));
    }
    match (text("prompt")?, text("completion")?, text("text")?) {
        (Some(prompt), Some(completion), _) if !completion.is_empty() => {
            Ok(Example::Prompt { prompt, completion })
        }
        (Some(_), _, None) => Err("it has a prompt and no completion".to_owned()),
        (_, _, Some(text)) if !text.is_empty() => Ok(Example::Text(text)),
        (_, _, Some(_)) => Err("its text is empty".to_owned()),
        _ => Err("it has none of text, messages, prompt and completion".to_owned()),
    }
}
