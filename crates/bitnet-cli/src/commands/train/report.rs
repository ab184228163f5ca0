//! `report.html`: what a run did, in one file.

use crate::failure::Failure;
use crate::html::{Column, Page, Plot, Series};
use bitnet_training::{DataSet, Kind, Outcome, RunConfig, Start, Stopped};
use serde_json::Value;

/// Figures of a projection in `metrics.jsonl`, and how they are called here.
const HEALTH: [(&str, &str); 6] = [
    ("scale", "Scale"),
    ("zeros", "Share of zeros"),
    ("flips", "Share of trits that changed since the line before"),
    ("clipped", "Share of weights that are cut off"),
    ("snr_db", "Signal to noise of quantized weights, dB"),
    ("grad_norm", "Gradient norm through the quantizer"),
];

/// Writes it into the output folder. What it shows is in `metrics.jsonl`: of the whole run, also from before it was interrupted.
pub fn write(config: &RunConfig, start: &Start, outcome: &Outcome) -> Result<(), Failure> {
    let path = config.output.join("metrics.jsonl");
    let text =
        std::fs::read_to_string(&path).map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let html = page(config, start, outcome, &lines);
    Ok(bitnet_formats::write_file(&config.output.join("report.html"), html.as_bytes())?)
}

fn page(config: &RunConfig, start: &Start, outcome: &Outcome, lines: &[Value]) -> String {
    let kind = config.kind.name();
    let note = format!(
        "{:.3} M parameters that are trained, {}, bitnet {}",
        start.parameters as f64 / 1e6,
        start.computed_on(),
        env!("CARGO_PKG_VERSION")
    );
    let mut page = Page::new(&format!("{kind}: {}", config.output.display()), &note);
    match outcome.stopped {
        Stopped::Done => {}
        Stopped::Early => page.warning(&format!(
            "The run ended early, behind step {} of {}: {} validations in a row were no better than the best one before them.",
            outcome.step,
            start.steps,
            config.train.patience.unwrap_or(0)
        )),
        Stopped::Interrupted => page.warning(&format!(
            "The run was interrupted behind step {} of {}; --resume goes on with it.",
            outcome.step, start.steps
        )),
    }
    result(&mut page, start, outcome, lines);
    page.section("Over the steps");
    page.plots(&curves(config.kind, lines));
    samples(&mut page, lines);
    health(&mut page, lines);
    page.section("Data");
    data(&mut page, start);
    page.section("Configuration");
    page.literal(&config.text);
    page.finish()
}

/// The values of a key over the steps.
fn series(lines: &[Value], key: &str, name: &str) -> Series {
    let point = |line: &Value| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
    Series { name: name.to_owned(), points: lines.iter().filter_map(point).collect() }
}

fn curves(kind: Kind, lines: &[Value]) -> Vec<Plot> {
    let plot = |title: &str, keys: &[(&str, &str)]| Plot {
        title: title.to_owned(),
        along: "step",
        series: keys
            .iter()
            .map(|(key, name)| series(lines, key, name))
            .filter(|s| !s.points.is_empty())
            .collect(),
    };
    let unit = if kind == Kind::Dpo { "Loss" } else { "Loss, nats a token" };
    vec![
        plot(unit, &[("loss", "training"), ("validation_loss", "validation")]),
        plot("Perplexity of what is not trained on", &[("perplexity", "perplexity")]),
        plot(
            "Share of pairs whose chosen answer won",
            &[("accuracy", "training"), ("validation_accuracy", "validation")],
        ),
        plot("Margin of chosen answers", &[("margin", "training"), ("validation_margin", "validation")]),
        plot("Learning rate", &[("rate", "learning rate")]),
        plot("Gradient norm before clipping", &[("grad_norm", "gradient norm")]),
        plot("Tokens a second", &[("tokens_per_second", "tokens/s")]),
        plot("Memory, bytes", &[("resident_bytes", "resident"), ("peak_bytes", "at most")]),
    ]
}

fn result(page: &mut Page, start: &Start, outcome: &Outcome, lines: &[Value]) {
    page.section("Result");
    let number = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| format!("{v:.4}"));
    let best =
        lines.iter().filter_map(|l| Some((l.get("validation_loss")?.as_f64()?, l.get("step")?.as_u64()?)));
    let best = best.min_by(|a, b| a.0.total_cmp(&b.0));
    let best = best.map_or_else(|| "none".to_owned(), |(loss, step)| format!("{loss:.4} at step {step}"));
    let tokens: f64 = lines.iter().filter_map(|l| l.get("tokens")?.as_f64()).sum::<f64>();
    let logged = lines.iter().filter(|l| l.get("tokens").is_some()).count().max(1) as f64;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    page.table(
        &[("", Column::Words), ("", Column::Words)],
        &[
            row("steps", format!("{} of {}", outcome.step, start.steps)),
            row("tokens", format!("{:.0} in all, about", tokens / logged * outcome.step as f64)),
            row("loss of the last step", number(outcome.loss)),
            row("last validation loss", number(outcome.validation)),
            row("best validation loss", best),
            row("checkpoint", outcome.checkpoint.display().to_string()),
            row(
                "written",
                outcome.model.as_ref().map_or_else(|| "nothing yet".to_owned(), |m| m.display().to_string()),
            ),
        ],
    );
}

