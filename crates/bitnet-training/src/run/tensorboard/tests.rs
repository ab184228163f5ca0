use super::*;

/// RFC 3720, B.4, and the check value of the algorithm.
#[test]
fn checksums_are_those_of_the_standard() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
    // The mask: turned by 15 bits, a constant added.
    assert_eq!(masked(b"123456789"), 0xE306_9283u32.rotate_right(15).wrapping_add(0xA282_EAD8));
}

/// The fields of a message: numbers and payloads.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let varint = |bytes: &mut &[u8]| {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let len = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("{other}"),
        };
        found.push((key >> 3, bytes[..len].to_vec()));
        bytes = &bytes[len..];
    }
    found
}

#[test]
fn events_have_their_fields() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = EventFile::open(folder.path(), 0).unwrap();
    file.scalars(300, &[("train/loss".to_owned(), 2.5), ("a".to_owned(), -1.0)]).unwrap();
    file.text(300, "samples/1", "ships *at* night").unwrap();
    let bytes = std::fs::read(&file.path).unwrap();
    let all: Vec<&[u8]> = records(&bytes).map(|r| r.1).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(fields(all[0])[2], (3, VERSION.to_vec()));
    let event = fields(all[1]);
    assert_eq!((event[0].0, &event[1]), (1, &(2, 300u64.to_le_bytes().to_vec())));
    assert!(f64::from_le_bytes(event[0].1[..].try_into().unwrap()) > 1.5e9);
    let values = fields(&event[2].1);
    let value = fields(&values[0].1);
    assert_eq!(value, [(1, b"train/loss".to_vec()), (2, 2.5f32.to_le_bytes().to_vec())]);
    assert_eq!(fields(&values[1].1)[1], (2, (-1f32).to_le_bytes().to_vec()));
    let text = fields(&fields(&fields(all[2])[2].1)[0].1);
    assert_eq!(text[0], (1, b"samples/1".to_vec()));
    assert_eq!(fields(&text[2].1)[2], (8, b"ships *at* night".to_vec()));
}

/// What goes on keeps the events of steps that were taken, without what a killed process left half.
#[test]
fn going_on_keeps_the_past() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = EventFile::open(folder.path(), 0).unwrap();
    for step in [1, 2, 3, 200] {
        file.scalars(step, &[("loss".to_owned(), step as f64)]).unwrap();
    }
    file.file.write_all(&[8, 0, 0]).unwrap();
    let steps = |file: &EventFile| {
        let bytes = std::fs::read(&file.path).unwrap();
        let steps = records(&bytes).map(|r| step_of(r.1)).collect::<Vec<_>>();
        (steps, bytes.len())
    };
    assert_eq!(steps(&file).0, [0, 1, 2, 3, 200]);
    let mut again = EventFile::open(folder.path(), 2).unwrap();
    again.scalars(3, &[("loss".to_owned(), 3.0)]).unwrap();
    assert_eq!((steps(&again).0, &again.path), (vec![0, 1, 2, 3], &file.path));
    // A byte that changed ends what is believed.
    let mut bytes = std::fs::read(&file.path).unwrap();
    let len = bytes.len();
    bytes[len - 6] ^= 1;
    std::fs::write(&file.path, bytes).unwrap();
    assert_eq!(steps(&EventFile::open(folder.path(), 9).unwrap()).0, [0, 1, 2]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
