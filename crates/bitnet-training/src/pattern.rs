//! Patterns of names: `*` stands for any characters, none among them.

/// Whether a pattern stands for all of a name.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        // The first place is as good as any: what follows may take the more.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stand_for_anything() {
        let name = "model.layers.3.mlp.up_proj.weight";
        for pattern in [name, "*", "model.*", "*.up_proj.weight", "*layers.3.*proj*", "model*3*w*t", "**"] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in [
            "",
            "model",
            "*.up_proj",
            "layers.3.*",
            "*3*3*",
            "*weight*t",
            "model.layers.3.mlp.up_proj.weight*t",
        ] {
            assert!(!matches(pattern, name), "{pattern}");
        }
        assert!(matches("", "") && !matches("a*a", "a"));
    }
}
