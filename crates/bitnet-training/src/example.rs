//! Configurations that run, with every key explained.

/// Kinds of runs that there is an example for.
pub const KINDS: [&str; 6] = ["pretrain", "sft", "lora", "dpo", "qat", "distill"];

/// A commented configuration; `None` for a kind that is not in [`KINDS`].
pub fn example(kind: &str) -> Option<&'static str> {
    match kind {
        "pretrain" => Some(include_str!("example/pretrain.toml")),
        "sft" => Some(include_str!("example/sft.toml")),
        "qat" => Some(include_str!("example/qat.toml")),
        "distill" => Some(include_str!("example/distill.toml")),
        "lora" => Some(include_str!("example/lora.toml")),
        "dpo" => Some(include_str!("example/dpo.toml")),
        _ => None,
    }
}
