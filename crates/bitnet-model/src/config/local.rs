//! Layers that see a sliding window, in the files that have them.

use super::bad;
use crate::arch::Windows;
use crate::{Architecture, ModelError, Rope};
use serde_json::Value;

/// Layers whose queries see the last positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalLayers {
    /// Positions that a query sees, its own among them.
    pub window: usize,
    /// Which layers these are, one entry a layer.
    pub layers: Vec<bool>,
    /// Their rotation, where it is another than that of the other layers.
    pub rope: Option<Rope>,
}

impl LocalLayers {
    /// Layers that see a window, by the rule of an architecture; `None` where none does.
    pub(super) fn by_rule(
        arch: &Architecture,
        window: Option<usize>,
        layers: usize,
        full: usize,
    ) -> Option<Self> {
        let local = |layer: usize| match arch.windows {
            Windows::None => false,
            Windows::All => true,
            Windows::After => layer >= full,
            Windows::AllBut => full == 0 || !(layer + 1).is_multiple_of(full),
        };
        let window = window.filter(|w| *w > 0)?;
        let layers: Vec<bool> = (0..layers).map(local).collect();
        layers.contains(&true).then_some(Self { window, layers, rope: None })
    }

    /// What a `config.json` says.
    pub(super) fn read(
        config: &Value,
        arch: &Architecture,
        layers: usize,
    ) -> Result<Option<Self>, ModelError> {
        let whole = |key: &str| super::huggingface::optional_size(config, key);
        let off = config.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
        let by_default = arch.windows == Windows::After && config.get("use_sliding_window").is_none();
        let window =
            whole("sliding_window")?.filter(|_| !off && !by_default && arch.windows != Windows::None);
        let full = match arch.windows {
            Windows::After => whole("max_window_layers")?.unwrap_or(28),
            Windows::AllBut => {
                whole("sliding_window_pattern")?.or(whole("_sliding_window_pattern")?).unwrap_or(6)
            }
            Windows::None | Windows::All => 0,
        };
        let rule = Self::by_rule(arch, window, layers, full);
        let (Some(window), Some(kinds)) = (window, config.get("layer_types").and_then(Value::as_array))
        else {
            return Ok(rule);
        };
        let local = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(bad("layer_types", kind, "full_attention and sliding_attention are known")),
        };
        let kinds: Vec<bool> = kinds.iter().map(local).collect::<Result<_, _>>()?;
        if kinds.len() != layers {
            return Err(bad("layer_types", kinds.len(), "it must have an entry for each layer"));
        }
        Ok(kinds.contains(&true).then_some(Self { window, layers: kinds, rope: None }))
    }
}
