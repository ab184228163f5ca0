use super::*;
use crate::TensorType;
use bitnet_core::DenseType;

fn read_bytes(bytes: Vec<u8>) -> Result<Contents, String> {
    read(Path::new("file.pt"), &bytes.into()).map_err(|e| e.to_string())
}

/// What a pickle, alone in an archive with one storage of 24 bytes, is said to be.
fn archive_of(pickle: &[u8]) -> Result<Contents, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.pt");
    let info = TensorInfo { name: "x".to_owned(), dtype: "F32", shape: vec![6] };
    let mut writer = Writer::create(&path, &[info]).unwrap();
    writer.write(&(0..6).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    writer.finish().unwrap();
    let bytes: Bytes = std::fs::read(path).unwrap().into();
    let entries = zip::entries(&bytes).unwrap();
    let storage =
        |key: &str| entries.get(&format!("archive/data/{key}")).and_then(|r| bytes.slice(r.clone()));
    tensors::collect(&pickle::read(pickle)?, &storage, bytes.len())
}

fn refused(pickle: &[u8], word: &str) {
    let refusal = archive_of(pickle).unwrap_err();
    assert!(refusal.contains(word), "{refusal:?} does not say {word:?}");
}

/// A tensor over storage 0.
fn tensor(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let list =
        |v: &[u8]| [b"(".to_vec(), v.iter().flat_map(|n| [b'K', *n]).collect(), b"t".to_vec()].concat();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ".to_vec(),
        vec![b'K', offset],
        list(shape),
        list(strides),
        b"\x89NtR".to_vec(),
    ]
    .concat()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, Vec<u8>)| {
        [b"X".to_vec(), (key.len() as u32).to_le_bytes().to_vec(), key.as_bytes().to_vec(), value.clone()]
            .concat()
    };
    [b"}(".to_vec(), entries.iter().flat_map(entry).collect(), b"u".to_vec()].concat()
}

fn pickle(value: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02".to_vec(), value, b".".to_vec()].concat()
}

const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.bin");
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let infos = [
        info(EMBEDDING, "BF16", &[3, 2]),
        info("none", "F32", &[0, 4]),
        info("packed", "U8", &[5]),
        info("s", "F32", &[]),
    ];
    let mut writer = Writer::create(&path, &infos).unwrap();
    writer.write(&[1; 7]).unwrap();
    writer.write(&[2; 5]).unwrap();
    writer.write(&[3; 5]).unwrap();
    assert!(writer.write(&[4; 5]).is_err());
    writer.write(&1.5f32.to_le_bytes()).unwrap();
    writer.finish().unwrap();
    let found = read_bytes(std::fs::read(&path).unwrap()).unwrap();
    assert!(found.others.is_empty());
    let shown: Vec<_> =
        found.model.iter().map(|t| (t.name.as_str(), t.shape.clone(), t.bytes().to_vec())).collect();
    assert_eq!(
        shown,
        [
            (EMBEDDING, vec![3, 2], [[1; 7].to_vec(), [2; 5].to_vec()].concat()),
            ("none", vec![0, 4], vec![]),
            ("packed", vec![5], vec![3; 5]),
            ("s", vec![], 1.5f32.to_le_bytes().to_vec()),
        ]
    );
    assert!(matches!(found.model[0].ttype, TensorType::Dense(DenseType::BF16)));
    // A file that ends early has no directory.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 30);
    assert!(read_bytes(bytes).unwrap_err().contains("directory"));
}

#[test]
fn the_model_is_found_wherever_it_stands() {
    let t = || tensor(0, &[2, 3], &[3, 1]);
    for prefix in ["", "module.", "_orig_mod."] {
        let (embedding, other) = (format!("{prefix}{EMBEDDING}"), format!("{prefix}lm_head.weight"));
        let model = dict(&[(embedding.as_str(), t()), (other.as_str(), t())]);
        let state = dict(&[("state", dict(&[("exp_avg", t()), ("step", b"K\x05".to_vec())]))]);
        for (file, optimizer) in [
            (model.clone(), false),
            (
                dict(&[("optimizer", state.clone()), ("model", model.clone()), ("epoch", b"K\x03".to_vec())]),
                true,
            ),
            (dict(&[("a", dict(&[("state_dict", model.clone())])), ("optimizer", state.clone())]), true),
        ] {
            let found = archive_of(&pickle(file)).unwrap();
            let names = |v: &[Tensor]| v.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&found.model), [EMBEDDING, "lm_head.weight"]);
            assert_eq!(
                names(&found.others),
                if optimizer { vec!["optimizer.state.exp_avg"] } else { vec![] }
            );
        }
    }
}

