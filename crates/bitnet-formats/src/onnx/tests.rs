use super::wire::{put_bytes, put_number};
use super::*;
use crate::safetensors_file::TensorInfo;
use crate::{FormatError, Tensor, TensorData, TensorType};
use bitnet_core::Bytes;
use std::path::Path;

fn message(fields: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(n, bytes)| put_bytes(&mut out, *n, bytes));
    out
}

fn tensor(name: &str, dims: &[u64], kind: u64, more: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    dims.iter().for_each(|d| put_number(&mut out, 1, *d));
    put_number(&mut out, 2, kind);
    put_bytes(&mut out, 8, name);
    out.extend(message(more));
    out
}

fn model(graph: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 1, 8);
    put_bytes(&mut out, 7, message(graph));
    out
}

fn read_bytes(bytes: Vec<u8>) -> Result<Contents, FormatError> {
    read(Path::new("model.onnx"), &Bytes::from(bytes))
}

fn refused(graph: &[(u64, Vec<u8>)], word: &str) {
    let refusal = read_bytes(model(graph)).unwrap_err().to_string();
    assert!(refusal.contains(word), "{refusal:?} does not say {word:?}");
}

const F: [u8; 24] = [0, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64, 0, 0, 160, 64];

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let graph = Graph {
        nodes: vec![Node {
            op: "Gather",
            inputs: vec!["model.embed_tokens.weight".to_owned(), "ids".to_owned()],
            outputs: vec!["x".to_owned()],
            attributes: vec![
                ("axis", Attribute::Int(-1)),
                ("perm", Attribute::Ints(vec![1, 0])),
                ("f", Attribute::Float(2.0)),
            ],
        }],
        constants: vec![(info("eps", "F32", &[]), vec![0, 0, 128, 63])],
        inputs: vec![Value { name: "ids", dtype: "I64", dims: vec!["n".to_owned(), "3".to_owned()] }],
        outputs: vec![],
    };
    let infos = [info("model.embed_tokens.weight", "F32", &[2, 3]), info("model.x.weight", "I8", &[1, 5])];
    let mut writer = Writer::create(dir.path(), &graph, &infos).unwrap();
    writer.write(&F[..7]).unwrap();
    writer.write(&F[7..]).unwrap();
    assert!(!dir.path().join("model.onnx").exists());
    writer.write(&[1, 255, 0, 0, 1]).unwrap();
    writer.finish().unwrap();
    let path = dir.path().join("model.onnx");
    let found = read(&path, &std::fs::read(&path).unwrap().into()).unwrap();
    let shown = |v: &[Tensor]| {
        v.iter().map(|t| (t.name.clone(), t.shape.clone(), t.bytes().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&found.model),
        [
            ("model.embed_tokens.weight".to_owned(), vec![2, 3], F.to_vec()),
            ("model.x.weight".to_owned(), vec![1, 5], vec![1, 255, 0, 0, 1]),
        ]
    );
    assert!(matches!(found.model[1].ttype, TensorType::Ternary(p) if p.name == "I8"));
    assert_eq!(shown(&found.others), [("eps".to_owned(), vec![], vec![0, 0, 128, 63])]);
}

#[test]
fn folded_transpositions_are_undone() {
    for module in ["model.layers.0.mlp.up_proj", "lm_head"] {
        let node = message(&[
            (1, b"x".to_vec()),
            (1, b"onnx::MatMul_7".to_vec()),
            (2, b"y".to_vec()),
            (3, format!("/{}/MatMul", module.replace('.', "/")).into_bytes()),
            (4, b"MatMul".to_vec()),
        ]);
        let weight = tensor("onnx::MatMul_7", &[2, 3], 1, &[(9, F.to_vec())]);
        let found = read_bytes(model(&[(1, node), (5, weight)])).unwrap();
        let t = &found.model[0];
        assert_eq!((&t.name, &t.shape[..]), (&format!("{module}.weight"), &[3, 2][..]));
        let values: Vec<f32> = t.bytes().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert!(matches!(t.data, TensorData::Strided(_)), "it was put in order before it was asked for");
    }
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let raw = |name: &str, dims: &[u64], kind| vec![(5, tensor(name, dims, kind, &[(9, F.to_vec())]))];
    assert!(read_bytes(model(&raw("x", &[2, 3], 1))).is_ok());
    refused(&raw("x", &[2, 4], 1), "24");
    refused(&raw("x", &[1 << 40, 1 << 40], 1), "shape");
    refused(&raw("x", &[2, 3], 99), "type 99");
    refused(&raw("x", &[1; 9], 1), "dimensions");
    refused(&[(5, tensor("x", &[2, 3], 1, &[]))], "neither");
    refused(&[], "initializers");
    let external = |entries: &[(&str, &str)]| {
        let mut t = tensor("x", &[2, 3], 1, &[]);
        for (key, value) in entries {
            put_bytes(&mut t, 13, message(&[(1, key.as_bytes().to_vec()), (2, value.as_bytes().to_vec())]));
        }
        put_number(&mut t, 14, 1);
        vec![(5, t)]
    };
    refused(&external(&[("location", "../secret")]), "directory");
    refused(&external(&[("location", "/etc/passwd")]), "directory");
    refused(&external(&[]), "without a name");
    refused(&external(&[("location", "x"), ("offset", "-1")]), "nowhere");
    refused(&external(&[("location", "no such file")]), "no such file");
    // Every beginning of a file is a file or an error.
    let whole = model(&raw("x", &[2, 3], 1));
    (0..whole.len()).for_each(|end| drop(read_bytes(whole[..end].to_vec())));
}

#[test]
fn one_range_of_a_file_is_not_transposed_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("weights"), vec![0; 24_000]).unwrap();
    let pair = |i: u32| {
        let mut t = tensor(
            &format!("w{i}"),
            &[60, 100],
            1,
            &[(13, message(&[(1, b"location".to_vec()), (2, b"weights".to_vec())]))],
        );
        put_number(&mut t, 14, 1);
        let module = format!("/model/layers.{i}/mlp/up_proj/MatMul").into_bytes();
        let node = message(&[
            (1, b"x".to_vec()),
            (1, format!("w{i}").into_bytes()),
            (3, module),
            (4, b"MatMul".to_vec()),
        ]);
        [(1, node), (5, t)]
    };
    let of = |n: u32| {
        let file = model(&(0..n).flat_map(pair).collect::<Vec<_>>());
        read(&dir.path().join("model.onnx"), &file.into())
    };
    assert_eq!(of(1).unwrap().model[0].shape, [100, 60]);
    assert!(of(2).unwrap_err().to_string().contains("than its files hold"));
}
