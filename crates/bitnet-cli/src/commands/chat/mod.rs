//! `bitnet chat`: a conversation.

mod conversation;
mod editor;
mod line;

use crate::args::{self, ModelFlags, SamplingFlags};
use crate::commands::run::speeds;
use crate::commands::vocabulary;
use crate::failure::Failure;
use crate::hub;
use crate::markdown::Markdown;
use crate::stages::FormFlags;
use crate::terminal::{Keys, columns, end_with_terminal, has_colours, interrupt_patiently};
use bitnet_inference::{FinishReason, Form, GenerateOptions, Generation, Model, Timings};
use bitnet_tokenizer::{ChatTemplate, Tokenizer};
use clap::Args;
use conversation::Conversation;
use editor::Editor;
use line::{Command, Line};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Args)]
#[command(after_help = after_help())]
pub struct Chat {
    #[arg(value_name = "MODEL", help = hub::MODEL_HELP)]
    model: Option<PathBuf>,
    /// The model, by name [env: BITNET_MODEL, and `model` in bitnet.toml]
    #[arg(short, long = "model", id = "model_flag", value_name = "MODEL")]
    model_flag: Option<PathBuf>,
    /// System prompt
    #[arg(long, value_name = "TEXT", env = "BITNET_SYSTEM")]
    system: Option<String>,
    /// Go on with a conversation that was saved
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    load: Option<PathBuf>,
    /// Write the conversation after every answer
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print answers as they are, without markdown and colours (also NO_COLOR)
    #[arg(long, env = "BITNET_NO_COLOR")]
    no_color: bool,
    #[command(flatten)]
    model_flags: ModelFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    form: FormFlags,
}

fn after_help() -> String {
    format!(
        "\
Commands while chatting:
{}
Tab completes commands and file names; Alt-Enter, Ctrl-J or a backslash at its end go on with a further line.
Ctrl-C stops an answer.

Examples:
  bitnet chat
  bitnet chat model.gguf
  bitnet chat model.gguf --system \"You answer in one sentence.\" --temp 0.6
  bitnet chat model.gguf --load talk.json --save talk.json",
        line::help()
    )
}

/// A file that `/read` takes has at most as many bytes.
const READ_BYTES: u64 = 16 << 20;

impl Chat {
    pub fn with(path: PathBuf, model_flags: ModelFlags, sampling: SamplingFlags, form: FormFlags) -> Self {
        let model = Some(path);
        let (model_flag, system, load, save) = Default::default();
        Self { model, model_flag, system, load, save, no_color: false, model_flags, sampling, form }
    }

