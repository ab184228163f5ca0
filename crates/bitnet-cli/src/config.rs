//! What the user's `bitnet.toml` says, and how flags take their values: from the command line, else from a `BITNET_*` variable of
//! the environment, else from the file, else their default.

use crate::failure::Failure;
use crate::folders;
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use toml::{Table, Value};

/// The file, for help texts.
pub const HELP: &str = "\
Defaults of your own are in bitnet.toml, in the folder `bitnet` of the user's configuration folder, or where BITNET_CONFIG says:
  model = \"org/repo\"           the model where none is named
  threads = 4                  any flag by its long name, for all commands that have it
  [chat]
  system = \"Be brief.\"         for one command
  [aliases]
  small = \"/models/0.7b.gguf\"  names for models
A flag wins over its variable BITNET_NAME, that over the file, and that over what a model or this program says.";

/// The tables of a file.
#[derive(Debug, Default)]
pub struct Config {
    path: PathBuf,
    /// Values for all commands.
    flags: Table,
    /// Values for one command.
    commands: Table,
    aliases: Table,
}

static CONFIG: OnceLock<Config> = OnceLock::new();

/// The user's configuration, once [`read`] has read it.
pub fn get() -> &'static Config {
    CONFIG.get_or_init(Config::default)
}

/// Reads the file, and gives a command line what it says and the variables of the environment.
pub fn read(command: Command) -> Result<Command, Failure> {
    let named = std::env::var_os("BITNET_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = named.clone().or_else(|| Some(folders::config()?.join("bitnet.toml")));
    let config = match path {
        None => Config::default(),
        Some(path) => match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => Config::default(),
            Err(e) => return Err(Failure::Usage(format!("{}: {e}", path.display()))),
            Ok(text) => Config::parse(&path, &text, &command)?,
        },
    };
    let command = config.settle(command);
    // Nobody else sets it.
    let _ = CONFIG.set(config);
    Ok(command)
}

impl Config {
    fn parse(path: &Path, text: &str, command: &Command) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let before = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..before].iter().filter(|b| **b == b'\n').count() + 1;
            wrong(format!("line {line}: {}", e.message().replace('\n', "; ")))
        })?;
        let mut config = Self { path: path.to_owned(), ..Self::default() };
        let all: BTreeSet<String> = flags(command).chain(command.get_subcommands().flat_map(flags)).collect();
        for (key, value) in table {
            let name = key.replace('_', "-");
            match (value, command.find_subcommand(&name)) {
                (Value::Table(aliases), None) if name == "aliases" => config.aliases = aliases,
                (Value::Table(values), Some(command)) => {
                    let known: BTreeSet<String> = flags(command).collect();
                    if let Some(key) = values.keys().find(|k| !known.contains(&k.replace('_', "-"))) {
                        return Err(wrong(format!(
                            "[{name}] sets {key}, which is no flag of `bitnet {name}`"
                        )));
                    }
                    config.commands.insert(name, Value::Table(values));
                }
                (Value::Table(_), _) => {
                    return Err(wrong(format!("[{key}] is neither a command nor aliases")));
                }
                (value, _) if all.contains(&name) => drop(config.flags.insert(name, value)),
                (..) => return Err(wrong(format!("it sets {key}, which is no flag of any command"))),
            }
        }
        match config.aliases.iter().find(|(_, of)| !of.is_str()) {
            Some((name, _)) => Err(wrong(format!("the alias {name} is no text"))),
            None => Ok(config),
        }
    }

    /// Gives every flag its variable, and its value from the file.
    pub fn settle(&self, command: Command) -> Command {
        self.settle_flags(command, &Table::new()).mut_subcommands(|command| {
            let own =
                self.commands.get(command.get_name()).and_then(Value::as_table).cloned().unwrap_or_default();
            self.settle_flags(command, &own).mut_subcommands(|command| self.settle_flags(command, &own))
        })
    }

    fn settle_flags(&self, command: Command, own: &Table) -> Command {
        command.mut_args(|arg| {
            let of = |table: &Table, name: &str| {
                table.iter().find(|(key, _)| key.replace('_', "-") == name).map(|(_, v)| v.clone())
            };
            let value = arg.get_long().and_then(|name| of(own, name).or_else(|| of(&self.flags, name)));
            let arg = twin(arg);
            match value {
                // Of the model, the file's is the one where none is named at all.
                Some(value) if arg.get_long() != Some("model") => arg.default_values(texts(&value)),
                _ => arg,
            }
        })
    }

    /// The model where none is named.
    pub fn model() -> Option<PathBuf> {
        let named = std::env::var_os("BITNET_MODEL").filter(|v| !v.is_empty()).map(PathBuf::from);
        named.or_else(|| get().flags.get("model").and_then(Value::as_str).map(PathBuf::from))
    }

    /// What an alias stands for. A path is meant from the folder of the file.
    pub fn alias(&self, name: &str) -> Option<PathBuf> {
        let meant = self.aliases.get(name)?.as_str()?;
        let beside = self.path.with_file_name(meant);
        Some(if beside.exists() { beside } else { PathBuf::from(meant) })
    }
}

