//! Any bytes as what a hub answers: lists of files, commits, headers, redirections; and as a reference that a user types.
#![no_main]

use bitnet_hub::{Reference, wire};
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

/// Whether a path that came from outside stays below the folder it is put into.
fn stays_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(commit) = wire::commit(bytes) {
        assert!(commit.len() == 40 && stays_inside(&commit));
    }
    let files = wire::tree(bytes).unwrap_or_default();
    for file in &files {
        assert!(stays_inside(&file.path), "{:?}", file.path);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.lines();
    let [first, second, third] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let head = wire::FileHead::parse(|name| match name {
        "etag" | "x-linked-etag" => Some(first),
        "x-linked-size" | "content-length" => Some(second),
        _ => None,
    });
    if let Ok(head) = head {
        assert!(stays_inside(&head.etag) && !head.etag.contains('/'));
        let _ = head.hash_kind();
    }
    if let Some((begin, end, size)) = wire::content_range(first) {
        assert!(begin < end && end <= size);
    }
    if let Some(to) = wire::redirect("https://hub.example/a/b", first) {
        assert!(to.starts_with("https://") && wire::origin(&to).is_some());
    }
    let _ = wire::next_page(first).and_then(|next| wire::redirect("http://hub.example/a", next));
    let _ = wire::retry_after(third, jiff::Timestamp::UNIX_EPOCH);
    if let Ok(reference) = first.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().ok().as_ref(), Some(&reference));
        assert!(reference.pick.as_deref().is_none_or(stays_inside) && stays_inside(reference.revision()));
        let names: Vec<&str> = files.iter().map(|f| f.path.as_str()).chain([second, third]).collect();
        if let Ok(selection) = bitnet_hub::select(&reference, &names) {
            assert!(selection.files.iter().all(|f| names.contains(&f.as_str())));
        }
    }
    let list = |text: &str| vec![text.to_owned()];
    let patterns = bitnet_hub::Patterns { include: list(second), exclude: list(third) };
    let reference: Reference = "org/name".parse().expect("it is one");
    let _ = bitnet_hub::by_patterns(&reference, &[first], &patterns);
});
