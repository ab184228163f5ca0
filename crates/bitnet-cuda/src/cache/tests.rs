//! What is kept comes back whole or not at all.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use std::time::Duration;

fn cache(folder: &Path, max_bytes: u64) -> KernelCache {
    KernelCache { folder: folder.join("kernels"), max_bytes }
}

#[test]
fn what_is_kept_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    assert_eq!(cache.get("one"), None);
    cache.put("one", b"code").unwrap();
    cache.put("two", b"").unwrap();
    cache.put("one", b"other code").unwrap();
    assert_eq!(cache.get("one").as_deref(), Some(&b"other code"[..]));
    assert_eq!(cache.get("two").as_deref(), Some(&b""[..]));
    // Nothing but the files is left.
    assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 2);
}

#[test]
fn what_is_damaged_or_foreign_counts_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    cache.put("one", b"code").unwrap();
    let path = cache.path("one");
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(cache.get("one"), None, "{cut} bytes");
    }
    for at in 0..whole.len() {
        let mut other = whole.clone();
        other[at] ^= 1;
        fs::write(&path, other).unwrap();
        assert_eq!(cache.get("one"), None, "byte {at}");
    }
    // Another key's file under this one's name.
    cache.put("two", b"code").unwrap();
    fs::copy(cache.path("two"), &path).unwrap();
    assert_eq!(cache.get("one"), None);
    cache.put("one", b"code").unwrap();
    assert_eq!(cache.get("one").as_deref(), Some(&b"code"[..]));
}

#[test]
fn what_is_oldest_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 3500);
    let old = SystemTime::now() - Duration::from_secs(1000);
    for n in 0..3u64 {
        cache.put(&n.to_string(), &[0; 1000]).unwrap();
        let file = fs::File::options().write(true).open(cache.path(&n.to_string())).unwrap();
        file.set_modified(old + Duration::from_secs(n)).unwrap();
    }
    fs::write(cache.folder.join("a note"), [0; 5000]).unwrap();
    cache.put("3", &[0; 1000]).unwrap();
    let there: Vec<bool> = (0..4).map(|n| cache.get(&n.to_string()).is_some()).collect();
    assert_eq!(there, [false, true, true, true]);
    assert!(cache.folder.join("a note").exists());
    // One that is larger than all that there is room for stays alone.
    cache.put("4", &[0; 9000]).unwrap();
    let there: Vec<bool> = (0..5).map(|n| cache.get(&n.to_string()).is_some()).collect();
    assert_eq!(there, [false, false, false, false, true]);
}
