//! Reports that are one file: tables, texts and drawings, without a script and without anything from elsewhere.

mod plot;
#[cfg(test)]
mod tests;

pub use plot::{Plot, Series};

use std::fmt::Write;

/// Colours follow the reader's light or dark setting.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1d2126;--soft:#69727d;--line:#d8dde3;--paper:#fff;--fill:#f4f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#98a2ad;--line:#3a4149;--paper:#16191d;--fill:#1f2429}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
p.note{color:var(--soft);margin-top:0}p.warning{border-left:4px solid #d97706;padding:.4rem .8rem;background:var(--fill)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1rem}figure{margin:0}
figcaption{font-weight:600;margin-bottom:.2rem}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}
th{color:var(--soft);font-weight:500;border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--fill);padding:.7rem 1rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}
.legend span{margin-right:1rem;white-space:nowrap}.legend i{display:inline-block;width:1.1rem;height:.2rem;vertical-align:middle;margin-right:.3rem}";

/// A page in the making.
pub struct Page {
    title: String,
    body: String,
}

/// What a column of a table holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Words,
    Numbers,
}

impl Page {
    /// With a heading, and a line below it.
    pub fn new(title: &str, note: &str) -> Self {
        let body = format!("<h1>{}</h1>\n<p class=\"note\">{}</p>\n", escaped(title), escaped(note));
        Self { title: title.to_owned(), body }
    }

    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        self.body.write_fmt(what).expect("texts can be written to");
    }

    /// Something that must not be overlooked.
    pub fn warning(&mut self, text: &str) {
        self.put(format_args!("<p class=\"warning\">{}</p>\n", escaped(text)));
    }

    pub fn section(&mut self, title: &str) {
        self.put(format_args!("<h2>{}</h2>\n", escaped(title)));
    }

    pub fn paragraph(&mut self, text: &str) {
        self.put(format_args!("<p>{}</p>\n", escaped(text)));
    }

    /// A text as it is.
    pub fn literal(&mut self, text: &str) {
        self.put(format_args!("<pre>{}</pre>\n", escaped(text)));
    }

    pub fn table(&mut self, head: &[(&str, Column)], rows: &[Vec<String>]) {
        let class = |column: Column| if column == Column::Numbers { " class=\"n\"" } else { "" };
        self.body += "<div class=\"wide\"><table><tr>";
        for (name, column) in head {
            self.put(format_args!("<th{}>{}</th>", class(*column), escaped(name)));
        }
        self.body += "</tr>\n";
        for row in rows {
            self.body += "<tr>";
            for ((_, column), cell) in head.iter().zip(row) {
                self.put(format_args!("<td{}>{}</td>", class(*column), escaped(cell)));
            }
            self.body += "</tr>\n";
        }
        self.body += "</table></div>\n";
    }

    /// Drawings side by side, as many as fit; those without a point are left out.
    pub fn plots(&mut self, plots: &[Plot]) {
        self.body += "<div class=\"plots\">\n";
        for plot in plots.iter().filter(|plot| plot.has_points()) {
            self.body += &plot.svg();
        }
        self.body += "</div>\n";
    }

    pub fn finish(self) -> String {
        let Self { title, body } = self;
        let title = escaped(&title);
        // Nothing is loaded, whatever is in the texts.
        let policy = "default-src 'none'; style-src 'unsafe-inline'";
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <style>{STYLE}</style></head><body>\n{body}</body></html>\n"
        )
    }
}

/// A text that is no markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Controls have no place in a page.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}
