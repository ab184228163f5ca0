//! Hugging Face directories: `config.json`, `model.safetensors`, and the small files beside them.

pub(crate) mod aside;
mod config;
mod files;

use crate::plan::{Piece, Plan, Source};
use crate::stream::tensors;
use crate::{ConvertError, ConvertOptions, Report};
use bitnet_formats::safetensors_file::{TensorInfo, Writer};
use bitnet_formats::{Checkpoint, NewDirectory, write_file};
use bitnet_model::{ModelConfig, ModelTensors};
use serde_json::Value;
use std::path::Path;

pub(crate) fn write(
    input: &Checkpoint,
    config: &ModelConfig,
    output: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ConvertError> {
    let source = Source { checkpoint: input, config, tensors: ModelTensors::new(input, config) };
    source.tensors.check()?;
    let mut report = Report { left_out: source.left_out(), ..Report::default() };
    let directory = NewDirectory::create(output).map_err(ConvertError::Output)?;
    let plan = Plan::new(&source, options)?;
    let put = |name: &str, bytes: &[u8]| {
        write_file(&directory.path().join(name), bytes).map_err(ConvertError::Output)
    };
    put("config.json", &pretty(&config::write(&source, &plan, options)?))?;
    for (name, bytes) in files::beside(&source, &mut report.left_out)? {
        put(&name, &bytes)?;
    }
    let infos = plan.pieces.iter().map(|Piece { name, shape, ttype }| TensorInfo {
        name: name.clone(),
        dtype: ttype.name(),
        shape: shape.clone(),
    });
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let file = directory.path().join("model.safetensors");
    let mut writer = Writer::create(&file, &metadata, infos.collect()).map_err(ConvertError::Output)?;
    tensors(&source, &plan, options, &mut report, &mut |bytes| writer.write(bytes), progress)?;
    writer.finish().map_err(ConvertError::Output)?;
    directory.finish().map_err(ConvertError::Output)?;
    Ok(report)
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
