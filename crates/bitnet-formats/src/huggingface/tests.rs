use crate::safetensors_file::{self, TensorInfo, Writer};
use crate::{FormatError, Header, TensorType, open};
use bitnet_core::{Bytes, DenseType};
use std::path::Path;

fn write(path: &Path, tensors: &[(&str, &'static str, &[usize], Vec<u8>)]) {
    let infos = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorInfo { name: (*name).into(), dtype, shape: shape.to_vec() })
        .collect();
    let mut writer = Writer::create(path, &[("format".into(), "pt".into())], infos).unwrap();
    for (.., data) in tensors {
        writer.write(data).unwrap();
    }
    writer.finish().unwrap();
}

fn error(path: &Path) -> String {
    open(path).unwrap_err().to_string()
}

#[test]
fn a_fixture_opens_with_its_configuration() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bitnet-packed");
    let checkpoint = open(&dir).unwrap();
    let Header::HuggingFace { config, generation_config, .. } = &checkpoint.header else { panic!() };
    assert_eq!(config["hidden_size"], 128);
    assert!(generation_config["eos_token_id"].is_array() || generation_config["eos_token_id"].is_u64());
    let q = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert!(matches!(q.ttype, TensorType::U8));
    assert_eq!(q.shape, [32, 128]);
    assert!(matches!(
        checkpoint.tensor("model.norm.weight").unwrap().ttype,
        TensorType::Dense(DenseType::BF16)
    ));
}

#[test]
fn shards_are_joined_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(error(dir.path()).contains("config.json"));
    std::fs::write(at("config.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("model.safetensors"));
    write(&at("a.safetensors"), &[("x", "F32", &[1], vec![0; 4])]);
    write(&at("b.safetensors"), &[("y", "U8", &[2], vec![1, 2]), ("z", "F16", &[0], vec![])]);
    let index = |map: &str| {
        std::fs::write(at("model.safetensors.index.json"), format!("{{\"weight_map\":{map}}}")).unwrap();
    };
    index(r#"{"x":"a.safetensors","y":"b.safetensors"}"#);
    let checkpoint = open(dir.path()).unwrap();
    assert_eq!(&*checkpoint.tensor("y").unwrap().bytes(), &[1, 2]);
    assert_eq!(checkpoint.tensors().len(), 2);
    index(r#"{"x":"c.safetensors"}"#);
    assert!(error(dir.path()).contains("c.safetensors"));
    index(r#"{"missing":"a.safetensors"}"#);
    assert!(error(dir.path()).contains("\"missing\""));
    index(r#"{"x":"../a.safetensors"}"#);
    assert!(error(dir.path()).contains("../a.safetensors"));
    std::fs::write(at("config.json"), "{").unwrap();
    index(r#"{"x":"a.safetensors"}"#);
    assert!(error(dir.path()).contains("config.json"));
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    write(&path, &[("x", "F32", &[1], vec![0; 4]), ("y", "U8", &[3], vec![1, 2, 3])]);
    let file = std::fs::read(&path).unwrap();
    let read = |bytes: &[u8]| safetensors_file::read(Path::new("m"), &Bytes::from(bytes.to_vec()));
    assert_eq!(read(&file).unwrap().len(), 2);
    for len in 0..file.len() {
        assert!(read(&file[..len]).is_err(), "{len} of {} bytes", file.len());
    }
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 0x55;
        let _ = read(&bad);
    }
    let mut bad = file.clone();
    bad[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    assert!(matches!(read(&bad), Err(FormatError::Safetensors { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(error(&path).contains("empty"));
    std::fs::write(&path, b"hello, this is no model").unwrap();
    assert!(error(&path).contains("neither"));
    assert!(matches!(open(&dir.path().join("absent")), Err(FormatError::Io { .. })));
}
