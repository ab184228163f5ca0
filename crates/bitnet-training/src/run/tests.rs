use super::*;
use crate::model::Model;
use crate::model::tests::slope_and_gradient;
use crate::{Ops, example};
use bitnet_cpu::CpuTraining;
use bitnet_testkit::golden;
use bitnet_testkit::training::Plain;
use std::path::Path;
use std::sync::Arc;

const WORDS: [&str; 8] = ["ships", "at", "night", "sail", "home", "from", "the", "sea"];

/// A folder with data, and the tokenizer of the tiny models.
pub(super) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let line = |i: usize| -> String {
        (0..40).map(|j| WORDS[(i * 7 + j * (i + 3)) % 8]).flat_map(|w| [w, " "]).collect()
    };
    let lines: String = (0..60).map(|i| format!("{{\"text\": \"{}\"}}\n", line(i))).collect();
    std::fs::write(folder.path().join("train.jsonl"), lines).unwrap();
    let chats: String = (0..20)
        .map(|i| {
            format!("{{\"prompt\": \"{}?\", \"completion\": \" {}\"}}\n", WORDS[i % 8], WORDS[(i + 1) % 8])
        })
        .collect();
    std::fs::write(folder.path().join("chat.jsonl"), chats).unwrap();
    let pairs: String = (0..20)
        .map(|i| {
            let (word, good, bad) = (WORDS[i % 8], WORDS[(i + 1) % 8], WORDS[(i + 3) % 8]);
            format!("{{\"prompt\": \"{word}?\", \"chosen\": \" {good}\", \"rejected\": \" {bad} {word}\"}}\n")
        })
        .collect();
    std::fs::write(folder.path().join("pairs.jsonl"), pairs).unwrap();
    folder
}

/// The example, made small.
fn config(kind: Kind, folder: &Path, changes: &[&str]) -> RunConfig {
    let at = |name: &str| folder.join(name).display().to_string();
    let tokenizer = golden::fixtures().join("bitnet-online").display().to_string();
    let mut all = vec![
        format!("output={}", at("run")),
        "train.steps=12".to_owned(),
        "train.batch=2".to_owned(),
        "train.accumulate=2".to_owned(),
        "train.checkpoint_every=3".to_owned(),
        "train.validate_every=4".to_owned(),
        "train.log_every=1".to_owned(),
        "threads=2".to_owned(),
    ];
    all.extend(match kind {
        Kind::Pretrain => vec![
            format!("model.tokenizer={tokenizer}"),
            "model.hidden_size=64".to_owned(),
            "model.intermediate_size=128".to_owned(),
            "model.num_hidden_layers=2".to_owned(),
            "model.num_attention_heads=2".to_owned(),
            "model.num_key_value_heads=1".to_owned(),
            format!("data.train={}", at("train.jsonl")),
            "data.sequence=48".to_owned(),
        ],
        Kind::Qat | Kind::Distill => {
            vec![format!("data.train={}", at("train.jsonl")), "data.sequence=48".to_owned()]
        }
        Kind::Sft | Kind::Lora => {
            vec![format!("model.init={tokenizer}"), format!("data.train={}", at("chat.jsonl"))]
        }
        Kind::Dpo => vec![format!("model.init={tokenizer}"), format!("data.train={}", at("pairs.jsonl"))],
    });
    all.extend(changes.iter().map(|c| (*c).to_owned()));
    RunConfig::parse("example", example(kind.name()).unwrap(), kind, &all).unwrap()
}

fn go(config: &RunConfig, resume: bool) -> Result<(Outcome, Vec<Event>), TrainError> {
    let mut events = Vec::new();
    let outcome = run(config, resume, &AtomicBool::new(false), &mut |e| events.push(e))?;
    Ok((outcome, events))
}

/// Bytes of a checkpoint's files and of the metrics, without what tells of time.
fn left(output: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    let path = Checkpoints::of(output).path(step);
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort_unstable();
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let timeless = metrics.lines().map(|line| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let line = value.as_object_mut().unwrap();
        ["tokens_per_second", "resident_bytes", "peak_bytes"].iter().for_each(|key| drop(line.remove(*key)));
        value.to_string()
    });
    files.push(("metrics".to_owned(), timeless.collect::<Vec<_>>().join("\n").into_bytes()));
    files
}

#[test]
fn a_model_learns_and_can_be_run() {
    let folder = folder();
    let (outcome, events) = go(
        &config(Kind::Pretrain, folder.path(), &["train.steps=60", "train.rate=5e-3", "train.export=f32"]),
        false,
    )
    .unwrap();
    assert_eq!((outcome.stopped, outcome.step), (Stopped::Done, 60));
    let losses: Vec<f64> = events
        .iter()
        .filter_map(|e| match e {
            Event::Steps { loss, .. } => Some(*loss),
            _ => None,
        })
        .collect();
    assert!((losses[0] - (512f64).ln()).abs() < 0.3, "{losses:?}");
    assert!(losses[59] < 4.0, "{losses:?}");
    let path = outcome.model.unwrap();
    let mut model = bitnet_inference::Model::open(&path, &Default::default(), &mut |_, _| {}).unwrap();
    let prompt = model.encode("ships at").unwrap();
    let options =
        bitnet_inference::GenerateOptions { max_tokens: Some(8), ignore_eos: true, ..Default::default() };
    assert!(model.generate(&prompt, options).unwrap().all(|piece| piece.is_ok()));
}