/// Names of a command's flags.
fn flags(command: &Command) -> impl Iterator<Item = String> + '_ {
    let own = command.get_arguments().filter_map(Arg::get_long);
    let below = command.get_subcommands().flat_map(|c| c.get_arguments().filter_map(Arg::get_long));
    own.chain(below).map(str::to_owned)
}

/// A flag with its variable.
fn twin(arg: Arg) -> Arg {
    let arg = match arg.get_action() {
        // Variables say yes and no in many words.
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    };
    let own = arg.get_env().is_some();
    match arg.get_long().map(str::to_owned) {
        // See `Config::model`: a position wins over the variable.
        Some(name) if !own && !matches!(&*name, "help" | "version" | "model") => {
            arg.env(format!("BITNET_{}", name.replace('-', "_").to_uppercase()))
        }
        _ => arg,
    }
}

/// A value as the command line would have it; a list is several.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Integer(n) => vec![n.to_string()],
        Value::Float(n) => vec![n.to_string()],
        Value::Boolean(yes) => vec![yes.to_string()],
        // No flag takes these; what it says of them names the flag.
        Value::Datetime(time) => vec![time.to_string()],
        Value::Table(_) => vec!["a table".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(text: &str) -> Result<Config, String> {
        let path = Path::new("/nowhere/bitnet.toml");
        Config::parse(path, text, &crate::Cli::command()).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn what_a_file_may_say() {
        let config =
            parse("threads = 2\ntop_k = 5\n[chat]\nsystem = 'x'\n[aliases]\na = 'org/repo'").unwrap();
        assert_eq!(config.alias("a"), Some("org/repo".into()));
        assert_eq!(config.alias("b"), None);
        for (text, words) in [
            ("frobnicate = 1", "frobnicate"),
            ("[chat]\nconcurrency = 1", "[chat] sets concurrency"),
            ("[nothing]\na = 1", "[nothing]"),
            ("[aliases]\na = 1", "alias a"),
            ("threads = ", "bitnet.toml: "),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(words) && why.lines().count() == 1, "{why}");
        }
    }

    #[test]
    fn every_flag_has_a_twin_in_the_environment() {
        fn check(command: &Command, path: &str) {
            for arg in command.get_arguments() {
                let Some(name) = arg.get_long().filter(|n| !matches!(*n, "help" | "version" | "model"))
                else {
                    continue;
                };
                let twin = arg.get_env().and_then(|e| e.to_str()).unwrap_or_default();
                // OpenTelemetry has names of its own, which every program knows.
                let known = twin.starts_with("BITNET_") || twin.starts_with("OTEL_");
                assert!(known, "{path} --{name} has {twin:?}");
            }
            command.get_subcommands().for_each(|c| check(c, &format!("{path} {}", c.get_name())));
        }
        check(&Config::default().settle(crate::Cli::command()), "bitnet");
    }
}
