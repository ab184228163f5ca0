//! What a line of input asks for.

/// A command's place in [`COMMANDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Exit,
    Clear,
    Regenerate,
    System,
    Set,
    Save,
    Load,
    Read,
    Stats,
    Help,
}

pub struct Entry {
    pub command: Command,
    pub name: &'static str,
    pub argument: &'static str,
    pub help: &'static str,
}

const fn entry(command: Command, name: &'static str, argument: &'static str, help: &'static str) -> Entry {
    Entry { command, name, argument, help }
}

pub const COMMANDS: [Entry; 10] = [
    entry(Command::Help, "/help", "", "list these commands"),
    entry(Command::Regenerate, "/regen", "", "answer the last message again"),
    entry(Command::Clear, "/clear", "", "forget the conversation"),
    entry(Command::System, "/system", "TEXT", "set the system prompt and begin anew"),
    entry(Command::Set, "/set", "NAME VALUE", "set a sampling flag, as in /set temp 0.5; alone, list them"),
    entry(Command::Read, "/read", "FILE", "put a file's text in front of the next message"),
    entry(Command::Save, "/save", "FILE", "write the conversation as JSON"),
    entry(Command::Load, "/load", "FILE", "go on with one that was saved"),
    entry(Command::Stats, "/stats", "", "tokens, speeds and what was set"),
    entry(Command::Exit, "/exit", "", "leave (also Ctrl-D)"),
];

/// The commands, a line each.
pub fn help() -> String {
    let line = |e: &Entry| format!("  {:<18} {}\n", format!("{} {}", e.name, e.argument), e.help);
    let lines: String = COMMANDS.iter().map(line).collect();
    format!("{lines}A message that begins with a slash is sent with two.\n")
}

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Say(String),
    Do(Command, String),
    /// A word with a slash that is no command.
    Unknown(String),
    Nothing,
}

pub fn parse(line: &str) -> Line {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let known = || COMMANDS.iter().find(|e| e.name == word).map(|e| e.command);
    match word {
        "" => Line::Nothing,
        "/quit" => Line::Do(Command::Exit, String::new()),
        w if w.starts_with("//") => Line::Say(line[1..].to_owned()),
        w if w.starts_with('/') => match known() {
            Some(command) => Line::Do(command, rest.trim().to_owned()),
            None => Line::Unknown(word.to_owned()),
        },
        // A backslash at the end of a line goes on with the next one.
        _ => Line::Say(line.replace("\\\n", "\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let say = |text: &str| Line::Say(text.to_owned());
        for (line, want) in [
            ("  hi \n", say("hi")),
            ("//etc/passwd\n", say("/etc/passwd")),
            ("a\\\nb", say("a\nb")),
            ("/system  You are. ", Line::Do(Command::System, "You are.".to_owned())),
            ("/quit", Line::Do(Command::Exit, String::new())),
            ("/what now", Line::Unknown("/what".to_owned())),
            (" \n", Line::Nothing),
        ] {
            assert_eq!(parse(line), want, "{line}");
        }
        assert!(COMMANDS.iter().all(|e| parse(e.name) == Line::Do(e.command, String::new())));
    }
}
