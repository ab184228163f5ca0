//! Random models of published shapes: what load time, memory and speed are measured on without a download.
//!
//! About 40 % of the trits are zero, as in trained models, and scales keep activations of order one through all layers. The same
//! seed gives the same file.

mod gguf;
mod huggingface;
mod random;
mod shape;
mod sparsity;
mod vocabulary;

use bitnet_core::{DenseType, Scale, TernaryMatrix};
use clap::{Args, ValueEnum};
use random::Random;
use shape::{Place, Shape};
use sparsity::{Plan, Sparsity};
use std::error::Error;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask synth --shape 2b-4t -o /tmp/2b.gguf
  cargo xtask synth --shape 8b --format hf-packed -o /tmp/8b
  cargo xtask synth --shape 2b-4t --format gguf-tq2_0 --embedding F16 -o /tmp/2b-tq2.gguf
  cargo xtask synth --shape 2b-4t --sparsity -o /tmp/2b-sparse.gguf")]
pub struct Synth {
    /// 2b-4t, 2b-4t-slice (two of its layers, an eighth of its vocabulary), 0.7b, 3b, 8b, 13b, 70b or tiny
    #[arg(long, value_parser = shape::find)]
    shape: &'static Shape,
    /// The file to write; a directory for the hf formats
    #[arg(short, long)]
    output: PathBuf,
    /// Type and container of the projections
    #[arg(long, value_enum, default_value_t = Format::GgufI2S)]
    format: Format,
    /// Type of embedding and head: F32, F16, BF16, Q8_0 or Q6_K [default: Q6_K in GGUF, BF16 in the hf formats]
    #[arg(long, value_parser = dense_type)]
    embedding: Option<DenseType>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Feed-forward blocks as sparse as trained ones: the share of gates that are not above zero, and of inputs of `down`
    /// that quantize to zero; both are measured in the end
    #[arg(long, value_name = "GATES,ZEROS", num_args = 0..=1, default_missing_value = "0.6,0.8")]
    sparsity: Option<Sparsity>,
    /// What a GGUF file calls the architecture, where a program knows it by another name; llama.cpp has `bitnet` for all
    /// with sub-norms
    #[arg(long, value_name = "NAME")]
    gguf_arch: Option<String>,
    /// Leave tokenizer and chat template out
    #[arg(long)]
    no_tokenizer: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(name = "gguf-i2_s")]
    GgufI2S,
    #[value(name = "gguf-tq1_0")]
    GgufTq1,
    #[value(name = "gguf-tq2_0")]
    GgufTq2,
    #[value(name = "gguf-q2_0")]
    GgufQ2,
    /// Blocks of four bits, which hold trits only nearly: for engines without ternary types
    #[value(name = "gguf-q4_0")]
    GgufQ4,
    #[value(name = "gguf-bf16")]
    GgufBf16,
    /// Packed uint8, as 2B-4T and HF1BitLLM are published
    HfPacked,
    /// bf16 master weights, quantized when they are loaded
    HfBf16,
}

fn dense_type(name: &str) -> Result<DenseType, String> {
    use DenseType::{BF16, F16, F32, Q6_K, Q8_0};
    let known = [F32, F16, BF16, Q8_0, Q6_K];
    known
        .into_iter()
        .find(|t| t.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| "F32, F16, BF16, Q8_0 and Q6_K can be written".into())
}

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

impl Synth {
    pub fn execute(&self) -> Result<()> {
        let plan = self.sparsity.map(|s| Plan::new(s, self.shape)).transpose()?;
        let weights = Weights { shape: self.shape, random: Random(self.seed), plan };
        match self.format {
            Format::HfPacked | Format::HfBf16 => huggingface::write(self, &weights)?,
            _ => gguf::write(self, &weights)?,
        }
        if self.sparsity.is_some() {
            eprintln!("measured: {}", sparsity::measure(&self.output)?);
        }
        println!("{}", self.output.display());
        Ok(())
    }
}

/// What a tensor is, and thus how large its numbers are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Embedding or head.
    Table,
    Norm,
    /// A projection whose output is added to the residual stream.
    Residual,
    Projection,
}

/// A tensor of the model, rows first; norms have one row.
struct Item {
    name: String,
    role: Role,
    place: Place,
    rows: usize,
    cols: usize,
}

/// Numbers of a model.
struct Weights {
    shape: &'static Shape,
    random: Random,
    /// How feed-forward blocks become sparse, where they are to be.
    plan: Option<Plan>,
}

impl Weights {
    /// A scale that f16 and bf16 hold exactly.
    fn scale(&self, item: &Item) -> f32 {
        // The sum of `cols` products with 60 % nonzero trits has this deviation for inputs of order one.
        let unit = 1.0 / (0.6 * item.cols as f32).sqrt();
        let scale = if item.role == Role::Residual { 0.5 * unit } else { unit };
        half::bf16::from_f32(scale).to_f32()
    }

    fn ternary(&self, index: usize, item: &Item) -> Result<TernaryMatrix> {
        let stride = TernaryMatrix::row_bytes(item.cols);
        let mut codes = vec![0b0101_0101u8; item.rows * stride];
        let stream = self.random.stream(index);
        for (row, out) in codes.chunks_exact_mut(stride).enumerate() {
            stream.codes((row * item.cols) as u64, item.cols, out);
            if let Some(plan) = &self.plan {
                plan.codes(item, row, out);
            }
        }
        Ok(TernaryMatrix::new(item.rows, item.cols, codes.into(), Scale::Tensor(self.scale(item)))?)
    }

    /// Some rows of a table, or a norm.
    fn floats(&self, index: usize, item: &Item, first: usize, rows: usize) -> Vec<f32> {
        let stream = self.random.stream(index);
        let from = (first * item.cols) as u64;
        (from..from + (rows * item.cols) as u64)
            .map(|i| {
                let (normal, col) = (stream.normal(i), i as usize % item.cols);
                let plain = match item.role {
                    Role::Norm => 1.0 + 0.1 * normal,
                    _ => self.shape.table_deviation() * normal,
                };
                let value = self.plan.as_ref().map_or(plain, |plan| plan.float(item, col, normal, plain));
                // Rounded, so that every container holds the same numbers.
                if item.role == Role::Norm { half::bf16::from_f32(value).to_f32() } else { value }
            })
            .collect()
    }
}

/// Says how far the work is, a line per 10 %.
struct Progress {
    all: usize,
    said: usize,
}

impl Progress {
    fn at(&mut self, done: usize) {
        let tenth = done * 10 / self.all.max(1);
        if tenth > self.said {
            self.said = tenth;
            eprintln!("writing: {} %", tenth * 10);
        }
    }
}

#[cfg(test)]
mod tests;