fn data(page: &mut Page, start: &Start) {
    let mut rows = Vec::new();
    let sets = [("training", Some(&start.train)), ("validation", start.validation.as_ref())];
    for (name, set) in sets.into_iter().filter_map(|(name, set)| Some((name, set?))) {
        let DataSet { files, examples, tokens, skipped } = set;
        let numbers = [*examples as u64, *tokens, skipped.count as u64].map(|n| n.to_string());
        for (i, (file, size)) in files.iter().enumerate() {
            let mut row = vec![name.to_owned(), file.display().to_string(), size.to_string()];
            // Counts are those of all files of a set together.
            row.extend(if i == 0 { numbers.clone() } else { Default::default() });
            rows.push(row);
        }
    }
    let n = Column::Numbers;
    page.table(
        &[
            ("for", Column::Words),
            ("file", Column::Words),
            ("bytes", n),
            ("examples", n),
            ("tokens", n),
            ("no examples", n),
        ],
        &rows,
    );
    page.paragraph(&format!("{} rows to train on, {} to validate on.", start.rows.0, start.rows.1));
    let bad = [Some(&start.train), start.validation.as_ref()].into_iter().flatten();
    let bad: Vec<String> = bad.flat_map(|set| set.skipped.first.iter().cloned()).collect();
    if !bad.is_empty() {
        page.paragraph("The first rows that are no examples:");
        page.literal(&bad.join("\n"));
    }
}

fn samples(page: &mut Page, lines: &[Value]) {
    let all: Vec<&Value> = lines.iter().filter(|line| line.get("samples").is_some()).collect();
    let Some(last) = all.last() else { return };
    page.section("Samples");
    // The first and the last few: how it began, and what became of it.
    let some = all.iter().take(1).chain(all.iter().skip(1.max(all.len().saturating_sub(3))));
    for line in some {
        let texts = line["samples"].as_array().into_iter().flatten();
        let text =
            |s: &Value| format!("{}{}", s["prompt"].as_str().unwrap_or(""), s["text"].as_str().unwrap_or(""));
        let end = if std::ptr::eq(*line, *last) { ", the last ones" } else { "" };
        page.paragraph(&format!("Step {}{end}", line["step"]));
        page.literal(&texts.map(text).collect::<Vec<_>>().join("\n\n"));
    }
}

fn health(page: &mut Page, lines: &[Value]) {
    let looks: Vec<(f64, &Vec<Value>)> = lines
        .iter()
        .filter_map(|line| Some((line.get("step")?.as_f64()?, line.get("health")?.as_array()?)))
        .collect();
    let Some((_, last)) = looks.last() else { return };
    page.section("Quantization, layer by layer");
    page.paragraph(
        "A line for each projection; the pointer tells which one it is. The table has the last figures.",
    );
    let of = |look: &[Value], tensor: &Value, key: &str| {
        look.iter().find(|l| l["tensor"] == *tensor).and_then(|l| l[key].as_f64())
    };
    let plot = |(key, title): &(&str, &str)| Plot {
        title: (*title).to_owned(),
        along: "step",
        series: last
            .iter()
            .map(|layer| Series {
                name: layer["tensor"].as_str().unwrap_or("").to_owned(),
                points: looks
                    .iter()
                    .filter_map(|(step, look)| Some((*step, of(look, &layer["tensor"], key)?)))
                    .collect(),
            })
            .collect(),
    };
    page.plots(&HEALTH.iter().map(plot).collect::<Vec<_>>());
    let n = Column::Numbers;
    let head = [
        ("projection", Column::Words),
        ("scale", n),
        ("zeros", n),
        ("flips", n),
        ("cut off", n),
        ("SNR, dB", n),
        ("gradient", n),
    ];
    let cells = |layer: &Value| {
        let of = |key: &str| layer[key].as_f64();
        let percent = |key: &str| of(key).map_or_else(String::new, |v| format!("{:.2} %", v * 100.0));
        let number = |key: &str, digits: usize| of(key).map_or_else(String::new, |v| format!("{v:.digits$}"));
        vec![
            layer["tensor"].as_str().unwrap_or("").to_owned(),
            number("scale", 5),
            percent("zeros"),
            percent("flips"),
            percent("clipped"),
            number("snr_db", 2),
            of("grad_norm").map_or_else(String::new, |v| format!("{v:.2e}")),
        ]
    };
    page.table(&head, &last.iter().map(cells).collect::<Vec<_>>());
}
