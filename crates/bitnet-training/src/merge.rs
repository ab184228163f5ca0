//! Adapters added to the weights of their model.

mod exact;

use crate::config::ModelSource;
use crate::export::Trained;
use crate::source::Origin;
use crate::{Quantized, Rounding, TrainError, WeightQuantizer};
use bitnet_core::DenseMatrix;
use bitnet_cpu::{CpuTraining, Side, Store, Target, Terms, Values};
use bitnet_model::Adapter;
use bitnet_quant::dense::dequantize_row;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What became of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Its name.
    pub tensor: String,
    /// Share of its trits that are others than before; `None` of a dense model.
    pub changed: Option<f64>,
    /// How much of what the adapter adds is lost when the sum is made ternary: the length of what is missing or too much, as a share of
    /// the length of what the adapter adds. 0 is nothing, 1 as much as all of it. `None` of a dense model.
    pub lost: Option<f64>,
}

/// Adds an adapter, times `scale`, to the weights of a Hugging Face model and writes the sum to a new directory, in f32 where `bf16` is false. Weights of a
/// ternary model are masters; packed ones get masters of the same trits and scale first.
///
/// An adapter of trits takes the place of others in a copy of the model's files, a directory or a GGUF file; there is no scale then, and no
/// other type.
///
/// # Errors
/// The adapter is not one of the model, or a file cannot be read or written.
pub fn merge(
    model: &Path,
    adapter: &Path,
    out: &Path,
    scale: f64,
    bf16: Option<bool>,
    threads: Option<usize>,
) -> Result<Vec<Merged>, TrainError> {
    let ops = CpuTraining::new(None, threads)?;
    if out.exists() && std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
        let what = "it exists and is not empty; remove it or choose another name".to_owned();
        return Err(TrainError::Checkpoint { path: out.to_owned(), what });
    }
    let files = bitnet_formats::open_adapter(adapter)?;
    if crate::trits::is(&files) {
        let fail = |what| Err(TrainError::Checkpoint { path: adapter.to_owned(), what });
        if scale != 1.0 {
            return fail(format!("its trits take the place of others, and cannot be {scale} times as many"));
        }
        if bf16.is_some() {
            return fail("its trits take the place of others, whose type stays as it is".to_owned());
        }
        return exact::merge(&ops, model, &files, out);
    }
    let mut origin = Origin::read(&ModelSource::Checkpoint(PathBuf::from(model)), None, 0)?;
    let adapter = Adapter::read(&files, &origin.config)
        .map_err(|source| TrainError::Model { path: adapter.to_owned(), source })?;
    let mut report = Vec::new();
    for part in &adapter.parts {
        let place =
            origin.parameters.find(part.role, part.layer).expect("adapters are for projections of the model");
        let parameter = &origin.parameters.list()[place];
        let (n, k) = (parameter.slot.rows, parameter.slot.cols);
        let (a, b, rank) = (floats(&part.a), floats(&part.b), part.a.rows());
        let mut added = vec![0.0; n * k];
        let factor = (part.scale * scale) as f32;
        let target = Target { values: &mut added, stride: k, first: 0 };
        let (left, right) = (Side::rows(Values::F32(&b), rank), Side::columns(Values::F32(&a), k));
        ops.product(Terms::F32, (n, k, rank), left, right, Store::Set(factor), target);
        let values = &mut origin.values[parameter.range.clone()];
        let ternary = origin.ternary && parameter.quantized;
        let trits = |values: &[f32]| {
            let mut trits = Quantized::default();
            if ternary {
                WeightQuantizer::Absmean.quantize(&ops, values, k, &[], Rounding::Nearest, &mut trits);
            }
            trits
        };
        let before = trits(values);
        match &part.magnitude {
            None => values.iter_mut().zip(&added).for_each(|(v, added)| *v += added),
            Some(magnitude) => {
                let run =
                    |i: usize, v: f32| if ternary { f32::from(before.codes[i]) * before.scale(0) } else { v };
                for (row, m) in magnitude.iter().enumerate() {
                    let own = row * k..(row + 1) * k;
                    rescale(own.clone(), *m, &mut values[own.clone()], &mut added[own], &run);
                }
            }
        }
        let after = trits(values);
        let compared = ternary.then(|| compare(&before, &after, &added));
        report.push(Merged {
            tensor: parameter.name.clone(),
            changed: compared.map(|c| c.0),
            lost: compared.map(|c| c.1),
        });
    }
    let Origin { parameters, values, beside, .. } = &origin;
    Trained { ops: &ops, parameters, values, frozen: &[], beside }.export(out, bf16.unwrap_or(true))?;
    Ok(report)
}

