//! What is told of events, line by line.

use super::mib;
use bitnet_training::{Event, Preferences, Sample, Start};
use std::time::Duration;

/// What is told of an event.
pub fn line(event: &Event) -> String {
    match event {
        Event::Damaged { why } => format!("warning: {why}; an older checkpoint is tried"),
        Event::Skipped(skipped) => {
            let more = skipped.count - skipped.first.len();
            let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
            format!(
                "warning: {} rows are no examples:\n  {}{more}",
                skipped.count,
                skipped.first.join("\n  ")
            )
        }
        Event::Dropped(count) => format!("warning: {count} examples are longer than a row and left out"),
        Event::Device { device, why } => format!("device: {device} ({why})"),
        Event::Begin(start @ Start { parameters, rows, step, steps, .. }) => format!(
            "{:.3} M parameters, {} rows to train on, {} to validate on, steps {step} to {steps}, {}",
            *parameters as f64 / 1e6,
            rows.0,
            rows.1,
            start.computed_on()
        ),
        Event::RunOtherwise { how } => format!("note: {how}"),
        Event::Reference(pairs) => format!("measuring {pairs} pairs of answers with the model at the start"),
        Event::Steps { step, steps, loss, rate, norm, speed, left, preferences, memory } => format!(
            "step {step}/{steps}  loss {loss:.4}{}  rate {rate:.2e}  gradient {norm:.3}  {speed:.0} tokens/s{}  {} left",
            preferred(*preferences),
            memory.map_or_else(String::new, |m| format!("  {:.0} MiB", mib(m.resident_bytes))),
            clock(*left)
        ),
        Event::Validation { step, loss, best, preferences } => {
            let best = if *best { ", the best so far" } else { "" };
            let more = match preferences {
                None => format!(", perplexity {:.2}", loss.exp()),
                some => preferred(*some),
            };
            format!("step {step}  validation loss {loss:.4}{more}{best}")
        }
        Event::Samples { step, samples } => {
            let text = |s: &Sample| format!("\n  {}{}", one_line(&s.prompt), one_line(&s.text));
            format!("step {step}  samples:{}", samples.iter().map(text).collect::<String>())
        }
        Event::Checkpoint(path) => format!("checkpoint {}", path.display()),
    }
}

/// A text without what moves a cursor.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub fn preferred(preferences: Option<Preferences>) -> String {
    preferences.map_or_else(String::new, |p| {
        format!("  preferred {:.0} %, margin {:.3}", p.accuracy * 100.0, p.margin)
    })
}

pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}
