use super::*;
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{GenerateOptions, Model, OpenOptions};

fn synth(shape: &str, format: Format, output: PathBuf) -> Synth {
    Synth {
        shape: shape::find(shape).unwrap(),
        output,
        format,
        embedding: None,
        seed: 1,
        sparsity: None,
        gguf_arch: None,
        no_tokenizer: false,
    }
}

/// Every format of one model gives the same text: the same trits and scales, through seven files.
#[test]
fn every_format_runs_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut first: Option<Vec<u32>> = None;
    let formats =
        [Format::GgufI2S, Format::GgufTq1, Format::GgufTq2, Format::HfPacked, Format::HfBf16, Format::GgufQ2];
    for format in formats {
        let name = format.to_possible_value().unwrap().get_name().to_owned();
        let mut synth = synth("tiny", format, dir.path().join(&name));
        synth.embedding = Some(DenseType::BF16);
        synth.execute().unwrap();
        let mut options = OpenOptions::default();
        // Weight-only formats would run with float activations.
        options.load.act = Some(bitnet_core::ActivationPrecision::Int8);
        let mut model = Model::open(&synth.output, &options, &mut |_, _| {}).unwrap();
        let prompt = model.encode("Hello, world").unwrap();
        assert_eq!(prompt.len(), 13);
        let options = GenerateOptions {
            sampling: SamplerOptions { temperature: 1.5, seed: Some(3), ..SamplerOptions::default() },
            max_tokens: Some(12),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let mut generation = model.generate(&prompt, options).unwrap();
        generation.by_ref().for_each(|piece| assert!(piece.is_ok()));
        let tokens = generation.tokens().to_vec();
        // Master weights are quantized again, which keeps the trits and moves the scale.
        if format != Format::HfBf16 {
            assert_eq!(&tokens, first.get_or_insert_with(|| tokens.clone()), "{name}");
        }
        let distinct: std::collections::HashSet<&u32> = tokens.iter().collect();
        assert!(distinct.len() >= 2, "{name}: {tokens:?}");
    }
}

/// Types that hold trits only nearly or at length are for other engines; their files still are whole models.
#[test]
fn models_for_other_engines_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    for format in [Format::GgufQ4, Format::GgufBf16] {
        let mut synth = synth("tiny", format, dir.path().join("model"));
        (synth.gguf_arch, synth.no_tokenizer) = (Some("bitnet".to_owned()), true);
        synth.execute().unwrap();
        let model = Model::open(&synth.output, &OpenOptions::default(), &mut |_, _| {}).unwrap();
        assert!(model.config().arch.name.starts_with("bitnet") && model.tokenizer().is_none());
    }
}

#[test]
fn trits_are_forty_percent_zero_and_depend_on_the_seed() {
    let weights = |seed| Weights { shape: shape::find("tiny").unwrap(), random: Random(seed), plan: None };
    let item =
        Item { name: String::new(), role: Role::Projection, place: Place::Elsewhere, rows: 64, cols: 300 };
    let m = weights(1).ternary(0, &item).unwrap();
    let trits: Vec<i8> = (0..64 * 300).map(|i| m.trit(i / 300, i % 300)).collect();
    let share = |trit: i8| trits.iter().filter(|t| **t == trit).count() as f64 / trits.len() as f64;
    assert!((share(0) - 0.4).abs() < 0.02 && (share(1) - 0.3).abs() < 0.02, "{} {}", share(0), share(1));
    assert_ne!(weights(2).ternary(0, &item).unwrap().codes(), m.codes());
    assert_eq!(weights(1).ternary(0, &item).unwrap().codes(), m.codes());
}

#[test]
fn what_is_not_published_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(synth("3b", Format::HfPacked, dir.path().join("a")).execute().is_err());
    assert!(synth("3b", Format::GgufTq2, dir.path().join("b")).execute().is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// As promised, in a real forward pass, whatever the container.
#[test]
fn a_sparse_model_is_as_sparse_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    for (asked, format) in [("0.6,0.8", Format::GgufI2S), ("0.75,0.9", Format::HfPacked)] {
        let mut synth = synth("tiny", format, dir.path().join(asked));
        let sparsity: Sparsity = asked.parse().unwrap();
        synth.sparsity = Some(sparsity);
        synth.execute().unwrap();
        let found = sparsity::measure(&synth.output).unwrap();
        assert!((found.gates - sparsity.gates).abs() < 0.04, "{asked}: {found}");
        assert!((found.zeros - sparsity.zeros).abs() < 0.04, "{asked}: {found}");
    }
    // What a Gaussian model has is far from it.
    let dense = synth("tiny", Format::GgufI2S, dir.path().join("dense"));
    dense.execute().unwrap();
    let found = sparsity::measure(&dense.output).unwrap();
    assert!((found.gates - 0.5).abs() < 0.04 && found.zeros < 0.7, "{found}");
}

#[test]
fn sparsity_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (shape, asked) in [("8b", "0.6,0.8"), ("tiny", "0.6,0.61"), ("tiny", "0.6,0.999")] {
        let mut synth = synth(shape, Format::GgufI2S, dir.path().join("x"));
        synth.sparsity = Some(asked.parse().unwrap());
        assert!(synth.execute().is_err(), "{shape} {asked}");
    }
    for text in ["", "0.6", "0.8,0.6", "0.6,1", "0,0.5", "a,b"] {
        assert!(text.parse::<Sparsity>().is_err(), "{text}");
    }
}
