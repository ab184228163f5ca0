//! Inputs that are no directory of safetensors: shards of PyTorch's, training checkpoints, graphs in ONNX, and GGUF files whose
//! types stand for two layouts.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_convert::{ConvertOptions, Method, Target, compare, convert, differences};
use bitnet_formats::safetensors_file::TensorInfo;
use bitnet_formats::{Checkpoint, ReadOptions, Tensor, onnx, open, open_with, torch};
use bitnet_quant::packing::I2_S_ARM;
use bitnet_testkit::golden::fixtures;
use bitnet_testkit::synthetic::{Arch, Spec, Store};
use bitnet_testkit::tensors::Float;
use serde_json::json;
use std::path::{Path, PathBuf};

fn info(t: &Tensor) -> TensorInfo {
    TensorInfo { name: t.name.clone(), dtype: t.ttype.name(), shape: t.shape.clone() }
}

fn same(a: &Checkpoint, b: &Checkpoint) {
    let found = compare(a, b, 1, &mut |_, _| {}).unwrap();
    assert!(found.roles.values().all(|r| r.is_same()) && found.unmatched.is_empty(), "{:?}", found.different);
    assert_eq!(differences(a, b).unwrap(), vec![]);
}

fn write_to(input: &Path, out: &Path, target: &str, quantize: Option<Method>) {
    let options = ConvertOptions { quantize, ..ConvertOptions::new(Target::find(target).unwrap()) };
    convert(&open(input).unwrap(), out, &options, &mut |_, _| {}).unwrap();
}

#[test]
fn shards_of_pytorch_are_the_model() {
    let (folder, source) = (tempfile::tempdir().unwrap(), open(&fixtures().join("bitnet-online")).unwrap());
    let at = |name: &str| folder.path().join(name);
    for entry in std::fs::read_dir(fixtures().join("bitnet-online")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    // The embedding is in the last one; the others do not look like a model.
    let mut map = serde_json::Map::new();
    let mut tensors: Vec<&Tensor> = source.tensors().iter().collect();
    tensors.sort_by_key(|t| t.name.contains("embed"));
    for (i, shard) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
        let file = format!("pytorch_model-{:05}-of-00003.bin", i + 1);
        let infos: Vec<TensorInfo> = shard.iter().map(|t| info(t)).collect();
        let mut writer = torch::Writer::create(&at(&file), &infos).unwrap();
        shard.iter().for_each(|t| writer.write(&t.bytes()).unwrap());
        writer.finish().unwrap();
        map.extend(shard.iter().map(|t| (t.name.clone(), json!(file))));
    }
    assert_eq!(map.values().collect::<std::collections::HashSet<_>>().len(), 3);
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(at("pytorch_model.bin.index.json"), index.to_string()).unwrap();
    let sharded = open(folder.path()).unwrap();
    assert_eq!((sharded.container, sharded.tensors().len()), ("PyTorch", source.tensors().len()));
    same(&source, &sharded);
    let outputs = tempfile::tempdir().unwrap();
    let [one, three] = ["one.gguf", "three.gguf"].map(|name| outputs.path().join(name));
    write_to(&fixtures().join("bitnet-online"), &one, "i2_s", None);
    write_to(folder.path(), &three, "i2_s", None);
    assert!(std::fs::read(one).unwrap() == std::fs::read(three).unwrap());
    // A shard that is not there, and one that lacks what the index says.
    std::fs::remove_file(at("pytorch_model-00002-of-00003.bin")).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("pytorch_model-00002-of-00003.bin"));
    std::fs::copy(at("pytorch_model-00001-of-00003.bin"), at("pytorch_model-00002-of-00003.bin")).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("should be"));
}

/// A dense Llama in safetensors.
fn dense_llama(folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).unwrap();
    let spec = Spec {
        arch: Arch::LLAMA_HF,
        projections: Store::Float(Float::F32),
        head: Some(Store::Float(Float::F32)),
        ..Spec::default()
    };
    spec.build(5).write(folder)
}

/// The columns of a matrix as rows.
fn transposed(t: &Tensor) -> Vec<u8> {
    let (rows, cols, bytes) = (t.shape[0], t.shape[1], t.bytes());
    let elements = bytes.as_chunks::<4>().0;
    (0..rows * cols).flat_map(|i| elements[i % rows * cols + i / rows]).collect()
}

