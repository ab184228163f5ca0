use super::*;
use crate::{Checkpoint, FormatError, Header, Tensor, TensorType, open};
use bitnet_core::{Bytes, DenseType};
use bitnet_quant::dense::dequantize_row;
use bitnet_quant::packing::{I2_S, Q2_0_G64, Q2_0_G128};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf")
}

fn parse(bytes: Vec<u8>) -> Result<Checkpoint, FormatError> {
    read(Path::new("test.gguf"), Bytes::from(bytes))
}

/// A small file with every kind of metadata.
fn small(tensors: &[(TensorInfo, Vec<u8>)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let metadata = Metadata(vec![
        ("general.architecture".into(), Value::String("bitnet".into())),
        ("a".into(), Value::Array(vec![Value::String("x".into()), Value::String("yz".into())])),
        ("n".into(), Value::Array(vec![Value::Array(vec![Value::I8(-1)]), Value::Array(vec![])])),
        ("f".into(), Value::F32(0.5)),
        ("b".into(), Value::Bool(true)),
        ("u".into(), Value::U64(7)),
    ]);
    let infos: Vec<TensorInfo> = tensors.iter().map(|(t, _)| t.clone()).collect();
    let mut writer = Writer::create(&path, &metadata, &infos).unwrap();
    for (_, data) in tensors {
        writer.write(data).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    std::fs::read(&path).unwrap()
}

#[test]
fn metadata_come_back() {
    let Header::Gguf { version, metadata } = parse(two()).unwrap().header else { panic!() };
    assert_eq!((version, metadata.0.len()), (3, 6));
    assert_eq!(metadata.str("general.architecture"), Some("bitnet"));
    assert_eq!((metadata.u32("u"), metadata.bool("b"), metadata.u32("f")), (Some(7), Some(true), None));
    let nested = Value::Array(vec![Value::Array(vec![Value::I8(-1)]), Value::Array(vec![])]);
    assert_eq!(metadata.get("n"), Some(&nested));
}

fn info(name: &str, shape: &[usize], ttype: TensorType) -> TensorInfo {
    TensorInfo { name: name.into(), shape: shape.into(), ttype }
}

fn two() -> Vec<u8> {
    small(&[
        (info("norm", &[3], TensorType::Dense(DenseType::F32)), vec![1; 12]),
        (info("w", &[2, 128], TensorType::Ternary(&I2_S)), vec![0x55; 96]),
    ])
}

/// Little-endian f32.
fn dequantized(tensor: &Tensor) -> Vec<u8> {
    let (cols, outer) = tensor.shape.split_last().unwrap();
    let rows = outer.iter().product();
    let mut values = vec![0.0; rows * cols];
    match tensor.ttype {
        TensorType::Dense(d) => dequantize_row(d, &tensor.data, &mut values),
        TensorType::Ternary(packing) => {
            let m = (packing.unpack)(rows, *cols, &tensor.data).unwrap();
            for (i, v) in values.iter_mut().enumerate() {
                *v = f32::from(m.trit(i / cols, i % cols)) * m.scale_at(i / cols, i % cols);
            }
        }
        _ => panic!("{}", tensor.ttype.name()),
    }
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn fixtures_have_the_tensors_of_their_manifest() {
    let manifest: Json =
        serde_json::from_slice(&std::fs::read(fixtures().join("manifest.json")).unwrap()).unwrap();
    let sha = |data: &[u8]| Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut seen = 0;
    for entry in manifest.as_array().unwrap() {
        let checkpoint = open(&fixtures().join(entry["file"].as_str().unwrap())).unwrap();
        for want in entry["tensors"].as_array().unwrap() {
            let tensor = checkpoint.tensor(want["name"].as_str().unwrap()).unwrap();
            let shape: Vec<usize> = serde_json::from_value(want["shape_rows_first"].clone()).unwrap();
            assert_eq!(tensor.shape, shape);
            assert_eq!(want["sha256_data"], sha(&tensor.data), "{}", tensor.name);
            assert_eq!(want["sha256_dequant_f32"], sha(&dequantized(tensor)), "{}", tensor.name);
            seen += 1;
        }
    }
    assert!(seen > 50);
}

#[test]
fn every_truncation_is_an_error() {
    let file = two();
    for len in 0..file.len() {
        assert!(parse(file[..len].to_vec()).is_err(), "{len} of {} bytes", file.len());
    }
    parse(file).unwrap();
}

#[test]
fn every_flipped_byte_is_a_file_or_an_error() {
    let file = two();
    for at in 0..file.len() {
        for bits in [0xff, 0x80, 0x01] {
            let mut bad = file.clone();
            bad[at] ^= bits;
            let _ = parse(bad);
        }
    }
}

#[test]
fn counts_of_liars_are_refused_at_once() {
    let mut file = two();
    for at in [8, 16] {
        let old: [u8; 8] = file[at..at + 8].try_into().unwrap();
        file[at..at + 8].copy_from_slice(&(1u64 << 63).to_le_bytes());
        assert!(parse(file.clone()).is_err());
        file[at..at + 8].copy_from_slice(&old);
    }
}

/// Where the description of tensor `name` begins its type id.
fn type_id_at(file: &[u8], name: &str, dims: usize) -> usize {
    let at = file.windows(name.len()).rposition(|w| w == name.as_bytes()).unwrap();
    at + name.len() + 4 + 8 * dims
}

#[test]
fn types_that_cannot_be_read_are_named() {
    for (id, name) in [(38u32, "TL1"), (142, "PQ2_0"), (12, "Q4_K"), (9999, "unknown")] {
        let mut file = two();
        let at = type_id_at(&file, "norm", 1);
        file[at..at + 4].copy_from_slice(&id.to_le_bytes());
        let error = parse(file).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("norm") && error.contains(&id.to_string()), "{error}");
    }
}

#[test]
fn tensors_may_not_overlap_or_leave_the_file() {
    let file = two();
    let at = type_id_at(&file, "norm", 1) + 4;
    for offset in [32u64, 16, 1 << 40, u64::MAX] {
        let mut bad = file.clone();
        bad[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        assert!(parse(bad).is_err(), "{offset}");
    }
}

#[test]
fn the_dialect_of_q2_0_follows_from_sizes() {
    for packing in [&Q2_0_G64, &Q2_0_G128] {
        let data = vec![0x15; (packing.bytes)(64, 256).unwrap()];
        let file = small(&[(info("w", &[64, 256], TensorType::Ternary(packing)), data)]);
        let checkpoint = parse(file).unwrap();
        assert_eq!(checkpoint.tensor("w").unwrap().ttype.name(), packing.name);
    }
    // One row of 128: 36 or 34 bytes, both of which end in the same 64.
    let file = small(&[(info("w", &[1, 128], TensorType::Ternary(&Q2_0_G64)), vec![0x15; 36])]);
    assert!(parse(file).unwrap_err().to_string().contains("both"));
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing_and_one_that_finishes_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let infos = [info("norm", &[3], TensorType::Dense(DenseType::F32))];
    let mut writer = Writer::create(&path, &Metadata::default(), &infos).unwrap();
    writer.write(&[0; 4]).unwrap();
    assert!(writer.write(&[0; 9]).is_err());
    assert!(writer.finish().is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
