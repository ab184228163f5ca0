use crate::model::frozen::tests::{frozen, lora};
use crate::model::tests::batch_of;
use crate::model::{Activations, Model, Precision};
use crate::parameters::Part;
use crate::{LoraConfig, trits};
use bitnet_cpu::Terms;
use bitnet_testkit::golden;
use std::path::PathBuf;

fn exact() -> LoraConfig {
    LoraConfig { trits: true, dropout: 0.0, ..lora() }
}

fn base() -> PathBuf {
    golden::fixtures().join("bitnet-packed")
}

/// With a product that reaches other trits here and there.
fn stirred(precision: Precision) -> Model {
    let mut model = frozen(&base(), precision, Some(&exact()), false);
    let parts: Vec<_> = model.parameters().trained().iter().map(|p| (p.part, p.range.clone())).collect();
    for (_, range) in parts.iter().filter(|(part, _)| *part == Part::LowRankB) {
        range.clone().for_each(|i| model.values[i] = 0.1 * crate::random::normal(7, 1, i as u64) as f32);
    }
    model.quantize().unwrap();
    model
}

#[test]
fn an_adapter_that_adds_nothing_changes_no_bit() {
    let batch = batch_of("training/grads.safetensors");
    let mut model = frozen(&base(), Precision::BITNET, Some(&exact()), false);
    model.quantize().unwrap();
    let mut plain = frozen(&base(), Precision::BITNET, None, false);
    assert_eq!(model.loss(&batch), plain.loss(&batch));
    let mut other = stirred(Precision::BITNET);
    assert_ne!(other.loss(&batch), plain.loss(&batch));
}

/// Straight through the rounding: gradients of the matrices are the chain rule's, of the gradient of the weights that passes used.
#[test]
fn gradients_are_those_of_the_weights_times_the_other_matrix() {
    let batch = batch_of("training/grads.safetensors");
    for activations in [Activations::Int8, Activations::Float] {
        let precision = Precision { activations, terms: Terms::F32, ..Precision::BITNET };
        let mut model = stirred(precision);
        model.backward(&batch, batch.counted());
        // The same weights as masters of a model all of whose weights are trained.
        let float = Precision { weights: crate::WeightQuantizer::Float, ..precision };
        let checkpoint = bitnet_formats::open(&base()).unwrap();
        let config = model.config.clone();
        let tensors = bitnet_model::ModelTensors::new(&checkpoint, &config);
        let parameters =
            crate::Parameters::new(&config, &tensors).with_quantizer(crate::WeightQuantizer::Float);
        let mut values = parameters.read(&checkpoint, &tensors).unwrap();
        for place in 0..parameters.list().len() {
            let range = parameters.list()[place].range.clone();
            let Some(adapter) = model.low_rank[place] else { continue };
            let Some(crate::model::Frozen::Trits { weights, scales }) = model.frozen(place) else { panic!() };
            let now = trits::rounded(&model.ops, (&model.parameters, &model.values), weights, adapter);
            for (value, trit) in values[range].iter_mut().zip(now) {
                *value = f32::from(trit) * scales[0];
            }
        }
        let mut dense = Model::new(model.ops().clone(), config, parameters, values, float, false).unwrap();
        dense.backward(&batch, batch.counted());
        for place in 0..dense.parameters().list().len() {
            let Some(adapter) = model.low_rank[place] else { continue };
            let p = &dense.parameters().list()[place];
            let (k, dw) = (p.slot.cols, &dense.gradients[p.range.clone()]);
            let Some(crate::model::Frozen::Trits { scales, .. }) = model.frozen(place) else { panic!() };
            let (a, b) = (model.value(adapter.a).host(), model.value(adapter.b).host());
            let factor = f64::from(scales[0] * adapter.scale);
            let mut of_a = vec![0.0f64; a.len()];
            let mut of_b = vec![0.0f64; b.len()];
            for (i, dw) in dw.iter().enumerate() {
                let (row, column) = (i / k, i % k);
                for r in 0..3 {
                    of_b[row * 3 + r] += factor * f64::from(*dw) * f64::from(a[r * k + column]);
                    of_a[r * k + column] += factor * f64::from(*dw) * f64::from(b[row * 3 + r]);
                }
            }
            for (place, want) in [(adapter.a, of_a), (adapter.b, of_b)] {
                let got = &model.gradients[model.parameters.trained_range(place).unwrap()];
                let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
                let off = length(&mut got.iter().zip(&want).map(|(got, want)| f64::from(*got) - want));
                let all = length(&mut want.iter().copied());
                assert!(off <= 1e-3 * all && all > 0.0, "{} {activations:?}: {off} of {all}", p.name);
            }
        }
    }
}

/// What is merged gives the states of the model in training, bit for bit.
#[test]
fn a_merged_file_has_the_states_of_the_model_in_training() {
    let batch = batch_of("training/grads.safetensors");
    let mut model = stirred(Precision::BITNET);
    let folder = tempfile::tempdir().unwrap();
    let (adapter, merged) = (folder.path().join("adapter"), folder.path().join("merged"));
    let origin = crate::source::Origin::frozen(model.ops(), &base(), Some(&Precision::BITNET)).unwrap();
    let trained = crate::export::Trained {
        ops: model.ops(),
        parameters: model.parameters(),
        values: &model.values,
        frozen: model.all_frozen(),
        beside: &origin.beside,
    };
    trained.export(&adapter, false).unwrap();
    crate::merge(&base(), &adapter, &merged, 1.0, None, None).unwrap();
    let mut other = frozen(&merged, Precision::BITNET, None, false);
    assert!(other.states(&batch) == model.states(&batch));
    for (old, new) in ["config.json", "tokenizer.json"].map(|name| (base().join(name), merged.join(name))) {
        assert_eq!(std::fs::read(old).unwrap(), std::fs::read(new).unwrap());
    }
}
