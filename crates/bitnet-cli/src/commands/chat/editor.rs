//! The line editor of a conversation on a terminal.

use super::line::{COMMANDS, Command};
use crate::failure::Failure;
use crate::folders;
use reedline::{
    Color, ColumnarMenu, Completer, CompletionResult, DefaultHinter, EditCommand, Emacs, FileBackedHistory,
    Highlighter, KeyCode, KeyModifiers, MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch,
    PromptHistorySearchStatus, Reedline, ReedlineEvent, ReedlineMenu, Signal, Span, StyledText, Suggestion,
    ValidationResult, Validator, default_emacs_keybindings,
};
use std::borrow::Cow;

/// Lines of history that are kept.
const HISTORY: usize = 2000;
const MENU: &str = "completion";

pub struct Editor {
    reedline: Reedline,
    /// The interrupt key was the last thing that was pressed.
    interrupted: bool,
}

impl Editor {
    /// `names` are what `/set` takes.
    pub fn new(names: Vec<String>, colours: bool) -> Self {
        let mut keys = default_emacs_keybindings();
        let complete = [ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext];
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete.to_vec()));
        let newline = || ReedlineEvent::Edit(vec![EditCommand::InsertNewline]);
        keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, newline());
        // Many terminals keep the other one for themselves.
        keys.add_binding(KeyModifiers::CONTROL, KeyCode::Char('j'), newline());
        let menu = ColumnarMenu::default().with_name(MENU).with_columns(1);
        let mut reedline = Reedline::create()
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_completer(Box::new(Words { names }))
            .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
            .with_quick_completions(true)
            .with_partial_completions(true)
            .with_hinter(Box::new(DefaultHinter::default().with_style(Color::Default.dimmed())))
            .with_highlighter(Box::new(Commands))
            .with_validator(Box::new(Lines))
            .with_ansi_colors(colours)
            .use_bracketed_paste(true);
        match history() {
            Ok(Some(history)) => reedline = reedline.with_history(Box::new(history)),
            Ok(None) => {}
            Err(why) => eprintln!("warning: no history: {why}"),
        }
        Self { reedline, interrupted: false }
    }

    /// The next message or command; `None` at the end of the input.
    pub fn read(&mut self) -> Result<Option<String>, Failure> {
        loop {
            let signal = self.reedline.read_line(&Arrow).map_err(|e| Failure::Runtime(e.to_string()))?;
            match signal {
                Signal::Success(line) => {
                    self.interrupted = false;
                    // A terminal that is closed takes no line with it. Without a history there is nothing to write.
                    let _ = self.reedline.sync_history();
                    return Ok(Some(line));
                }
                Signal::CtrlC if self.interrupted => return Err(Failure::Interrupted),
                Signal::CtrlC => {
                    self.interrupted = true;
                    eprintln!("Ctrl-C again, Ctrl-D or /exit leaves");
                }
                _ => return Ok(None),
            }
        }
    }
}

fn history() -> Result<Option<FileBackedHistory>, String> {
    let Some(folder) = folders::state() else { return Ok(None) };
    // Reedline makes the folder.
    let history = FileBackedHistory::with_file(HISTORY, folder.join("history")).map_err(|e| e.to_string())?;
    Ok(Some(history))
}

struct Arrow;

impl Prompt for Arrow {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "  ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        let failing = match search.status {
            PromptHistorySearchStatus::Passing => "",
            PromptHistorySearchStatus::Failing => "nothing like ",
        };
        format!("({failing}{}) ", search.term).into()
    }

    fn get_indicator_color(&self) -> Color {
        Color::Default
    }
}

/// A line that ends with a backslash goes on.
struct Lines;

impl Validator for Lines {
    fn validate(&self, line: &str) -> ValidationResult {
        match line.ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Complete,
        }
    }
}

/// Commands stand out; all else has the terminal's own colour.
struct Commands;

impl Highlighter for Commands {
    fn highlight(&self, line: &str, _: usize) -> StyledText {
        let word = line.split(char::is_whitespace).next().unwrap_or("");
        let command = COMMANDS.iter().any(|e| e.name == word);
        let (bold, rest) = line.split_at(if command { word.len() } else { 0 });
        let mut text = StyledText::new();
        text.push((Color::Default.bold(), bold.to_owned()));
        text.push((Color::Default.normal(), rest.to_owned()));
        text
    }
}

/// Completes commands, and what follows them.
struct Words {
    names: Vec<String>,
}

impl Completer for Words {
    fn complete(&mut self, line: &str, position: usize) -> CompletionResult {
        let typed = &line[..position];
        let suggest = |value: String, description: Option<String>, from: usize| Suggestion {
            append_whitespace: !value.ends_with('/'),
            value,
            description,
            span: Span::new(from, position),
            ..Suggestion::default()
        };
        let found: Vec<Suggestion> = match typed.split_once(' ') {
            None if typed.starts_with('/') => COMMANDS
                .iter()
                .filter(|e| e.name.starts_with(typed))
                .map(|e| suggest(e.name.to_owned(), Some(e.help.to_owned()), 0))
                .collect(),
            None => Vec::new(),
            Some((word, begun)) => {
                let from = position - begun.len();
                let values = match COMMANDS.iter().find(|e| e.name == word).map(|e| e.command) {
                    Some(Command::Read | Command::Load | Command::Save) => files(begun),
                    Some(Command::Set) => {
                        self.names.iter().filter(|n| n.starts_with(begun)).cloned().collect()
                    }
                    _ => Vec::new(),
                };
                values.into_iter().map(|value| suggest(value, None, from)).collect()
            }
        };
        CompletionResult::fresh(found)
    }
}

/// Names of files that a path may become; folders end with a slash.
fn files(begun: &str) -> Vec<String> {
    let (folder, name) = match begun.rfind('/') {
        Some(at) => begun.split_at(at + 1),
        None => ("", begun),
    };
    let entries = std::fs::read_dir(if folder.is_empty() { "." } else { folder });
    let mut found: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            // A hidden file shows itself to who types its dot.
            let fits = file.starts_with(name) && (!file.starts_with('.') || name.starts_with('.'));
            let slash = if entry.path().is_dir() { "/" } else { "" };
            fits.then(|| format!("{folder}{file}{slash}"))
        })
        .collect();
    found.sort();
    found
}
