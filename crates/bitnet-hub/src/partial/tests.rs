use super::*;

#[test]
fn ranges_join_and_holes_are_handed_out_once() {
    let folder = tempfile::tempdir().unwrap();
    let blob = folder.path().join("blob");
    let mut partial = Partial::open(&blob, 100).unwrap();
    assert_eq!((partial.take(40), partial.take(40)), (Some((0, 40)), Some((40, 80))));
    partial.arrived(40, 60).unwrap();
    partial.arrived(0, 10).unwrap();
    partial.give_back((40, 80));
    assert_eq!((partial.take(40), partial.take(40), partial.take(40)), (Some((60, 100)), None, None));
    partial.save().unwrap();
    assert_eq!(Partial::present_bytes(&blob, 100), 30);

    let mut again = Partial::open(&blob, 100).unwrap();
    assert_eq!((again.done_bytes(), again.take(7), again.take(90)), (30, Some((10, 17)), Some((17, 40))));
    for (first, end) in [(10, 40), (60, 100)] {
        again.arrived(first, end).unwrap();
    }
    assert_eq!((again.done_bytes(), again.take(1)), (100, None));
    again.finish(&blob).unwrap();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["blob"]);
}

#[test]
fn what_cannot_be_true_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let blob = folder.path().join("blob");
    for text in [
        "",
        "{",
        r#"{"size":9,"done":[[0,9]]}"#,
        r#"{"size":10,"done":[[0,11]]}"#,
        r#"{"size":10,"done":[[5,5],[7,3]]}"#,
        r#"{"size":10,"done":[[0,18446744073709551615]]}"#,
    ] {
        fs::write(beside(&blob, INCOMPLETE), [0; 10]).unwrap();
        fs::write(beside(&blob, RANGES), text).unwrap();
        assert_eq!(Partial::open(&blob, 10).unwrap().done_bytes(), 0, "{text}");
    }
    // Ranges of a file that is gone or has another length.
    fs::write(beside(&blob, RANGES), r#"{"size":10,"done":[[0,5],[3,8]]}"#).unwrap();
    assert_eq!(Partial::present_bytes(&blob, 10), 8);
    fs::remove_file(beside(&blob, INCOMPLETE)).unwrap();
    assert_eq!(Partial::present_bytes(&blob, 10), 0);
}
