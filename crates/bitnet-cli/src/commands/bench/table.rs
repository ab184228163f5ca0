//! The table of `-o md`.

use super::memory;
use super::report::{Row, billions, statistics};
use super::together::Together;
use crate::tuning::products;
use bitnet_core::OperationTime;
use std::io::{Result, Write};
use std::time::Duration;

/// A column: its title, whether numbers stand in it, and its cells.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) right: bool,
    pub(super) cells: Vec<String>,
}

/// Writes rows; columns that llama-bench shows only where they say something are left out where all rows have the default.
pub(super) fn write(rows: &[Row], model: impl Fn(&Row) -> String, out: &mut impl Write) -> Result<()> {
    let column = |title, right, cell: &dyn Fn(&Row) -> String| Column {
        title,
        right,
        cells: rows.iter().map(cell).collect(),
    };
    let mut columns = vec![
        column("model", false, &model),
        column("size", true, &|row| size(row.model_bytes as u64)),
        column("params", true, &|row| billions(row.weights)),
        column("backend", false, &|row| row.device.device.to_string().to_uppercase()),
        column("kernel", false, &|row| row.device.kernel.clone()),
        column("threads", true, &|row| row.device.threads.to_string()),
    ];
    let optional = [
        (column("n_batch", true, &|row| row.sizes.batch.to_string()), "2048"),
        (column("n_ubatch", true, &|row| row.sizes.ubatch.to_string()), "512"),
        (column("type_k", true, &|row| row.setup.key.name()), "f16"),
        (column("type_v", true, &|row| row.setup.value.name()), "f16"),
    ];
    columns.extend(
        optional
            .into_iter()
            .filter(|(column, default)| column.cells.iter().any(|c| c != default))
            .map(|(column, _)| column),
    );
    columns.push(column("test", true, &|row| row.name()));
    columns.push(column("t/s", true, &|row| {
        let (mean, deviation) = statistics(&row.rates());
        format!("{mean:.2} ± {deviation:.2}")
    }));
    if rows.iter().any(|row| row.together.is_some()) {
        let of = |row: &Row, cell: &dyn Fn(&Together) -> String| {
            row.together.as_ref().map_or_else(String::new, cell)
        };
        let both =
            |a: Duration, b: Duration| format!("{:.1} / {:.1}", a.as_secs_f64() * 1e3, b.as_secs_f64() * 1e3);
        columns.push(column("answers t/s", true, &|row| {
            of(row, &|t| format!("{:.2} ± {:.2}", t.rate().0, t.rate().1))
        }));
        columns.push(column("first token p50 / p99 ms", true, &|row| {
            of(row, &|t| both(t.first(0.5), t.first(0.99)))
        }));
        columns.push(column("between tokens ms", true, &|row| {
            of(row, &|t| both(t.between(0.5), t.between(0.99)))
        }));
        columns
            .push(column("engine", true, &|row| of(row, &|t| format!("{:.2} %", 100.0 * t.engine_share()))));
    }
    if rows.iter().any(|row| row.peak_bytes.is_some()) {
        columns.push(column("peak memory", true, &|row| row.peak_bytes.map_or_else(String::new, size)));
    }
    if rows.iter().any(|row| row.limit.is_some()) {
        let limit = |row: &Row| row.limit.as_ref().map_or(0.0, |limit| limit.tokens_per_second);
        columns.push(column("limit", true, &|row| format!("{:.2}", limit(row))));
        columns.push(column("share", true, &|row| format!("{:.0} %", row.share().unwrap_or(0.0) * 100.0)));
    }
    lines(&columns, rows.len(), out)?;
    starts(rows, out)?;
    limits(rows, out)?;
    rows.iter().try_for_each(|row| spent(row, out))?;
    // Each model's, once all of its rows are measured.
    let last = rows.chunk_by(|a, b| a.start == b.start).filter_map(|rows| rows.last()?.memory.as_ref());
    last.flatten().try_for_each(|(whose, pool)| memory::write(whose, pool, out))
}

