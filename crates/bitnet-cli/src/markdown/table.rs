//! Tables, once their last row is there.

use super::{DIM, inline};
use anstyle::Style;
use unicode_width::UnicodeWidthStr;

/// A cell: how it is drawn, and the columns that takes.
struct Cell {
    drawn: String,
    width: usize,
}

/// The lines of a table. One that is wider than the terminal stays as it was written, so that no text is lost.
pub fn draw(rows: &[String], width: usize) -> Vec<String> {
    let split: Vec<Vec<&str>> = rows.iter().map(|row| cells(row)).collect();
    let aligned = split.get(1).and_then(|row| alignments(row));
    let Some(aligned) = aligned else { return rows.to_vec() };
    let head = split[0].iter().map(|text| cell(text, Style::new().bold())).collect();
    let body = split[2..].iter().map(|row| row.iter().map(|text| cell(text, Style::new())).collect());
    let drawn: Vec<Vec<Cell>> = [head].into_iter().chain(body).collect();
    let columns = aligned.len();
    let widths: Vec<usize> = (0..columns)
        .map(|at| drawn.iter().filter_map(|row| row.get(at)).map(|c| c.width).max().unwrap_or(0))
        .collect();
    let total: usize = widths.iter().map(|w| w + 3).sum();
    if total > width + 1 || drawn.iter().any(|row| row.len() > columns) {
        return rows.to_vec();
    }
    let bar = format!(" {DIM}│{DIM:#} ");
    let line = |row: &Vec<Cell>| {
        let cells = (0..columns).map(|at| match row.get(at) {
            None => " ".repeat(widths[at]),
            Some(cell) => {
                let pad = widths[at] - cell.width;
                let left = match aligned[at] {
                    Align::Left => 0,
                    Align::Middle => pad / 2,
                    Align::Right => pad,
                };
                format!("{}{}{}", " ".repeat(left), cell.drawn, " ".repeat(pad - left))
            }
        });
        cells.collect::<Vec<_>>().join(&bar).trim_end().to_owned()
    };
    let rule = widths.iter().map(|w| "─".repeat(*w)).collect::<Vec<_>>().join("─┼─");
    let mut lines = vec![line(&drawn[0]), format!("{DIM}{rule}{DIM:#}")];
    lines.extend(drawn[1..].iter().map(line));
    lines
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Middle,
    Right,
}

/// What the line of dashes says; `None` where it is none.
fn alignments(row: &[&str]) -> Option<Vec<Align>> {
    row.iter()
        .map(|cell| {
            let dashes = cell.trim_matches(':');
            (!dashes.is_empty() && dashes.bytes().all(|b| b == b'-')).then(|| {
                match (cell.starts_with(':'), cell.ends_with(':')) {
                    (true, true) => Align::Middle,
                    (false, true) => Align::Right,
                    _ => Align::Left,
                }
            })
        })
        .collect()
}

fn cells(row: &str) -> Vec<&str> {
    let row = row.trim();
    let row = row.strip_prefix('|').unwrap_or(row);
    let row = row.strip_suffix('|').filter(|r| !r.ends_with('\\')).unwrap_or(row);
    let (mut cells, mut from, mut before) = (Vec::new(), 0, ' ');
    for (at, c) in row.char_indices() {
        if c == '|' && before != '\\' {
            cells.push(row[from..at].trim());
            from = at + 1;
        }
        before = c;
    }
    cells.push(row[from..].trim());
    cells
}

fn cell(text: &str, style: Style) -> Cell {
    let (mut drawn, mut width) = (String::new(), 0);
    for span in inline::spans(text, ' ', style, true).0 {
        let style = span.style;
        width += span.text.width();
        drawn += &format!("{style}{}{style:#}", span.text);
    }
    Cell { drawn, width }
}