#[test]
fn tensors_are_views_of_their_storage() {
    let values = |t: Vec<u8>| -> Result<Vec<f32>, String> {
        let found = archive_of(&pickle(dict(&[("x", t)])))?;
        Ok(found.others[0].bytes().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    assert_eq!(values(tensor(2, &[2, 2], &[2, 1])).unwrap(), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values(tensor(0, &[3, 2], &[1, 3])).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(values(tensor(1, &[1, 5], &[77, 1])).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    for (offset, shape, strides) in
        [(3, &[2, 2][..], &[2, 1][..]), (0, &[7], &[1]), (0, &[200, 200], &[0, 0]), (0, &[2, 3], &[200, 1])]
    {
        assert!(values(tensor(offset, shape, strides)).unwrap_err().contains("outside its storage"));
    }
}

#[test]
fn hostile_pickles_are_refused_by_name() {
    refused(b"cos\nsystem\n(X\x02\0\0\0idtR.", "os.system");
    refused(b"c__builtin__\neval\n.", "__builtin__.eval");
    refused(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system");
    refused(b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.", "builtins.exec");
    refused(b"(S'id'\nios\nsystem\n.", "0x53");
    refused(b"(ios\nsystem\n.", "class of its own");
    refused(b"ccollections\nOrderedDict\n)\x81.", "class of its own");
    refused(b"\x82\x01.", "registry");
    refused(b"K\x01}b.", "attributes");
    refused(b"ctorch\nSize\n}b.", "attributes");
    refused(b"K\x01)R.", "calls what is no name");
    refused(b"ctorch\nFloatStorage\n)R.", "no file of tensors");
    refused(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01))tR.", "makes no sense");
    refused(b"h\x07.", "memo 7");
    refused(b"P123\n.", "line of text");
    refused(b"00.", "stack");
    refused(b"(0.", "stack");
    refused(b"t.", "mark");
    refused(b"]K\x01K\x02s.", "keys");
    refused(b"}(K\x01u.", "without a value");
    refused(b"\x80\x09.", "protocol 9");
    refused(b"X\xff\xff\xff\xffabc.", "cut off");
    refused(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "cut off");
    refused(b"", "cut off");
}

#[test]
fn memo_bombs_and_deep_nesting_cost_no_more_than_their_bytes() {
    // Sixty lists, each of which holds the one before a hundred times.
    let mut bomb = b"\x80\x02]q\0".to_vec();
    for i in 0..60u8 {
        bomb.extend(b"](");
        (0..100).for_each(|_| bomb.extend([b'h', i]));
        bomb.extend([b'e', b'q', i + 1]);
    }
    bomb.push(b'.');
    refused(&bomb, "entries");
    // A list that holds itself.
    refused(b"]q\0h\0a.", "levels");
    // Lists that calls would copy again and again.
    let calls = |list: &[u8], call: &[u8]| [list, &call.repeat(10_000), b"."].concat();
    let long = [b"](".to_vec(), b"K\x01".repeat(5000), b"eq\0".to_vec()].concat();
    let pairs = [b"K\x01K\x02\x86q\x01](".to_vec(), b"h\x01".repeat(5000), b"eq\0".to_vec()].concat();
    refused(&calls(&pairs, b"ccollections\nOrderedDict\nh\0\x85R"), "than it has bytes");
    let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x02K\0h\0h\0tR";
    refused(&calls(&[long.clone(), b"K\0Qq\x02".to_vec()].concat(), rebuild), "than it has bytes");
    let same = pickle::read(&calls(&long, b"ctorch\nSize\nh\0\x85R")).unwrap();
    assert!(same.nodes.iter().filter(|n| matches!(n, pickle::Node::List(_))).count() == 1);
    refused(&b"]".repeat(5_000_000), "values");
    // One tensor that has to be put together, mentioned a thousand times; and one key that is in all names.
    let view = [tensor(0, &[3, 2], &[1, 3]), b"q\0".to_vec()].concat();
    let views = |key: &str| {
        dict(&[(key, [view.clone(), b"0](".to_vec(), b"h\0".repeat(1000), b"e".to_vec()].concat())])
    };
    refused(&pickle(views("x")), "too many views");
    refused(&pickle(views(&"x".repeat(5000))), "more than 4096 bytes");
    // A million lists, one in the other.
    let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], b".".to_vec()].concat();
    refused(&deep, "levels");
}

#[test]
fn the_older_format_is_read() {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(pickle(dict(&[
        ("little_endian", b"\x88".to_vec()),
        ("protocol_version", b"M\xe9\x03".to_vec()),
    ])));
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06NtQ".to_vec();
    let t = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        storage,
        b"K\0(K\x02K\x03t(K\x03K\x01t\x89NtR".to_vec(),
    ]
    .concat();
    file.extend(pickle(dict(&[(EMBEDDING, t)])));
    file.extend(b"\x80\x02](X\x01\0\0\x000e.");
    file.extend(6u64.to_le_bytes());
    file.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
    let found = read_bytes(file.clone()).unwrap();
    assert_eq!((found.model[0].shape.as_slice(), found.model[0].data.len()), (&[2, 3][..], 24));
    assert_eq!(found.model[0].bytes()[20..], 5.0f32.to_le_bytes());
    file.truncate(file.len() - 1);
    assert!(read_bytes(file).unwrap_err().contains("storage \"0\" is cut off"));
}
