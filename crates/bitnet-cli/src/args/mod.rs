//! Flags that several commands share. Names and defaults are llama.cpp's where it has them.

mod model;
mod sampling;

pub use model::{Act, CacheType, ModelFlags, load};
pub use sampling::SamplingFlags;

use crate::config::Config;
use crate::failure::Failure;
use crate::hub::{self, Located};
use crate::shipped;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// llama.cpp has short flags of several letters; clap knows them by their long names.
pub fn spell_out(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    // The program is the first word, the command the second.
    let (mut words, mut bench) = (0, false);
    args.map(move |arg| {
        if !arg.as_encoded_bytes().starts_with(b"-") {
            words += 1;
            bench |= words == 2 && arg == "bench";
        }
        match arg.to_str() {
            Some("-ctk") => "--cache-type-k".into(),
            Some("-ctv") => "--cache-type-v".into(),
            Some("-md") => "--draft-model".into(),
            // Elsewhere `-pg` is the prompt "g".
            Some("-pg") if bench => "--pg".into(),
            Some("-sm") => "--split-mode".into(),
            Some("-ts") => "--tensor-split".into(),
            Some("-ub") => "--ubatch-size".into(),
            _ => arg,
        }
    })
}

/// A number with a unit of thousands.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1} K", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

/// Token ids on the command line: `1,2,3` or `1 2 3`.
pub fn ids(text: &str) -> Result<Vec<u32>, Failure> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|p| !p.is_empty());
    let id = |p: &str| p.parse().map_err(|_| Failure::Usage(format!("{p:?} is no token id")));
    parts.map(id).collect()
}

/// A model by position or by `-m`; the one of this program where neither is given.
#[derive(Args, Clone, Debug)]
pub struct ModelPath {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    path: Option<PathBuf>,
    /// The model, by name [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "path")]
    model: Option<PathBuf>,
}

impl ModelPath {
    /// Where it lies; a model of the hub is fetched first if need be.
    pub fn locate(&self, quiet: bool) -> Result<Located, Failure> {
        hub::locate(&named(self.path.clone().or_else(|| self.model.clone())), quiet)
    }
}

/// Settles whether a single position is the model or the text, where either may be left out: it is a text where the model is `named`
/// otherwise, or where the word is no model's name. Texts that are `given` otherwise leave the position to the model.
pub fn place_words(model: &mut Option<PathBuf>, text: &mut Option<String>, named: bool, given: bool) {
    if let (Some(word), None) = (&*model, &*text) {
        let word = word.to_string_lossy().into_owned();
        // A model that is named answers; no file's name is asked of it.
        if !given && (named || !hub::names_model(&word)) {
            *text = Some(word);
            *model = None;
        }
    }
}

/// A model that is named, or else the one of the environment or of bitnet.toml, or else the one of this program.
pub fn named(model: Option<PathBuf>) -> PathBuf {
    model.or_else(Config::model).unwrap_or_else(|| shipped::NAME.into())
}