pub(super) fn lines(columns: &[Column], rows: usize, out: &mut impl Write) -> Result<()> {
    let width = |c: &Column| {
        let cells = c.cells.iter().map(|cell| cell.chars().count());
        cells.chain([c.title.len(), 3]).max().unwrap_or(0)
    };
    let line = |out: &mut dyn Write, cell: &dyn Fn(&Column) -> &str| {
        for column in columns {
            let (cell, width) = (cell(column), width(column));
            match column.right {
                true => write!(out, "| {cell:>width$} ")?,
                false => write!(out, "| {cell:<width$} ")?,
            }
        }
        writeln!(out, "|")
    };
    line(out, &|column| column.title)?;
    for column in columns {
        let dashes = "-".repeat(width(column));
        write!(out, "| {dashes}{}", if column.right { ":" } else { " " })?;
    }
    writeln!(out, "|")?;
    (0..rows).try_for_each(|i| line(out, &|column| &column.cells[i]))
}

/// How long each setup took to load, and what its first tokens took.
fn starts(rows: &[Row], out: &mut impl Write) -> Result<()> {
    writeln!(out)?;
    for rows in rows.chunk_by(|a, b| a.start == b.start) {
        let (device, start) = (&rows[0].device, rows[0].start);
        let load = start.load.as_secs_f64();
        let how = match (device.skips, start.tuned) {
            (true, true) => " that leaves out zeros, tuned",
            (true, false) => " that leaves out zeros",
            (false, true) => ", tuned",
            (false, false) => "",
        };
        let first = rows.iter().map(|row| format!("{} {:.3} s", row.name(), row.first().as_secs_f64()));
        let first = first.collect::<Vec<_>>().join(", ");
        let threads = threads(device.threads);
        writeln!(out, "{}{how}, {threads}: loaded in {load:.2} s; first token of {first}", device.kernel)?;
        if let Some(kernels) = rows.last().and_then(|row| row.kernels.as_ref()) {
            let products = products(kernels).into_iter().map(|p| {
                let gated = if p.gated { ", gated" } else { "" };
                format!("{} for {} x {}{gated}, to {} tokens", p.kernel, p.rows, p.cols, p.tokens)
            });
            let fixed = kernels.fixed.iter().map(|kernel| format!("compiled for {kernel}"));
            let all: Vec<String> = products.chain(fixed).collect();
            if !all.is_empty() {
                writeln!(out, "kernels: {}", all.join("; "))?;
            }
        }
    }
    Ok(())
}

fn threads(n: usize) -> String {
    format!("{n} {}", if n == 1 { "thread" } else { "threads" })
}

/// What was measured between the repetitions, for each number of threads.
fn limits(rows: &[Row], out: &mut impl Write) -> Result<()> {
    let mut counts: Vec<usize> = rows.iter().map(|row| row.device.threads).collect();
    counts.sort_unstable();
    counts.dedup();
    for n in counts {
        let limits =
            || rows.iter().filter(|row| row.device.threads == n).filter_map(|row| row.limit.as_ref());
        let Some(first) = limits().next() else { continue };
        let spread = |values: Vec<f64>| {
            let (low, high) = values.iter().fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(*v), h.max(*v)));
            let mean = statistics(&values).0;
            format!("{:.1} ({:.1} to {:.1})", mean / 1e9, low / 1e9, high / 1e9)
        };
        let rates = || limits().flat_map(|limit| &limit.rates);
        writeln!(
            out,
            "limits with {}: reads {} GB/s, {} {} GOPS",
            threads(n),
            spread(rates().map(|r| r.read_bytes).collect()),
            first.instruction,
            spread(rates().map(|r| r.int8_ops).collect()),
        )?;
    }
    Ok(())
}

/// What the device spent on a row's repetitions.
fn spent(row: &Row, out: &mut impl Write) -> Result<()> {
    let Some(spent) = &row.spent else { return Ok(()) };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let all = ms(spent.iter().map(|o| o.time).sum());
    writeln!(out, "\n{}: {all:.3} ms of the device", row.name())?;
    let column = |title, right, cell: &dyn Fn(&OperationTime) -> String| Column {
        title,
        right,
        cells: spent.iter().map(cell).collect(),
    };
    let columns = [
        column("operation", false, &|o| o.name.clone()),
        column("times", true, &|o| o.count.to_string()),
        column("ms", true, &|o| format!("{:.3}", ms(o.time))),
        column("ms each", true, &|o| format!("{:.4}", ms(o.time) / o.count as f64)),
        column("share", true, &|o| format!("{:.1} %", 100.0 * ms(o.time) / all.max(f64::MIN_POSITIVE))),
    ];
    lines(&columns, spent.len(), out)
}

pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mebibytes if mebibytes < 1024.0 => format!("{mebibytes:.2} MiB"),
        mebibytes => format!("{:.2} GiB", mebibytes / 1024.0),
    }
}
