//! Checkpoints: directories that appear whole or not at all, and can be run as models.
//!
//! `config.json`, `model.safetensors` and the tokenizer make one a Hugging Face model (low-rank matrices, an adapter);
//! `masters.safetensors`, where master weights cannot be read as a model, `optimizer.safetensors` and `trainer.json` are what a run goes on
//! with; `manifest.json` has the SHA-256 of every other file.

use crate::export::{ADAPTER, Trained, WEIGHTS, floats, pretty};
use crate::{Array, Parameter, Parameters, TrainConfig, TrainError, hash};
use bitnet_core::DenseType;
use bitnet_formats::safetensors_file::{self, TensorInfo, Writer};
use bitnet_formats::{NewDirectory, TensorType, map_file, write_file};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const MASTERS: &str = "masters.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";
const MANIFEST: &str = "manifest.json";
/// The end of names of directories on their way out.
const REMOVED: &str = ".removed";

/// Where a run is, besides its weights. Random numbers and the place in the data follow from the step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Steps that are taken.
    pub(crate) step: u64,
    /// The step and the loss of the best validation.
    pub(crate) best: Option<(u64, f64)>,
    /// Validations since then.
    pub(crate) stale: u64,
}

impl Progress {
    fn to_json(&self) -> Value {
        // The bits: a loss must come back as it was.
        let best = self.best.map(|(step, loss)| json!({"step": step, "loss": loss, "bits": loss.to_bits()}));
        json!({"step": self.step, "best": best, "stale": self.stale})
    }

    fn from_json(value: &Value) -> Option<Self> {
        let best = match value.get("best")? {
            Value::Null => None,
            best => Some((best.get("step")?.as_u64()?, f64::from_bits(best.get("bits")?.as_u64()?))),
        };
        Some(Self { step: value.get("step")?.as_u64()?, best, stale: value.get("stale")?.as_u64()? })
    }
}