/// Adds to a row and gives the sum the length that the sum with the weights as they are run gets from a magnitude; `added` becomes what
/// those gain.
fn rescale(
    own: Range<usize>,
    magnitude: f32,
    values: &mut [f32],
    added: &mut [f32],
    run: &dyn Fn(usize, f32) -> f32,
) {
    let sum = |(i, (v, added)): (usize, (&f32, &f32))| f64::from(run(own.start + i, *v) + added);
    let square: f64 = values.iter().zip(&*added).enumerate().map(sum).map(|v| v * v).sum();
    let gain = magnitude / (libm::sqrt(square) as f32).max(f32::MIN_POSITIVE);
    for ((i, v), added) in own.zip(values).zip(added) {
        let before = run(i, *v);
        *v = gain * (*v + *added);
        *added = gain * (before + *added) - before;
    }
}

fn floats(matrix: &DenseMatrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.cols()];
    for (r, row) in all.chunks_exact_mut(matrix.cols()).enumerate() {
        dequantize_row(matrix.dtype(), matrix.row(r), row);
    }
    all
}

/// The share of trits that changed, and how far the change of the ternary weights is from what was added.
fn compare(before: &Quantized, after: &Quantized, added: &[f32]) -> (f64, f64) {
    let (mut changed, mut missing, mut all) = (0usize, 0.0f64, 0.0f64);
    for ((old, new), added) in before.codes.iter().zip(&*after.codes).zip(added) {
        changed += usize::from(old != new);
        let moved = f32::from(*new) * after.scale(0) - f32::from(*old) * before.scale(0);
        missing += f64::from(moved - added) * f64::from(moved - added);
        all += f64::from(*added) * f64::from(*added);
    }
    let lost = if all > 0.0 { libm::sqrt(missing / all) } else { 0.0 };
    (changed as f64 / added.len().max(1) as f64, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_core::KvType;
    use bitnet_cpu::{CpuBackend, CpuOptions};
    use bitnet_model::{Decoder, LoadOptions, Rows, StepOutput};
    use bitnet_testkit::golden;
    use std::sync::Arc;

    #[test]
    fn a_merged_model_gives_the_logits_of_the_reference() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("merged");
        let at = |name: &str| golden::fixtures().join(name);
        let report =
            merge(&at("bitnet-online"), &at("lora/qvd-r4"), &out, 1.0, Some(false), Some(2)).unwrap();
        assert_eq!(report.len(), 6);
        for part in &report {
            let (changed, lost) = (part.changed.unwrap(), part.lost.unwrap());
            assert!(changed > 0.0 && changed < 0.9 && lost > 0.1, "{part:?}");
        }
        let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
        let options = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let checkpoint = bitnet_formats::open(&out).unwrap();
        let mut model = bitnet_model::load(Arc::new(backend), &checkpoint, &options, &mut |_, _| {}).unwrap();
        let strict = golden::prompts("bitnet-online").into_iter().find(|p| p.name == "strict0").unwrap();
        let mut step = StepOutput { rows: Rows::All, ..StepOutput::default() };
        model.step(&strict.ids, &mut step).unwrap();
        let want = golden::floats("lora/qvd-r4/expected.safetensors", "logits_merged_requantized.strict0");
        let diff = golden::max_diff(&step.logits, &want);
        assert!(diff <= 2e-4, "{diff}");
        // What is there is not written over.
        let again =
            merge(&at("bitnet-online"), &at("lora/qvd-r4"), &out, 1.0, Some(false), Some(2)).unwrap_err();
        assert!(again.to_string().contains("is not empty"), "{again}");
    }

    #[test]
    fn nothing_added_changes_nothing_but_what_packing_had_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("merged");
        let at = |name: &str| golden::fixtures().join(name);
        let report = merge(&at("bitnet-packed"), &at("lora/qvd-r4"), &out, 0.0, Some(false), None).unwrap();
        assert!(report.iter().all(|part| part.changed == Some(0.0) && part.lost == Some(0.0)), "{report:?}");
    }
}
