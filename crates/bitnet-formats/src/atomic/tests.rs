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

#[test]
fn a_directory_is_not_there_before_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    for whole in [false, true] {
        let mut directory = NewDirectory::create(&target).unwrap();
        let mut file = AtomicFile::create(&directory.path().join("model")).unwrap();
        file.write(b"weights").unwrap();
        file.sync().unwrap();
        // Files without names leave nothing to be seen, whoever is killed now.
        if cfg!(target_os = "linux") {
            assert_eq!(names(dir.path()), Vec::<OsString>::new());
        }
        directory.begin().unwrap();
        write_file(&directory.path().join("config"), b"{}").unwrap();
        file.finish().unwrap();
        assert!(!target.exists());
        // Another process takes it for what it is: at work.
        let refusal = NewDirectory::create(&target).err().unwrap().to_string();
        assert!(!cfg!(unix) || refusal.contains("another process"), "{refusal}");
        match whole {
            false => drop(directory),
            true => directory.finish().unwrap(),
        }
        assert_eq!(names(dir.path()), if whole { vec![OsString::from("out")] } else { vec![] });
    }
    assert_eq!(names(&target), ["config", "model"]);
    // What a killed process has left is cleared away.
    let left = dir.path().join(".next.bitnet-part");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("half"), "half").unwrap();
    drop(NewDirectory::create(&dir.path().join("next")).unwrap());
    assert_eq!(names(dir.path()), ["out"]);
}
