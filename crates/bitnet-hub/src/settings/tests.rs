use super::*;

fn settings(variables: &[(&str, &str)]) -> Settings {
    Settings::from_variables(None, &|name| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
        .unwrap()
}

#[test]
fn the_cache_is_where_the_hubs_own_clients_put_it() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
        (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
    ];
    for (variables, cache) in cases {
        assert_eq!(settings(variables).cache, Path::new(cache), "{variables:?}");
    }
    assert!(Settings::from_variables(None, &|_| None).is_err());
}

#[test]
fn switches_and_addresses() {
    let s = settings(&[("HOME", "/h"), ("HF_ENDPOINT", "https://mirror.example/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((s.endpoint.as_str(), s.offline), ("https://mirror.example", true));
    let s = settings(&[("HOME", "/h"), ("TRANSFORMERS_OFFLINE", "yes"), ("HF_HUB_DISABLE_SYMLINKS", "ON")]);
    assert_eq!((s.endpoint.as_str(), s.offline, s.symlinks), (ENDPOINT, true, false));
    let s = settings(&[("HOME", "/h"), ("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "0")]);
    assert!(!s.offline);
    let s = settings(&[("HOME", "/h"), ("HF_HUB_DOWNLOAD_TIMEOUT", "3")]);
    assert_eq!(s.timeout, Duration::from_secs(3));
    for bad in ["ftp://x", "https://", "https://user:secret@host", "mirror"] {
        assert!(checked_endpoint(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_token_comes_from_the_variable_or_the_stored_file() {
    let folder = tempfile::tempdir().unwrap();
    let stored = folder.path().join("token");
    std::fs::write(&stored, "hf_stored\n").unwrap();
    let home = folder.path().to_str().unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, "hf_other").unwrap();
    let token = |more: &[(&str, &str)]| settings(&[&[("HF_HOME", home)], more].concat()).token;
    assert_eq!(token(&[]), Token::new("hf_stored"));
    assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]), Token::new("hf_other"));
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]), Token::new("old"));
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", " new ")]), Token::new("new"));
    assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "new")]), None);
    assert_eq!(format!("{:?}", Token::new("secret")), "Some(Token(..))");
    assert_eq!(Token::new("a\nb"), None);
}