/// The checkpoints of a run.
pub(crate) struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    pub(crate) fn of(output: &Path) -> Self {
        Self { folder: output.join("checkpoints") }
    }

    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of which there is one, ascending.
    pub(crate) fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries.filter_map(|e| number(e.file_name())).collect();
        steps.sort_unstable();
        steps
    }

    /// Writes one.
    pub(crate) fn write(
        &self,
        trained: &Trained<'_>,
        train: &TrainConfig,
        buffers: &[Array],
        progress: &Progress,
    ) -> Result<PathBuf, TrainError> {
        let parameters = trained.parameters;
        fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        let path = self.path(progress.step);
        remove(&path)?;
        let mut dir = NewDirectory::create(&path)?;
        dir.begin()?;
        trained.write(dir.path(), false)?;
        if masters_apart(parameters) {
            let all = parameters.trained().iter();
            let info = |p: &Parameter| TensorInfo { name: p.name.clone(), dtype: "F32", shape: p.shape() };
            let mut file = Writer::create(&dir.path().join(MASTERS), &[], all.clone().map(info).collect())?;
            for p in all {
                floats(&trained.values[p.range.clone()], false, &mut file)?;
            }
            file.finish()?;
        }
        let all = train.buffers();
        let kept = |buffer: usize| parameters.trained().iter().filter(move |p| train.keeps(buffer, p));
        let infos = all.iter().enumerate().flat_map(|(buffer, name)| {
            kept(buffer).map(move |p| TensorInfo {
                name: format!("{name}.{}", p.name),
                dtype: "F32",
                shape: p.shape(),
            })
        });
        let mut file = Writer::create(&dir.path().join(OPTIMIZER), &[], infos.collect())?;
        for (i, buffer) in buffers.iter().enumerate() {
            for p in kept(i) {
                floats(&buffer[parameters.of_trained(p)], false, &mut file)?;
            }
        }
        file.finish()?;
        write_file(&dir.path().join(TRAINER), &pretty(&progress.to_json()))?;
        let manifest: Map<String, Value> =
            hashes(dir.path())?.into_iter().map(|(name, hash)| (name, hash.into())).collect();
        write_file(&dir.path().join(MANIFEST), &pretty(&json!({"sha256": manifest})))?;
        dir.finish()?;
        Ok(path)
    }

    /// Reads one into `values` and `buffers`; what is wrong with it otherwise.
    pub(crate) fn read(
        &self,
        step: u64,
        parameters: &Parameters,
        values: &mut [f32],
        train: &TrainConfig,
        buffers: &mut [Array],
    ) -> Result<Progress, TrainError> {
        let path = self.path(step);
        let fail = |what: &str| TrainError::Checkpoint { path: path.clone(), what: what.to_owned() };
        let manifest = json_of(&path.join(MANIFEST))?;
        let manifest = manifest
            .get("sha256")
            .and_then(Value::as_object)
            .ok_or_else(|| fail("its manifest is damaged"))?;
        let there = hashes(&path)?;
        for (name, hash) in manifest {
            match there.iter().find(|(n, _)| n == name) {
                None => return Err(fail(&format!("{name} is missing"))),
                Some((_, found)) if Some(found.as_str()) != hash.as_str() => {
                    return Err(fail(&format!("{name} is not what was written")));
                }
                Some(_) => {}
            }
        }
        let progress = Progress::from_json(&json_of(&path.join(TRAINER))?)
            .ok_or_else(|| fail("trainer.json is damaged"))?;
        let file = match parameters.adapter() {
            _ if masters_apart(parameters) => MASTERS,
            Some(_) => ADAPTER,
            None => WEIGHTS,
        };
        load(&path.join(file), parameters, "", &|_| true, &mut values[parameters.start()..])?;
        for (i, (name, buffer)) in train.buffers().iter().zip(buffers).enumerate() {
            load(&path.join(OPTIMIZER), parameters, &format!("{name}."), &|p| train.keeps(i, p), buffer)?;
        }
        Ok(progress)
    }

    /// Removes all but the newest `keep` and the best.
    pub(crate) fn prune(&self, keep: usize, best: Option<u64>) -> Result<(), TrainError> {
        let steps = self.steps();
        for step in steps.iter().rev().skip(keep).filter(|step| Some(**step) != best) {
            remove(&self.path(*step))?;
        }
        // What a killed process did not come to.
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(REMOVED.as_bytes()) {
                fs::remove_dir_all(entry.path()).map_err(TrainError::io(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Whether a model as it is written for readers does not say what the weights in training are.
fn masters_apart(parameters: &Parameters) -> bool {
    match parameters.adapter() {
        Some(lora) => lora.trits,
        None => !parameters.quantizer().is_of_readers(),
    }
}

/// Removes a directory: out of sight first, so that a part of it is never taken for the whole.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let hidden = path.with_file_name(format!(".{}{REMOVED}", path.file_name().unwrap_or_default().display()));
    if hidden.exists() {
        fs::remove_dir_all(&hidden).map_err(TrainError::io(&hidden))?;
    }
    fs::rename(path, &hidden).map_err(TrainError::io(path))?;
    fs::remove_dir_all(&hidden).map_err(TrainError::io(&hidden))
}

/// Reads what a file has of those parameters that it is asked for, under their names behind a prefix.
fn load(
    path: &Path,
    parameters: &Parameters,
    prefix: &str,
    kept: &dyn Fn(&Parameter) -> bool,
    out: &mut [f32],
) -> Result<(), TrainError> {
    let tensors = safetensors_file::read(path, &map_file(path)?)?;
    for p in parameters.trained().iter().filter(|p| kept(p)) {
        let name = format!("{prefix}{}", p.name);
        let fail =
            |what: &str| TrainError::Checkpoint { path: path.to_owned(), what: format!("{name} {what}") };
        let tensor = tensors.iter().find(|t| t.name == name).ok_or_else(|| fail("is missing"))?;
        let fits = matches!(tensor.ttype, TensorType::Dense(DenseType::F32)) && tensor.shape == p.shape();
        if !fits {
            return Err(fail(
                "has another type or shape than the model's: the settings are those of another run",
            ));
        }
        for (out, bytes) in out[parameters.of_trained(p)].iter_mut().zip(tensor.bytes().as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

/// Hashes of the files of a directory, but for the manifest.
fn hashes(dir: &Path) -> Result<Vec<(String, String)>, TrainError> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(TrainError::io(dir))? {
        let entry = entry.map_err(TrainError::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != MANIFEST {
            all.push((name, hash::hex(&hash::of_file(&entry.path())?)));
        }
    }
    all.sort_unstable();
    Ok(all)
}

fn json_of(path: &Path) -> Result<Value, TrainError> {
    let bytes = fs::read(path).map_err(TrainError::io(path))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| TrainError::Checkpoint { path: path.to_owned(), what: format!("it is no JSON: {e}") })
}
