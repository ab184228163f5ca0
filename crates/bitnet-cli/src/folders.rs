//! Where a user's files are, by the platform's rules (XDG on Linux and its like).

use std::path::PathBuf;

/// What the user sets: the configuration, what `bitnet tune` found.
pub fn config() -> Option<PathBuf> {
    folder("XDG_CONFIG_HOME", "APPDATA", "Library/Application Support", ".config")
}

/// What is kept from one time to the next and nobody sets: the history.
pub fn state() -> Option<PathBuf> {
    folder("XDG_STATE_HOME", "LOCALAPPDATA", "Library/Application Support", ".local/state")
}

/// What can be made again.
pub fn cache() -> Option<PathBuf> {
    folder("XDG_CACHE_HOME", "LOCALAPPDATA", "Library/Caches", ".cache")
}

fn folder(xdg: &str, windows: &str, macos: &str, home: &str) -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        named(windows)?
    } else if cfg!(target_os = "macos") {
        named("HOME")?.join(macos)
    } else {
        // A path that is not absolute counts for nothing.
        let xdg = named(xdg).filter(|path| path.is_absolute());
        xdg.map_or_else(|| Some(named("HOME")?.join(home)), Some)?
    };
    Some(base.join("bitnet"))
}