    pub fn execute(self, quiet: bool) -> Result<(), Failure> {
        let (model, first) = match (self.model, self.model_flag) {
            // A word that names no model is what is said first.
            (Some(word), flag) if !hub::names_model(&word.to_string_lossy()) => {
                (flag, Some(word.to_string_lossy().into_owned()))
            }
            (model, flag) => (model.or(flag), None),
        };
        let path = args::named(model);
        // What is wrong with flags is said before a model is loaded.
        self.sampling.options(&self.model_flags)?;
        let form = self.form.form()?;
        let conversation = match &self.load {
            Some(file) => Conversation::load(file)?,
            None => Conversation::new(self.system.as_deref()),
        };
        let mut sampling = self.sampling;
        let (path, draft) = (hub::locate(&path, quiet)?, sampling.draft_model(quiet)?);
        let model = self.model_flags.open_to_sample(&path, draft.as_deref(), &mut sampling, quiet)?;
        let tokenizer = model.tokenizer().cloned().ok_or_else(|| vocabulary::absent(&path))?;
        let template = vocabulary::template(&tokenizer, &path)?;
        let mut session = Session {
            model,
            tokenizer: Arc::clone(&tokenizer),
            template,
            flags: self.model_flags,
            sampling,
            form,
            conversation,
            read: String::new(),
            save: self.save,
            set: Vec::new(),
            sum: Timings::default(),
            markdown: !self.no_color && has_colours(&std::io::stdout()),
            dim: !self.no_color && has_colours(&std::io::stderr()),
            quiet,
            cancel: interrupt_patiently(),
            typed: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        };
        if let Some(first) = first {
            session.take(Line::Say(first)).map_err(Failure::at(&path))?;
        }
        if session.typed {
            if !quiet {
                eprintln!("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves");
            }
            end_with_terminal();
            let _keys = Keys::held();
            let mut editor = Editor::new(SamplingFlags::names(), session.dim);
            while let Some(text) = editor.read()? {
                if !session.take(line::parse(&text)).map_err(Failure::at(&path))? {
                    break;
                }
            }
            return Ok(());
        }
        for text in std::io::stdin().lock().lines() {
            if !session.take(line::parse(&text?)).map_err(Failure::at(&path))? {
                break;
            }
        }
        if session.cancel.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

struct Session<'a> {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    template: &'a ChatTemplate,
    flags: ModelFlags,
    sampling: SamplingFlags,
    form: Option<Form>,
    conversation: Conversation,
    /// What `/read` read for the next message.
    read: String,
    save: Option<PathBuf>,
    /// What `/set` set.
    set: Vec<(String, String)>,
    /// Of all answers.
    sum: Timings,
    markdown: bool,
    /// Whether what is said beside the answers is dimmed.
    dim: bool,
    quiet: bool,
    cancel: Arc<AtomicBool>,
    /// Somebody sits there and can try again.
    typed: bool,
}

impl Session<'_> {
    /// Does what a line asks for; false ends the conversation. What cannot be done is said, and the conversation goes on.
    fn take(&mut self, line: Line) -> Result<bool, Failure> {
        let done = match line {
            Line::Nothing => Ok(()),
            Line::Unknown(word) => {
                eprintln!("{word} is no command; /help lists them");
                Ok(())
            }
            Line::Say(text) => {
                let text = std::mem::take(&mut self.read) + &text;
                self.conversation.say(&text);
                self.answer()
            }
            Line::Do(Command::Exit, _) => return Ok(false),
            Line::Do(command, argument) => self.obey(command, &argument),
        };
        match done {
            Err(Failure::Usage(message)) => eprintln!("{message}"),
            Err(Failure::Runtime(message)) if self.typed => eprintln!("{message}"),
            done => done?,
        }
        Ok(true)
    }

    fn obey(&mut self, command: Command, argument: &str) -> Result<(), Failure> {
        let file = || match argument {
            "" => Err(Failure::Usage("which file?".to_owned())),
            name => Ok(Path::new(name)),
        };
        match command {
            Command::Exit => {}
            Command::Help => eprint!("{}", line::help()),
            Command::Clear => self.conversation.clear(),
            Command::System => {
                self.conversation = Conversation::new(Some(argument).filter(|t| !t.is_empty()));
            }
            Command::Regenerate => match self.conversation.take_answer() {
                true => return self.answer(),
                false => eprintln!("there is no message to answer yet"),
            },
            Command::Set => return self.set(argument),
            Command::Save => {
                self.conversation.save(file()?)?;
                self.say(&format!("{} messages in {argument}", self.conversation.len()));
            }
            Command::Load => {
                self.conversation = Conversation::load(file()?)?;
                self.say(&format!("{} messages", self.conversation.len()));
            }
            Command::Read => {
                let text = read(file()?)?;
                let text = text.trim_end();
                self.say(&format!("{} characters go with the next message", text.chars().count()));
                self.read += &format!("{text}\n\n");
            }
            Command::Stats => self.stats(),
        }
        Ok(())
    }

