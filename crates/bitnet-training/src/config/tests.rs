use super::*;
use crate::{Activations, Bits, Ramp, WeightQuantizer, example};
use bitnet_cpu::{CpuTraining, Terms};

fn parse(kind: Kind, changes: &[&str]) -> Result<RunConfig, TrainError> {
    let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
    RunConfig::parse("a.toml", example(kind.name()).unwrap(), kind, &changes)
}

#[test]
fn examples_are_valid_and_changes_apply() {
    let config =
        parse(Kind::Pretrain, &["train.steps=7", "output=elsewhere", "quantize.weights=\"none\""]).unwrap();
    assert_eq!((config.train.schedule.steps, config.output.to_str()), (7, Some("elsewhere")));
    assert_eq!(config.precision, Precision { terms: CpuTraining::fastest_terms(), ..Precision::FLOAT });
    // What is kept says the same, and says how products were multiplied.
    assert!(config.text.contains("products = "));
    let exact = parse(Kind::Pretrain, &["train.products=f32"]).unwrap();
    assert_eq!(exact.precision.terms, Terms::F32);
    let again = RunConfig::parse("b", &config.text, Kind::Pretrain, &[]).unwrap();
    assert_eq!(again.text, config.text);
    let other = RunConfig::parse("b", &config.text, Kind::Sft, &[]).unwrap_err().to_string();
    assert_eq!(other, "b: kind is \"pretrain\", and the command is sft");
    for kind in [Kind::Pretrain, Kind::Sft, Kind::Lora, Kind::Dpo, Kind::Qat, Kind::Distill] {
        assert!(parse(kind, &[]).is_ok());
        // A choice can be changed alone: the examples set nothing that only another one has.
        for schedule in ["two-stage", "constant", "linear", "cosine", "exponential", "warmup-stable-decay"] {
            let changes = [&format!("train.schedule={schedule}")[..], "train.optimizer=sgd"];
            assert!(parse(kind, &changes).is_ok(), "{schedule}");
        }
        for optimizer in ["adamw", "adam", "sgd", "muon"] {
            let config = parse(kind, &[&format!("train.optimizer={optimizer}"), "train.ema=0.9"]).unwrap();
            assert_eq!(config.train.average, Some(0.9));
        }
    }
    for (changes, want) in [
        (&[][..], Precision::BITNET),
        (
            &["quantize.weights=seq", "quantize.bits=2", "quantize.ramp=5", "quantize.ramp_order=layers"],
            Precision {
                weights: WeightQuantizer::Seq { bits: Bits::Two },
                ramp: Ramp { steps: 5, by_layer: true },
                ..Precision::FLOAT
            },
        ),
        (
            &[
                "quantize.weights=lsq",
                "quantize.steps=row",
                "quantize.activations=a4.8",
                "quantize.rounding=stochastic",
            ],
            Precision {
                weights: WeightQuantizer::Lsq { bits: Bits::Ternary, rows: true },
                stochastic: Some(1),
                activations: Activations::A48,
                top_k: Some(0.5),
                ..Precision::BITNET
            },
        ),
        (
            &["quantize.weights=twn", "quantize.activations=int4", "quantize.hadamard=true"],
            Precision {
                weights: WeightQuantizer::Twn,
                activations: Activations::Int4,
                hadamard: true,
                ..Precision::BITNET
            },
        ),
    ] {
        let want = Precision { terms: CpuTraining::fastest_terms(), ..want };
        assert_eq!(parse(Kind::Pretrain, changes).unwrap().precision, want, "{changes:?}");
    }
    let lora = parse(Kind::Lora, &["lora.rank=4", "lora.rank_stabilized=true"]).unwrap().lora.unwrap();
    assert_eq!((lora.scale(), lora.targets.len()), (8.0, 7));
    let dpo = parse(Kind::Dpo, &["dpo.beta=0.3"]).unwrap();
    assert_eq!((dpo.dpo, dpo.lora), (Some(Dpo { beta: 0.3, label_smoothing: 0.0 }), None));
    assert_eq!(parse(Kind::Dpo, &["lora.rank=4"]).unwrap().lora.unwrap().rank, 4);
    for (change, words) in
        [("dpo.beta=0", "nothing to learn"), ("dpo.label_smoothing=0.5", "from 0 to 0.499")]
    {
        let error = parse(Kind::Dpo, &[change]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = parse(Kind::Dpo, &["lora.rank=4", "train.freeze=*"]).unwrap_err().to_string();
    assert!(error.contains("train.freeze does not go with lora"), "{error}");
    assert!(parse(Kind::Sft, &["dpo.beta=1"]).unwrap_err().to_string().contains("dpo is unknown"));
    assert!(parse(Kind::Sft, &["lora.rank=4"]).unwrap_err().to_string().contains("lora is unknown"));
}

#[test]
fn what_is_wrong_is_named() {
    for (change, words) in [
        ("train.stesp=3", "train.stesp is unknown; did you mean train.steps?"),
        ("tain.steps=3", "tain is unknown; did you mean train?"),
        ("train.qqqqqqqqqqqq=3", "there are steps,"),
        ("train.steps=none", "train.steps is \"none\", and should be a whole number of at least 1"),
        ("train.steps=0", "train.steps is 0"),
        ("train.betas=[0.9, 1.5]", "two numbers"),
        (
            "train.freeze_layers=[3, 1]",
            "train.freeze_layers is [3, 1], and should be the first and the last, such as [0, 3]",
        ),
        ("train.freeze=1", "train.freeze should be a list of texts"),
        (
            "quantize={weights=\"seq\", bits=2, extra_norms=\"auto\"}",
            "quantize.extra_norms are for ternary weights",
        ),
        ("quantize.extra_norms=all", "it is one of none, blocks, projections, auto"),
        ("objectives={size=1, sparsty=2}", "objectives.sparsty is unknown"),
        ("objectives.loss=0", "is 0, which leaves nothing to learn"),
        ("train.workers=3", "is 3, and the 1 passes of a step (train.accumulate) cannot be shared out"),
        ("device=gpu", "device is \"gpu\"; there are cpu"),
        ("device=[\"cpu\", \"cpu\"]", "device names cpu twice"),
        ("train.optimizer=lion", "it is one of adamw, adam, sgd, muon"),
        ("train.ema=1.5", "train.ema is 1.5, and should be a number from 0 to 1"),
        ("train={optimizer=\"adamw\", momentum=0.9, steps=3}", "train.momentum is unknown"),
        ("train.rate=-1", "train.rate is -1, and should be a number of at least 0"),
        ("train.schedule=cosin", "it is one of two-stage, constant"),
        ("train.clip=nan", "train.clip"),
        ("data.train=3", "data.train should be a list of texts"),
        ("data.train=[]", "data.train is missing"),
        ("model.init=3", "model.init is 3, and should be a text"),
        ("model.init=\"x\"", "model.tokenizer does not go with model.init, whose model has its own"),
        ("model=3", "model is 3, and should be a table"),
        (
            "quantize.weights=lsqq",
            "quantize.weights is \"lsqq\"; it is one of absmean, absmedian, twn, lsq, seq, none",
        ),
        ("quantize={weights=\"lsq\", bits=1}", "quantize.bits is 1; it is one of 1.58, 2, 3, 4, 8"),
        ("quantize={weights=\"seq\", bits=8}", "quantize.bits is 8; it is one of 1, 1.58, 2, 3, 4"),
        ("quantize.bits=2", "quantize.bits is unknown"),
        ("quantize.steps=row", "quantize.steps is unknown"),
        ("quantize={weights=\"twn\", rounding=\"stochastic\"}", "these weights are not rounded"),
        ("quantize.activations=int5", "it is one of int8, int4, a4.8, none"),
        ("quantize={hadamard=true, top_k=0.5}", "quantize.top_k does not go with hadamard"),
        (
            "quantize={weights=\"none\", hadamard=true}",
            "quantize.hadamard is true, and weights are not ternary",
        ),
        ("quantize={weights=\"none\", ramp=5}", "quantize.ramp is set, and weights are not quantized"),
        ("quantize.ramp=200", "quantize.ramp is 200, and the run has 200 steps"),
        ("quantize.top_k=2", "quantize.top_k is 2"),
        ("kind=sft", "kind is \"sft\", and the command is pretrain"),
        ("samples.temperature=1", "samples.temperature has no effect without samples.prompts"),
        ("samples.prompt=a", "did you mean samples.prompts?"),
        ("seed", "--set seed: it should be key=value"),
        ("seed.a=3", "--set seed.a=3"),
    ] {
        let error = parse(Kind::Pretrain, &[change]).unwrap_err().to_string();
        assert!(error.contains(words), "{change}: {error}");
    }
    for (changes, words) in [
        (
            &["quantize.weights=none", "quantize.ramp=0"],
            "quantize.weights is none, and qat is for weights that are quantized",
        ),
        (&["model={}", "seed=1"], "model.init is missing"),
    ] {
        let error = parse(Kind::Qat, changes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    for (changes, words) in [
        (&["distill={}"][..], "distill.teacher is missing"),
        (&["distill.logits=0", "distill.relations=0"], "nothing is learned from the teacher"),
        (&["distill.likeness=cos"], "it is one of dot, cosine"),
        (&["distill.temperature=0"], "distill.temperature is 0"),
    ] {
        let error = parse(Kind::Distill, changes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = parse(Kind::Lora, &["lora.trits=true", "quantize.weights=none"]).unwrap_err().to_string();
    assert!(error.contains("lora.trits is true, and quantize.weights are not ternary"), "{error}");
    let error = parse(Kind::Lora, &["lora.dropout=1"]).unwrap_err().to_string();
    assert!(error.contains("lora.dropout is 1"), "{error}");
    let error = parse(Kind::Lora, &["train.freeze=*"]).unwrap_err().to_string();
    assert!(error.contains("train.freeze is unknown"), "{error}");
    let error = parse(Kind::Lora, &["quantize.weights=lsq"]).unwrap_err().to_string();
    assert!(error.contains("steps are learned with the weights"), "{error}");
    for (change, words) in [
        ("quantize.ramp=3", "quantize.ramp is set, and an adapter leaves weights as they are run"),
        ("quantize.rounding=stochastic", "quantize.rounding is stochastic, and an adapter leaves"),
        ("model={}", "model.init is missing: the model that the adapter is for"),
        ("lora={trits=true, dora=true}", "lora.dora does not go with lora.trits"),
        ("lora={trits=true, dropout=0.1}", "lora.dropout does not go with lora.trits"),
    ] {
        let error = parse(Kind::Lora, &[change]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = RunConfig::parse("a.toml", "output = \"x\"\nseed = \n", Kind::Sft, &[]).unwrap_err();
    assert!(error.to_string().starts_with("a.toml: line 2: "), "{error}");
}
