use super::*;
use crate::{Checkpoint, FormatError, Header, Tensor, TensorType, open};
use bitnet_core::{Bytes, DenseType, Scale, TernaryMatrix};
use bitnet_quant::dense::dequantize_row;
use bitnet_quant::packing::{I2_S, I2_S_ARM, Packing, Q2_0_G64, Q2_0_G128};
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
        ("a".into(), Value::Strings(["x", "", "yz"].into_iter().collect())),
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
    // One more says how the I2_S tensor is packed.
    assert_eq!((version, metadata.0.len(), metadata.u32(BLOCK)), (3, 7, Some(128)));
    assert_eq!(metadata.str("general.architecture"), Some("bitnet"));
    assert_eq!((metadata.u32("u"), metadata.bool("b"), metadata.u32("f")), (Some(7), Some(true), None));
    // An array without elements is written as one of strings.
    let empty = Value::Strings(Strings::default());
    let nested = Value::Array(vec![Value::Array(vec![Value::I8(-1)]), empty]);
    assert_eq!(metadata.get("n"), Some(&nested));
    let strings: Vec<&str> = metadata.get("a").and_then(Value::as_strings).unwrap().iter().collect();
    assert_eq!(strings, ["x", "", "yz"]);
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
        TensorType::Dense(d) => dequantize_row(d, &tensor.bytes(), &mut values),
        TensorType::Ternary(packing) => {
            let m = (packing.unpack)(rows, *cols, &tensor.bytes()).unwrap();
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
            assert_eq!(want["sha256_data"], sha(&tensor.bytes()), "{}", tensor.name);
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
        let checkpoint = parse(file.clone()).unwrap();
        assert_eq!(checkpoint.tensor("w").unwrap().ttype.name(), packing.name);
        let checkpoint = parse(without_key(file, GROUP)).unwrap();
        assert_eq!(checkpoint.tensor("w").unwrap().ttype.name(), packing.name);
    }
    // One row of 128: 36 or 34 bytes, both of which end in the same 64.
    let file = |data| small(&[(info("w", &[1, 128], TensorType::Ternary(&Q2_0_G64)), data)]);
    let refusal = parse(without_key(file(vec![0x15; 36]), GROUP)).unwrap_err().to_string();
    for word in ["groups of 64 (ggml's)", "of 128 (Prism's first files')", "--from q2_0-g128"] {
        assert!(refusal.contains(word), "{refusal}");
    }
    // The scale of the second group would be codes, and one of them no trit.
    let mut data = vec![0x15; 36];
    data[19] = 0x3c;
    let found = parse(without_key(file(data), GROUP)).unwrap();
    assert_eq!(found.tensor("w").unwrap().ttype.name(), "Q2_0_G64");
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

/// A feed-forward block `[256 channels, 128]` whose channels have fewer or more zeros, the same ones in rows and columns, and a
/// `down` in a packing.
fn feed_forward(packing: &'static Packing, zeros_of: impl Fn(usize) -> u32) -> Vec<u8> {
    let (hidden, channels) = (128, 256);
    let mut state = 1u64;
    let mut trit = |channel: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = (state >> 40) as u32;
        if dice % 100 < zeros_of(channel) { 0 } else { 1 - 2 * (dice / 100 % 2) as i8 }
    };
    let rows: Vec<i8> = (0..channels * hidden).map(|i| trit(i / hidden)).collect();
    let columns: Vec<i8> = (0..channels * hidden).map(|i| trit(i % channels)).collect();
    let tensor = |name: &str, rows, cols, trits: &[i8]| {
        let m = TernaryMatrix::from_trits(rows, cols, trits, Scale::Tensor(1.0)).unwrap();
        let mut data = Vec::new();
        (packing.pack)(&m, &mut data).unwrap();
        (info(&format!("blk.0.ffn_{name}.weight"), &[rows, cols], TensorType::Ternary(packing)), data)
    };
    small(&[
        tensor("gate", channels, hidden, &rows),
        tensor("up", channels, hidden, &rows),
        tensor("down", hidden, channels, &columns),
    ])
}

/// A file as others write it: without our key.
fn without_key(mut file: Vec<u8>, key: &str) -> Vec<u8> {
    let at = file.windows(key.len()).position(|w| w == key.as_bytes()).unwrap();
    file[at] = b'B';
    file
}

const BLOCK: &str = "bitnet.i2_s.block_size";
const GROUP: &str = "bitnet.q2_0.group_size";

fn layout_of(file: Vec<u8>) -> Result<&'static str, String> {
    let found = parse(file).map_err(|e| e.to_string())?;
    Ok(found.tensor("blk.0.ffn_down.weight").unwrap().ttype.name())
}

#[test]
fn the_layout_of_i2_s_follows_from_what_channels_have_in_common() {
    for packing in [&I2_S, &I2_S_ARM] {
        // Some channels matter less than others, in no order.
        let uneven = feed_forward(packing, |channel| 20 + (channel * 2_654_435_761 % 977 % 60) as u32);
        assert_eq!(layout_of(uneven.clone()), Ok(packing.name), "by its key");
        assert_eq!(layout_of(without_key(uneven, BLOCK)), Ok(packing.name), "by its contents");
        // Random weights say nothing, and are taken for what all published files are.
        let even = feed_forward(packing, |_| 40);
        assert_eq!(layout_of(even.clone()), Ok(packing.name), "by its key");
        assert_eq!(layout_of(without_key(even.clone(), BLOCK)), Ok("I2_S"));
        let asked = ReadOptions { layout: Some(packing), ..ReadOptions::default() };
        let found = read_with(Path::new("test.gguf"), without_key(even, BLOCK).into(), &asked).unwrap();
        assert_eq!(found.tensor("blk.0.ffn_down.weight").unwrap().ttype.name(), packing.name);
        // Every sixteen channels alike: both orders go with the rows.
        let both = feed_forward(packing, |channel| 20 + (channel % 16 * 4) as u32);
        let refusal = layout_of(without_key(both, BLOCK)).unwrap_err();
        for word in ["blocks of 128 (bitnet.cpp's on x86)", "of 64 (bitnet.cpp's on ARM)", "--from i2_s-arm"]
        {
            assert!(refusal.contains(word), "{refusal}");
        }
    }
}

#[test]
fn the_layout_of_i2_s_follows_from_sizes_too() {
    // 192 codes are three blocks of 64, and no blocks of 128.
    let file = small(&[(info("w", &[1, 192], TensorType::Ternary(&I2_S_ARM)), vec![0x55; 80])]);
    let file = without_key(file, BLOCK);
    assert_eq!(parse(file).unwrap().tensor("w").unwrap().ttype.name(), "I2_S_ARM");
}

#[test]
fn a_key_that_makes_no_sense_is_refused() {
    let mut file = two();
    let at = file.windows(BLOCK.len()).position(|w| w == BLOCK.as_bytes()).unwrap() + BLOCK.len() + 4;
    file[at] = 77;
    let refusal = parse(file).unwrap_err().to_string();
    assert!(refusal.contains(BLOCK) && refusal.contains("neither 128 nor 64"), "{refusal}");
}
