//! Running a model: opening it on a device, sampling, stopping, text as it comes.
//!
//! ```no_run
//! use bitnet_inference::{GenerateOptions, Model, OpenOptions};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut model = Model::open("model.gguf".as_ref(), &OpenOptions::default(), &mut |_, _| {})?;
//! let prompt = model.encode("The capital of France is")?;
//! for piece in model.generate(&prompt, GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Model::batch`] answers many prompts at once, [`Model::share`] makes a model for many tasks whose answers are streams, and an
//! [`Engine`](engine::Engine) is what all of them are made of. `examples/` has a page for each.
#![forbid(unsafe_code)]

mod batch;
pub mod cuda;
mod device;
mod embed;
pub mod engine;
mod error;
mod form;
pub mod gbnf;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod model;
mod prepared;
pub mod sample;
mod session;
mod shared;
pub mod stop;
mod vocabulary;

pub use batch::Answer;
pub use bitnet_cuda::CudaError;
pub use bitnet_model::{LoadOptions, ModelConfig};
pub use bitnet_wgpu::AdapterKind;
pub use bitnet_wgpu::WgpuError;
pub use device::{
    Candidate, Device, DeviceInfo, DeviceOptions, GpuDetails, Placement, Speed, Split, UnknownDevice, choose,
    cuda_trouble, gpus, memory,
};
pub use embed::{EmbedOptions, Pooling};
pub use error::{GenerateError, OpenError};
pub use form::{Constraint, Form, Forms, bounded_whitespace};
pub use generate::{FinishReason, GenerateOptions, Generation, Piece, Timings};
#[cfg(feature = "hub")]
pub use hub::{HubModel, HubOpenError, Progress, load_model_from_hub};
pub use model::{Model, OpenOptions};
pub use prepared::{ModelFiles, Prepared};
pub use session::SessionError;
pub use shared::{AnswerStream, SharedModel};
pub use vocabulary::{tokenizer, vocabulary};
