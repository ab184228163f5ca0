//! llama.cpp's grammars (GBNF) in llguidance's form of Lark.
//!
//! The two differ in how rules, names and classes of characters are written: `root ::= "a" [0-9]+` becomes `start: "a" /[0-9]/+`.

/// Translates a grammar.
///
/// # Errors
/// What is wrong, and where.
pub fn to_lark(gbnf: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = gbnf;
    let mut depth = 0;
    while let Some(c) = rest.chars().next() {
        let line = 1 + gbnf[..gbnf.len() - rest.len()].matches('\n').count();
        let wrong = |what: &str| format!("line {line}: {what}");
        let take = match c {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' => {
                let len = closing(rest, '"').ok_or_else(|| wrong("a string has no end"))?;
                out.push_str(&rest[..len]);
                len
            }
            '[' => {
                let len = closing(rest, ']').ok_or_else(|| wrong("a class of characters has no end"))?;
                // A slash would end the expression, and a bracket inside a class is only itself.
                let class = rest[1..len - 1].replace('/', "\\/").replace('[', "\\[");
                out.push_str(&format!("/[{class}]/"));
                len
            }
            '.' => {
                out.push_str("/(.|\\n)/");
                1
            }
            ':' if rest.starts_with("::=") => {
                out.truncate(out.trim_end_matches([' ', '\t']).len());
                out.push(':');
                3
            }
            '(' | ')' => {
                depth += if c == '(' { 1 } else { -1 };
                out.push(c);
                1
            }
            '\n' => {
                // A rule goes on where a parenthesis is open or an alternative follows; Lark sees the latter itself.
                out.push(if depth > 0 { ' ' } else { '\n' });
                1
            }
            '|' | '*' | '+' | '?' | '{' | '}' | ',' | ' ' | '\t' | '\r' => {
                out.push(c);
                1
            }
            '0'..='9' => {
                out.push(c);
                1
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let len = rest
                    .find(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)))
                    .unwrap_or(rest.len());
                out.push_str(&name(&rest[..len]));
                len
            }
            c => return Err(wrong(&format!("{c:?} is no part of a grammar"))),
        };
        rest = &rest[take..];
    }
    Ok(out)
}

/// Bytes up to and with the character that closes what the first one opened.
fn closing(text: &str, end: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == end => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

/// Lark tells rules from terminals by their case, knows no dashes, and begins at `start`.
fn name(gbnf: &str) -> String {
    match gbnf {
        "root" => "start".to_owned(),
        "start" => "start_rule".to_owned(),
        name => format!("r_{}", name.replace('-', "_").to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_names_and_classes_are_translated() {
        let gbnf = "# arithmetic\nroot ::= num-Ber (ws \"+\"\n  num-Ber)* # sums\nnum-Ber ::= [0-9]{1,3} | \"a\\\"]\"\nws ::= [ \\t/]?\n";
        let lark = "\nstart: r_num_ber (r_ws \"+\"   r_num_ber)* \nr_num_ber: /[0-9]/{1,3} | \"a\\\"]\"\nr_ws: /[ \\t\\/]/?\n";
        assert_eq!(to_lark(gbnf).unwrap(), lark);
        assert!(to_lark("root ::= \"a").unwrap_err().contains("line 1"));
        assert!(to_lark("root ::= $").is_err());
    }
}
