//! Hugging Face directories: `config.json`, `model.safetensors` or `pytorch_model.bin`, and the small files beside them.

pub(crate) mod aside;
mod config;
mod files;

use crate::onnx::graph;
use crate::plan::{Piece, Plan, Source};
use crate::stream::tensors;
use crate::{Container, ConvertError, ConvertOptions, Report};
use bitnet_formats::safetensors_file::{self, TensorInfo};
use bitnet_formats::{Checkpoint, FormatError, NewDirectory, onnx, torch, write_file};
use bitnet_model::ModelConfig;
use serde_json::Value;
use std::path::Path;

pub(crate) fn write(
    input: &Checkpoint,
    config: &ModelConfig,
    output: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ConvertError> {
    let source = Source::new(input, config, options.quantize);
    source.tensors.check()?;
    let mut report = Report { left_out: source.left_out(), ..Report::default() };
    let mut directory = NewDirectory::create(output).map_err(ConvertError::Output)?;
    let plan = Plan::new(&source, options)?;
    let mut small = files::beside(&source, &mut report.left_out)?;
    small.push(("config.json".to_owned(), pretty(&config::write(&source, &plan, options)?)));
    let infos = plan.pieces.iter().map(|Piece { name, shape, ttype }| TensorInfo {
        name: name.clone(),
        dtype: ttype.name(),
        shape: shape.clone(),
    });
    let mut writer =
        TensorFile::create(directory.path(), &source, &plan, options.target.container, infos.collect())
            .map_err(ConvertError::Output)?;
    tensors(&source, &plan, options, &mut report, &mut |bytes| writer.write(bytes), progress)?;
    // The directory is there for a moment only: whatever happens before leaves nothing behind.
    writer.sync().map_err(ConvertError::Output)?;
    directory.begin().map_err(ConvertError::Output)?;
    for (name, bytes) in small {
        write_file(&directory.path().join(name), &bytes).map_err(ConvertError::Output)?;
    }
    writer.finish().map_err(ConvertError::Output)?;
    directory.finish().map_err(ConvertError::Output)?;
    Ok(report)
}

/// The file of tensors.
enum TensorFile {
    Safetensors(safetensors_file::Writer),
    Torch(torch::Writer),
    Onnx(onnx::Writer),
}

impl TensorFile {
    fn create(
        dir: &Path,
        source: &Source<'_>,
        plan: &Plan,
        container: Container,
        infos: Vec<TensorInfo>,
    ) -> Result<Self, FormatError> {
        let format = match container {
            Container::Onnx => {
                return onnx::Writer::create(dir, &graph(source, plan), &infos).map(Self::Onnx);
            }
            Container::Torch => {
                return torch::Writer::create(&dir.join("pytorch_model.bin"), &infos).map(Self::Torch);
            }
            Container::Mlx => "mlx",
            _ => "pt",
        };
        let metadata = [("format".to_owned(), format.to_owned())];
        let file = dir.join("model.safetensors");
        safetensors_file::Writer::create(&file, &metadata, infos).map(Self::Safetensors)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        match self {
            Self::Safetensors(w) => w.write(bytes),
            Self::Torch(w) => w.write(bytes),
            Self::Onnx(w) => w.write(bytes),
        }
    }

    fn sync(&mut self) -> Result<(), FormatError> {
        match self {
            Self::Safetensors(w) => w.sync(),
            Self::Torch(w) => w.sync(),
            Self::Onnx(w) => w.sync(),
        }
    }

    fn finish(self) -> Result<(), FormatError> {
        match self {
            Self::Safetensors(w) => w.finish(),
            Self::Torch(w) => w.finish(),
            Self::Onnx(w) => w.finish(),
        }
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
