//! What quantizing did, as a page.

use super::calibration::Calibrated;
use crate::html::{Column, Page, Plot, Series};
use bitnet_convert::LayerError;
use std::collections::BTreeMap;
use std::path::Path;

/// The page of a model that became `output`.
pub fn page(input: &Path, output: &Path, layers: &[LayerError], calibrated: Option<&Calibrated>) -> String {
    let note = format!("{} projections became ternary; bitnet {}", layers.len(), env!("CARGO_PKG_VERSION"));
    let mut page = Page::new(&format!("{} from {}", output.display(), input.display()), &note);
    if let Some(calibrated) = calibrated {
        divergence(&mut page, calibrated);
        page.section("States behind each layer, on the calibration text");
        let of = |figure: fn(&super::calibration::StateError) -> f64| {
            calibrated.states.iter().enumerate().map(|(l, s)| (l as f64, figure(s))).collect::<Vec<_>>()
        };
        let plot = |title: &str, points| Plot {
            title: title.to_owned(),
            along: "layer",
            series: vec![Series { name: title.to_owned(), points }],
        };
        page.plots(&[
            plot("Mean squared difference, relative to the mean square", of(|s| s.mse())),
            plot("Cosine of the angle to the parent's", of(|s| s.cosine())),
        ]);
        let rows: Vec<Vec<String>> = calibrated
            .states
            .iter()
            .enumerate()
            .map(|(l, s)| vec![l.to_string(), format!("{:.4}", s.mse()), format!("{:.4}", s.cosine())])
            .collect();
        page.table(
            &[("layer", Column::Numbers), ("MSE", Column::Numbers), ("cosine", Column::Numbers)],
            &rows,
        );
    }
    page.section("Weights of each projection");
    page.plots(&[
        weights("Mean squared difference, relative to the mean square", layers, |l| l.mse),
        weights("Cosine of the angle to the weights before", layers, |l| l.cosine),
        weights("Share of zeros", layers, |l| l.zeros),
    ]);
    let n = Column::Numbers;
    let row = |l: &LayerError| {
        vec![
            l.tensor.clone(),
            format!("{:.4}", l.mse),
            format!("{:.4}", l.cosine),
            format!("{:.1} %", l.zeros * 100.0),
        ]
    };
    let head = [("projection", Column::Words), ("MSE", n), ("cosine", n), ("zeros", n)];
    page.table(&head, &layers.iter().map(row).collect::<Vec<_>>());
    page.finish()
}

fn divergence(page: &mut Page, calibrated: &Calibrated) {
    let figures = calibrated.divergence.json();
    let number = |pointer: &str| {
        figures
            .pointer(pointer)
            .and_then(|v| v.as_f64())
            .map_or_else(|| "none".to_owned(), |v| format!("{v:.4}"))
    };
    page.section("Predictions, beside the parent's");
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    page.table(
        &[("", Column::Words), ("", Column::Numbers)],
        &[
            row("tokens", figures["tokens"].to_string()),
            row("perplexity of the parent", number("/base_ppl")),
            row("perplexity", number("/ppl")),
            row("KL divergence from the parent, nats a token: mean", number("/kld/mean")),
            row("median", number("/kld/median")),
            row("99 % are at most", number("/kld/p99")),
            row("at most", number("/kld/max")),
            row("share of tokens with the parent's likeliest one", number("/same_top")),
        ],
    );
}

/// A line for each kind of projection over the layers.
fn weights(title: &str, layers: &[LayerError], figure: fn(&LayerError) -> f64) -> Plot {
    let mut kinds: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for layer in layers {
        let (number, kind) = place(&layer.tensor);
        kinds.entry(kind).or_default().push((number, figure(layer)));
    }
    let series = kinds.into_iter().map(|(name, points)| Series { name, points }).collect();
    Plot { title: title.to_owned(), along: "layer", series }
}

/// The number of a tensor's layer, and its name within it: `blk.3.attn_q.weight`, `model.layers.3.mlp.up_proj.weight`.
fn place(tensor: &str) -> (f64, String) {
    let parts: Vec<&str> = tensor.trim_end_matches(".weight").split('.').collect();
    match parts.iter().position(|part| part.bytes().all(|b| b.is_ascii_digit())) {
        Some(at) => (parts[at].parse().unwrap_or(0.0), parts[at + 1..].join(".")),
        None => (0.0, parts.join(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors_have_a_layer_and_a_kind() {
        assert_eq!(place("blk.3.attn_q.weight"), (3.0, "attn_q".to_owned()));
        assert_eq!(place("model.layers.12.mlp.up_proj.weight"), (12.0, "mlp.up_proj".to_owned()));
        assert_eq!(place("output.weight"), (0.0, "output".to_owned()));
    }
}
