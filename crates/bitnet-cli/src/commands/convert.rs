//! `bitnet convert`: a model in another format.

use crate::failure::{Failure, chain};
use crate::hub;
use crate::shipped;
use crate::terminal::Progress;
use bitnet_convert::{
    Comparison, ConvertError, ConvertOptions, LogitComparison, Report, RoleComparison, TARGETS, Target,
    Weights, compare, compare_logits, convert,
};
use bitnet_core::DenseType;
use bitnet_formats::ReadOptions;
use bitnet_inference::{DeviceOptions, OpenOptions};
use bitnet_quant::packing::{Packing, TileTable};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Threads where nobody asks for more. Each holds a tensor or two, and disks are no faster for more of them.
const THREADS: usize = 4;

#[derive(Args)]
#[command(
    long_about = "Convert a model to another format.\n\n\
        Trits keep their values, whatever the format. Scales keep their bits where the target can hold them; where it cannot \
        (TQ, Q1_0, Q2_0, Q8_0 and F16 have f16 scales) the error is printed, or refused with --strict. Metadata, tokenizer, \
        chat template, generation defaults and licence go along; what the target has no place for is listed. The output \
        appears under its name when it is whole.\n\n\
        Tensors are read, converted and written one after the other: a model of the size of BitNet 2B-4T takes less than \
        1 GB of memory, whatever order its file has its weights in (--verify runs both models and takes as much as running \
        them; more than 4 threads hold more tensors at a time).",
    after_help = "\
Targets, a GGUF file:
  i2_s, i2_s-arm    bitnet.cpp's on x86, which is what models are published in, and on ARM
  tl1, tl2          bitnet.cpp's with lookup tables; with --tiles
  tq1_0, tq2_0      llama.cpp's ternary types
  q2_0, q2_0-g128   groups of 64 (llama.cpp) or of 128 (Prism's first files)
  q1_0              signs in groups of 128, for models without zeros
  q8_0, f16, bf16, f32
Targets, a directory as Hugging Face's libraries have it:
  hf-autobitlinear  packed, weight_scale multiplies (2B-4T)
  hf-bitlinear      packed, weight_scale divides (Falcon3, Falcon-E, HF1BitLLM)
  hf-bf16, hf-f16, hf-f32
                    master weights where the input has them, else trits with a weight_scale
  pt-autobitlinear, pt-bitlinear, pt-bf16, pt-f16, pt-f32
                    the same in pytorch_model.bin
  mlx               packed, all floats of one type, as mlx-lm loads it
  onnx              a graph from ids to logits that ONNX Runtime runs: one byte a trit,
                    activations in int8

Examples:
  bitnet convert bitnet-b1.58-2B-4T-bf16 2b-4t.gguf --to i2_s --verify
  bitnet convert Falcon3-1B-Instruct-1.58bit falcon3.gguf --to tq2_0 --embedding q6_k
  bitnet convert 2b-4t.gguf 2b-4t-packed --to hf-autobitlinear --strict"
)]
pub struct Convert {
    #[arg(value_name = "IN", help = hub::MODEL_HELP)]
    input: PathBuf,
    /// The file to write; for the hf, pt, mlx and onnx targets a directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// What to write; see the list below
    #[arg(long, value_name = "TYPE", value_parser = target)]
    to: &'static Target,
    /// How to read a GGUF type that stands for two layouts, where neither the file's sizes nor its weights tell: i2_s or i2_s-arm, q2_0
    /// or q2_0-g128
    #[arg(long, value_name = "TYPE", value_parser = layout)]
    from: Option<&'static Packing>,
    /// Type of embedding and head: f32, f16 or bf16; in GGUF also q8_0 or q6_k [default: the input's own, and with a target
    /// of floats that type]
    #[arg(long, value_name = "TYPE", value_parser = dense_type)]
    embedding: Option<DenseType>,
    /// Compare every trit and scale, and the logits, of input and output
    #[arg(long)]
    verify: bool,
    /// bitnet.cpp's kernel_config.ini, without which TL1 and TL2 can neither be read nor written
    #[arg(long, value_name = "FILE")]
    tiles: Option<PathBuf>,
    /// Refuse to round anything: scales, master weights, embedding
    #[arg(long)]
    strict: bool,
    /// Threads [default: physical cores, at most 4]
    #[arg(short, long, env = "BITNET_THREADS")]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn target(name: &str) -> Result<&'static Target, String> {
    Target::find(name).ok_or_else(|| {
        let names = TARGETS.iter().map(|t| t.name).collect::<Vec<_>>();
        format!("it can be {}", names.join(", "))
    })
}

