//! `bitnet chat`: a conversation, line by line.

use crate::args::{ModelFlags, SamplingFlags};
use crate::commands::run::{speeds, stream};
use crate::commands::vocabulary;
use crate::failure::Failure;
use crate::hub;
use crate::stages::FormFlags;
use crate::terminal::interrupt;
use bitnet_inference::{FinishReason, GenerateOptions, Model};
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

#[derive(Args)]
#[command(after_help = "\
Commands while chatting:
  /system TEXT   set the system prompt and begin anew
  /regen         answer the last message again
  /clear         forget the conversation
  /exit          leave (also the end of the input)

Examples:
  bitnet chat model.gguf
  bitnet chat model.gguf --system \"You answer in one sentence.\" --temp 0.6")]
pub struct Chat {
    #[arg(value_name = "MODEL", required_unless_present = "model_flag", help = hub::MODEL_HELP)]
    model: Option<PathBuf>,
    /// The model, by name
    #[arg(
        short,
        long = "model",
        id = "model_flag",
        value_name = "MODEL",
        env = "BITNET_MODEL",
        conflicts_with = "model"
    )]
    model_flag: Option<PathBuf>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    model_flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    form: FormFlags,
}

const HELP: &str = "/system TEXT, /regen, /clear and /exit are commands; a line that begins with two slashes is sent with one";

/// What a line of input asks for.
enum Line<'a> {
    Say(&'a str),
    System(&'a str),
    Regenerate,
    Clear,
    Exit,
    Unknown,
    Nothing,
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "" => Line::Nothing,
        "/exit" | "/quit" => Line::Exit,
        "/clear" => Line::Clear,
        "/regen" => Line::Regenerate,
        "/system" => Line::System(rest.trim()),
        w if w.starts_with("//") => Line::Say(&line[1..]),
        w if w.starts_with('/') => Line::Unknown,
        _ => Line::Say(line),
    }
}

impl Chat {
    pub fn with(path: PathBuf, model_flags: ModelFlags, sampling: SamplingFlags, form: FormFlags) -> Self {
        Self { model: Some(path), model_flag: None, system: None, model_flags, sampling, form }
    }

    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let path = self.model.or(self.model_flag).unwrap_or_default();
        let mut options = self.sampling.options(&self.model_flags)?;
        options.form = self.form.form()?;
        let path = hub::locate(&path, quiet)?;
        let mut model = self.model_flags.open(&path, quiet)?;
        self.sampling.add_draft(&mut model, &self.model_flags, None, quiet)?;
        self.sampling.lora.load(&mut model)?;
        let tokenizer = model.tokenizer().cloned().ok_or_else(|| vocabulary::absent(&path))?;
        let template = vocabulary::template(&tokenizer, &path)?;
        let cancel = interrupt();
        let options = GenerateOptions { cancel: Some(cancel.clone()), ..options };
        let terminal = std::io::stdin().is_terminal();
        if terminal && !quiet {
            eprintln!("{HELP}");
        }
        let mut conversation = Conversation::new(self.system.as_deref());
        let mut input = std::io::stdin().lock();
        let mut line = String::new();
        loop {
            if terminal {
                eprint!("> ");
                std::io::stderr().flush()?;
            }
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return if cancel.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) };
            }
            match parse(&line) {
                Line::Nothing => continue,
                Line::Exit => return Ok(()),
                Line::Unknown => {
                    eprintln!("{HELP}");
                    continue;
                }
                Line::Clear => {
                    conversation.clear();
                    continue;
                }
                Line::System(text) => {
                    conversation = Conversation::new(Some(text).filter(|t| !t.is_empty()));
                    continue;
                }
                Line::Regenerate if !conversation.take_answer() => {
                    eprintln!("there is no message to answer yet");
                    continue;
                }
                Line::Regenerate => {}
                Line::Say(text) => conversation.say(text),
            }
            cancel.store(false, Ordering::Relaxed);
            conversation
                .answer(&mut model, &tokenizer, template, options.clone(), quiet)
                .map_err(Failure::at(&path))?;
        }
    }
}

/// The messages so far.
struct Conversation {
    messages: Vec<Value>,
    /// Whether the first one is the system's.
    system: bool,
}

impl Conversation {
    fn new(system: Option<&str>) -> Self {
        let messages = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
        Self { messages, system: system.is_some() }
    }

    fn clear(&mut self) {
        self.messages.truncate(usize::from(self.system));
    }

    fn say(&mut self, text: &str) {
        self.messages.push(json!({"role": "user", "content": text}));
    }

    /// Takes back the last answer; false when there is nothing to answer.
    fn take_answer(&mut self) -> bool {
        let role = |m: Option<&Value>| m.and_then(|m| m["role"].as_str().map(str::to_owned));
        if role(self.messages.last()).as_deref() == Some("assistant") {
            self.messages.pop();
        }
        role(self.messages.last()).as_deref() == Some("user")
    }

    /// Answers the last message. What does not fit is said, and the conversation stays as it was before it.
    fn answer(
        &mut self,
        model: &mut Model,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        options: GenerateOptions,
        quiet: bool,
    ) -> Result<(), Failure> {
        let text = template.render(&Value::Array(self.messages.clone()), true, &Map::new())?;
        let prompt = tokenizer.encode_chat(&text)?;
        let ends = model.end_ids();
        let mut generation = match model.generate(&prompt, options).map_err(Failure::from) {
            Ok(generation) => generation,
            Err(Failure::Usage(message)) => {
                eprintln!("{message}; /clear begins anew");
                self.messages.pop();
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        stream(&mut generation)?;
        if !quiet {
            eprintln!("{}", speeds(&generation));
        }
        let ended = generation.finish_reason() == Some(FinishReason::Stop);
        let mut ids = generation.tokens().to_vec();
        if ended {
            // The end token comes back with the template.
            ids.truncate(ids.len() - usize::from(ids.last().is_some_and(|id| ends.contains(id))));
        }
        let answer = tokenizer.decode(&ids, true)?;
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}
