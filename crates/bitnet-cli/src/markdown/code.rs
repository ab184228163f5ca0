//! Simple colours for code: comments, texts, numbers and the words that most languages keep for themselves.

use super::DIM;
use anstyle::{AnsiColor, Style};

const WORD: Style = AnsiColor::Magenta.on_default();
const TEXT: Style = AnsiColor::Green.on_default();
const NUMBER: Style = AnsiColor::Cyan.on_default();

/// What languages keep for themselves, of many at once: a word too many is coloured, no harm.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "abstract", "and", "as", "async", "await", "bool", "break", "case", "catch", "char", "class", "const", "continue",
    "def", "default", "del", "do", "double", "elif", "else", "end", "enum", "except", "export", "extends", "extern",
    "false", "False", "final", "finally", "float", "fn", "for", "foreach", "from", "func", "function", "global", "if", "impl",
    "import", "in", "int", "interface", "is", "lambda", "let", "local", "long", "loop", "match", "mod", "mut", "new", "nil",
    "None", "not", "null", "or", "package", "pass", "private", "pub", "public", "raise", "return", "self", "static",
    "struct", "super", "switch", "then", "this", "throw", "trait", "true", "True", "try", "type", "use", "while", "yield",
];

const SQL: &[&str] = &[
    "select", "from", "where", "join", "left", "inner", "on", "group", "by", "order", "having", "insert",
    "into", "values", "update", "set", "delete", "create", "table", "limit",
];

/// Colours the lines of one block.
pub struct Highlighter {
    /// What begins a comment that ends with its line; `None` for text without colours.
    comment: Option<&'static str>,
    /// Whether `/*` and `*/` are around comments.
    c_like: bool,
    sql: bool,
    /// Whether `'` is around single characters.
    single: bool,
    /// Inside `/*`.
    commented: bool,
}

impl Highlighter {
    pub fn new(language: &str) -> Self {
        let word =
            language.split(|c: char| !c.is_alphanumeric() && c != '+' && c != '#').next().unwrap_or("");
        let word = word.to_ascii_lowercase();
        let comment = match &*word {
            "" | "text" | "txt" | "plain" | "plaintext" | "output" | "console" | "markdown" | "md"
            | "diff" => None,
            "python" | "py" | "sh" | "bash" | "shell" | "zsh" | "fish" | "ruby" | "rb" | "perl" | "r"
            | "toml" | "yaml" | "yml" | "make" | "makefile" | "dockerfile" | "julia" | "ini" | "conf" => {
                Some("#")
            }
            "sql" | "lua" | "haskell" | "hs" | "ada" | "elm" => Some("--"),
            "html" | "xml" | "svg" | "vue" => Some("<!--"),
            "tex" | "latex" | "matlab" | "erlang" => Some("%"),
            "lisp" | "scheme" | "clojure" | "asm" => Some(";"),
            _ => Some("//"),
        };
        let single = matches!(
            &*word,
            "rust"
                | "rs"
                | "c"
                | "h"
                | "cpp"
                | "c++"
                | "hpp"
                | "java"
                | "go"
                | "kotlin"
                | "scala"
                | "haskell"
                | "hs"
        );
        Self { comment, c_like: comment == Some("//"), sql: word == "sql", single, commented: false }
    }

    /// A line with its colours.
    pub fn line(&mut self, line: &str) -> String {
        let Some(comment) = self.comment else { return line.to_owned() };
        let mut out = String::new();
        let mut say = |style: Style, text: &str| out += &format!("{style}{text}{style:#}");
        let mut at = 0;
        while at < line.len() {
            let rest = &line[at..];
            if self.commented || (self.c_like && rest.starts_with("/*")) {
                let from = if self.commented { 0 } else { 2 };
                let end = rest[from..].find("*/").map(|end| from + end + 2);
                self.commented = end.is_none();
                let end = end.unwrap_or(rest.len());
                say(DIM, &rest[..end]);
                at += end;
                continue;
            }
            if rest.starts_with(comment) {
                say(DIM, rest);
                break;
            }
            let first = rest.chars().next().unwrap_or(' ');
            let len = |of: &dyn Fn(char) -> bool| rest.find(|c| !of(c)).unwrap_or(rest.len());
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let (style, len) = match first {
                '"' | '\'' | '`' => match quoted(rest, first, self.single && first == '\'') {
                    Some(len) => (TEXT, len),
                    None => (Style::new(), 1),
                },
                '0'..='9' => (NUMBER, len(&|c| word(c) || c == '.')),
                _ if word(first) => {
                    let len = len(&word);
                    let text = &rest[..len];
                    let known =
                        WORDS.contains(&text) || (self.sql && SQL.contains(&&*text.to_ascii_lowercase()));
                    (if known { WORD } else { Style::new() }, len)
                }
                _ => (Style::new(), first.len_utf8()),
            };
            say(style, &rest[..len]);
            at += len;
        }
        out
    }
}

/// The length of a text in quotation marks; `None` where it does not end with its line. With `single`, it is one character:
/// Rust's lifetimes are none.
fn quoted(rest: &str, mark: char, single: bool) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == mark => {
                let inner = &rest[1..at];
                let one = inner.starts_with('\\') || inner.chars().count() == 1;
                return (one || !single).then_some(at + 1);
            }
            _ => {}
        }
    }
    None
}
