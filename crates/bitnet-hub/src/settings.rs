//! Where the hub and the cache are, and how patient a pull is.

use crate::HubError;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that is meant where none is named.
pub const ENDPOINT: &str = "https://huggingface.co";

/// A secret. It is sent to the hub and nowhere else, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, unless it is empty or could not stand in a header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Options of a [`Hub`](crate::Hub).
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cache: `models--org--name` folders lie in it.
    pub cache: PathBuf,
    /// The hub or its mirror, without a final slash.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// Never use the network.
    pub offline: bool,
    /// Snapshots hold links to blobs; without, and where the file system has none, they hold the files themselves.
    pub symlinks: bool,
    /// Connections at a time.
    pub connections: usize,
    /// Bytes of one ranged request.
    pub piece_bytes: u64,
    /// How long a connection may take, or stay without a byte.
    pub timeout: Duration,
    /// How often a request is made before a pull fails. An attempt that brought bytes does not count.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from there to 30 s.
    pub backoff: Duration,
    /// The longest `Retry-After` that is obeyed.
    pub longest_wait: Duration,
}

impl Settings {
    /// Settings with a cache and otherwise defaults.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: ENDPOINT.to_owned(),
            token: None,
            offline: false,
            symlinks: true,
            connections: 8,
            piece_bytes: 16 << 20,
            timeout: Duration::from_secs(10),
            attempts: 6,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(300),
        }
    }

    /// Settings from the environment variables of the hub's own clients: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HUB_DISABLE_SYMLINKS`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, and the older names that those clients still take.
    ///
    /// A cache that is given goes before theirs.
    pub fn from_env(cache: Option<PathBuf>) -> Result<Self, HubError> {
        Self::from_variables(cache, &|name| env::var(name).ok())
    }

    fn from_variables(
        cache: Option<PathBuf>,
        get: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, HubError> {
        let variable = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| variable(name).map(|text| expand(&text, get));
        let truth = |name: &str| {
            variable(name).is_some_and(|v| matches!(&*v.to_ascii_lowercase(), "1" | "on" | "yes" | "true"))
        };
        let base = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface")))
            .or_else(|| home(get).map(|p| p.join(".cache").join("huggingface")));
        let cache = cache
            .or_else(|| path("HF_HUB_CACHE"))
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| base.as_ref().map(|p| p.join("hub")))
            .ok_or_else(|| HubError::Setting {
                name: "HF_HOME",
                what: "there is no home folder; this variable says where downloads go".to_owned(),
            })?;
        let mut settings = Self::new(cache);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            settings.endpoint = endpoint;
        }
        settings.endpoint = checked_endpoint(&settings.endpoint)?;
        settings.offline = if variable("HF_HUB_OFFLINE").is_some() {
            truth("HF_HUB_OFFLINE")
        } else {
            truth("TRANSFORMERS_OFFLINE")
        };
        settings.symlinks = !truth("HF_HUB_DISABLE_SYMLINKS");
        if let Some(seconds) =
            variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.parse().ok()).filter(|s| *s > 0)
        {
            settings.timeout = Duration::from_secs(seconds);
        }
        if !truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let file = path("HF_TOKEN_PATH").or_else(|| base.map(|p| p.join("token")));
            let stored = || std::fs::read_to_string(file.as_ref()?).ok();
            settings.token = variable("HF_TOKEN")
                .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
                .or_else(stored)
                .and_then(|t| Token::new(&t));
        }
        Ok(settings)
    }
}

/// An endpoint as it is used: http or https, no final slash.
pub fn checked_endpoint(text: &str) -> Result<String, HubError> {
    let text = text.trim_end_matches('/');
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(host) if !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '@') => {
            Ok(text.to_owned())
        }
        _ => Err(HubError::Setting {
            name: "HF_ENDPOINT",
            what: format!("{text:?} is no http or https address"),
        }),
    }
}

fn home(get: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let home = get("HOME").or_else(|| get("USERPROFILE")).filter(|h| !h.is_empty());
    home.map(PathBuf::from)
}

fn expand(text: &str, get: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (text.strip_prefix('~'), home(get)) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => Path::new(text).to_owned(),
    }
}

#[cfg(test)]
mod tests;
