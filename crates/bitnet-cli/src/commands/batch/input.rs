//! The rows of a batch.

use crate::failure::Failure;
use bitnet_server::Call;
use bitnet_tables::{Row as Cells, Table};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Columns that hold prompts, where none is named.
const PROMPTS: [&str; 3] = ["prompt", "messages", "text"];

/// A row that can be asked, and the name that OpenAI's batch format gave it.
pub struct Row {
    pub call: Call,
    pub custom_id: Option<Value>,
}

/// A file of rows. Each row is in `rows` or in `wrong`.
#[derive(Default)]
pub struct Input {
    pub rows: Vec<Row>,
    /// Numbers of rows that cannot be asked, and why.
    pub wrong: Vec<(usize, String)>,
    /// Names of columns, and the cells of each row: what an output in the form of a table begins with.
    pub columns: Vec<String>,
    pub cells: Vec<Vec<Value>>,
}

impl Input {
    pub fn len(&self) -> usize {
        self.rows.len() + self.wrong.len()
    }

    pub fn read(path: &Path, column: Option<&str>, chat: bool) -> Result<Self, Failure> {
        let file = |e: std::io::Error| Failure::Usage(format!("{}: {e}", path.display()));
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if column.is_some() && !matches!(extension, "csv" | "parquet") {
            return Err(Failure::Usage(format!("--column is for tables; {} has no columns", path.display())));
        }
        match extension {
            "txt" => {
                let text = std::fs::read_to_string(path).map_err(file)?;
                let lines = || text.lines().filter(|line| !line.trim().is_empty());
                Ok(Self {
                    rows: lines().enumerate().map(|(index, line)| said(index, line, chat)).collect(),
                    cells: lines().map(|line| vec![json!(line)]).collect(),
                    columns: vec!["prompt".to_owned()],
                    wrong: Vec::new(),
                })
            }
            "jsonl" => Ok(Self::objects(&std::fs::read_to_string(path).map_err(file)?, chat)),
            "csv" | "parquet" => {
                let table = Table::open(path, None)?;
                let (names, mut cells) = (table.columns().to_vec(), Vec::new());
                for row in table {
                    let Cells { place, cells: row } = row?;
                    let wrong = |e| Failure::Usage(format!("{}{place}: {e}", path.display()));
                    cells.push(row.map_err(wrong)?);
                }
                Self::table(path, names, cells, column, chat)
            }
            _ => {
                let path = path.display();
                Err(Failure::Usage(format!("{path} ends in none of .txt, .jsonl, .csv and .parquet")))
            }
        }
    }

    /// Lines of JSON.
    fn objects(text: &str, chat: bool) -> Self {
        let mut input = Self { columns: vec!["prompt".to_owned()], ..Self::default() };
        for (index, line) in text.lines().filter(|line| !line.trim().is_empty()).enumerate() {
            let value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"));
            let cell = value.as_ref().map_or_else(|_| json!(line), prompt);
            input.cells.push(vec![cell]);
            input.add(index, value.and_then(|value| row(index, value, chat)));
        }
        input
    }

    /// A table: one of its columns is asked, all of them go along.
    fn table(
        path: &Path,
        columns: Vec<String>,
        cells: Vec<Vec<Value>>,
        column: Option<&str>,
        chat: bool,
    ) -> Result<Self, Failure> {
        let named = |name: &str| columns.iter().position(|c| c == name);
        let found = match column {
            Some(name) => named(name),
            None if columns.len() == 1 => Some(0),
            None => PROMPTS.iter().find_map(|name| named(name)),
        };
        let Some(at) = found else {
            let (path, columns) = (path.display(), columns.join(", "));
            return Err(Failure::Usage(match column {
                Some(name) => format!("{path} has no column {name:?}; it has {columns}"),
                None => {
                    format!("{path} has the columns {columns}; --column says which one holds the prompts")
                }
            }));
        };
        let messages = columns[at] == "messages";
        let mut input = Self { columns, ..Self::default() };
        for (index, row) in cells.iter().enumerate() {
            input.add(index, ask(index, &row[at], messages, chat));
        }
        input.cells = cells;
        Ok(input)
    }

    fn add(&mut self, index: usize, row: Result<Row, String>) {
        match row {
            Ok(row) => self.rows.push(row),
            Err(why) => self.wrong.push((index, why)),
        }
    }
}

/// A row that asks what is in a cell.
fn ask(index: usize, cell: &Value, messages: bool, chat: bool) -> Result<Row, String> {
    let list = |messages: &Value| {
        let call =
            Call { row: index, path: "/v1/chat/completions".to_owned(), body: json!({"messages": messages}) };
        Row { call, custom_id: None }
    };
    match cell {
        Value::String(text) if messages => {
            let value: Value =
                serde_json::from_str(text).map_err(|e| format!("its messages are no JSON: {e}"))?;
            Ok(list(&value))
        }
        Value::String(text) => Ok(said(index, text, chat)),
        Value::Array(_) => Ok(list(cell)),
        Value::Null => Err("it has no prompt".to_owned()),
        other => Err(format!("its prompt is {other}, no text")),
    }
}

/// A prompt.
fn said(index: usize, text: &str, chat: bool) -> Row {
    let (path, body) = match chat {
        true => ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": text}]})),
        false => ("/v1/completions", json!({"prompt": text})),
    };
    Row { call: Call { row: index, path: path.to_owned(), body }, custom_id: None }
}

/// What an object asks, for people: the prompt, or what was said last.
fn prompt(value: &Value) -> Value {
    let body = value.get("body").unwrap_or(value);
    let last = || body["messages"].as_array().and_then(|m| m.last()).map(|m| m["content"].clone());
    match value {
        Value::String(_) => value.clone(),
        _ => body.get("prompt").cloned().or_else(last).unwrap_or_default(),
    }
}

/// A line of JSON.
fn row(index: usize, value: Value, chat: bool) -> Result<Row, String> {
    let call = |path: &str, body: Value| Call { row: index, path: path.to_owned(), body };
    match value {
        Value::String(text) => Ok(said(index, &text, chat)),
        Value::Object(object) if object.contains_key("body") => {
            let word = |key: &str| object.get(key).and_then(Value::as_str);
            let url = word("url").ok_or("a row with a body has no url")?;
            if word("method").is_some_and(|m| m != "POST") {
                return Err("its method is not POST".to_owned());
            }
            let mut body =
                object.get("body").and_then(Value::as_object).ok_or("its body is no object")?.clone();
            whole(&mut body);
            let custom_id = object.get("custom_id").cloned().or(Some(Value::Null));
            Ok(Row { call: call(url, body.into()), custom_id })
        }
        Value::Object(mut object) => {
            let path = match (object.contains_key("messages"), object.contains_key("prompt")) {
                (true, _) => "/v1/chat/completions",
                (false, true) => "/v1/completions",
                (false, false) => return Err("it has neither prompt nor messages".to_owned()),
            };
            whole(&mut object);
            Ok(Row { call: call(path, object.into()), custom_id: None })
        }
        _ => Err("it is neither a text nor an object".to_owned()),
    }
}

/// Answers come whole, from the model that is there.
fn whole(body: &mut Map<String, Value>) {
    body.remove("model");
    body.remove("stream");
}
