use super::*;

fn selected(reference: &str, names: &[&str]) -> Result<Selection, HubError> {
    select(&reference.parse().unwrap(), names)
}

fn check(reference: &str, names: &[&str], files: &[&str], place: Option<&str>) {
    let place = place.map_or(Place::Folder, |f| Place::File(f.to_owned()));
    let want = Selection { files: files.iter().map(|f| (*f).to_owned()).collect(), place };
    assert_eq!(selected(reference, names).unwrap(), want, "{reference}");
}

#[test]
fn a_directory_needs_its_weights_and_what_describes_them() {
    let names = [
        "README.md",
        "config.json",
        "model.safetensors",
        "images/x.png",
        "tokenizer.json",
        "consolidated.safetensors",
    ];
    check("a/b", &names, &["config.json", "tokenizer.json", "README.md", "model.safetensors"], None);
    let sharded = [
        "config.json",
        "model-00002-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    check("a/b", &sharded, &["config.json", sharded[3], sharded[2], sharded[1]], None);
    let part = selected("a/b", &["config.json", sharded[1], sharded[3]]).unwrap_err().to_string();
    assert!(part.contains("1 of 2 shards"), "{part}");
    check("a/b", &["pytorch_model.bin", "config.json"], &["config.json", "pytorch_model.bin"], None);
    check(
        "a/b:model.safetensors",
        &names[1..3],
        &["config.json", "model.safetensors"],
        Some("model.safetensors"),
    );
    assert!(matches!(selected("a/b", &["README.md"]), Err(HubError::NoFile { .. })));
}

#[test]
fn a_quantization_is_found_by_its_name() {
    let names = ["m-TQ2_0.gguf", "m-Q2_0.gguf", "m-q4_k_m.gguf", "sub/m.Q4_K.gguf", "x/m-Q2_0_g64.gguf"];
    check("a/b:q2_0", &names, &["m-Q2_0.gguf"], Some("m-Q2_0.gguf"));
    check("a/b:TQ2_0", &names, &["m-TQ2_0.gguf"], Some("m-TQ2_0.gguf"));
    check("a/b:q4_k", &names, &["sub/m.Q4_K.gguf"], Some("sub/m.Q4_K.gguf"));
    check("a/b:sub/m.Q4_K.gguf", &names, &["sub/m.Q4_K.gguf"], Some("sub/m.Q4_K.gguf"));
    check("a/b:q2_0", &names[4..], &[names[4]], Some(names[4]));
    check("a/b", &names[..1], &names[..1], Some(names[0]));
    check("a/b:i2_s", &["ggml-model-i2_s.gguf"], &["ggml-model-i2_s.gguf"], Some("ggml-model-i2_s.gguf"));
    let several = selected("a/b@v1", &names).unwrap_err().to_string();
    assert!(several.contains("a/b:m-TQ2_0.gguf@v1"), "{several}");
    let none = selected("a/b:Q8_0", &names).unwrap_err().to_string();
    assert!(none.contains("Q8_0") && none.contains("m-TQ2_0.gguf"), "{none}");
}

#[test]
fn patterns_replace_and_narrow_the_choice() {
    let names = ["config.json", "model.safetensors", "sub/a.gguf", "x.png"];
    let by = |include: &[&str], exclude: &[&str]| {
        let own = |l: &[&str]| l.iter().map(|p| (*p).to_owned()).collect();
        by_patterns(
            &"a/b".parse().unwrap(),
            &names,
            &Patterns { include: own(include), exclude: own(exclude) },
        )
    };
    let all = by(&["*"], &["*.png"]).unwrap();
    assert_eq!((all.files.len(), all.place), (3, Place::Folder));
    assert_eq!(by(&[], &["config*"]).unwrap().files, ["model.safetensors"]);
    assert_eq!(by(&["*.gguf"], &[]).unwrap().place, Place::File("sub/a.gguf".into()));
    assert_eq!(by(&["?.png"], &[]).unwrap().files, ["x.png"]);
    assert!(by(&["nothing*"], &[]).is_err());
}

#[test]
fn globs() {
    for (pattern, text, fits) in [
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
        ("a*c", "abc", true),
        ("a*c", "acb", false),
        ("*.b", "a.b.b", true),
        ("a**", "a", true),
        ("?", "", false),
        ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
    ] {
        assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
    }
}
