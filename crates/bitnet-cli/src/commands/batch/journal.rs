//! Answers as they come, a line each, in a file that a program that is killed leaves good for the next one.

use crate::failure::Failure;
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub struct Journal {
    /// `None` writes to standard output.
    file: Option<(PathBuf, File)>,
    done: HashSet<usize>,
}

impl Journal {
    pub fn to_standard_output() -> Self {
        Self { file: None, done: HashSet::new() }
    }

    /// The journal of an output: itself where it has lines (`lines`), else a file beside it. `None` where there is nothing left
    /// to do: the output is whole. `rows` are those of the input.
    pub fn open(output: &Path, lines: bool, resume: bool, rows: usize) -> Result<Option<Self>, Failure> {
        let path = if lines { output.to_owned() } else { beside(output) };
        let at = |e: std::io::Error| Failure::Runtime(format!("{}: {e}", path.display()));
        if !lines && output.exists() && (!resume || !path.exists()) {
            return match resume {
                true => Ok(None),
                false => Err(Failure::Usage(format!("{} is there already", output.display()))),
            };
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match resume {
            true => options.create(true).truncate(false),
            false => options.create_new(true),
        };
        let file = options.open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::Usage(format!("{} is there already; --resume goes on with it", path.display()))
            }
            _ => at(e),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::Runtime(format!("{}: another batch is writing it", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(at(e)),
        }
        let mut journal = Self { file: Some((path, file)), done: HashSet::new() };
        journal.read(rows)?;
        Ok(Some(journal))
    }

    /// Learns which rows are done, and takes away what is behind the last whole line.
    fn read(&mut self, rows: usize) -> Result<(), Failure> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let at = |e: std::io::Error| Failure::Runtime(format!("{}: {e}", path.display()));
        let mut whole = 0;
        let mut reader = BufReader::new(&*file);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            // A line without its end was being written when the program was stopped.
            if reader.read_until(b'\n', &mut bytes).map_err(at)? == 0 || bytes.last() != Some(&b'\n') {
                break;
            }
            let index = serde_json::from_slice::<Value>(&bytes).ok().and_then(|v| v["index"].as_u64());
            match index.and_then(|i| usize::try_from(i).ok()) {
                Some(index) if index < rows => self.done.insert(index),
                Some(index) => {
                    return Err(Failure::Usage(format!(
                        "{} holds row {index}, and the input has {rows} rows; it is of another input",
                        path.display()
                    )));
                }
                None => {
                    let path = path.display();
                    return Err(Failure::Usage(format!("{path} holds a line that is no answer of a batch")));
                }
            };
            whole += bytes.len() as u64;
        }
        file.set_len(whole).map_err(at)?;
        file.seek(SeekFrom::End(0)).map_err(at)?;
        Ok(())
    }

    /// Rows that are done.
    pub fn done(&self) -> &HashSet<usize> {
        &self.done
    }

    /// Adds an answer.
    pub fn add(&mut self, index: usize, answer: &Value) -> Result<(), Failure> {
        let line = format!("{answer}\n");
        // One call, so that a program that is stopped leaves at most one line without an end.
        match &mut self.file {
            None => {
                let mut out = std::io::stdout().lock();
                out.write_all(line.as_bytes())?;
                out.flush()?;
            }
            Some((path, file)) => file
                .write_all(line.as_bytes())
                .map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))?,
        }
        self.done.insert(index);
        Ok(())
    }

    /// The answers by their rows.
    pub fn answers(&mut self) -> Result<Vec<Value>, Failure> {
        let Some((path, file)) = &mut self.file else { return Ok(Vec::new()) };
        let at = |e: std::io::Error| Failure::Runtime(format!("{}: {e}", path.display()));
        file.seek(SeekFrom::Start(0)).map_err(at)?;
        let mut answers = vec![Value::Null; self.done.len()];
        for line in BufReader::new(&*file).lines() {
            let answer: Value = serde_json::from_str(&line.map_err(at)?)?;
            let index = answer["index"].as_u64().and_then(|i| usize::try_from(i).ok());
            if let Some(place) = index.and_then(|i| answers.get_mut(i)) {
                *place = answer;
            }
        }
        Ok(answers)
    }

    /// Takes the file away.
    pub fn remove(self) -> Result<(), Failure> {
        let Some((path, _)) = self.file else { return Ok(()) };
        std::fs::remove_file(&path).map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))
    }
}

fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".part.jsonl");
    output.with_file_name(name)
}
