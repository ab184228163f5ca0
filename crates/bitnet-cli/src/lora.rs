//! Adapters on the command line. Names are llama.cpp's.

use crate::failure::{Failure, chain};
use bitnet_inference::Model;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug, Default)]
pub struct LoraFlags {
    /// LoRA adapter beside the weights: a directory that peft saved; may be repeated
    #[arg(long, value_name = "DIR", value_delimiter = ',', env = "BITNET_LORA", help_heading = "Sampling")]
    lora: Vec<PathBuf>,
    /// The same, as DIR:SCALE, with what it adds multiplied by SCALE; may be repeated
    #[arg(long, value_name = "DIR:SCALE", value_delimiter = ',', help_heading = "Sampling")]
    lora_scaled: Vec<String>,
}

impl LoraFlags {
    /// Loads what is asked for, so that all requests go through it which do not choose adapters themselves.
    pub fn load(&self, model: &mut Model) -> Result<(), Failure> {
        for path in &self.lora {
            load(model, path, 1.0)?;
        }
        for pair in &self.lora_scaled {
            let parts =
                pair.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
            match parts.filter(|(_, scale)| scale.is_finite()) {
                Some((path, scale)) => load(model, Path::new(path), scale)?,
                None => {
                    return Err(Failure::Usage(format!(
                        "--lora-scaled {pair:?} is not of the form DIR:SCALE"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn load(model: &mut Model, path: &Path, scale: f32) -> Result<(), Failure> {
    let id = model.load_adapter(path, scale);
    id.map(drop).map_err(|e| Failure::Model(format!("adapter {}: {}", path.display(), chain(&e))))
}