fn layout(name: &str) -> Result<&'static Packing, String> {
    let known = ["i2_s", "i2_s-arm", "q2_0", "q2_0-g128"];
    match Target::find(name).map(|t| (t.name, t.weights)) {
        Some((name, Weights::Packed(packing))) if known.contains(&name) => Ok(packing),
        _ => Err(format!("it can be {}", known.join(", "))),
    }
}

pub fn dense_type(name: &str) -> Result<DenseType, String> {
    let known = [DenseType::F32, DenseType::F16, DenseType::BF16, DenseType::Q8_0, DenseType::Q6_K];
    let found = known.into_iter().find(|t| t.name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| "it can be f32, f16, bf16, q8_0 and q6_k".to_owned())
}

fn tile_table(path: &Path) -> Result<TileTable, Failure> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))?;
    TileTable::parse(&text).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
}

impl Convert {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let threads = self.threads.unwrap_or_else(|| bitnet_cpu::physical_cores().min(THREADS)).max(1);
        let tiles = match (&self.tiles, self.to.weights) {
            (Some(path), _) => tile_table(path)?,
            (None, Weights::Tiled(_)) => {
                let to = self.to.name;
                return Err(Failure::Usage(format!(
                    "--to {to} needs --tiles: the shapes of its tiles stand in no model"
                )));
            }
            (None, _) => TileTable::default(),
        };
        let path = hub::locate(&self.input, quiet)?;
        let read = ReadOptions { tiles: tiles.clone(), layout: self.from };
        let input = shipped::open_with(&path, &read)?;
        let options = ConvertOptions {
            embedding: self.embedding,
            strict: self.strict,
            threads,
            tiles: tiles.clone(),
            origin: hub::origin(&path),
            ..ConvertOptions::new(self.to)
        };
        let mut progress = Progress::new("converting", quiet);
        let report = convert(&input, &self.output, &options, &mut |done, all| progress.at(done, all))
            .map_err(Failure::at(&self.input))?;
        progress.finish();
        let verified = match self.verify {
            true => Some(self.verified(&input, &tiles, threads, quiet)?),
            false => None,
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", object(&self, &report, verified.as_ref()))?;
        } else if !quiet {
            print(&mut out, &report)?;
            if let Some((tensors, logits)) = &verified {
                print_comparison(&mut out, tensors)?;
                print_logits(&mut out, logits)?;
            }
            writeln!(out, "\n{}", self.output.display())?;
        }
        match verified {
            Some((tensors, _)) if tensors.trits_differ() > 0 || !tensors.unmatched.is_empty() => {
                let differ = tensors.trits_differ();
                Err(Failure::Runtime(format!("verification failed: {differ} trits of the output differ")))
            }
            _ => Ok(()),
        }
    }

    fn verified(
        &self,
        input: &bitnet_formats::Checkpoint,
        tiles: &TileTable,
        threads: usize,
        quiet: bool,
    ) -> Result<(Comparison, LogitComparison), Failure> {
        let read = ReadOptions { tiles: tiles.clone(), ..ReadOptions::default() };
        let output = bitnet_formats::open_with(&self.output, &read)?;
        let mut progress = Progress::new("comparing", quiet);
        let tensors = compare(input, &output, threads, &mut |done, all| progress.at(done, all))
            .map_err(Failure::at(&self.output))?;
        progress.finish();
        let device = DeviceOptions { threads: self.threads.map(|n| n.max(1)), ..DeviceOptions::default() };
        let options = OpenOptions { device, ..OpenOptions::default() };
        let mut progress = Progress::new("loading both", quiet);
        let logits = compare_logits(input, &output, &options, &mut |done, all| progress.at(done, all))
            .map_err(Failure::at(&self.output))?;
        progress.finish();
        Ok((tensors, logits))
    }
}