#[test]
fn going_on_gives_the_bits_of_a_run_in_one_go() {
    let folder = folder();
    let whole = config(Kind::Pretrain, folder.path(), &[]);
    go(&whole, false).unwrap();
    let want = left(&whole.output, 12);
    for at in [1, 4, 7] {
        let folder = self::folder();
        let output = folder.path().join("run");
        let config = config(Kind::Pretrain, folder.path(), &["threads=1"]);
        // Interrupted behind some steps; then as if killed there: without the checkpoint that an interrupt leaves.
        let stop = AtomicBool::new(false);
        let seen = |e: Event| {
            if let Event::Steps { step, .. } = e {
                stop.store(step >= at, Ordering::Relaxed);
            }
        };
        let outcome = run(&config, false, &stop, &mut { seen }).unwrap();
        assert_eq!((outcome.stopped, outcome.step, outcome.model), (Stopped::Interrupted, at, None));
        if at == 7 {
            std::fs::remove_dir_all(&outcome.checkpoint).unwrap();
        }
        let refused = go(&config, false).unwrap_err().to_string();
        assert!(refused.contains("--resume goes on"), "{refused}");
        let (outcome, _) = go(&config, true).unwrap();
        assert_eq!(outcome.step, 12);
        let got = left(&output, 12);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!(got == want, "{} behind {at} steps", got.0);
        }
    }
}

/// Learned steps, random rounding and a ramp: all of it goes on, and what is left can be run.
#[test]
fn quantizers_go_on_to_the_bits_of_a_run_in_one_go() {
    for quantizer in [
        &["quantize.weights=lsq", "quantize.rounding=stochastic", "quantize.ramp=9"][..],
        &[
            "quantize.weights=seq",
            "quantize.activations=a4.8",
            "quantize.ramp=9",
            "quantize.ramp_order=layers",
        ],
    ] {
        let folder = folder();
        let changes = [quantizer, &["train.rate=5e-3", "train.keep=9"]].concat();
        let whole = config(Kind::Pretrain, folder.path(), &changes);
        let (outcome, events) = go(&whole, false).unwrap();
        let told = events.iter().any(|e| matches!(e, Event::RunOtherwise { .. }));
        assert_eq!(told, quantizer[0].ends_with("seq"));
        let want = left(&whole.output, 12);
        let checkpoints = Checkpoints::of(&whole.output);
        let steps = |step: u64| {
            let path = checkpoints.path(step).join("masters.safetensors");
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            file.tensor("model.layers.0.mlp.up_proj.weight_steps").unwrap().data().to_vec()
        };
        assert_ne!(steps(6), steps(9));
        for step in checkpoints.steps().into_iter().filter(|step| *step > 6) {
            std::fs::remove_dir_all(checkpoints.path(step)).unwrap();
        }
        go(&whole, true).unwrap();
        assert!(left(&whole.output, 12) == want, "{quantizer:?}");
        for path in [outcome.model.unwrap(), checkpoints.path(12)] {
            let mut model =
                bitnet_inference::Model::open(&path, &Default::default(), &mut |_, _| {}).unwrap();
            let prompt = model.encode("ships at").unwrap();
            let options = bitnet_inference::GenerateOptions { max_tokens: Some(2), ..Default::default() };
            assert!(model.generate(&prompt, options).unwrap().all(|piece| piece.is_ok()));
        }
    }
}

/// Muon's momentum and the average of parameters go on; it is the average that is exported.
#[test]
fn optimizers_go_on_to_the_bits_of_a_run_in_one_go() {
    let folder = folder();
    let changes =
        ["train.optimizer=muon", "train.ema=0.8", "train.rate=5e-3", "train.keep=9", "train.export=f32"];
    let whole = config(Kind::Pretrain, folder.path(), &changes);
    let (outcome, _) = go(&whole, false).unwrap();
    let want = left(&whole.output, 12);
    let checkpoints = Checkpoints::of(&whole.output);
    for step in checkpoints.steps().into_iter().filter(|step| *step > 6) {
        std::fs::remove_dir_all(checkpoints.path(step)).unwrap();
    }
    go(&whole, true).unwrap();
    assert!(left(&whole.output, 12) == want);
    let tensors = |path: PathBuf| -> std::collections::BTreeMap<String, Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
    };
    let kept = tensors(checkpoints.path(12).join("optimizer.safetensors"));
    let values = tensors(checkpoints.path(12).join("model.safetensors"));
    for (name, data) in tensors(outcome.model.unwrap().join("model.safetensors")) {
        assert_eq!(kept[&format!("average.{name}")], data, "{name}");
        assert_ne!(values[&name], data, "{name}");
        // A projection has momentum only.
        assert_eq!(kept.contains_key(&format!("exp_avg_sq.{name}")), !name.contains("_proj"), "{name}");
    }
}

