//! Models from one format to another.
//!
//! [`convert`] takes an opened checkpoint, whatever its format, and writes it in another one, tensor by tensor: trits keep
//! their values, scales their bits where the target can hold them, and metadata its meaning. What could not be held is in the
//! [`Report`]. [`compare`] and [`differences`] say what two checkpoints have in common and what not. The crate computes nothing itself: trits are unpacked by
//! `bitnet-model`, packed by `bitnet-quant` and written by `bitnet-formats`.
//!
//! ```no_run
//! use bitnet_convert::{ConvertOptions, Target, convert};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = bitnet_formats::open("bitnet-b1.58-2B-4T".as_ref())?;
//! let options = ConvertOptions::new(Target::find("i2_s").ok_or("no such target")?);
//! let report = convert(&model, "2b-4t.gguf".as_ref(), &options, &mut |_, _| {})?;
//! println!("{:?}", report.left_out);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod compare;
mod diff;
mod encode;
mod error;
mod gguf;
mod huggingface;
mod onnx;
mod ordered;
mod plan;
mod quality;
mod report;
mod scale;
mod stream;
mod target;

pub use compare::{Comparison, LogitComparison, RoleComparison, compare, compare_logits};
pub use diff::{Difference, differences};
pub use error::ConvertError;
pub use quality::{LayerError, Method};
pub use report::{ClassSize, Inexact, Report};
pub use target::{Container, TARGETS, Target, Weights};

use bitnet_core::DenseType;
use bitnet_formats::{Checkpoint, Header};
use bitnet_model::{ModelConfig, Windows};
use bitnet_quant::packing::TileTable;
use plan::Source;
use std::path::Path;

/// How a model is to be converted.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The format to write.
    pub target: &'static Target,
    /// Type of embedding and head; the input's own where the target has it, when `None`.
    pub embedding: Option<DenseType>,
    /// Refuse whatever the target cannot hold to the last bit: scales, embeddings, master weights; and a tokenizer that it has
    /// no place for.
    pub strict: bool,
    /// Make trits of projections that are not ternary; they are refused, or stay what they are, when `None`.
    pub quantize: Option<Method>,
    /// Tiles of TL1 and TL2.
    pub tiles: TileTable,
    /// Address of the repository that the model is from; GGUF files get it where the input does not say one.
    pub origin: Option<String>,
    /// Threads that unpack and pack.
    pub threads: usize,
}

impl ConvertOptions {
    /// To a target, with two threads and nothing else out of the ordinary.
    pub fn new(target: &'static Target) -> Self {
        Self {
            target,
            embedding: None,
            strict: false,
            quantize: None,
            tiles: TileTable::default(),
            origin: None,
            threads: 2,
        }
    }
}

/// Converts a model; `output` appears when it is whole. `progress` is told how many of how many steps are done.
///
/// # Errors
/// The model cannot be read, the target cannot hold it, or the output cannot be written; in each case `output` is what it
/// was before.
pub fn convert(
    input: &Checkpoint,
    output: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report, ConvertError> {
    let config = ModelConfig::read(input)?;
    refuse_unsayable(input, &config, options.target.container)?;
    if options.quantize.is_some() {
        let source = Source::new(input, &config, None);
        let mut quantizable = false;
        for slot in source.tensors.slots().iter().filter(|s| s.role.is_projection()) {
            quantizable |= quality::floats(&source, slot)?.is_some();
            source.tensors.stored(slot)?.data.release();
            if quantizable {
                break;
            }
        }
        if !quantizable {
            return Err(ConvertError::AlreadyTernary);
        }
    }
    match options.target.container {
        Container::Gguf => gguf::write(input, &config, output, options, progress),
        Container::HuggingFace | Container::Mlx | Container::Torch | Container::Onnx => {
            huggingface::write(input, &config, output, options, progress)
        }
    }
}

/// Refuses what a container has no words for, or we none to write there.
fn refuse_unsayable(
    input: &Checkpoint,
    config: &ModelConfig,
    container: Container,
) -> Result<(), ConvertError> {
    let gguf = container == Container::Gguf;
    let renamed = gguf || matches!(input.header, Header::Gguf { .. });
    let what = if config.arch.post_norms {
        "the outputs of its blocks are normed"
    } else if config.projection_norms.is_some() && !(gguf && config.arch.qk_norms) {
        "its projections have norms of their own"
    } else if config.local.is_some()
        && (container == Container::Onnx || (renamed && !(gguf && config.arch.windows == Windows::All)))
    {
        "some layers see a sliding window"
    } else {
        return Ok(());
    };
    Err(ConvertError::NoPlace { container: container.name(), what: what.to_owned() })
}
