//! Adapters that are trits in place of others: which ones, of which projections. The scales and all other weights are the model's own, so nothing
//! is lost when they are put there ([`crate::merge`]).
//!
//! In `adapter_config.json`, `peft_type` is [`TRITS`], and `trits_sha256` has for each projection (by its module) the hash of the trits that it
//! was made beside, packed as inference has them. `adapter_model.safetensors` has of each projection that changed `MODULE.positions [c]`, u32,
//! ascending, `row * columns + column`, and `MODULE.trits [c]`, i8.

use crate::config::LoraConfig;
use crate::export::{ADAPTER, Trained, create, pretty};
use crate::model::Frozen;
use crate::parameters::{LowRank, Parameters};
use crate::{TrainError, hash};
use bitnet_cpu::{CpuTraining, Side, Store, Target, Terms, TernaryWeights, Values};
use bitnet_formats::safetensors_file::TensorInfo;
use bitnet_formats::{AdapterFiles, write_file};
use bitnet_model::TRITS;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Trits of a projection, row-major, with what an adapter adds: `clamp(round(T + s B A))`, ties to even.
pub(crate) fn rounded(
    ops: &CpuTraining,
    (parameters, values): (&Parameters, &[f32]),
    weights: &TernaryWeights,
    adapter: LowRank,
) -> Vec<i8> {
    let (n, k) = (weights.rows(), weights.cols());
    let value = |place: usize| Values::F32(&values[parameters.list()[place].range.clone()]);
    let rank = parameters.list()[adapter.a].slot.rows;
    let mut added = vec![0.0; n * k];
    let (b, a) = (Side::rows(value(adapter.b), rank), Side::columns(value(adapter.a), k));
    let target = Target { values: &mut added, stride: k, first: 0 };
    ops.product(Terms::F32, (n, k, rank), b, a, Store::Set(adapter.scale), target);
    let mut trits = vec![0; n * k];
    ops.chunks(&mut trits, k, &|row, trits| {
        weights.trits(row, trits);
        for (trit, added) in trits.iter_mut().zip(&added[row * k..]) {
            *trit = (f32::from(*trit) + added).round_ties_even().clamp(-1.0, 1.0) as i8;
        }
    });
    trits
}

/// What tells the trits of a projection from others.
pub(crate) fn identity(weights: &TernaryWeights) -> String {
    hash::hex(&Sha256::digest(weights.codes()))
}

/// Trits of a projection in place of others.
pub(crate) struct Changes {
    /// The projection: its name without `.weight`.
    pub(crate) module: String,
    /// What they were made beside; see [`identity`].
    pub(crate) beside: String,
    /// `row * columns + column`, ascending.
    pub(crate) positions: Vec<u32>,
    pub(crate) trits: Vec<i8>,
}

/// Writes an adapter into a directory.
pub(crate) fn write(trained: &Trained<'_>, dir: &Path) -> Result<(), TrainError> {
    let parameters = trained.parameters;
    let Some(lora) = parameters.adapter() else { return Ok(()) };
    let mut all = Vec::new();
    for (place, p) in parameters.list().iter().enumerate() {
        let (Some(adapter), Some(Some(Frozen::Trits { weights, .. }))) =
            (parameters.low_rank(place), trained.frozen.get(place))
        else {
            continue;
        };
        let new = rounded(trained.ops, (parameters, trained.values), weights, adapter);
        let (mut positions, mut trits, mut old) = (Vec::new(), Vec::new(), vec![0; p.slot.cols]);
        for (row, new) in new.chunks_exact(p.slot.cols).enumerate() {
            weights.trits(row, &mut old);
            for (column, (new, _)) in new.iter().zip(&old).enumerate().filter(|(_, (new, old))| new != old) {
                let position = u32::try_from(row * p.slot.cols + column);
                positions.push(position.map_err(|_| TrainError::Data {
                    what: format!("{} has more than 2^32 trits, which positions have no numbers for", p.name),
                })?);
                trits.push(*new);
            }
        }
        let module = p.name.trim_end_matches(".weight").to_owned();
        all.push(Changes { module, beside: identity(weights), positions, trits });
    }
    write_file(&dir.join("adapter_config.json"), &pretty(&settings(lora, &trained.beside.name, &all)))?;
    all.retain(|c| !c.positions.is_empty());
    let infos = all.iter().flat_map(|c| {
        let info = |end: &str, dtype| TensorInfo {
            name: format!("{}.{end}", c.module),
            dtype,
            shape: vec![c.positions.len()],
        };
        [info("positions", "U32"), info("trits", "I8")]
    });
    let mut file = create(&dir.join(ADAPTER), infos.collect())?;
    for c in &all {
        file.write(&c.positions.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        file.write(&c.trits.iter().map(|v| v.cast_unsigned()).collect::<Vec<u8>>())?;
    }
    Ok(file.finish()?)
}

fn settings(lora: &LoraConfig, model: &str, all: &[Changes]) -> Value {
    let hashes: Map<String, Value> =
        all.iter().map(|c| (c.module.clone(), c.beside.clone().into())).collect();
    json!({
        "peft_type": TRITS,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": lora.targets,
        "trits_sha256": hashes,
    })
}

/// Whether an adapter is of this kind.
pub(crate) fn is(files: &AdapterFiles) -> bool {
    files.config.get("peft_type").and_then(Value::as_str) == Some(TRITS)
}

/// What an adapter changes, projection by projection.
///
/// # Errors
/// It is damaged.
pub(crate) fn read(files: &AdapterFiles) -> Result<Vec<Changes>, TrainError> {
    let fail = |what: String| TrainError::Checkpoint { path: files.path.clone(), what };
    let hashes = files
        .config
        .get("trits_sha256")
        .and_then(Value::as_object)
        .ok_or_else(|| fail("adapter_config.json has no trits_sha256".to_owned()))?;
    let ends = [".positions", ".trits"];
    let known =
        |name: &str| ends.iter().any(|end| name.strip_suffix(end).is_some_and(|m| hashes.contains_key(m)));
    if let Some(odd) = files.tensors.iter().find(|t| !known(&t.name)) {
        return Err(fail(format!("{} belongs to no projection in trits_sha256", odd.name)));
    }
    let mut all = Vec::new();
    for (module, beside) in hashes {
        let tensor = |end: &str| files.tensors.iter().find(|t| t.name.strip_suffix(end) == Some(module));
        let (positions, trits) = match ends.map(tensor) {
            [None, None] => continue,
            [Some(positions), Some(trits)] => (positions, trits),
            _ => return Err(fail(format!("{module} has positions or trits, and not both"))),
        };
        let types = (positions.ttype.name(), trits.ttype.name());
        if types != ("U32", "I8") || positions.shape != trits.shape || positions.shape.len() != 1 {
            return Err(fail(format!("{module} must have positions [c] of U32 and trits [c] of I8")));
        }
        let positions: Vec<u32> =
            positions.bytes().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let trits: Vec<i8> = trits.bytes().iter().map(|b| b.cast_signed()).collect();
        if !positions.is_sorted_by(|a, b| a < b) || trits.iter().any(|trit| !(-1..=1).contains(trit)) {
            return Err(fail(format!("{module} has positions that do not ascend, or trits that are none")));
        }
        let beside = beside.as_str().unwrap_or_default().to_owned();
        all.push(Changes { module: module.clone(), beside, positions, trits });
    }
    Ok(all)
}
