//! What is drawn on a terminal, and what keys do.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Folder, PATIENCE, ended, fixture, text, training};
use pty_process::{Size, blocking};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use vt100::Screen;

const ROWS: u16 = 30;

fn some(cells: u16) -> NonZeroU16 {
    NonZeroU16::new(cells).unwrap()
}

/// Answers where the cursor is, as terminals do.
#[derive(Default)]
struct Queries(usize);

impl vt100::Callbacks for Queries {
    fn unhandled_csi(
        &mut self,
        _: &mut Screen,
        _: Option<u8>,
        _: Option<u8>,
        parameters: &[&[u16]],
        letter: char,
    ) {
        self.0 += usize::from(letter == 'n' && parameters == [&[6]]);
    }
}

/// A terminal with `bitnet` in it.
struct Terminal {
    pty: Arc<blocking::Pty>,
    child: Child,
    drawn: Receiver<Vec<u8>>,
    parser: vt100::Parser<Queries>,
    answered: usize,
}

impl Terminal {
    fn start(args: &[&str], columns: u16, env: &[(&str, &str)]) -> Self {
        let (pty, pts) = blocking::open().unwrap();
        pty.resize(Size::new(ROWS, columns)).unwrap();
        let command = blocking::Command::new(env!("CARGO_BIN_EXE_bitnet")).args(args);
        let command = command.env_clear().env("TERM", "xterm-256color").envs(env.iter().copied());
        let child = command.spawn(pts).unwrap();
        let pty = Arc::new(pty);
        let (sender, drawn) = channel();
        let reader = Arc::clone(&pty);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Linux ends a terminal that nobody has open any more with an error.
            while let Ok(n @ 1..) = (&*reader).read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let parser = vt100::Parser::new_with_callbacks(some(ROWS), some(columns), 0, Queries::default());
        Self { pty, child, drawn, parser, answered: 0 }
    }

    fn type_in(&mut self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        self.parser.screen().contents()
    }

    /// Draws what comes; false at the end of it, or of the time.
    fn draw(&mut self, until: Instant) -> bool {
        let Ok(bytes) = self.drawn.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            return false;
        };
        self.parser.process(&bytes);
        while self.answered < self.parser.callbacks().0 {
            self.answered += 1;
            let (row, column) = self.parser.screen().cursor_position();
            self.type_in(&format!("\x1b[{};{}R", row + 1, column + 1));
        }
        true
    }

    /// Waits until the screen is as it should be.
    fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(&self.screen()) {
            assert!(self.draw(deadline), "{what} never came:\n{}", self.screen());
        }
    }

    fn shows(&mut self, text: &str) {
        self.until(text, |screen| screen.contains(text));
    }

    /// Waits for the prompt in a line of its own, with `text` behind it.
    fn prompt(&mut self, text: &str) {
        let line = format!("> {text}");
        self.until(&line, |screen| screen.lines().last().is_some_and(|l| l.trim_end() == line.trim_end()));
    }

    /// Waits for the end.
    fn code(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.draw(deadline) {}
        ended(&mut self.child, deadline).unwrap_or_else(|| panic!("no end:\n{}", self.screen())).code()
    }

    /// Where a text is, and whether it is bold.
    fn is_bold(&self, text: &str) -> bool {
        let screen = self.parser.screen();
        // Rows, since `contents` makes one line of what was wrapped.
        let (row, line) =
            screen.rows(0, screen.size().1.get()).enumerate().find(|(_, l)| l.contains(text)).unwrap();
        let column = line[..line.find(text).unwrap()].chars().count();
        screen.cell(row as u16, column as u16).unwrap().bold()
    }

    fn resize(&mut self, columns: u16) {
        self.parser.screen_mut().set_size(some(ROWS), some(columns));
        self.pty.resize(Size::new(ROWS, columns)).unwrap();
    }
}

