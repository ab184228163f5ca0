//! Markdown on a terminal, drawn while it comes.
//!
//! Words appear as soon as they are whole. What has to be seen to its end first is held back: emphasis, code and links until
//! they close or their line ends, lines of code blocks until their line ends, tables until their last row.
//! Colours are the terminal's own sixteen, and text has its default one, so that dark and light themes both stay readable.

mod code;
mod inline;
mod table;
#[cfg(test)]
mod tests;
mod wrap;

use anstyle::{AnsiColor, Style};
use code::Highlighter;
use std::io::{Result, Write};
use wrap::{BAR, Wrap};

const DIM: Style = Style::new().dimmed();

/// Draws markdown that comes in pieces of any size.
pub struct Markdown<W> {
    wrap: Wrap<W>,
    /// What was not drawn yet of the present line.
    line: String,
    /// The block that the present line is in, once that is settled.
    block: Option<Block>,
    /// An open block of code.
    code: Option<Code>,
    /// Rows of a table that goes on.
    table: Vec<String>,
    /// What was drawn last of the present line.
    before: char,
}

/// A block whose text is drawn word by word, in a style.
struct Block(Style);

struct Code {
    /// What closes it.
    fence: String,
    highlighter: Highlighter,
}

/// What the beginning of a line says it is.
enum Kind {
    Blank,
    Rule,
    /// What closes it, and the language.
    Fence(String, String),
    Row,
    /// A block of text: bytes of markup that are replaced by a prefix, and the style of what follows.
    Text {
        markup: usize,
        prefix: String,
        style: Style,
    },
}

impl<W: Write> Markdown<W> {
    /// `width` is asked for the columns of the terminal whenever a word is drawn: they change.
    pub fn new(out: W, width: fn() -> usize) -> Self {
        Self {
            wrap: Wrap::new(out, width),
            line: String::new(),
            block: None,
            code: None,
            table: Vec::new(),
            before: '\n',
        }
    }

    /// Draws what is settled with a further piece.
    pub fn push(&mut self, text: &str) -> Result<()> {
        self.line.push_str(text);
        while let Some(end) = self.line.find('\n') {
            let rest = self.line.split_off(end + 1);
            self.line.pop();
            if self.line.ends_with('\r') {
                self.line.pop();
            }
            self.line(true)?;
            self.line = rest;
        }
        self.line(false)?;
        self.wrap.flush()
    }

    /// Draws what was held back, and ends the line.
    pub fn finish(&mut self) -> Result<()> {
        if !self.line.is_empty() || self.block.is_some() {
            self.line(true)?;
        }
        self.end_table()?;
        self.wrap.flush()
    }

    /// The present line; `whole` when its end is known.
    fn line(&mut self, whole: bool) -> Result<()> {
        if let Some(code) = &mut self.code {
            if whole {
                let closed = closes(&self.line, &code.fence);
                let drawn = match closed {
                    true => format!("{DIM}{}{DIM:#}", self.line),
                    false => code.highlighter.line(&self.line),
                };
                self.wrap.verbatim(&drawn)?;
                self.line.clear();
                if closed {
                    self.code = None;
                }
            }
            return Ok(());
        }
        if self.block.is_none() {
            let Some(kind) = kind(&self.line, whole) else { return Ok(()) };
            if !matches!(kind, Kind::Row) {
                self.end_table()?;
            }
            match kind {
                Kind::Text { markup, prefix, style } => {
                    self.line.drain(..markup);
                    self.wrap.begin(&prefix)?;
                    (self.block, self.before) = (Some(Block(style)), ' ');
                }
                _ if !whole => return Ok(()),
                Kind::Row => self.table.push(std::mem::take(&mut self.line)),
                Kind::Blank => self.wrap.verbatim("")?,
                Kind::Rule => self.wrap.rule()?,
                Kind::Fence(fence, language) => {
                    self.wrap.verbatim(&format!("{DIM}{}{DIM:#}", self.line))?;
                    self.code = Some(Code { fence, highlighter: Highlighter::new(&language) });
                }
            }
        }
        if let Some(Block(style)) = self.block {
            let (spans, taken) = inline::spans(&self.line, self.before, style, whole);
            for span in &spans {
                self.wrap.text(span.style, &span.text)?;
            }
            self.before = self.line[..taken].chars().next_back().unwrap_or(self.before);
            self.line.drain(..taken);
        }
        if whole {
            if self.block.take().is_some() {
                self.wrap.end()?;
            }
            self.line.clear();
        }
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.table);
        if rows.is_empty() {
            return Ok(());
        }
        for line in table::draw(&rows, self.wrap.width()) {
            self.wrap.verbatim(&line)?;
        }
        Ok(())
    }
}

/// Whether a line ends a block of code.
fn closes(line: &str, fence: &str) -> bool {
    let line = line.trim();
    line.starts_with(fence) && line.bytes().all(|b| b == fence.as_bytes()[0])
}

/// What a line is; `None` while that can still change with what follows.
fn kind(line: &str, whole: bool) -> Option<Kind> {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let Some(first) = text.chars().next() else { return whole.then_some(Kind::Blank) };
    let plain = Kind::Text { markup: indent, prefix: " ".repeat(indent.min(8)), style: Style::new() };
    let same = text.len() - text.trim_start_matches(first).len();
    let after = &text[same..];
    match first {
        '#' if after.is_empty() && !whole => None,
        '#' if same <= 6 && after.starts_with(' ') => {
            // The space after it belongs to the text, which may not be there yet.
            let style = Style::new().bold().fg_color(Some(AnsiColor::Magenta.into()));
            let style = if same == 1 { style.underline() } else { style };
            Some(Kind::Text { markup: indent + same + 1, prefix: String::new(), style })
        }
        '`' | '~' if after.is_empty() && !whole => None,
        '`' | '~' if same >= 3 && !after.contains('`') => {
            Some(Kind::Fence(text[..same].to_owned(), after.trim().to_owned()))
        }
        '|' => Some(Kind::Row),
        '>' => {
            let markup = indent + 1 + usize::from(text[1..].starts_with(' '));
            match text.len() == 1 && !whole {
                true => None,
                false => Some(Kind::Text { markup, prefix: format!("{BAR} "), style: Style::new().italic() }),
            }
        }
        '-' | '*' | '_' | '+' => {
            let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            let ruled = first != '+' && bare.chars().all(|c| c == first);
            match (ruled, whole) {
                _ if text.len() == 1 && !whole => None,
                // `* *` may become a rule or a list in a list.
                (true, false) => None,
                (true, true) if bare.len() >= 3 => Some(Kind::Rule),
                _ if first != '_' && text[1..].starts_with(' ') => {
                    let prefix = format!("{}• ", " ".repeat(indent.min(16)));
                    Some(Kind::Text { markup: indent + 2, prefix, style: Style::new() })
                }
                _ => Some(plain),
            }
        }
        '0'..='9' => {
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let after = &text[digits..];
            let marker = after.starts_with(". ") || after.starts_with(") ");
            match (whole, marker) {
                (false, _) if matches!(after, "" | "." | ")") => None,
                (_, true) => {
                    let prefix = format!("{}{} ", " ".repeat(indent.min(16)), &text[..=digits]);
                    Some(Kind::Text { markup: indent + digits + 2, prefix, style: Style::new() })
                }
                _ => Some(plain),
            }
        }
        _ => Some(plain),
    }
}
