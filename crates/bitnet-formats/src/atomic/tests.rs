use super::*;

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_new_or_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    for bytes in [&b"one"[..], b"two"] {
        let mut file = AtomicFile::create(&target).unwrap();
        file.write(b"not whole").unwrap();
        drop(file);
        write_file(&target, bytes).unwrap();
        assert_eq!((fs::read(&target).unwrap().as_slice(), names(dir.path())), (bytes, vec!["x".into()]));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_killed_processes_left_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let (target, left, other) =
        (dir.path().join("x"), dir.path().join(".xab.bitnet-part"), dir.path().join(".y.bitnet-part"));
    for there in [false, true] {
        assert_eq!(target.exists(), there);
        [&left, &other].iter().for_each(|path| fs::write(path, "left").unwrap());
        // One that is at work holds a lock.
        let busy = dir.path().join(".xcd.bitnet-part");
        let lock = File::create(&busy).unwrap();
        lock.lock().unwrap();
        write_file(&target, b"whole").unwrap();
        assert_eq!(names(dir.path()), [".xcd.bitnet-part", ".y.bitnet-part", "x"]);
    }
}

#[test]
fn many_writers_of_one_file_leave_one_of_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    std::thread::scope(|scope| {
        for k in 0..4u8 {
            let target = &target;
            scope.spawn(move || (0..50).for_each(|_| write_file(target, &[k; 100]).unwrap()));
        }
    });
    let bytes = fs::read(&target).unwrap();
    assert!(bytes.len() == 100 && bytes.iter().all(|b| *b == bytes[0]));
    assert_eq!(names(dir.path()), ["x"]);
}
