use super::Markdown;

/// What is drawn of a text that comes in pieces of `size` characters.
fn drawn(text: &str, size: usize) -> String {
    let mut out = Vec::new();
    let mut markdown = Markdown::new(&mut out, || 30);
    let chars: Vec<char> = text.chars().collect();
    for piece in chars.chunks(size) {
        markdown.push(&piece.iter().collect::<String>()).unwrap();
    }
    markdown.finish().unwrap();
    String::from_utf8(out).unwrap()
}

/// The same with names for what a terminal is told: `<1>` is bold, `<>` the end.
fn named(text: &str) -> String {
    let drawn = drawn(text, usize::MAX);
    let mut pieces = drawn.split("\x1b[");
    let mut out = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let (code, text) = piece.split_once('m').unwrap();
        out += &format!("<{}>{text}", if code == "0" { "" } else { code });
    }
    out
}

/// Without styles.
fn plain(text: &str) -> String {
    let named = drawn(text, usize::MAX);
    let mut pieces = named.split("\x1b[");
    let first = pieces.next().unwrap().to_owned();
    pieces.fold(first, |out, piece| out + piece.split_once('m').unwrap().1)
}

const PAGE: &str = "\
# A heading with `code`

Some **bold and *italic* words**, ~~struck~~, `co*de*`, [a link](http://x.y) and 2 * 3 * 4 in snake_case_names.
***

- one **item** that is so long that it has to be broken
  - two
10. ten
> quoted text that goes on for more than one line

```rust
fn main() { /* a
   comment */ let x = \"text\"; } // end
```
| a | b |
|---|--:|
| x | 1 |
| **long** | 200 |
an unclosed **star, and `tick
漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字
a_word_that_goes_on_and_on_for_longer_than_any_line_is_and_then_some more
";

#[test]
fn pieces_of_any_size_draw_the_same() {
    let whole = drawn(PAGE, usize::MAX);
    for size in 1..7 {
        assert_eq!(drawn(PAGE, size), whole, "{size}");
    }
}

#[test]
fn blocks() {
    let page = plain(PAGE);
    for lines in [
        "A heading with code\n\n",
        "──────────────────────────────\n\n",
        "• one item that is so long\n  that it has to be broken\n  • two\n10. ten\n",
        "│ quoted text that goes on for\n│ more than one line\n",
        "```rust\nfn main() { /* a\n   comment */ let x = \"text\"; } // end\n```\n",
        "a    │   b\n─────┼────\nx    │   1\nlong │ 200\n",
        "an unclosed **star, and `tick\n",
        "漢字漢字漢字漢字漢字漢字漢字漢\n字漢字漢字\n",
    ] {
        assert!(page.contains(lines), "{lines:?} is not in\n{page}");
    }
    assert!(page.contains("snake_case_names.") && page.contains("2 * 3 * 4"), "{page}");
}

#[test]
fn styles() {
    for (text, want) in [
        ("**b** c", "<1>b<> c\n"),
        ("*i*", "<3>i<>\n"),
        ("***x***", "<1><3>x<>\n"),
        ("`a b`!", "<36>a<><36> <><36>b<>!\n"),
        ("__b__ a_b_c", "<1>b<> a_b_c\n"),
        ("\\*x\\*", "*x*\n"),
        ("[a](u)", "<4>a<> <2>(u)<>\n"),
        ("**a", "**a\n"),
        ("## t", "<1><35>t<>\n"),
        ("a[0] = (1)", "a[0] = (1)\n"),
    ] {
        let got = named(text).replace("<2> <>", " ");
        assert_eq!(got, want, "{text}");
    }
    assert!(named(PAGE).contains("<35>fn<>") && named(PAGE).contains("<32>\"text\"<>"), "{}", named(PAGE));
    assert!(named(PAGE).contains("<2>/* a<>\n<2>   comment */<>"), "{}", named(PAGE));
    assert!(named("```rust\nfn f(x: &'a str, y: &'a str)\n```").contains("&'a str, y: &'a str)"));
}

#[test]
fn words_are_drawn_before_their_line_ends() {
    let mut out = Vec::new();
    let mut markdown = Markdown::new(&mut out, || 80);
    markdown.push("one two thr").unwrap();
    drop(markdown);
    assert_eq!(String::from_utf8(out).unwrap(), "one two");
    // A word that is longer than a line is drawn as it comes.
    let mut out = Vec::new();
    let mut markdown = Markdown::new(&mut out, || 8);
    markdown.push("see 0123456789ab").unwrap();
    drop(markdown);
    assert_eq!(String::from_utf8(out).unwrap(), "see\n0123456789ab");
}

#[test]
fn a_word_that_is_longer_than_a_line_is_left_whole() {
    let link = "x".repeat(70);
    assert_eq!(
        plain(&format!("- see {link} and some more words\n")),
        format!("• see\n  {link} and some more\n  words\n")
    );
}

#[test]
fn a_table_that_is_too_wide_stays_as_it_was_written() {
    let table = "| a long heading here | another one |\n|---|---|\n| x | y |\n";
    assert_eq!(plain(table), table);
}
