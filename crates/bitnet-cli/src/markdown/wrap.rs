//! Words into lines.

use super::DIM;
use anstyle::Style;
use std::io::{Result, Write};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Stands beside quotations.
pub const BAR: char = '│';

/// Wider than this, rules and lines of text are hard to follow.
const RULE: usize = 40;

/// Breaks text between words where the terminal ends, and indents what follows like the block's first word.
pub struct Wrap<W> {
    out: W,
    width: fn() -> usize,
    column: usize,
    /// What lines begin with behind the first one of a block, and its columns.
    hang: String,
    indent: usize,
    /// A space goes before the next word.
    space: Option<Style>,
    /// The word in the making, in pieces of one style each.
    word: Vec<(Style, String)>,
    /// Columns of it.
    wide: usize,
    /// It is longer than a line: it is drawn as it comes, and the terminal breaks it where it likes.
    long: bool,
}

impl<W: Write> Wrap<W> {
    pub fn new(out: W, width: fn() -> usize) -> Self {
        let (column, indent, wide) = (0, 0, 0);
        Self {
            out,
            width,
            column,
            hang: String::new(),
            indent,
            space: None,
            word: Vec::new(),
            wide,
            long: false,
        }
    }

    pub fn width(&self) -> usize {
        (self.width)()
    }

    /// Begins a block with what stands before its text. A bar goes on beside it, a bullet does not.
    pub fn begin(&mut self, prefix: &str) -> Result<()> {
        self.hang = prefix.chars().map(|c| if c == BAR { c } else { ' ' }).collect();
        self.indent = prefix.width();
        self.column = self.indent;
        write!(self.out, "{prefix}")
    }

    /// Text of a block.
    pub fn text(&mut self, style: Style, text: &str) -> Result<()> {
        for c in text.chars() {
            if c.is_whitespace() {
                self.place()?;
                (self.space, self.long) = (Some(style), false);
                continue;
            }
            // Between characters of two columns a line may break.
            let wide = c.width() == Some(2);
            if wide {
                self.place()?;
                self.long = false;
            }
            match self.word.last_mut() {
                Some((last, piece)) if *last == style => piece.push(c),
                _ => self.word.push((style, c.to_string())),
            }
            self.wide += c.width().unwrap_or(0);
            if wide {
                self.place()?;
            } else if self.long || self.indent + self.wide >= self.width() {
                self.place()?;
                self.long = true;
            }
        }
        Ok(())
    }

    /// Ends the block.
    pub fn end(&mut self) -> Result<()> {
        self.place()?;
        (self.column, self.indent, self.space, self.long) = (0, 0, None, false);
        writeln!(self.out)
    }

    /// A line as it is.
    pub fn verbatim(&mut self, line: &str) -> Result<()> {
        writeln!(self.out, "{line}")
    }

    /// A line across.
    pub fn rule(&mut self) -> Result<()> {
        let line = "─".repeat(self.width().min(RULE));
        writeln!(self.out, "{DIM}{line}{DIM:#}")
    }

    pub fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }

    /// Draws the word in the making.
    fn place(&mut self) -> Result<()> {
        if self.word.is_empty() {
            return Ok(());
        }
        let (line, width) = (self.width().max(1), std::mem::take(&mut self.wide));
        let space = self.space.take();
        let column = self.column + usize::from(space.is_some());
        if self.long {
            // It goes on where it was.
        } else if column + width > line && self.column > self.indent {
            write!(self.out, "\n{}", self.hang)?;
            self.column = self.indent;
        } else if let Some(style) = space.filter(|_| self.column > self.indent) {
            // Underlined links and headings are underlined between words too.
            write!(self.out, "{style} {style:#}")?;
            self.column += 1;
        }
        for (style, piece) in self.word.drain(..) {
            write!(self.out, "{style}{piece}{style:#}")?;
        }
        self.column += width;
        if self.column > line {
            self.column = (self.column - 1) % line + 1;
        }
        Ok(())
    }
}
