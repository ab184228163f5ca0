//! Emphasis, code and links within a line.

use anstyle::{AnsiColor, Style};

/// Text of one style.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    pub style: Style,
    pub text: String,
}

/// Takes from `text` what is settled, and says how many bytes that is. `before` is the character in front of it; with `whole`
/// nothing follows, so that markup that is not closed is text.
pub fn spans(text: &str, before: char, style: Style, whole: bool) -> (Vec<Span>, usize) {
    let mut spans = Vec::new();
    let mut say = |style: Style, text: &str| match spans.last_mut() {
        Some(Span { style: last, text: said }) if *last == style => said.push_str(text),
        _ if text.is_empty() => {}
        _ => spans.push(Span { style, text: text.to_owned() }),
    };
    let (mut at, mut before) = (0, before);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let found = match c {
            '\\' => escape(rest),
            '`' => code(rest),
            '*' | '_' | '~' => emphasis(rest, c, before),
            '[' => link(rest),
            _ => Found::Text(c.len_utf8()),
        };
        let taken = match found {
            Found::Open if !whole => break,
            // It was the beginning of nothing.
            Found::Open => {
                let run = rest.len() - rest.trim_start_matches(c).len();
                say(style, &rest[..run]);
                run
            }
            Found::Text(len) => {
                say(style, &rest[..len]);
                len
            }
            Found::Escaped(len) => {
                say(style, &rest[1..len]);
                len
            }
            Found::Code { inner, len } => {
                say(style.fg_color(Some(AnsiColor::Cyan.into())), inner);
                len
            }
            Found::Emphasis { inner, len, effect } => {
                spans_within(inner, effect(style), &mut say);
                len
            }
            Found::Link { label, target, len } => {
                spans_within(label, style.underline(), &mut say);
                if label != target {
                    say(style.dimmed(), &format!(" ({target})"));
                }
                len
            }
        };
        before = text[..at + taken].chars().next_back().unwrap_or(before);
        at += taken;
    }
    (spans, at)
}

fn spans_within(inner: &str, style: Style, say: &mut impl FnMut(Style, &str)) {
    for span in spans(inner, ' ', style, true).0 {
        say(span.style, &span.text);
    }
}

enum Found<'a> {
    /// Its end is not there yet.
    Open,
    Text(usize),
    Escaped(usize),
    Code {
        inner: &'a str,
        len: usize,
    },
    Emphasis {
        inner: &'a str,
        len: usize,
        effect: fn(Style) -> Style,
    },
    Link {
        label: &'a str,
        target: &'a str,
        len: usize,
    },
}

fn escape(rest: &str) -> Found<'_> {
    match rest[1..].chars().next() {
        None => Found::Open,
        Some(c) if c.is_ascii_punctuation() => Found::Escaped(2),
        Some(_) => Found::Text(1),
    }
}

/// The run of one character that a text begins with.
fn run(text: &str, c: char) -> usize {
    text.len() - text.trim_start_matches(c).len()
}

fn code(rest: &str) -> Found<'_> {
    let open = run(rest, '`');
    let mut at = open;
    while let Some(next) = rest[at..].find('`') {
        let start = at + next;
        let close = run(&rest[start..], '`');
        if start + close == rest.len() && close < open {
            return Found::Open;
        }
        at = start + close;
        if close == open {
            let inner = &rest[open..start];
            let bare =
                inner.strip_prefix(' ').and_then(|i| i.strip_suffix(' ')).filter(|i| !i.trim().is_empty());
            return Found::Code { inner: bare.unwrap_or(inner), len: at };
        }
    }
    Found::Open
}

fn emphasis(rest: &str, c: char, before: char) -> Found<'_> {
    let open = run(rest, c);
    if open == rest.len() {
        return Found::Open;
    }
    let effect: fn(Style) -> Style = match (c, open) {
        ('~', 2) => Style::strikethrough,
        ('~', _) => return Found::Text(open),
        (_, 1) => Style::italic,
        (_, 2) => Style::bold,
        (_, 3) => |style| style.bold().italic(),
        _ => return Found::Text(open),
    };
    // `2 * 3` and `snake_case` open nothing.
    if rest[open..].starts_with(char::is_whitespace) || (c == '_' && before.is_alphanumeric()) {
        return Found::Text(open);
    }
    let mut at = open;
    while let Some(next) = rest[at..].find([c, '`', '\\']) {
        let start = at + next;
        let tail = &rest[start..];
        at = start
            + match tail.as_bytes()[0] {
                b'\\' => 1 + tail[1..].chars().next().map_or(0, char::len_utf8),
                b'`' => match code(tail) {
                    Found::Code { len, .. } => len,
                    _ => run(tail, '`'),
                },
                _ => {
                    let close = run(tail, c);
                    let behind = tail[close..].chars().next();
                    let shuts = rest[..start].chars().next_back().is_some_and(|p| !p.is_whitespace())
                        && !(c == '_' && behind.is_some_and(char::is_alphanumeric));
                    if shuts && (close == open || close == 3 && open < 3) {
                        // Of three, the outer pair may close with the inner one.
                        let len = start + close;
                        let inner = &rest[open..len - open];
                        return Found::Emphasis { inner, len, effect };
                    }
                    close
                }
            };
    }
    Found::Open
}

/// Longer than this, a bracket is no link whose end is to come.
const LONGEST: usize = 2000;

fn link(rest: &str) -> Found<'_> {
    let end = rest.find(']');
    let open = rest.len() < LONGEST;
    match end {
        None if open => Found::Open,
        Some(end) => match rest[end + 1..].chars().next() {
            None if open => Found::Open,
            Some('(') => match rest[end + 2..].find(')') {
                Some(len) => {
                    let target = &rest[end + 2..end + 2 + len];
                    Found::Link { label: &rest[1..end], target, len: end + len + 3 }
                }
                None if open => Found::Open,
                None => Found::Text(1),
            },
            _ => Found::Text(1),
        },
        None => Found::Text(1),
    }
}
