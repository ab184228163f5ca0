//! `bitnet doctor`: what this machine offers, and whether every kernel on it is right.

use crate::failure::Failure;
use bitnet_cpu::{CpuBackend, CpuOptions, Isa, self_test};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;

#[derive(Args)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn execute(self) -> Result<(), Failure> {
        let backend = CpuBackend::new(CpuOptions::default()).map_err(|e| Failure::Runtime(e.to_string()))?;
        let results = self_test().map_err(|e| Failure::Runtime(crate::failure::chain(&e)))?;
        let failed = results.iter().filter(|r| !r.passed).count();
        let features = features();
        let isas = Isa::available();
        let mut ops: Vec<&str> = Vec::new();
        for r in &results {
            if !ops.contains(&r.op) {
                ops.push(r.op);
            }
        }
        let passed = |op: &str, isa: Isa| results.iter().any(|r| r.op == op && r.isa == isa && r.passed);
        let mut out = std::io::stdout().lock();
        if self.json {
            let kernels: Map<String, Value> = ops
                .iter()
                .map(|op| {
                    let tests =
                        isas.iter().map(|isa| (isa.name().to_owned(), json!(passed(op, *isa)))).collect();
                    (
                        (*op).to_owned(),
                        json!({"chosen": backend.isa().name(), "passed": Value::Object(tests)}),
                    )
                })
                .collect();
            let object = json!({
                "version": env!("CARGO_PKG_VERSION"), "target": std::env::consts::ARCH, "features": features,
                "isa": backend.isa().name(), "threads": backend.threads(), "kernels": kernels, "failed": failed,
            });
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "bitnet {} for {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)?;
            writeln!(out, "CPU features     {}", if features.is_empty() { "none used" } else { &features })?;
            writeln!(out, "instruction set  {} (best of this processor)", backend.isa())?;
            writeln!(out, "threads          {} (physical cores)", backend.threads())?;
            writeln!(out, "\n{:<36} {:<10} self-test, every instruction set", "operation", "kernel")?;
            for op in ops {
                let tests: Vec<String> = isas
                    .iter()
                    .map(|isa| format!("{isa} {}", if passed(op, *isa) { "ok" } else { "WRONG" }))
                    .collect();
                writeln!(out, "{op:<36} {:<10} {}", backend.isa(), tests.join(", "))?;
            }
        }
        match failed {
            0 => Ok(()),
            n => Err(Failure::Runtime(format!(
                "{n} kernels gave wrong numbers on this machine; do not trust its results"
            ))),
        }
    }
}

/// The processor's features that some kernel looks for.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ];
        found.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        String::new()
    }
}
