//! Tables of a configuration, read key by key; what nobody asked for is an error that names the nearest key.

use crate::TrainError;
use toml::{Table, Value};

/// A table, and where it came from.
pub(super) struct Section<'a> {
    origin: &'a str,
    /// Its name with a point behind it; empty for the whole.
    path: String,
    table: Table,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(origin: &'a str, table: Table) -> Self {
        Self { origin, path: String::new(), table, asked: Vec::new() }
    }

    pub(super) fn error(&self, key: &str, what: impl AsRef<str>) -> TrainError {
        let what = format!("{}{key} {}", self.path, what.as_ref());
        TrainError::Config { origin: self.origin.to_owned(), what }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.table.remove(key)
    }

    fn wrong(&self, key: &str, value: &Value, need: &str) -> TrainError {
        self.error(key, format!("is {value}, and should be {need}"))
    }

    /// Another table in this one; an empty one where there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Self, TrainError> {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => return Err(self.wrong(key, &other, "a table")),
        };
        Ok(Self { origin: self.origin, path: format!("{}{key}.", self.path), table, asked: Vec::new() })
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, TrainError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "a text")),
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&str, T)],
    ) -> Result<T, TrainError> {
        let Some(text) = self.text(key)? else { return Ok(default) };
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.error(key, format!("is {text:?}; it is one of {}", words.join(", ")))
        })
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, TrainError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Boolean(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    /// A whole number from `least` on.
    pub(super) fn count(&mut self, key: &'static str, least: u64) -> Result<Option<u64>, TrainError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if u64::try_from(n).is_ok_and(|n| n >= least && n < 1 << 48) => {
                Ok(u64::try_from(n).ok())
            }
            Some(other) => Err(self.wrong(key, &other, &format!("a whole number of at least {least}"))),
        }
    }

    /// The same for what is counted in memory.
    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<usize>, TrainError> {
        let n = self.count(key, 1)?;
        n.map(|n| usize::try_from(n).map_err(|_| self.error(key, "is too large"))).transpose()
    }

    /// A number from `least` to `most`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        (least, most): (f64, f64),
    ) -> Result<Option<f64>, TrainError> {
        let value = match self.take(key) {
            None => return Ok(None),
            Some(value) => value,
        };
        let number = value.as_float().or(value.as_integer().map(|n| n as f64));
        match number.filter(|n| *n >= least && *n <= most) {
            Some(number) => Ok(Some(number)),
            None if most == f64::MAX => {
                Err(self.wrong(key, &value, &format!("a number of at least {least}")))
            }
            None => Err(self.wrong(key, &value, &format!("a number from {least} to {most}"))),
        }
    }

    /// Two numbers from 0 up to, and without, 1.
    pub(super) fn betas(&mut self, key: &'static str) -> Result<Option<(f64, f64)>, TrainError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = |v: &Value| v.as_float().filter(|n| (0.0..1.0).contains(n));
        match value.as_array().map(|a| a.iter().map(number).collect::<Vec<_>>()).as_deref() {
            Some([Some(a), Some(b)]) => Ok(Some((*a, *b))),
            _ => Err(self.wrong(key, &value, "two numbers from 0 to below 1, such as [0.9, 0.95]")),
        }
    }

    /// The first and the last of some things that are counted from 0.
    pub(super) fn range(&mut self, key: &'static str) -> Result<Option<(usize, usize)>, TrainError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = |v: &Value| v.as_integer().and_then(|n| usize::try_from(n).ok());
        match value.as_array().map(|a| a.iter().map(number).collect::<Vec<_>>()).as_deref() {
            Some([Some(a), Some(b)]) if a <= b => Ok(Some((*a, *b))),
            _ => Err(self.wrong(key, &value, "the first and the last, such as [0, 3]")),
        }
    }

    /// Some texts; a single one may stand without brackets.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<Vec<String>, TrainError> {
        let texts = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![Some(text)],
            Some(Value::Array(values)) => values.into_iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            Some(_) => vec![None],
        };
        let all: Option<Vec<String>> = texts.into_iter().collect();
        all.ok_or_else(|| self.error(key, "should be a list of texts"))
    }

    /// Refuses keys that another one leaves without effect.
    pub(super) fn refuse(&self, keys: &[&str], why: &str) -> Result<(), TrainError> {
        match keys.iter().find(|key| self.table.contains_key(**key)) {
            Some(key) => Err(self.error(key, why)),
            None => Ok(()),
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), TrainError> {
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        let near = self.asked.iter().min_by_key(|known| strsim::damerau_levenshtein(known, key));
        let hint = match near {
            Some(known) if strsim::damerau_levenshtein(known, key) <= key.len().div_ceil(2) => {
                format!("is unknown; did you mean {}{known}?", self.path)
            }
            _ => format!("is unknown; there are {}", self.asked.join(", ")),
        };
        Err(self.error(key, hint))
    }
}