/// A dense model becomes ternary: it gets norms, goes on from a checkpoint to the same bits, and is run as any other.
#[test]
fn a_dense_model_becomes_ternary() {
    for (architecture, norm) in [
        ("LlamaForCausalLM", "mlp.ffn_layernorm.weight"),
        ("Qwen3ForCausalLM", "mlp.up_proj.rms_norm.weight"),
        // It has its norms from the start.
        ("BitNetForCausalLM", "mlp.ffn_sub_norm.weight"),
    ] {
        let folder = folder();
        let dense = [
            &format!("model.architecture={architecture}")[..],
            "quantize.weights=none",
            "train.rate=1e-2",
            "train.steps=40",
            "train.checkpoint_every=40",
            "train.export=f32",
        ];
        let first = go(&config(Kind::Pretrain, folder.path(), &dense), false).unwrap().0;
        let init = folder.path().join("dense");
        std::fs::rename(first.model.unwrap(), &init).unwrap();
        std::fs::remove_dir_all(folder.path().join("run")).unwrap();
        let floats = bitnet_formats::open(&init).unwrap();
        let body = bitnet_model::ModelConfig::read(&floats).unwrap();
        let tensors = bitnet_model::ModelTensors::new(&floats, &body);
        for slot in tensors.slots().into_iter().filter(|slot| slot.role.is_projection()) {
            assert!(
                matches!(tensors.matrix(&slot).unwrap(), bitnet_core::Matrix::Dense(_)),
                "{architecture}"
            );
        }
        let changes = [
            &format!("model.init={}", init.display())[..],
            "quantize.ramp=8",
            "train.rate=5e-3",
            "train.steps=20",
            "train.keep=9",
            "train.freeze=*.embed_tokens.*",
            "train.freeze_layers=[1, 1]",
        ];
        let whole = config(Kind::Qat, folder.path(), &changes);
        let (outcome, events) = go(&whole, false).unwrap();
        let losses: Vec<f64> = events
            .iter()
            .filter_map(|e| match e {
                Event::Validation { loss, .. } => Some(*loss),
                _ => None,
            })
            .collect();
        assert!(losses.last() < losses.first(), "{losses:?}");
        let want = left(&whole.output, 20);
        for step in [12, 15, 16, 18, 20] {
            std::fs::remove_dir_all(Checkpoints::of(&whole.output).path(step)).unwrap();
        }
        go(&whole, true).unwrap();
        assert!(left(&whole.output, 20) == want, "{architecture}");
        let tensors = |path: &Path| -> std::collections::BTreeMap<String, Vec<u8>> {
            let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            file.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
        };
        let (before, after) = (tensors(&init), tensors(&Checkpoints::of(&whole.output).path(20)));
        assert!(after.contains_key(&format!("model.layers.0.{norm}")), "{:?}", after.keys());
        for (name, data) in &before {
            let frozen = name.contains("embed_tokens") || name.contains("layers.1.");
            assert_eq!(after[name] == *data, frozen, "{name}");
        }
        let path = outcome.model.unwrap();
        let mut model = bitnet_inference::Model::open(&path, &Default::default(), &mut |_, _| {}).unwrap();
        let prompt = model.encode("ships at").unwrap();
        let options = bitnet_inference::GenerateOptions { max_tokens: Some(2), ..Default::default() };
        assert!(model.generate(&prompt, options).unwrap().all(|piece| piece.is_ok()));
    }
}

