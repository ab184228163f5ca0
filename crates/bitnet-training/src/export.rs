//! What was trained, as others read it: a model in Hugging Face form, or an adapter as peft saves it.

use crate::checkpoint::remove;
use crate::config::LoraConfig;
use crate::model::Frozen;
use crate::source::Beside;
use crate::{Parameter, Parameters, Quantized, Rounding, TrainError};
use bitnet_cpu::CpuTraining;
use bitnet_formats::safetensors_file::{TensorInfo, Writer};
use bitnet_formats::{NewDirectory, write_file};
use half::bf16;
use serde_json::{Value, json};
use std::path::Path;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const ADAPTER: &str = "adapter_model.safetensors";

/// What was trained.
pub(crate) struct Trained<'a> {
    pub(crate) ops: &'a CpuTraining,
    pub(crate) parameters: &'a Parameters,
    /// All parameters.
    pub(crate) values: &'a [f32],
    /// Matrices that have no values, by their places in the list.
    pub(crate) frozen: &'a [Option<Frozen>],
    pub(crate) beside: &'a Beside,
}

impl Trained<'_> {
    /// Writes a new directory.
    pub(crate) fn export(&self, path: &Path, bf16: bool) -> Result<(), TrainError> {
        remove(path)?;
        let mut dir = NewDirectory::create(path)?;
        dir.begin()?;
        self.write(dir.path(), bf16)?;
        dir.finish()?;
        Ok(())
    }

    /// Writes into a directory, in bf16 or f32.
    pub(crate) fn write(&self, dir: &Path, bf16: bool) -> Result<(), TrainError> {
        match self.parameters.adapter() {
            Some(lora) if lora.trits => crate::trits::write(self, dir),
            Some(lora) => self.write_adapter(dir, lora, bf16),
            None => self.write_model(dir, bf16),
        }
    }

    fn write_adapter(&self, dir: &Path, lora: &LoraConfig, bf16: bool) -> Result<(), TrainError> {
        write_file(&dir.join("adapter_config.json"), &pretty(&adapter_config(lora, self.beside)))?;
        let info = |p: &Parameter| info(p.name.clone(), bf16, p.shape());
        let mut file = create(&dir.join(ADAPTER), self.parameters.trained().iter().map(info).collect())?;
        for p in self.parameters.trained() {
            floats(&self.values[p.range.clone()], bf16, &mut file)?;
        }
        Ok(file.finish()?)
    }

    /// Projections are masters where readers make the same trits of them. Trits of other quantizers are written as such, with their scales
    /// beside them, and weights of more levels as what they are worth.
    fn write_model(&self, dir: &Path, bf16: bool) -> Result<(), TrainError> {
        let mut config = self.beside.config.clone();
        config["torch_dtype"] = if bf16 { "bfloat16" } else { "float32" }.into();
        write_file(&dir.join("config.json"), &pretty(&config))?;
        for (name, bytes) in &self.beside.files {
            write_file(&dir.join(name), bytes)?;
        }
        let quantizer = self.parameters.quantizer();
        let as_trits = |p: &Parameter| p.quantized && !quantizer.is_of_readers() && quantizer.is_ternary();
        let mut infos = Vec::new();
        for p in self.parameters.tensors() {
            infos.push(info(p.name.clone(), bf16, p.shape()));
            if as_trits(p) {
                let scales = quantizer.steps(p.slot.rows).max(1);
                infos.push(info(format!("{}_scale", p.name), false, vec![scales]));
            }
        }
        let mut file = create(&dir.join(WEIGHTS), infos)?;
        let mut quantized = Quantized::default();
        for (place, p) in self.parameters.list().iter().enumerate() {
            let (values, cols) = (&self.values[p.range.clone()], p.slot.cols);
            if p.quantized && !quantizer.is_of_readers() {
                let steps = self.parameters.steps(place, self.values);
                quantizer.quantize(self.ops, values, cols, steps, Rounding::Nearest, &mut quantized);
                let trits = as_trits(p);
                for (r, codes) in quantized.codes.chunks_exact(cols).enumerate() {
                    let scale = if trits { 1.0 } else { quantized.scale(r) };
                    let row: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
                    floats(&row, bf16, &mut file)?;
                }
                if trits {
                    floats(&quantized.scales, false, &mut file)?;
                }
            } else if p.is_tensor() {
                floats(values, bf16, &mut file)?;
            }
        }
        Ok(file.finish()?)
    }
}

fn info(name: String, bf16: bool, shape: Vec<usize>) -> TensorInfo {
    TensorInfo { name, dtype: if bf16 { "BF16" } else { "F32" }, shape }
}

pub(crate) fn create(path: &Path, infos: Vec<TensorInfo>) -> Result<Writer, TrainError> {
    Ok(Writer::create(path, &[("format".to_owned(), "pt".to_owned())], infos)?)
}

/// peft's settings of an adapter.
fn adapter_config(lora: &LoraConfig, beside: &Beside) -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": beside.name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "target_modules": lora.targets,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
    })
}

/// Writes values, in bf16 or f32.
pub(crate) fn floats(values: &[f32], half: bool, file: &mut Writer) -> Result<(), TrainError> {
    for piece in values.chunks(1 << 16) {
        let bytes: Vec<u8> = match half {
            true => piece.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            false => piece.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        file.write(&bytes)?;
    }
    Ok(())
}

pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("JSON values can be written");
    bytes.push(b'\n');
    bytes
}
