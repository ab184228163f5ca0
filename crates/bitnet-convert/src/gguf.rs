//! GGUF files: metadata, then tensors.

mod metadata;

pub(crate) use metadata::{SAMPLING, kept};

use crate::plan::{Piece, Plan, Source};
use crate::stream::tensors;
use crate::{ConvertError, ConvertOptions, Report};
use bitnet_core::DenseType;
use bitnet_formats::gguf::{TensorInfo, Writer};
use bitnet_formats::{Checkpoint, TensorType};
use bitnet_model::ModelConfig;
use std::path::Path;

/// Factors of rotary frequencies, which GGUF has as a tensor.
const FACTORS: &str = "rope_freqs.weight";

pub(crate) fn write(
    input: &Checkpoint,
    config: &ModelConfig,
    output: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ConvertError> {
    let source = Source::new(input, config, options.quantize);
    source.tensors.check()?;
    let plan = Plan::new(&source, options)?;
    let mut report = Report { left_out: source.left_out(), ..Report::default() };
    let metadata = metadata::write(&source, &plan, options, &mut report.left_out)?;
    let mut infos: Vec<TensorInfo> = Vec::new();
    if let Some(factors) = config.rope_factors() {
        let ttype = TensorType::Dense(DenseType::F32);
        infos.push(TensorInfo { name: FACTORS.to_owned(), shape: vec![factors.len()], ttype });
    }
    infos.extend(plan.pieces.iter().map(|Piece { name, shape, ttype }| TensorInfo {
        name: name.clone(),
        shape: shape.clone(),
        ttype: *ttype,
    }));
    let mut writer = Writer::create(output, &metadata, &infos).map_err(ConvertError::Output)?;
    if let Some(factors) = config.rope_factors() {
        let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        writer.write(&bytes).map_err(ConvertError::Output)?;
    }
    tensors(&source, &plan, options, &mut report, &mut |bytes| writer.write(bytes), progress)?;
    writer.finish().map_err(ConvertError::Output)?;
    Ok(report)
}