/// A student learns from what it was before it became ternary, and goes on from a checkpoint to the same bits.
#[test]
fn a_student_learns_from_its_teacher() {
    let folder = folder();
    let dense = [
        "model.architecture=LlamaForCausalLM",
        "quantize.weights=none",
        "train.rate=1e-2",
        "train.steps=40",
        "train.checkpoint_every=40",
    ];
    let first = go(&config(Kind::Pretrain, folder.path(), &dense), false).unwrap().0;
    let teacher = folder.path().join("teacher");
    std::fs::rename(first.model.unwrap(), &teacher).unwrap();
    std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    let (init, of) =
        (format!("model.init={}", teacher.display()), format!("distill.teacher={}", teacher.display()));
    let changes = [&init[..], &of, "train.rate=5e-3", "train.steps=24", "train.keep=9"];
    let whole = config(Kind::Distill, folder.path(), &changes);
    go(&whole, false).unwrap();
    let want = left(&whole.output, 24);
    for step in [16, 18, 20, 21, 24] {
        std::fs::remove_dir_all(Checkpoints::of(&whole.output).path(step)).unwrap_or_default();
    }
    let (outcome, _) = go(&whole, true).unwrap();
    assert!(left(&whole.output, 24) == want);
    let metrics = std::fs::read_to_string(whole.output.join("metrics.jsonl")).unwrap();
    let lessons: Vec<[f64; 2]> = metrics
        .lines()
        .filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            Some([line.get("logits_divergence")?.as_f64()?, line.get("relations_divergence")?.as_f64()?])
        })
        .collect();
    assert_eq!(lessons.len(), 24);
    assert!((0..2).all(|i| lessons[23][i] < lessons[0][i]), "{lessons:?}");
    assert!(
        bitnet_inference::Model::open(&outcome.model.unwrap(), &Default::default(), &mut |_, _| {}).is_ok()
    );

    // A teacher whose words are others.
    let path = teacher.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let student = folder.path().join("student");
    std::fs::create_dir(&student).unwrap();
    for file in std::fs::read_dir(&teacher).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), student.join(file.file_name())).unwrap();
    }
    tokenizer["added_tokens"][0]["content"] = "<other>".into();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let other = format!("model.init={}", student.display());
    std::fs::remove_dir_all(&whole.output).unwrap();
    for (change, words) in [
        ("distill.layer=2", "distill.layer is 2, and the layers are 0 to 1"),
        ("distill.relation_heads=5", "distill.relation_heads is 5, which must divide"),
        ("distill.teacher=/nowhere", "there is no such file or directory"),
        (&other, "its tokenizer has another token"),
    ] {
        let error = go(&config(Kind::Distill, folder.path(), &[&changes[..], &[change]].concat()), false);
        let error = crate::error::chain(&error.unwrap_err());
        assert!(error.contains(words), "{change}: {error}");
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_taken() {
    let folder = folder();
    let whole = config(Kind::Pretrain, folder.path(), &["train.keep=9"]);
    go(&whole, false).unwrap();
    let want = left(&whole.output, 12);
    let checkpoints = Checkpoints::of(&whole.output);
    assert!([3, 6, 9, 12].iter().all(|step| checkpoints.steps().contains(step)));
    let weights = checkpoints.path(12).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(checkpoints.path(9).join("optimizer.safetensors")).unwrap();
    let (_, events) = go(&whole, true).unwrap();
    let said: Vec<&String> = events
        .iter()
        .filter_map(|e| match e {
            Event::Damaged { why } => Some(why),
            _ => None,
        })
        .collect();
    assert!(said[0].contains("step-00000012: model.safetensors is not what was written"), "{said:?}");
    assert!(said[1].contains("step-00000009: optimizer.safetensors is missing"), "{said:?}");
    assert!(left(&whole.output, 12) == want);
}

#[test]
fn only_the_newest_and_the_best_checkpoints_stay() {
    let folder = folder();
    let config = config(Kind::Pretrain, folder.path(), &["train.keep=1", "train.checkpoint_every=1"]);
    let (outcome, events) = go(&config, false).unwrap();
    let best = events.iter().rev().find_map(|e| match e {
        Event::Validation { step, best: true, .. } => Some(*step),
        _ => None,
    });
    let mut want = vec![best.unwrap(), outcome.step];
    want.dedup();
    assert_eq!(Checkpoints::of(&config.output).steps(), want);
}

#[test]
fn fine_tuning_learns_answers() {
    let folder = folder();
    let changes = ["train.rate=3e-3", "train.steps=40", "data.validation_share=0.0", "train.export=f32"];
    let config = config(Kind::Sft, folder.path(), &changes);
    let (outcome, events) = go(&config, false).unwrap();
    let first = events.iter().find_map(|e| match e {
        Event::Steps { loss, .. } => Some(*loss),
        _ => None,
    });
    assert!(outcome.loss.unwrap() < 0.6 * first.unwrap(), "{first:?} {:?}", outcome.loss);
    assert!(outcome.validation.is_none());
}

#[test]
fn a_run_that_gets_no_better_ends_early() {
    let folder = folder();
    // A learning rate that is too small to matter, and one that ruins the model.
    let changes = [
        "train.patience=2",
        "train.validate_every=1",
        "train.schedule=constant",
        "train.rate=0.5",
        "train.steps=200",
    ];
    let (outcome, _) = go(&config(Kind::Pretrain, folder.path(), &changes), false).unwrap();
    assert_eq!(outcome.stopped, Stopped::Early);
    assert!(outcome.step < 200 && outcome.model.is_some());
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = folder();
    for (changes, words) in [
        (&["data.sequence=4096"][..], "data.sequence is 4096, and the model's context has 1024"),
        (&["data.train=nowhere.txt"], "nowhere.txt"),
        (&["model.tokenizer=/nowhere"], "there is neither tokenizer.json nor tokenizer.model in it"),
        (&["model.num_attention_heads=5"], "num_attention_heads"),
        (
            &["train.freeze=*.router.*"],
            "train.freeze names *.router.*, and no tensor of the model is called so",
        ),
        (
            &["train.freeze_layers=[0, 2]"],
            "train.freeze_layers ends with 2, and the model has the layers 0 to 1",
        ),
        (&["train.freeze=*"], "leave nothing to train"),
        (&["threads=100000"], "threads were asked for"),
    ] {
        let error = go(&config(Kind::Pretrain, folder.path(), changes), false).unwrap_err();
        let error = crate::error::chain(&error);
        assert!(error.contains(words), "{changes:?}: {error}");
    }
    let long = format!("samples.prompts={}", "ships ".repeat(1500));
    let error = go(&config(Kind::Pretrain, folder.path(), &[&long]), false).unwrap_err().to_string();
    assert!(error.contains("samples.prompts: ") && error.contains("the model's context 1024"), "{error}");
}

/// A state that is no number ends the run with the step and the layer; weights stay what they were.
#[test]
fn a_loss_that_is_no_number_is_told() {
    let folder = folder();
    let changes =
        ["train.schedule=constant", "train.rate=1e38", "train.warmup=0", "train.clip=0", "train.steps=20"];
    let error = go(&config(Kind::Pretrain, folder.path(), &changes), false).unwrap_err().to_string();
    assert!(error.starts_with("the loss of step ") && error.contains("behind "), "{error}");
}

#[test]
fn an_adapter_learns_goes_on_and_is_one_that_is_run_and_merged() {
    let folder = folder();
    let changes = [
        "train.rate=2e-2",
        "train.steps=30",
        "data.validation_share=0.0",
        "lora.targets=[\"*.q_proj\", \"down_proj\"]",
        "lora.dropout=0.1",
    ];
    let whole = config(Kind::Lora, folder.path(), &changes);
    let (outcome, events) = go(&whole, false).unwrap();
    let first = events.iter().find_map(|e| match e {
        Event::Steps { loss, .. } => Some(*loss),
        _ => None,
    });
    assert!(outcome.loss.unwrap() < 0.9 * first.unwrap(), "{first:?} {:?}", outcome.loss);
    let want = left(&whole.output, 30);
    // Again from the checkpoint before the last one.
    std::fs::remove_dir_all(Checkpoints::of(&whole.output).path(30)).unwrap();
    go(&whole, true).unwrap();
    assert!(left(&whole.output, 30) == want);
    // As the engine reads it.
    let base = golden::fixtures().join("bitnet-online");
    let adapter = outcome.model.unwrap();
    let mut model = bitnet_inference::Model::open(&base, &Default::default(), &mut |_, _| {}).unwrap();
    model.load_adapter(&adapter, 1.0).unwrap();
    let report =
        crate::merge(&base, &adapter, &folder.path().join("merged"), 1.0, Some(false), None).unwrap();
    assert_eq!(report.len(), 4);
    assert!(report.iter().any(|part| part.changed.unwrap() > 0.0), "{report:?}");
}

/// The model under an adapter may be a GGUF file, and going on gives the same as a run in one go.
#[test]
fn an_adapter_is_trained_beside_a_file_of_packed_weights() {
    let folder = folder();
    let gguf = golden::fixtures().join("gguf/bitnet-packed-k256-i2_s.gguf");
    let init = format!("model.init={}", gguf.display());
    let changes =
        ["train.rate=2e-2", "data.validation_share=0.2", "train.gradient_checkpointing=true", &init];
    let config = config(Kind::Lora, folder.path(), &changes);
    let (outcome, _) = go(&config, false).unwrap();
    let want = left(&config.output, 12);
    std::fs::remove_dir_all(Checkpoints::of(&config.output).path(12)).unwrap();
    go(&config, true).unwrap();
    assert!(left(&config.output, 12) == want);
    let mut model = bitnet_inference::Model::open(&gguf, &Default::default(), &mut |_, _| {}).unwrap();
    model.load_adapter(&outcome.model.unwrap(), 1.0).unwrap();
    let error = go(&self::config(Kind::Sft, folder.path(), &[&init]), true).unwrap_err().to_string();
    assert!(error.contains("beside whose weights only adapters are trained"), "{error}");
}

/// Trits in place of others: they are learned, gone on with, and put into packed files, which then give what the model in training gives.
#[test]
fn trits_in_place_of_others_are_learnt_and_merged_without_a_loss() {
    let folder = folder();
    let fixture = |name: &str| golden::fixtures().join(name);
    let packed = fixture("bitnet-packed-k256");
    let init = format!("model.init={}", packed.display());
    let changes =
        ["lora.trits=true", "train.rate=1e-2", "train.steps=30", "data.validation_share=0.2", &init];
    let config = config(Kind::Lora, folder.path(), &changes);
    let (outcome, events) = go(&config, false).unwrap();
    let first = events.iter().find_map(|e| match e {
        Event::Steps { loss, .. } => Some(*loss),
        _ => None,
    });
    assert!(outcome.loss.unwrap() < 0.9 * first.unwrap(), "{first:?} {:?}", outcome.loss);
    let want = left(&config.output, 30);
    std::fs::remove_dir_all(Checkpoints::of(&config.output).path(30)).unwrap();
    let (outcome, _) = go(&config, true).unwrap();
    assert!(left(&config.output, 30) == want);

    let adapter = outcome.model.unwrap();
    let mut engine = bitnet_inference::Model::open(&packed, &Default::default(), &mut |_, _| {}).unwrap();
    let error = crate::error::chain(&engine.load_adapter(&adapter, 1.0).unwrap_err());
    assert!(error.contains("`bitnet merge`"), "{error}");

    let prompt = engine.encode("ships?").unwrap();
    let mut answers = Vec::new();
    for name in
        ["bitnet-packed-k256", "gguf/bitnet-packed-k256-i2_s.gguf", "gguf/bitnet-packed-k256-tq1_0.gguf"]
    {
        let (from, out) = (fixture(name), folder.path().join(name.replace('/', "-")));
        let report = crate::merge(&from, &adapter, &out, 1.0, None, Some(2)).unwrap();
        assert!(report.iter().all(|m| m.changed.unwrap() > 0.0 && m.lost == Some(0.0)), "{report:?}");
        let bytes = |path: &Path| {
            let file = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
            std::fs::read(file).unwrap()
        };
        let (was, is) = (bytes(&from), bytes(&out));
        let differ = was.iter().zip(&is).filter(|(a, b)| a != b).count();
        assert!(was.len() == is.len() && differ > 0 && differ < was.len() / 2, "{differ} of {}", was.len());
        // Trits that are there already are not those that it was made beside.
        let again = folder.path().join("again");
        let error = crate::merge(&out, &adapter, &again, 1.0, None, None).unwrap_err().to_string();
        assert!(error.contains("has other trits in the model"), "{error}");
        let mut model = bitnet_inference::Model::open(&out, &Default::default(), &mut |_, _| {}).unwrap();
        let options = bitnet_inference::GenerateOptions {
            max_tokens: Some(12),
            sampling: bitnet_inference::sample::SamplerOptions { temperature: 0.0, ..Default::default() },
            ..Default::default()
        };
        let pieces = model.generate(&prompt, options).unwrap();
        answers.push(pieces.map(|piece| piece.unwrap().text).collect::<String>());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let masters = fixture("bitnet-online");
    let error = crate::merge(&masters, &adapter, &folder.path().join("x"), 1.0, None, None).unwrap_err();
    assert!(error.to_string().contains("model.layers.0."), "{error}");
    for (scale, bf16) in [(0.5, None), (1.0, Some(true))] {
        let error = crate::merge(&packed, &adapter, &folder.path().join("y"), scale, bf16, None).unwrap_err();
        assert!(error.to_string().contains("take the place of others"), "{error}");
    }
}

/// With all weights or an adapter: preferred answers win, and going on gives the bits of a run in one go, also when what was measured with
/// the model at the start is measured again.
#[test]
fn preferences_are_learnt_and_going_on_gives_the_same() {
    for lora in [false, true] {
        let folder = folder();
        let changes =
            ["train.rate=1e-2", "train.steps=24", "data.validation_share=0.2", "dpo.beta=0.2", "lora.rank=4"];
        let whole = config(Kind::Dpo, folder.path(), if lora { &changes } else { &changes[..4] });
        let (outcome, events) = go(&whole, false).unwrap();
        let told: Vec<(f64, Preferences)> = events
            .iter()
            .filter_map(|e| match e {
                Event::Steps { loss, preferences, .. } => preferences.map(|p| (*loss, p)),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), 24);
        // At the start both models are one: ln 2, and nothing won.
        assert!((told[0].0 - std::f64::consts::LN_2).abs() < 1e-12 && told[0].1.margin == 0.0, "{told:?}");
        let end = told[23];
        assert!(end.0 < 0.5 && end.1.accuracy > 0.9 && end.1.margin > 0.3, "{told:?}");
        assert!(events.iter().any(|e| matches!(e, Event::Reference(20))));
        assert!(events.iter().any(|e| matches!(e, Event::Validation { preferences: Some(_), .. })));
        assert!(outcome.model.unwrap().ends_with(if lora { "adapter" } else { "model" }));
        let want = left(&whole.output, 24);
        for measured in [true, false] {
            std::fs::remove_dir_all(Checkpoints::of(&whole.output).path(24)).unwrap();
            if !measured {
                for entry in std::fs::read_dir(whole.output.join("data")).unwrap().flatten() {
                    if entry.path().extension().is_some_and(|e| e == "reference") {
                        std::fs::remove_file(entry.path()).unwrap();
                    }
                }
            }
            let (_, events) = go(&whole, true).unwrap();
            assert_eq!(!measured, events.iter().any(|e| matches!(e, Event::Reference(_))));
            assert!(left(&whole.output, 24) == want, "{lora} {measured}");
        }
    }
}

/// The gradients of a step, all that follows from them and validation are those of one worker.
#[test]
fn workers_change_no_bit() {
    let folder = folder();
    let teacher = format!("distill.teacher={}", golden::fixtures().join("bitnet-online").display());
    let init = teacher.replace("distill.teacher", "model.init");
    let learned = [&init[..], &teacher, "train.rate=1e-2"];
    let runs: [(Kind, &[&str]); 4] = [
        (Kind::Pretrain, &["quantize.rounding=stochastic", "quantize.weights=lsq", "train.ema=0.5"]),
        (Kind::Lora, &["lora.dropout=0.3", "train.rate=1e-2"]),
        (Kind::Dpo, &["train.rate=1e-3"]),
        (Kind::Distill, &learned),
    ];
    for (kind, changes) in runs {
        let with = |workers: usize, threads: usize| {
            let output = folder.path().join(format!("{kind:?}-{workers}"));
            let more = [
                format!("output={}", output.display()),
                format!("train.workers={workers}"),
                format!("threads={threads}"),
                "train.accumulate=4".to_owned(),
                "train.batch=1".to_owned(),
                "train.steps=4".to_owned(),
            ];
            let more: Vec<&str> = changes.iter().copied().chain(more.iter().map(String::as_str)).collect();
            go(&config(kind, folder.path(), &more), false).unwrap();
            left(&output, 4)
        };
        let want = with(1, 2);
        for (workers, threads) in [(2, 2), (4, 5)] {
            assert!(with(workers, threads) == want, "{kind:?}, {workers} workers");
        }
    }
    let few = config(Kind::Pretrain, folder.path(), &["train.workers=2", "threads=1"]);
    let error = go(&few, false).unwrap_err().to_string();
    assert!(error.contains("train.workers is 2, each with a thread"), "{error}");
}

/// Two devices, each with memory of its own, give what the processor gives; of one that fails the checkpoint before stays, and the processor
/// goes on from there to the same bits.
#[test]
fn devices_change_no_bit() {
    let folder = folder();
    let on = |plain: Plain| Ops::on(Arc::new(CpuTraining::new(None, Some(1)).unwrap()), Box::new(plain));
    let run = |ops: Vec<Ops>, config: &RunConfig, resume: bool| {
        let run = Run::over(ops, config, resume, &mut |_| {})?;
        run.go(&AtomicBool::new(false), &mut |_| {})
    };
    let teacher = format!("distill.teacher={}", golden::fixtures().join("bitnet-online").display());
    let init = teacher.replace("distill.teacher", "model.init");
    let learned = [&init[..], &teacher, "train.rate=1e-2", "train.ema=0.5"];
    let runs: [(Kind, &[&str]); 2] =
        [(Kind::Distill, &learned), (Kind::Lora, &["lora.dropout=0.3", "train.rate=1e-2"])];
    for (kind, changes) in runs {
        let config = |name: &str, workers: usize| {
            let output = format!("output={}", folder.path().join(format!("{kind:?}-{name}")).display());
            let workers = format!("train.workers={workers}");
            let more = [
                &output[..],
                &workers,
                "train.accumulate=2",
                "train.batch=1",
                "train.steps=4",
                "train.checkpoint_every=2",
            ];
            config(kind, folder.path(), &[changes, &more].concat())
        };
        let (cpu, two, failing) = (config("cpu", 1), config("two", 2), config("failing", 1));
        go(&cpu, false).unwrap();
        let want = left(&cpu.output, 4);
        run(vec![on(Plain::new()), on(Plain::new())], &two, false).unwrap();
        assert!(left(&two.output, 4) == want, "{kind:?}");
        // As many products as it takes to get behind the first checkpoint.
        let mut products = 1 << 7;
        let error = loop {
            let outcome = run(vec![on(Plain::lost(products))], &failing, false);
            if !Checkpoints::of(&failing.output).steps().is_empty() {
                break outcome.unwrap_err();
            }
            std::fs::remove_dir_all(&failing.output).unwrap();
            products += 1 << 6;
        };
        let text = crate::error::chain(&error);
        assert!(matches!(error, TrainError::Device { step: 3 | 4, .. }), "{text}");
        assert!(text.contains("is from before, and --resume goes on from there"), "{text}");
        assert!(text.contains("plain failed: it was lost"), "{text}");
        go(&failing, true).unwrap();
        assert!(left(&failing.output, 4) == want, "{kind:?}");
    }
}

/// Objectives beside the loss do what they are for: more trits that are zero, and more activations.
#[test]
fn objectives_make_zeros() {
    let last = |changes: &[&str]| -> serde_json::Value {
        let folder = folder();
        let all = [&["train.steps=40", "train.rate=5e-3", "train.log_every=40"], changes].concat();
        let config = config(Kind::Pretrain, folder.path(), &all);
        go(&config, false).unwrap();
        let metrics = std::fs::read_to_string(config.output.join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.fold(serde_json::json!({}), |mut all, line| {
            all.as_object_mut().unwrap().extend(line.as_object().unwrap().clone());
            all
        })
    };
    let zeros = |metrics: &serde_json::Value| -> f64 {
        let layers = metrics["health"].as_array().unwrap();
        layers.iter().map(|of| of["zeros"].as_f64().unwrap()).sum::<f64>() / layers.len() as f64
    };
    let inactive = |metrics: &serde_json::Value| -> f64 {
        let layers = metrics["activation_sparsity"].as_array().unwrap();
        layers.iter().map(|of| of.as_f64().unwrap()).sum::<f64>() / layers.len() as f64
    };
    let (plain, small) = (last(&[]), last(&["objectives.size=20"]));
    assert!(zeros(&small) > zeros(&plain) + 0.05, "{} {}", zeros(&small), zeros(&plain));
    assert!(small["weight_concentration"].as_f64().unwrap() < 0.79, "{small}");
    let sparse = last(&["objectives.sparsity=3"]);
    assert!(inactive(&sparse) > inactive(&plain) + 0.05, "{} {}", inactive(&sparse), inactive(&plain));
    assert!(
        sparse["activation_concentration"].as_f64().unwrap() < 1.0
            && plain["activation_concentration"].is_null()
    );
}

/// With nothing quantized, the gradient of the loss of pairs is its slope.
#[test]
fn the_gradient_of_preferences_is_the_slope_of_their_loss() {
    let folder = folder();
    let config = config(Kind::Dpo, folder.path(), &["dpo.beta=0.5", "dpo.label_smoothing=0.1"]);
    let mut run = Run::new(&config, false, &mut |_| {}).unwrap();
    let precision = crate::Precision::FLOAT;
    let model = run.workers.model_mut();
    let (ops, body, parameters) = (model.ops().clone(), model.config().clone(), model.parameters().clone());
    let values = model.values.to_vec();
    let mut model = Model::new(ops, body, parameters, values, precision, false).unwrap();
    let (corpus, rows) = &run.train;
    let batch = rows.plain(corpus, 0, 6);
    // A reference that is not the model, so that slopes differ.
    let reference: Vec<f64> =
        (0..corpus.len()).map(|i| run.reference[i] + crate::random::normal(5, 0, i as u64)).collect();
    let objective = &run.objective;
    let sums = objective.backward(&mut model, &batch, 6, &reference);
    assert_eq!(objective.measure(&mut model, &batch, &reference).loss, sums.loss);
    let loss = |model: &mut Model| objective.measure(model, &batch, &reference).mean();
    let (slope, gradient) = slope_and_gradient(&mut model, loss);
    assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{slope} {gradient}");
}

/// Samples, figures of projections and memory stand in the metrics, on their schedules; what is drawn follows from the seed.
#[test]
fn what_is_watched_is_written_on_its_schedule() {
    let changes = [
        "samples.prompts=[\"ships\", \"night\"]",
        "samples.tokens=5",
        "samples.every=5",
        "train.log_every=4",
    ];
    let lines = |more: &[&str]| -> Vec<serde_json::Value> {
        let folder = folder();
        let config = config(Kind::Pretrain, folder.path(), &[&changes[..], more].concat());
        let (_, events) = go(&config, false).unwrap();
        let told =
            events.iter().filter(|e| matches!(e, Event::Samples { samples, .. } if samples.len() == 2));
        assert_eq!(told.count(), 3);
        let files = std::fs::read_dir(config.output.join("tensorboard")).unwrap().flatten();
        let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        assert!(sizes.len() == 1 && sizes[0] > 5000, "{sizes:?}");
        let metrics = std::fs::read_to_string(config.output.join("metrics.jsonl")).unwrap();
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let steps = |lines: &[serde_json::Value], key: &str| -> Vec<u64> {
        lines.iter().filter(|l| l.get(key).is_some()).map(|l| l["step"].as_u64().unwrap()).collect()
    };
    let greedy = lines(&[]);
    assert_eq!(steps(&greedy, "samples"), [5, 10, 12]);
    assert_eq!(steps(&greedy, "health"), [4, 8, 12]);
    if cfg!(target_os = "linux") {
        assert_eq!(steps(&greedy, "peak_bytes"), [4, 8, 12]);
    }
    for line in greedy.iter().filter(|l| l.get("health").is_some()) {
        let health = line["health"].as_array().unwrap();
        assert_eq!(health.len(), 14);
        for layer in health {
            let of = |key: &str| layer[key].as_f64().unwrap();
            // Fresh weights are of a normal distribution: a third of trits is zero, and quantizing leaves little of some.
            assert!((0.2..0.5).contains(&of("zeros")) && (0.1..0.4).contains(&of("clipped")), "{layer}");
            assert!(
                (0.0..0.5).contains(&of("flips")) && of("snr_db") > 0.0 && of("grad_norm") > 0.0,
                "{layer}"
            );
        }
    }
    let texts = |lines: &[serde_json::Value]| -> Vec<serde_json::Value> {
        lines.iter().filter_map(|l| l.get("samples").cloned()).collect()
    };
    let drawn = lines(&["samples.temperature=1.5"]);
    assert_eq!(texts(&drawn), texts(&lines(&["samples.temperature=1.5", "threads=1"])));
    assert_ne!(texts(&drawn), texts(&greedy));
    let said = |sample: &serde_json::Value| sample["text"].as_str().is_some_and(|text| !text.is_empty());
    assert!(texts(&greedy).iter().any(|samples| samples.as_array().unwrap().iter().any(said)));
}

/// The likeliest tokens are those that the engine takes of the same model.
#[test]
fn samples_are_what_the_exported_model_says() {
    let folder = folder();
    let changes = [
        "samples.prompts=ships at",
        "samples.tokens=8",
        "train.steps=30",
        "train.rate=5e-3",
        "train.export=f32",
    ];
    let (outcome, events) = go(&config(Kind::Pretrain, folder.path(), &changes), false).unwrap();
    let told = events.iter().rev().find_map(|e| match e {
        Event::Samples { samples, .. } => Some(samples[0].text.clone()),
        _ => None,
    });
    let open = bitnet_inference::OpenOptions {
        load: bitnet_model::LoadOptions {
            key: bitnet_core::KvType::F32,
            value: bitnet_core::KvType::F32,
            ..Default::default()
        },
        ..Default::default()
    };
    let mut model = bitnet_inference::Model::open(&outcome.model.unwrap(), &open, &mut |_, _| {}).unwrap();
    let prompt = model.encode("ships at").unwrap();
    let sampling = bitnet_inference::sample::SamplerOptions { temperature: 0.0, ..Default::default() };
    let options = bitnet_inference::GenerateOptions { max_tokens: Some(8), sampling, ..Default::default() };
    let said: String = model.generate(&prompt, options).unwrap().map(|piece| piece.unwrap().text).collect();
    assert_eq!(told.unwrap(), said);
}

#[test]
fn metrics_tell_how_sparse_each_layer_is() {
    let folder = folder();
    let config = config(Kind::Pretrain, folder.path(), &["data.validation_share=0.2"]);
    go(&config, false).unwrap();
    let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let validations: Vec<_> = lines.filter(|m| m.get("validation_loss").is_some()).collect();
    assert_eq!(validations.len(), 3);
    for line in validations {
        let shares: Vec<f64> = serde_json::from_value(line["activation_sparsity"].clone()).unwrap();
        assert_eq!(shares.len(), 2);
        assert!(shares.iter().all(|share| (0.2..0.9).contains(share)), "{shares:?}");
    }
}
