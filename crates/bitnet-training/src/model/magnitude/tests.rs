use crate::model::frozen::tests::{dense, frozen, lora};
use crate::model::tests::batch_of;
use crate::model::{Activations, Model, Precision};
use crate::parameters::Part;
use crate::{Batch, LoraConfig};
use bitnet_testkit::golden;

fn dora() -> LoraConfig {
    LoraConfig { dora: true, ..lora() }
}

/// With a base of trits and float inputs, so that the loss is smooth.
fn smooth() -> (Model, Batch) {
    let precision = Precision { activations: Activations::Float, ..Precision::BITNET };
    let path = golden::fixtures().join("bitnet-online");
    let mut model = frozen(&path, precision, Some(&dora()), false);
    model.begin_magnitudes();
    (model, batch_of("training/grads.safetensors"))
}

/// Something is added, and lengths are others than those of the weights.
fn stir(model: &mut Model) {
    let start = model.parameters().start();
    for (i, v) in model.values[start..].iter_mut().enumerate() {
        let noise = crate::random::normal(7, 1, i as u64) as f32;
        *v = if *v == 0.0 { 0.05 * noise } else { *v * (1.0 + 0.1 * noise) };
    }
}

#[test]
fn an_adapter_that_adds_nothing_changes_no_bit() {
    let (mut model, batch) = smooth();
    model.quantize().unwrap();
    let precision = Precision { activations: Activations::Float, ..Precision::BITNET };
    let mut base = frozen(&golden::fixtures().join("bitnet-online"), precision, None, false);
    assert_eq!(model.loss(&batch), base.loss(&batch));
}

/// Lengths of sums count as constants: what they are is measured when weights are quantized, and not between.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let (mut model, batch) = smooth();
    stir(&mut model);
    model.quantize().unwrap();
    model.set_dropout(1, Some(2));
    let total = batch.counted();
    model.backward(&batch, total);
    let gradients = model.gradients.clone();
    let (start, from) = (model.values.clone(), model.parameters().start());
    let parts: Vec<(Part, std::ops::Range<usize>)> =
        model.parameters().trained().iter().map(|p| (p.part, p.range.clone())).collect();
    for of in [Part::LowRankA, Part::LowRankB, Part::Magnitude] {
        let mut along = vec![0.0; start.len()];
        for (_, range) in parts.iter().filter(|(part, _)| *part == of) {
            range.clone().for_each(|i| {
                along[i] = f64::from(start[i].abs()).max(1e-3) * crate::random::normal(3, 1, i as u64);
            });
        }
        let mut at = |h: f64, measured: bool| {
            model.values = start.iter().zip(&along).map(|(v, a)| (f64::from(*v) + h * a) as f32).collect();
            if measured {
                model.quantize().unwrap();
            }
            model.loss(&batch)
        };
        let h = 1e-3;
        let slope = (at(h, false) - at(-h, false)) / (2.0 * h);
        let gradient: f64 = gradients.iter().zip(&along[from..]).map(|(g, a)| f64::from(*g) * a).sum();
        assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{of:?}: {slope} {gradient}");
        if of == Part::Magnitude {
            // On which no length depends.
            let slope = (at(h, true) - at(-h, true)) / (2.0 * h);
            assert!((slope - gradient).abs() <= 0.01 * slope.abs().max(0.1), "{slope} {gradient}");
        }
    }
}

#[test]
fn rows_of_the_sum_have_their_magnitudes_as_lengths() {
    let (mut model, _) = smooth();
    stir(&mut model);
    model.quantize().unwrap();
    for place in 0..model.low_rank.len() {
        let Some(adapter) = model.low_rank[place] else { continue };
        let slot = model.parameters().list()[place].slot;
        let (a, b) = (model.value(adapter.a).host(), model.value(adapter.b).host());
        for row in [0, slot.rows / 2, slot.rows - 1] {
            let mut sum = vec![0.0; slot.cols];
            model.row(place, row, &mut sum);
            for (r, b) in b[row * 3..][..3].iter().enumerate() {
                sum.iter_mut().zip(&a[r * slot.cols..]).for_each(|(sum, a)| *sum += adapter.scale * b * a);
            }
            let length = sum.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            let got = f64::from(model.lengths[place].sum[row]);
            assert!((got / length - 1.0).abs() < 1e-5, "{got} {length}");
        }
    }
}

/// A model of dense weights gives with the adapter as a part of it what it gives beside it. A ternary one is another one then, and says by how much.
#[test]
fn merged_it_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    dense(&at("dense"));
    let batch = batch_of("training/grads.safetensors");
    let ternary = golden::fixtures().join("bitnet-online");
    for (name, base, precision) in
        [("dense", at("dense"), Precision::FLOAT), ("ternary", ternary, Precision::BITNET)]
    {
        let mut model = frozen(&base, precision, Some(&dora()), false);
        model.begin_magnitudes();
        stir(&mut model);
        model.quantize().unwrap();
        let origin = crate::source::Origin::frozen(model.ops(), &base, Some(&precision)).unwrap();
        let trained = crate::export::Trained {
            ops: model.ops(),
            parameters: model.parameters(),
            values: &model.values,
            frozen: model.all_frozen(),
            beside: &origin.beside,
        };
        let (adapter, merged) = (at(&format!("{name}-adapter")), at(&format!("{name}-merged")));
        trained.export(&adapter, false).unwrap();
        let mut engine = bitnet_inference::Model::open(&base, &Default::default(), &mut |_, _| {}).unwrap();
        let error = crate::error::chain(&engine.load_adapter(&adapter, 1.0).unwrap_err());
        assert!(error.contains("use_dora") && error.contains("`bitnet merge`"), "{error}");
        let report = crate::merge(&base, &adapter, &merged, 1.0, Some(false), Some(2)).unwrap();
        if precision == Precision::FLOAT {
            let mut other = frozen(&merged, precision, None, false);
            let want = model.states(&batch).to_vec();
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(golden::max_diff(other.states(&batch), &want) <= 1e-5 * largest);
        } else {
            assert!(report.iter().all(|m| m.changed.unwrap() > 0.0 && m.lost.unwrap() > 0.0), "{report:?}");
        }
    }
}