impl Drop for Terminal {
    /// A test that fails leaves no program behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A conversation whose answers are `answer`.
fn chat(folder: &Folder, answer: &str, more: &[&str], env: &[(&str, &str)]) -> Terminal {
    let (model, grammar) = (fixture("bitnet-packed"), format!("root ::= {}", serde_json::json!(answer)));
    let state = folder.path();
    let args = [&["chat", &model, "--grammar", &grammar], more].concat();
    let mut terminal = Terminal::start(&args, 80, &[env, &[("XDG_STATE_HOME", &state)]].concat());
    terminal.shows("/help lists");
    terminal.prompt("");
    terminal
}

#[test]
fn an_answer_is_drawn_and_its_speed_told() {
    let folder = Folder::new();
    let mut terminal = chat(&folder, "# Ships\nsome **bold** words", &[], &[]);
    terminal.type_in("hello\r");
    terminal.shows("tokens/s");
    terminal.prompt("");
    let screen = terminal.screen();
    assert!(screen.contains("> hello\nShips\nsome bold words\n"), "{screen}");
    assert!(terminal.is_bold("bold words") && !terminal.is_bold("words"), "{screen}");
    terminal.type_in("/exit\r");
    assert_eq!(terminal.code(), Some(0));
    // What was said is remembered.
    let mut terminal = chat(&folder, "yes", &[], &[("NO_COLOR", "1")]);
    terminal.type_in("\x1b[A\x1b[A");
    terminal.prompt("hello");
    terminal.type_in("\x03");
    terminal.shows("Ctrl-C again");
    terminal.type_in("\x03");
    assert_eq!(terminal.code(), Some(130));
}

#[test]
fn without_colours_an_answer_is_as_it_is() {
    let folder = Folder::new();
    for (more, env) in [(&["--no-color"][..], &[][..]), (&[], &[("NO_COLOR", "1")])] {
        let mut terminal = chat(&folder, "some **bold** words", more, env);
        terminal.type_in("hello\r");
        terminal.shows("some **bold** words");
        terminal.shows("tokens/s");
        terminal.prompt("");
        terminal.type_in("\x04");
        assert_eq!(terminal.code(), Some(0));
    }
}

#[test]
fn lines_go_on_and_words_are_completed() {
    let folder = Folder::new();
    let file = folder.write("a-note.txt", "from the file\n");
    let saved = text(&folder.at("talk.json"));
    let mut terminal = chat(&folder, "yes", &[], &[]);
    terminal.type_in("/re\t");
    terminal.until("both commands", |screen| screen.contains("/regen ") && screen.contains("/read "));
    terminal.type_in("\x1b");
    terminal.prompt("/re");
    terminal.type_in(&format!("ad {}\t", &file[..file.len() - 6]));
    terminal.shows("a-note.txt");
    terminal.type_in("\r");
    terminal.shows("13 characters");
    terminal.prompt("");
    terminal.type_in("one\\\rtwo\x1b\rthree\r");
    terminal.shows("tokens/s");
    terminal.prompt("");
    terminal.type_in(&format!("/save {saved}\r"));
    terminal.shows("2 messages in");
    let talk: serde_json::Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(talk["messages"][0]["content"], "from the file\n\none\ntwo\nthree");
    assert_eq!(talk["messages"][1]["content"], "yes");
    terminal.prompt("");
    terminal.type_in("/set temp high\r");
    terminal.shows("invalid value 'high'");
    terminal.prompt("");
    terminal.type_in("/set temp 0\r/stats\r");
    terminal.until("what was set", |screen| screen.lines().any(|l| l.trim_end() == "temp 0"));
    terminal.prompt("");
    // A file that cannot be written is said, and the conversation goes on.
    terminal.type_in("/save /no/such/folder/talk.json\r");
    terminal.shows("cannot be written");
    terminal.prompt("");
    terminal.type_in("/exit\r");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn lines_are_broken_where_the_terminal_ends_now() {
    let folder = Folder::new();
    let mut terminal = chat(&folder, &"eleven char ".repeat(9), &[], &[]);
    terminal.resize(40);
    // What is typed waits for a screen of the new size.
    terminal.type_in("\x0c");
    terminal.until("a clean screen", |screen| screen.trim_end() == ">");
    terminal.type_in("hello\r");
    terminal.shows("tokens/s");
    let screen = terminal.screen();
    let line = "eleven char eleven char eleven char\n";
    assert!(screen.contains(&line.repeat(3)), "{screen}");
}

/// The messages that `/save` writes.
fn messages(terminal: &mut Terminal, file: &str) -> Vec<(String, String)> {
    let _ = std::fs::remove_file(file);
    terminal.type_in(&format!("/save {file}\r"));
    terminal.shows(" messages in");
    terminal.prompt("");
    let talk: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let word = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    talk["messages"].as_array().unwrap().iter().map(|m| (word(&m["role"]), word(&m["content"]))).collect()
}

#[test]
fn what_is_pasted_is_one_message() {
    let folder = Folder::new();
    let file = text(&folder.at("talk.json"));
    let mut terminal = chat(&folder, "yes", &[], &[]);
    // Terminals send line ends as the key for them.
    terminal.type_in("\x1b[200~one\r/exit\r\rhere\x1b[201~");
    terminal.until("all lines", |screen| screen.trim_end().ends_with("here"));
    // Ctrl-J, and then the message ends.
    terminal.type_in("\nlast\r");
    terminal.shows("tokens/s");
    terminal.prompt("");
    assert_eq!(messages(&mut terminal, &file)[0].1, "one\n/exit\n\nhere\nlast");
    terminal.type_in("/exit\r");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn a_conversation_that_was_saved_goes_on() {
    let folder = Folder::new();
    let file = text(&folder.at("talk.json"));
    let said = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let talk = serde_json::json!({"messages": [said("system", "Be kind."), said("user", "one"), said("assistant", "two")]});
    let old = folder.write("old.json", talk.to_string());
    let mut terminal = chat(&folder, "yes", &[], &[]);
    terminal.type_in("/load /no/such/talk.json\r");
    terminal.shows("/no/such/talk.json: ");
    terminal.prompt("");
    let wrong = folder.write("wrong.json", "[1]");
    terminal.type_in(&format!("/load {wrong}\r"));
    terminal.shows("no list of messages");
    terminal.prompt("");
    terminal.type_in(&format!("/load {old}\r"));
    terminal.shows("3 messages");
    terminal.prompt("");
    // The last answer is made anew, and then another message follows it.
    for line in ["/regen\r", "\x0cthree\r"] {
        terminal.type_in(line);
        terminal.shows("tokens/s");
        terminal.prompt("");
    }
    let contents: Vec<String> =
        messages(&mut terminal, &file).into_iter().map(|(_, content)| content).collect();
    assert_eq!(contents, ["Be kind.", "one", "yes", "three", "yes"]);
    terminal.type_in("/exit\r");
    assert_eq!(terminal.code(), Some(0));
}

#[test]
fn lines_of_an_answer_on_its_way_are_broken_at_the_new_end() {
    let folder = Folder::new();
    let (wide, narrow) = ("eleven char ".repeat(6), "eleven char ".repeat(3));
    let slow = ["--isa", "scalar", "-t", "1", "-n", "-1"];
    let mut terminal = chat(&folder, &"eleven char ".repeat(150), &slow, &[]);
    // The answer may have ended before the terminal has its new size; it has not every time.
    for attempt in 0..20 {
        terminal.resize(80);
        let message = format!("> hello{attempt}");
        terminal.type_in(&format!("\x0c{}\r", &message[2..]));
        terminal.until("an answer", |screen| screen.lines().any(|l| l.trim_end() == wide.trim_end()));
        terminal.resize(40);
        terminal.shows("tokens/s");
        terminal.prompt("");
        if terminal.screen().lines().filter(|l| l.trim_end() == narrow.trim_end()).count() > 2 {
            terminal.type_in("/exit\r");
            assert_eq!(terminal.code(), Some(0));
            return;
        }
    }
    panic!("no answer was on its way:\n{}", terminal.screen());
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let folder = Folder::new();
    let model = fixture("bitnet-packed");
    let state = folder.path();
    let args = ["chat", &model, "--isa", "scalar", "-t", "1", "--ignore-eos", "-n", "-1", "--no-color"];
    let mut terminal = Terminal::start(&args, 120, &[("XDG_STATE_HOME", &state)]);
    terminal.prompt("");
    // The answer may have ended before the key was there; it has not every time.
    for attempt in 0..20 {
        let message = format!("> hello{attempt}");
        terminal.type_in(&format!("\x0c{}\r", &message[2..]));
        terminal.until("an answer", |screen| {
            let mut lines = screen.lines().skip_while(|l| l.trim_end() != message);
            lines.next().is_some() && lines.any(|l| !l.trim().is_empty())
        });
        terminal.type_in("\x03");
        terminal.shows("tokens/s");
        terminal.prompt("");
        if terminal.screen().contains("stopped; ") {
            terminal.type_in("/exit\r");
            assert_eq!(terminal.code(), Some(0));
            return;
        }
    }
    panic!("no answer was stopped:\n{}", terminal.screen());
}

#[test]
fn a_batch_tells_how_long_it_takes_and_is_stopped() {
    let folder = Folder::new();
    let (model, out) = (fixture("bitnet-packed"), text(&folder.at("out.csv")));
    let prompts: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    let input = folder.write("in.txt", prompts);
    let args = ["batch", &model, &input, "-o", &out, "-n", "24", "--isa", "scalar", "-t", "1"];
    let mut terminal = Terminal::start(&args, 100, &[]);
    terminal.until("the bar", |screen| screen.contains("of 20,000 rows, ") && screen.contains(" left"));
    terminal.type_in("\x03");
    terminal.shows("--resume goes on");
    assert_eq!(terminal.code(), Some(130));
    assert_eq!(folder.names(), ["in.txt", "out.csv.part.jsonl"]);
}

#[test]
fn a_conversation_ends_with_its_terminal() {
    let folder = Folder::new();
    let (pty, pts) = blocking::open().unwrap();
    // As under `nohup`: nothing tells it of the end.
    let command = "trap '' HUP; exec \"$0\" chat \"$1\"";
    let command = blocking::Command::new("/bin/sh").args([
        "-c",
        command,
        env!("CARGO_BIN_EXE_bitnet"),
        &fixture("bitnet-packed"),
    ]);
    let command = command.env_clear().env("TERM", "xterm-256color").env("XDG_STATE_HOME", folder.path());
    let mut child = command.spawn(pts).unwrap();
    let (mut drawn, mut bytes) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&drawn).contains("/help lists") {
        let n = (&pty).read(&mut bytes).unwrap();
        drawn.extend_from_slice(&bytes[..n]);
    }
    drop(pty);
    let status = ended(&mut child, Instant::now() + PATIENCE);
    let _ = child.kill();
    assert_eq!(status.expect("it goes on").code(), Some(129));
}

/// A run is drawn as it goes, a key ends it with a checkpoint, and the terminal is given back.
#[test]
fn training_is_drawn_and_q_stops_it() {
    let folder = Folder::new();
    let mut args = training(&folder, "run");
    for change in [
        "train.steps=100000",
        "train.validate_every=5",
        "data.validation_share=0.3",
        "samples.prompts=ships at",
        "samples.tokens=3",
    ] {
        args.extend(["--set".to_owned(), change.to_owned()]);
    }
    args.retain(|arg| arg != "--json");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut terminal = Terminal::start(&args, 100, &[]);
    terminal.shows("bitnet train pretrain: ");
    for words in [
        "learning rate",
        "gradient norm",
        "tokens/s",
        "of 100000",
        "validation loss",
        "samples of step",
        "q stops",
    ] {
        terminal.shows(words);
    }
    // Something of the line is drawn: braille.
    terminal.until("a line", |screen| screen.chars().any(|c| ('\u{2801}'..='\u{28FF}').contains(&c)));
    terminal.type_in("q");
    terminal.shows("interrupted behind step");
    terminal.shows("--resume");
    let screen = terminal.screen();
    assert!(
        screen.contains("parameters") && screen.contains("--resume") && !screen.contains("q stops"),
        "{screen}"
    );
    assert_eq!(terminal.code(), Some(130));
    let checkpoints = std::fs::read_dir(folder.at("run/checkpoints")).unwrap().count();
    let report = std::fs::read_to_string(folder.at("run/report.html")).unwrap();
    assert!(checkpoints > 0 && report.contains("The run was interrupted behind step"));
}
