use super::*;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn a_revision_is_a_commit_or_refused() {
    assert_eq!(commit(format!(r#"{{"sha":"{SHA}","siblings":[]}}"#).as_bytes()).unwrap(), SHA);
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"sha":null}"#,
        r#"{"sha":"main"}"#,
        r#"{"sha":"../../../../etc/xxxxxxxxxxxxxxxxxxxxxxxx"}"#,
    ] {
        assert!(commit(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_tree_has_files_and_none_of_them_leads_out() {
    let body = r#"[{"type":"directory","oid":"x","size":0,"path":"sub"},
        {"type":"file","oid":"x","size":7,"path":"sub/a b.gguf","lfs":{"oid":"y","size":7,"pointerSize":1}}]"#;
    assert_eq!(tree(body.as_bytes()).unwrap(), [RemoteFile { path: "sub/a b.gguf".into(), size_bytes: 7 }]);
    for path in ["../x", "/x", "a/../../x", "a//b", "", "a/", "C:x", "a\\\\b", "a\\u0000b", "a\\nb", "."] {
        let body = format!(r#"[{{"type":"file","path":"{path}","size":1}}]"#);
        assert!(tree(body.as_bytes()).is_err(), "{path}");
    }
    assert!(tree(br#"[{"type":"file","path":"a","size":-1}]"#).is_err());
}

#[test]
fn pages_follow_each_other() {
    assert_eq!(next_page("<https://h/x?cursor=1>; rel=\"next\""), Some("https://h/x?cursor=1"));
    assert_eq!(next_page("<https://h/p>; rel=\"prev\", <https://h/n>; rel=\"next\""), Some("https://h/n"));
    assert_eq!(next_page("<https://h/p>; rel=\"prev\""), None);
    assert_eq!(next_page("nonsense"), None);
}

#[test]
fn headers_name_the_content() {
    let head = |pairs: &'static [(&str, &str)]| {
        FileHead::parse(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1))
    };
    let plain = head(&[("etag", "W/\"abc-1\""), ("content-length", "5")]).unwrap();
    assert_eq!(
        (plain.etag.as_str(), plain.size_bytes, plain.hash_kind()),
        ("abc-1", Some(5), HashKind::Unknown)
    );
    let linked = head(&[
        ("etag", "\"link\""),
        ("content-length", "99"),
        ("location", "https://cdn/x"),
        ("x-linked-size", "7"),
        ("x-linked-etag", "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\""),
    ])
    .unwrap();
    assert_eq!((linked.size_bytes, linked.hash_kind()), (Some(7), HashKind::Sha256));
    let redirected = head(&[
        ("etag", "\"0123456789abcdef0123456789abcdef01234567\""),
        ("content-length", "9"),
        ("location", "/x"),
    ]);
    let redirected = redirected.unwrap();
    assert_eq!((redirected.size_bytes, redirected.hash_kind()), (None, HashKind::GitBlob));
    for etag in ["", "\"\"", "../x", "a/b", "..", ".hidden", "a b", "x..y"] {
        assert!(FileHead::parse(|name| (name == "etag").then_some(etag)).is_err(), "{etag}");
    }
    assert!(head(&[]).is_err() && head(&[("etag", "a"), ("content-length", "-1")]).is_err());
}

#[test]
fn ranges_and_waits() {
    assert_eq!(content_range("bytes 0-9/10"), Some((0, 10, 10)));
    for bad in [
        "bytes 0-10/10",
        "bytes 5-4/10",
        "bytes */10",
        "bytes 0-9/*",
        "0-9/10",
        "bytes 0-18446744073709551615/9",
    ] {
        assert_eq!(content_range(bad), None, "{bad}");
    }
    let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
    assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
    assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(60)));
    assert_eq!(retry_after("Wed, 21 Oct 2015 07:26:00 GMT", now), Some(Duration::ZERO));
    assert_eq!(retry_after("soon", now), None);
}

#[test]
fn redirections_stay_encrypted_and_addresses_keep_their_origin() {
    let from = "https://hub.example/a/b?c";
    assert_eq!(redirect(from, "/x").as_deref(), Some("https://hub.example/x"));
    assert_eq!(redirect(from, "//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
    assert_eq!(redirect(from, "https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
    assert_eq!(redirect("http://hub/a", "http://cdn/x").as_deref(), Some("http://cdn/x"));
    for bad in ["http://cdn.example/x", "file:///etc/passwd", "x", "", "https://", "https://a b", "//"] {
        assert_eq!(redirect(from, bad), None, "{bad}");
    }
    assert_eq!(origin("https://hub.example:8/a"), Some("https://hub.example:8"));
    assert_ne!(origin("https://hub.example@evil/a"), origin("https://hub.example/a"));
    assert_eq!(escaped("refs/pr/1", KeepSlash::No), "refs%2Fpr%2F1");
    assert_eq!(escaped("a b/c#?%.gguf", KeepSlash::Yes), "a%20b/c%23%3F%25.gguf");
}
