use super::*;

fn check(text: &str, repo: &str, pick: Option<&str>, revision: Option<&str>) {
    let r: Reference = text.parse().unwrap();
    assert_eq!((r.repo.as_str(), r.pick.as_deref(), r.revision.as_deref()), (repo, pick, revision), "{text}");
    assert_eq!(r.to_string().parse::<Reference>().unwrap(), r);
}

#[test]
fn every_form_is_read() {
    check("a/b", "a/b", None, None);
    check("a/b:x.gguf", "a/b", Some("x.gguf"), None);
    check("a/b:sub/x.gguf@refs/pr/1", "a/b", Some("sub/x.gguf"), Some("refs/pr/1"));
    check("a/b@v1.2", "a/b", None, Some("v1.2"));
    check("hf://a/b", "a/b", None, None);
    check("hf://a/b:Q2_0@main", "a/b", Some("Q2_0"), Some("main"));
    check("hf://a/b@v1/sub/x.gguf", "a/b", Some("sub/x.gguf"), Some("v1"));
    check("hf://a/b/x.gguf", "a/b", Some("x.gguf"), None);
    check("hf://a/b:sub/x.gguf", "a/b", Some("sub/x.gguf"), None);
    check("microsoft/bitnet-b1.58-2B-4T", "microsoft/bitnet-b1.58-2B-4T", None, None);
}

#[test]
fn files_of_data_sets_have_addresses() {
    for (text, repo, pick, revision) in [
        ("hf://datasets/a/b/data/x.parquet", "a/b", "data/x.parquet", None),
        ("hf://datasets/a/b@v1/x.csv", "a/b", "x.csv", Some("v1")),
        ("hf://datasets/a/b:x.csv@refs/convert/parquet", "a/b", "x.csv", Some("refs/convert/parquet")),
    ] {
        let r: Reference = text.parse().unwrap();
        assert_eq!((r.repo.kind(), r.repo.as_str()), (RepoKind::Dataset, repo), "{text}");
        assert_eq!((r.pick.as_deref(), r.revision.as_deref()), (Some(pick), revision), "{text}");
        assert_eq!(r.to_string().parse::<Reference>().unwrap(), r);
        assert_eq!(r.repo.folder(), "datasets--a--b");
    }
    for text in ["hf://datasets/a", "hf://datasets/a/b/../x", "hf://datasets/../b/x", "datasets/a/b"] {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
}

#[test]
fn what_would_lead_out_of_the_cache_is_refused() {
    for text in [
        "",
        "a",
        "a/",
        "/b",
        "a/b/c",
        "../b",
        "a/..",
        "a--b/c",
        "a/b:",
        "a/b@",
        "a/b:../x",
        "a/b:/etc/passwd",
        "a/b@../..",
        "a/b@refs/../../x",
        "a/b:x\\y",
        "a/b:c:d",
        "a/b@a@b@\n",
        "a/b@/x",
        "-a/b",
        "a./b",
        "a /b",
        "hf://a",
        "hf://../a/b",
    ] {
        assert!(text.parse::<Reference>().is_err(), "{text:?}");
    }
}

#[test]
fn paths_are_not_taken_for_references() {
    for path in ["model.gguf", "./a/b", "/a/b", "models/x.gguf", "dir/model.safetensors", "a/b/c", "~/a"] {
        assert!(!Reference::is_meant(path), "{path}");
    }
    for reference in ["a/b", "a/b:x.gguf", "a/b@main", "hf://a/b/x.gguf", "hf://nonsense"] {
        assert!(Reference::is_meant(reference), "{reference}");
    }
}

#[test]
fn folders_of_the_cache_name_repositories() {
    let repo = RepoId::new("org/a-b").unwrap();
    assert_eq!(repo.folder(), "models--org--a-b");
    assert_eq!(RepoId::from_folder("models--org--a-b"), Some(repo));
    assert_eq!(RepoId::from_folder("datasets--org--a"), None);
}