#[test]
fn a_float_graph_becomes_ternary() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = open(&dense_llama(&at("dense"))).unwrap();
    assert!(source.tensor("lm_head.weight").is_some());
    let want = at("want.gguf");
    write_to(&at("dense"), &want, "i2_s", Some(Method::Absmean));
    // Initializers under the names of the model's parameters; and as exporters leave them, who fold transpositions into
    // weights, forget their names, and name the products instead.
    for folded in [false, true] {
        let dir = at(if folded { "folded" } else { "named" });
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(at("dense").join("config.json"), dir.join("config.json")).unwrap();
        let is_folded = |t: &Tensor| folded && (t.name.contains("_proj.") || t.name == "lm_head.weight");
        let (mut graph, mut infos, mut data) = (onnx::Graph::default(), vec![], vec![]);
        for (i, t) in source.tensors().iter().enumerate() {
            let mut info = info(t);
            if is_folded(t) {
                (info.name, info.shape) = (format!("onnx::MatMul_{i}"), vec![t.shape[1], t.shape[0]]);
                let module = t.name.strip_suffix(".weight").unwrap().replace('.', "/");
                graph.nodes.push(onnx::Node {
                    op: "MatMul",
                    inputs: vec!["x".to_owned(), info.name.clone()],
                    // The node takes its result's name.
                    outputs: vec![format!("/{module}/MatMul")],
                    attributes: vec![],
                });
                data.push(transposed(t));
            } else {
                data.push(t.bytes().to_vec());
            }
            infos.push(info);
        }
        let mut writer = onnx::Writer::create(&dir, &graph, &infos).unwrap();
        data.iter().for_each(|bytes| writer.write(bytes).unwrap());
        writer.finish().unwrap();
        let found = open(&dir).unwrap();
        assert_eq!(found.container, "ONNX");
        same(&source, &found);
        for (input, out) in [(dir.clone(), "a.gguf"), (dir.join("model.onnx"), "b.gguf")] {
            write_to(&input, &at(out), "i2_s", Some(Method::Absmean));
            assert!(std::fs::read(at(out)).unwrap() == std::fs::read(&want).unwrap(), "{}", input.display());
        }
    }
}

#[test]
fn a_layout_is_what_the_file_says_or_what_the_caller_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = open(&fixtures().join("bitnet-packed")).unwrap();
    write_to(&fixtures().join("bitnet-packed"), &at("x86.gguf"), "i2_s", None);
    write_to(&fixtures().join("bitnet-packed"), &at("arm.gguf"), "i2_s-arm", None);
    // Files of others do not say it.
    let mut bytes = std::fs::read(at("arm.gguf")).unwrap();
    let key = b"bitnet.i2_s.block_size";
    let place = bytes.windows(key.len()).position(|w| w == key).unwrap();
    bytes[place] = b'B';
    std::fs::write(at("silent.gguf"), bytes).unwrap();
    for name in ["x86.gguf", "arm.gguf"] {
        same_trits(&source, &open(&at(name)).unwrap(), true);
    }
    let silent = open(&at("silent.gguf")).unwrap();
    same_trits(&source, &silent, false);
    let options = ReadOptions { layout: Some(&I2_S_ARM), ..ReadOptions::default() };
    let told = open_with(&at("silent.gguf"), &options).unwrap();
    same_trits(&source, &told, true);
    // What is made of it says it again.
    let target = ConvertOptions::new(Target::find("i2_s-arm").unwrap());
    convert(&told, &at("again.gguf"), &target, &mut |_, _| {}).unwrap();
    same_trits(&source, &open(&at("again.gguf")).unwrap(), true);
    // There must be something that it is about.
    write_to(&fixtures().join("bitnet-packed"), &at("q2.gguf"), "q2_0", None);
    for path in [at("q2.gguf"), fixtures().join("bitnet-packed")] {
        assert!(open_with(&path, &options).is_err(), "{}", path.display());
    }
}

fn same_trits(a: &Checkpoint, b: &Checkpoint, expected: bool) {
    assert_eq!(
        compare(a, b, 1, &mut |_, _| {}).unwrap().trits_differ() == 0,
        expected,
        "{}",
        b.path.display()
    );
}