    fn set(&mut self, argument: &str) -> Result<(), Failure> {
        let (name, value) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
        if name.is_empty() {
            eprintln!("{}", SamplingFlags::names().join(" "));
            return Ok(());
        }
        let mut sampling = self.sampling.clone();
        sampling.set(name, value.trim())?;
        let options = sampling.options(&self.flags)?;
        options
            .sampling
            .validate(self.model.config().vocab)
            .map_err(bitnet_inference::GenerateError::from)?;
        self.sampling = sampling;
        self.set.retain(|(known, _)| known != name);
        self.set.push((name.to_owned(), value.trim().to_owned()));
        Ok(())
    }

    /// Answers the last message. One that does not fit is taken back.
    fn answer(&mut self) -> Result<(), Failure> {
        let options = GenerateOptions {
            form: self.form.clone(),
            cancel: Some(Arc::clone(&self.cancel)),
            ..self.sampling.options(&self.flags)?
        };
        self.cancel.store(false, Ordering::Relaxed);
        let _keys = Keys::interrupting();
        let prompt = self.conversation.prompt(self.template, &self.tokenizer)?;
        let ends = self.model.end_ids();
        let mut generation = match self.model.generate(&prompt, options).map_err(Failure::from) {
            Ok(generation) => generation,
            Err(Failure::Usage(message)) => {
                self.conversation.unsay();
                return Err(Failure::Usage(format!("{message}; /clear begins anew")));
            }
            Err(e) => return Err(e),
        };
        stream(&mut generation, self.markdown)?;
        let (timings, reason) = (generation.timings(), generation.finish_reason());
        let footer = match reason {
            Some(FinishReason::Cancelled) => format!("stopped; {}", speeds(timings)),
            Some(FinishReason::Length) => {
                format!("{}; cut off, /set predict -1 lets it go on", speeds(timings))
            }
            _ => speeds(timings),
        };
        let mut ids = generation.tokens().to_vec();
        if reason == Some(FinishReason::Stop) {
            // The end token comes back with the template.
            ids.truncate(ids.len() - usize::from(ids.last().is_some_and(|id| ends.contains(id))));
        }
        drop(generation);
        self.say(&footer);
        self.sum.prompt_tokens += timings.prompt_tokens;
        self.sum.cached_tokens += timings.cached_tokens;
        self.sum.prompt += timings.prompt;
        self.sum.tokens += timings.tokens;
        self.sum.generation += timings.generation;
        self.conversation.answered(&self.tokenizer.decode(&ids, true)?);
        match &self.save {
            Some(file) => self.conversation.save(file),
            None => Ok(()),
        }
    }

    /// Something beside the answers.
    fn say(&self, text: &str) {
        let style = if self.dim { anstyle::Style::new().dimmed() } else { anstyle::Style::new() };
        if !self.quiet {
            eprintln!("{style}{text}{style:#}");
        }
    }

    fn stats(&self) {
        let tokens = self.conversation.prompt(self.template, &self.tokenizer).map_or(0, |ids| ids.len());
        eprintln!(
            "{} messages, {tokens} of {} tokens of context",
            self.conversation.len(),
            self.model.capacity()
        );
        eprintln!("{}; {} tokens of prompts were in the cache", speeds(self.sum), self.sum.cached_tokens);
        for (name, value) in &self.set {
            eprintln!("{name} {value}");
        }
    }
}

/// Prints text as it comes.
fn stream(generation: &mut Generation<'_>, markdown: bool) -> Result<(), Failure> {
    if !markdown {
        return crate::commands::run::stream(generation);
    }
    let mut drawn = Markdown::new(std::io::stdout().lock(), columns);
    for piece in generation.by_ref() {
        match piece {
            Ok(piece) => drawn.push(&piece.text)?,
            Err(e) => {
                drawn.finish()?;
                return Err(e.into());
            }
        }
    }
    Ok(drawn.finish()?)
}

/// A file's text.
fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |what: &str| Failure::Usage(format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| wrong(&e.to_string()))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, READ_BYTES + 1), &mut bytes)
        .map_err(|e| wrong(&e.to_string()))?;
    if bytes.len() as u64 > READ_BYTES {
        return Err(wrong("longer than 16 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| wrong("no UTF-8"))
}
