use super::*;
use crate::example;

fn parse(kind: Kind, changes: &[&str]) -> Result<RunConfig, TrainError> {
    let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
    RunConfig::parse("a.toml", example(kind.name()).unwrap(), kind, &changes)
}

#[test]
fn examples_are_valid_and_changes_apply() {
    let config =
        parse(Kind::Pretrain, &["train.steps=7", "output=elsewhere", "model.weights=\"float\""]).unwrap();
    assert_eq!((config.train.schedule.steps, config.output.to_str()), (7, Some("elsewhere")));
    assert!(!config.precision.ternary_weights && !config.precision.int8_activations);
    // What is kept says the same.
    let again = RunConfig::parse("b", &config.text, Kind::Pretrain, &[]).unwrap();
    assert_eq!(again.text, config.text);
    let other = RunConfig::parse("b", &config.text, Kind::Sft, &[]).unwrap_err().to_string();
    assert_eq!(other, "b: kind is \"pretrain\", and the command is sft");
    for kind in [Kind::Pretrain, Kind::Sft, Kind::Lora, Kind::Dpo] {
        assert!(parse(kind, &[]).is_ok());
        // A choice can be changed alone: the examples set nothing that only another one has.
        for schedule in ["two-stage", "constant", "linear", "cosine", "exponential", "warmup-stable-decay"] {
            let changes = [&format!("train.schedule={schedule}")[..], "train.optimizer=sgd"];
            assert!(parse(kind, &changes).is_ok(), "{schedule}");
        }
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
        ("train.rate=-1", "train.rate is -1, and should be a number of at least 0"),
        ("train.schedule=cosin", "it is one of two-stage, constant"),
        ("train.clip=nan", "train.clip"),
        ("data.train=3", "data.train should be a list of texts"),
        ("data.train=[]", "data.train is missing"),
        ("model.init=3", "model.init is 3, and should be a text"),
        ("model.init=\"x\"", "model.tokenizer does not go with model.init, whose model has its own"),
        ("model=3", "model is 3, and should be a table"),
        ("kind=sft", "kind is \"sft\", and the command is pretrain"),
        ("samples.temperature=1", "samples.temperature has no effect without samples.prompts"),
        ("samples.prompt=a", "did you mean samples.prompts?"),
        ("seed", "--set seed: it should be key=value"),
        ("seed.a=3", "--set seed.a=3"),
    ] {
        let error = parse(Kind::Pretrain, &[change]).unwrap_err().to_string();
        assert!(error.contains(words), "{change}: {error}");
    }
    let error = RunConfig::parse("a.toml", "output = \"x\"\nseed = \n", Kind::Sft, &[]).unwrap_err();
    assert!(error.to_string().starts_with("a.toml: line 2: "), "{error}");
}
