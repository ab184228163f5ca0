//! Rows and the forms they are printed in.

use super::limit::Limit;
use super::test::{Sample, Sizes, Test};
use super::together::Together;
use super::{Setup, Start, memory, table};
use crate::failure::Failure;
use crate::tuning::products;
use bitnet_core::OperationTime;
use bitnet_cpu::processor_name;
use bitnet_formats::Checkpoint;
use bitnet_inference::cuda::Choices;
use bitnet_inference::{DeviceInfo, Model, Split};
use bitnet_memory::Snapshot;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Md,
    Csv,
    Json,
    /// One JSON object a line, as soon as the row is measured
    Jsonl,
    Sql,
}

/// What was measured.
pub struct Row {
    pub(super) device: DeviceInfo,
    arch: &'static str,
    pub(super) model_bytes: usize,
    pub(super) weights: u64,
    pub(super) setup: Setup,
    pub(super) sizes: Sizes,
    pub(super) test: Test,
    begin: jiff::Timestamp,
    pub(super) start: Start,
    pub(super) samples: Vec<Sample>,
    /// What requests that share steps see of it.
    pub(super) together: Option<Together>,
    /// Resident bytes at most, without those of the probes.
    pub(super) peak_bytes: Option<u64>,
    pub(super) limit: Option<Limit>,
    /// What the model's pool had counted behind the row.
    pub(super) memory: Option<Vec<(String, Snapshot)>>,
    /// What the device spent on the row's repetitions, the longest first.
    pub(super) spent: Option<Vec<OperationTime>>,
    /// Of NVIDIA's GPUs, which kernels were taken where there are several.
    pub(super) kernels: Option<Choices>,
}