pub fn print(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    writeln!(
        out,
        "{:<12} {:<10} {:>8} {:>14} {:>12} {:>8}",
        "tensors", "type", "count", "weights", "MB", "bits"
    )?;
    for c in &report.classes {
        let mb = c.bytes as f64 / 1e6;
        writeln!(
            out,
            "{:<12} {:<10} {:>8} {:>14} {mb:>12.2} {:>8.3}",
            c.class,
            c.kind,
            c.tensors,
            c.weights,
            c.bits()
        )?;
    }
    for what in ["scale", "master weights", "values"] {
        let of_kind = || report.inexact.iter().filter(|i| i.what == what);
        if let Some(worst) = of_kind().max_by(|a, b| a.error.total_cmp(&b.error)) {
            let plural = if what == "scale" { "scales" } else { what };
            writeln!(
                out,
                "rounded: {plural} of {} tensors, by up to {:.1e} ({})",
                of_kind().count(),
                worst.error,
                worst.tensor
            )?;
        }
    }
    report.left_out.iter().try_for_each(|what| writeln!(out, "left out: {what}"))
}

fn print_comparison(out: &mut impl Write, c: &Comparison) -> std::io::Result<()> {
    writeln!(
        out,
        "\n{:<12} {:>8} {:>14} {:>8} {:>10} {:>8} {:>10} {:>12} {:>10} {:>10}",
        "compared", "tensors", "trits", "differ", "scales", "differ", "error", "values", "differ", "error"
    )?;
    for (role, r) in &c.roles {
        writeln!(
            out,
            "{:<12} {:>8} {:>14} {:>8} {:>10} {:>8} {:>10.1e} {:>12} {:>10} {:>10.1e}",
            format!("{role:?}"),
            r.tensors,
            r.trits,
            r.trits_differ,
            r.scales,
            r.scales_differ,
            r.scale_error,
            r.values,
            r.values_differ,
            r.value_error
        )?;
    }
    c.unmatched.iter().try_for_each(|name| writeln!(out, "only one of them has {name}, or of another shape"))
}

fn print_logits(out: &mut impl Write, l: &LogitComparison) -> std::io::Result<()> {
    let verdict = match l.same {
        true => "the same bits".to_owned(),
        false => format!(
            "up to {:.1e} apart (largest magnitude {:.1}), another most likely token at {} positions",
            l.error, l.magnitude, l.other_tokens
        ),
    };
    writeln!(out, "logits of {} tokens: {verdict}", l.tokens)
}

fn object(convert: &Convert, report: &Report, verified: Option<&(Comparison, LogitComparison)>) -> Value {
    let classes = report.classes.iter().map(|c| {
        json!({"class": c.class, "type": c.kind, "tensors": c.tensors, "weights": c.weights, "bytes": c.bytes,
            "bits_per_weight": c.bits()})
    });
    let inexact =
        report.inexact.iter().map(|i| json!({"tensor": i.tensor, "what": i.what, "error": i.error}));
    json!({
        "output": convert.output,
        "type": convert.to.name,
        "input_bytes": report.input_bytes,
        "classes": classes.collect::<Vec<_>>(),
        "rounded": inexact.collect::<Vec<_>>(),
        "left_out": report.left_out,
        "verified": verified.map(|(c, l)| json!({
            "tensors": comparison(c),
            "logits": {"tokens": l.tokens, "same": l.same, "error": l.error, "magnitude": l.magnitude,
                "other_tokens": l.other_tokens},
        })),
    })
}

fn comparison(c: &Comparison) -> Value {
    let roles = c.roles.iter().map(|(role, r)| (format!("{role:?}"), role_json(r)));
    Value::Object(roles.collect())
}

/// What was found out about tensors.
pub fn role_json(r: &RoleComparison) -> Value {
    json!({
            "tensors": r.tensors,
            "trits": r.trits, "trits_differ": r.trits_differ,
            "scales": r.scales, "scales_differ": r.scales_differ, "scale_error": r.scale_error,
            "values": r.values, "values_differ": r.values_differ, "value_error": r.value_error,
    })
}

impl From<ConvertError> for Failure {
    fn from(e: ConvertError) -> Self {
        match e {
            ConvertError::Format(e) => e.into(),
            ConvertError::Model(e) => e.into(),
            ConvertError::Tokenizer(e) => e.into(),
            ConvertError::Open(e) => e.into(),
            ConvertError::Run(e) => e.into(),
            ConvertError::Output(_) | ConvertError::Read { .. } => Self::Runtime(chain(&e)),
            ConvertError::Type { .. }
            | ConvertError::Blocks { .. }
            | ConvertError::AlreadyTernary
            | ConvertError::NoTile { .. } => Self::Usage(chain(&e)),
            e => Self::Model(chain(&e)),
        }
    }
}
