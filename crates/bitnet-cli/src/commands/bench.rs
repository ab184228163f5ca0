//! `bitnet bench`: speed, in the rows that llama-bench prints.

use crate::args::{ModelFlags, ModelPath, count};
use crate::failure::Failure;
use crate::terminal::Progress;
use bitnet_inference::sample::{Sampler, SamplerOptions};
use bitnet_inference::{GenerateError, Model};
use bitnet_model::StepOutput;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::time::Instant;

#[derive(Args)]
#[command(after_help = "\
Examples:
  bitnet bench model.gguf
  bitnet bench model.gguf -p 128,512 -n 64 -r 3 --threads 1 -o json")]
pub struct Bench {
    #[command(flatten)]
    model: ModelPath,
    /// Tokens of the prefill tests, with commas between; 0 leaves them out
    #[arg(short = 'p', long, default_value = "512", value_delimiter = ',')]
    n_prompt: Vec<usize>,
    /// Tokens of the generation tests, with commas between; 0 leaves them out
    #[arg(short, long, default_value = "128", value_delimiter = ',')]
    n_gen: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t = Form::Md)]
    output: Form,
    #[command(flatten)]
    flags: ModelFlags,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Md,
    Csv,
    Json,
}

/// One test: its name, tokens and rates.
struct Row {
    test: String,
    rates: Vec<f64>,
}

impl Row {
    fn mean(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len() as f64
    }

    /// Sample standard deviation.
    fn deviation(&self) -> f64 {
        let (mean, n) = (self.mean(), self.rates.len() as f64);
        if n < 2.0 {
            0.0
        } else {
            (self.rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
        }
    }
}

impl Bench {
    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let mut model = self.flags.open(self.model.get(), quiet)?;
        let tests = self.n_prompt.iter().map(|n| ("pp", *n)).chain(self.n_gen.iter().map(|n| ("tg", *n)));
        let tests: Vec<(&str, usize)> = tests.filter(|(_, n)| *n > 0).collect();
        if let Some((name, n)) = tests.iter().find(|(_, n)| *n > model.capacity()) {
            let capacity = model.capacity();
            return Err(Failure::Usage(format!(
                "{name}{n} does not fit into the context of {capacity}; see --ctx-size"
            )));
        }
        let mut progress = Progress::new("measuring", quiet);
        let (mut rows, mut done) = (Vec::new(), 0);
        let all = tests.len() * (self.repetitions as usize + 1);
        for (name, n) in tests {
            let mut row = Row { test: format!("{name}{n}"), rates: Vec::new() };
            for repetition in 0..=self.repetitions {
                let rate = measure(&mut model, name == "tg", n, self.flags.batch_size)?;
                // The first run warms caches and clocks.
                if repetition > 0 {
                    row.rates.push(rate);
                }
                done += 1;
                progress.at(done, all);
            }
            rows.push(row);
        }
        progress.finish();
        self.print(&model, &rows)
    }

    fn print(&self, model: &Model, rows: &[Row]) -> Result<(), Failure> {
        let (device, report) = (model.device(), model.report());
        let name = model.config().arch.name;
        let weights = report.ternary_weights + report.dense_weights;
        let mib = report.weight_bytes as f64 / f64::from(1 << 20);
        let backend = format!("{} {}", device.device, device.isa);
        let mut out = std::io::stdout().lock();
        match self.output {
            Form::Md => {
                writeln!(out, "| model | size | params | backend | threads | test | t/s |")?;
                writeln!(out, "| --- | ---: | ---: | --- | ---: | ---: | ---: |")?;
                for r in rows {
                    let (params, threads) = (count(weights), device.threads);
                    let (mean, deviation) = (r.mean(), r.deviation());
                    writeln!(
                        out,
                        "| {name} | {mib:.2} MiB | {params} | {backend} | {threads} | {} | {mean:.2} ± {deviation:.2} |",
                        r.test
                    )?;
                }
            }
            Form::Csv => {
                writeln!(out, "model,size_bytes,params,backend,threads,test,avg_ts,stddev_ts")?;
                for r in rows {
                    let (bytes, threads) = (report.weight_bytes, device.threads);
                    let (mean, deviation) = (r.mean(), r.deviation());
                    writeln!(
                        out,
                        "{name},{bytes},{weights},{backend},{threads},{},{mean},{deviation}",
                        r.test
                    )?;
                }
            }
            Form::Json => {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|r| {
                        json!({
                            "model": name, "size_bytes": report.weight_bytes, "params": weights, "backend": backend,
                            "threads": device.threads, "test": r.test, "avg_ts": r.mean(),
                            "stddev_ts": r.deviation(), "samples_ts": r.rates,
                        })
                    })
                    .collect();
                writeln!(out, "{}", json!(rows))?;
            }
        }
        Ok(())
    }
}

/// Tokens a second of one prefill, or of steps of one token from an empty cache. Ids do not matter to speed.
fn measure(model: &mut Model, one_by_one: bool, n: usize, batch: usize) -> Result<f64, Failure> {
    let vocab = model.config().vocab as u32;
    let ids: Vec<u32> = (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let begin = Instant::now();
    // What the default sampler chain looks at.
    let need =
        Sampler::new(SamplerOptions::default(), model.config().vocab).map_err(GenerateError::from)?.need(&[]);
    let out = StepOutput { need, ..StepOutput::default() };
    model.evaluate(&ids, if one_by_one { 1 } else { batch }, out, &mut |_| {})?;
    Ok(n as f64 / begin.elapsed().as_secs_f64())
}