/// Mean and sample standard deviation.
pub(super) fn statistics(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

impl Row {
    pub fn new(
        (model, start): (&Model, Start),
        (setup, sizes, test): (Setup, Sizes, Test),
        begin: jiff::Timestamp,
        samples: Vec<Sample>,
        limit: Option<Limit>,
    ) -> Self {
        let probes = limit.as_ref().map_or(0, |limit| limit.probe_bytes);
        let report = model.report();
        Self {
            device: model.device().clone(),
            arch: model.config().arch.name,
            model_bytes: report.weight_bytes,
            weights: report.ternary_weights + report.dense_weights,
            setup,
            sizes,
            test,
            begin,
            start,
            samples,
            together: None,
            peak_bytes: memory::peak_bytes().map(|peak| peak.saturating_sub(probes)),
            limit,
            memory: None,
            spent: None,
            kernels: None,
        }
    }

    /// Makes it one of many answers at once.
    pub fn answered(&mut self, together: Together) {
        self.together = Some(together);
        self.peak_bytes = memory::peak_bytes();
    }

    /// llama-bench's name, and how many requests there are at once.
    pub(super) fn name(&self) -> String {
        match &self.together {
            None => self.test.name(),
            Some(together) => format!("{} x{}", self.test.name(), together.requests),
        }
    }

    /// Tokens a second.
    pub(super) fn rates(&self) -> Vec<f64> {
        let requests = self.together.as_ref().map_or(1, |t| t.requests);
        let tokens = (self.test.tokens() * requests) as f64;
        self.samples.iter().map(|s| tokens / s.time.as_secs_f64()).collect()
    }

    /// Mean time until the logits of the answer's first token.
    pub(super) fn first(&self) -> Duration {
        self.samples.iter().map(|s| s.first).sum::<Duration>() / self.samples.len().max(1) as u32
    }

    pub(super) fn share(&self) -> Option<f64> {
        self.limit.as_ref().map(|limit| statistics(&self.rates()).0 / limit.tokens_per_second)
    }
}

/// Collects rows and prints them.
pub struct Report {
    form: Form,
    file: String,
    /// The type of most bytes.
    file_type: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(form: Form, path: &Path, checkpoint: &Checkpoint) -> Self {
        let mut bytes = HashMap::<&'static str, usize>::new();
        for tensor in checkpoint.tensors() {
            *bytes.entry(tensor.ttype.name()).or_default() += tensor.data.len();
        }
        let file_type = bytes.into_iter().max_by_key(|(name, n)| (*n, *name));
        Self {
            form,
            file: path.display().to_string(),
            file_type: file_type.map_or("", |(name, _)| name),
            rows: Vec::new(),
        }
    }

    /// Takes a row, and prints it where rows stand alone.
    pub fn row(&mut self, row: Row) -> Result<(), Failure> {
        if self.form == Form::Jsonl {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", self.json(&row))?;
            out.flush()?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints the rows.
    pub fn finish(&self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match self.form {
            Form::Md => table::write(&self.rows, |row| self.model_type(row), &mut out),
            Form::Csv => self.csv(&mut out),
            Form::Sql => self.sql(&mut out),
            Form::Json => {
                let rows: Vec<Value> = self.rows.iter().map(|row| self.json(row)).collect();
                writeln!(out, "{:#}", json!(rows))
            }
            Form::Jsonl => Ok(()),
        }?;
        Ok(())
    }

    fn model_type(&self, row: &Row) -> String {
        format!("{} {} {}", row.arch, billions(row.weights), self.file_type)
    }

    /// Columns under llama-bench's names, and what it does not know under others; lists stand in JSON alone.
    fn columns(&self, row: &Row) -> Vec<(&'static str, Value)> {
        let rates = row.rates();
        let times: Vec<f64> = row.samples.iter().map(|s| s.time.as_nanos() as f64).collect();
        let ((rate, rate_deviation), (time, time_deviation)) = (statistics(&rates), statistics(&times));
        let mut columns = vec![
            ("bitnet_version", json!(env!("CARGO_PKG_VERSION"))),
            ("cpu_info", json!(processor_name())),
            ("backends", json!(row.device.device.to_string().to_uppercase())),
            ("split_mode", json!(split_mode(&row.device))),
            ("isa", json!(row.device.isa)),
            ("kernel", json!(row.device.kernel)),
            ("skips", json!(row.device.skips)),
            ("tuned", json!(row.start.tuned)),
            ("model_filename", json!(self.file)),
            ("model_type", json!(self.model_type(row))),
            ("model_size", json!(row.model_bytes)),
            ("model_n_params", json!(row.weights)),
            ("n_batch", json!(row.sizes.batch)),
            ("n_ubatch", json!(row.sizes.ubatch)),
            ("n_threads", json!(row.device.threads)),
            ("type_k", json!(row.setup.key.name())),
            ("type_v", json!(row.setup.value.name())),
            ("n_prompt", json!(row.test.prompt)),
            ("n_gen", json!(row.test.answer)),
            ("n_depth", json!(row.test.depth)),
            ("test", json!(row.name())),
            ("test_time", json!(row.begin.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())),
            ("avg_ns", json!(time.round() as u64)),
            ("stddev_ns", json!(time_deviation.round() as u64)),
            ("avg_ts", json!(rate)),
            ("stddev_ts", json!(rate_deviation)),
            ("load_ns", json!(row.start.load.as_nanos() as u64)),
            ("first_token_ns", json!(row.first().as_nanos() as u64)),
            ("peak_bytes", json!(row.peak_bytes)),
        ];
        if let (Some(limit), Some(share)) = (&row.limit, row.share()) {
            columns.extend([
                ("step_bytes", json!(limit.step_bytes.round() as u64)),
                ("read_bytes_per_s", json!(limit.mean(|r| r.read_bytes).round())),
                ("int8_instruction", json!(limit.instruction)),
                ("int8_ops_per_s", json!(limit.mean(|r| r.int8_ops).round())),
                ("limit_ts", json!(limit.tokens_per_second)),
                ("limit_share", json!(share)),
            ]);
        }
        if let Some(together) = &row.together {
            let ((rate, deviation), ns) = (together.rate(), |d: Duration| json!(d.as_nanos() as u64));
            columns.extend([
                ("n_concurrency", json!(together.requests)),
                ("avg_answer_ts", json!(rate)),
                ("stddev_answer_ts", json!(deviation)),
                ("first_token_p50_ns", ns(together.first(0.5))),
                ("first_token_p99_ns", ns(together.first(0.99))),
                ("between_tokens_p50_ns", ns(together.between(0.5))),
                ("between_tokens_p99_ns", ns(together.between(0.99))),
                ("engine_share", json!(together.engine_share())),
            ]);
        }
        columns
    }

    fn json(&self, row: &Row) -> Value {
        let mut object: Map<String, Value> =
            self.columns(row).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let times: Vec<u128> = row.samples.iter().map(|s| s.time.as_nanos()).collect();
        object.insert("samples_ns".to_owned(), times.into_iter().map(|n| n as u64).collect());
        object.insert("samples_ts".to_owned(), json!(row.rates()));
        if let Some(limit) = &row.limit {
            let list = |of: fn(&super::limit::Rates) -> f64| limit.rates.iter().map(of).collect::<Vec<_>>();
            object.insert("samples_read_bytes_per_s".to_owned(), json!(list(|r| r.read_bytes.round())));
            object.insert("samples_int8_ops_per_s".to_owned(), json!(list(|r| r.int8_ops.round())));
        }
        if let Some(kernels) = &row.kernels {
            let fixed: Vec<String> = kernels.fixed.iter().map(ToString::to_string).collect();
            let kernels = json!({"products": products(kernels), "fixed": fixed});
            object.insert("gpu_kernels".to_owned(), kernels);
        }
        if let Some(spent) = &row.spent {
            let time = |o: &OperationTime| json!({"name": o.name, "count": o.count, "time_ns": o.time.as_nanos() as u64});
            object.insert("operations".to_owned(), spent.iter().map(time).collect());
        }
        if let Some(memory) = &row.memory {
            let pools = memory.iter().map(|(whose, snapshot)| (whose.clone(), json!(snapshot)));
            object.insert("memory".to_owned(), Value::Object(pools.collect()));
        }
        Value::Object(object)
    }

    fn csv(&self, out: &mut impl Write) -> std::io::Result<()> {
        let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
        for (i, row) in self.rows.iter().enumerate() {
            let columns = self.columns(row);
            if i == 0 {
                writeln!(out, "{}", columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(","))?;
            }
            let values = columns.into_iter().map(|(_, value)| quoted(plain(value)));
            writeln!(out, "{}", values.collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }

    fn sql(&self, out: &mut impl Write) -> std::io::Result<()> {
        let quoted = |text: String| format!("'{}'", text.replace('\'', "''"));
        for (i, row) in self.rows.iter().enumerate() {
            let columns = self.columns(row);
            if i == 0 {
                let of = |value: &Value| match value {
                    Value::Number(n) if n.is_f64() => "REAL",
                    Value::Number(_) => "INTEGER",
                    _ => "TEXT",
                };
                let declared = columns.iter().map(|(name, value)| format!("  {name} {}", of(value)));
                let declared = declared.collect::<Vec<_>>().join(",\n");
                writeln!(out, "CREATE TABLE IF NOT EXISTS bitnet_bench (\n{declared}\n);\n")?;
            }
            let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            let values =
                columns.into_iter().map(|(_, value)| quoted(plain(value))).collect::<Vec<_>>().join(", ");
            writeln!(out, "INSERT INTO bitnet_bench ({names}) VALUES ({values});")?;
        }
        Ok(())
    }
}

/// A value without JSON's quotes.
fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A number of weights, as llama-bench prints it.
pub(super) fn billions(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 / 1e9),
        _ => format!("{:.2} M", n as f64 / 1e6),
    }
}

/// How devices share the model, as llama-bench has it.
fn split_mode(device: &DeviceInfo) -> &'static str {
    match (device.device.devices(), device.split) {
        ([_], _) => "none",
        (_, Split::Layers) => "layer",
        (_, Split::Rows) => "row",
    }
}
