//! A run on a terminal: the loss as a line, figures, what the model says, and a key that ends it.

use super::lines::{clock, line, one_line, preferred};
use super::mib;
use bitnet_training::{Event, Sample};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event as Key, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};
use std::io::{self, IsTerminal, Stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often keys are looked for.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often what has not changed is drawn again: the time that is left has.
const SECOND: Duration = Duration::from_secs(1);

/// Points that are kept for the drawing; of more, every other one goes.
const POINTS: usize = 2000;

/// What is known of the run.
#[derive(Default)]
struct State {
    title: String,
    begun: Option<(u64, u64)>,
    loss: Vec<(f64, f64)>,
    /// Every so many of the losses are kept.
    stride: u64,
    seen: u64,
    validation: Vec<(f64, f64)>,
    figures: Vec<(&'static str, String)>,
    last_validation: Option<String>,
    samples: Option<(u64, Vec<Sample>)>,
    step: u64,
    steps: u64,
    left: Option<(Duration, Instant)>,
    message: String,
    /// What is told again when the drawing is gone.
    kept: Vec<String>,
    changed: bool,
}

/// A run that is drawn.
pub struct Display {
    state: Arc<Mutex<State>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The terminal, given back when this ends.
struct Screen(Terminal<CrosstermBackend<Stderr>>);

impl Screen {
    fn open() -> io::Result<Self> {
        enable_raw_mode()?;
        // From here on whatever fails must give the terminal back.
        let screen = Terminal::new(CrosstermBackend::new(io::stderr())).map(Self);
        if screen.is_err() {
            disable_raw_mode()?;
        }
        execute!(io::stderr(), EnterAlternateScreen)?;
        screen
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        let _ = execute!(io::stderr(), LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Whoever panicked has left texts and numbers, which can be drawn.
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Display {
    /// Begins to draw; `None` where standard error is no terminal that can be drawn on, or keys come from elsewhere.
    pub fn open(title: String, stop: Arc<AtomicBool>) -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if !io::stderr().is_terminal() || !io::stdin().is_terminal() || dumb {
            return None;
        }
        let screen = Screen::open().ok()?;
        let state = State { title, changed: true, stride: 1, ..State::default() };
        let (state, done) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (state, done) = (Arc::clone(&state), Arc::clone(&done));
            std::thread::spawn(move || watch(screen, &state, &done, &stop))
        };
        Some(Self { state, done, thread: Some(thread) })
    }

    pub fn event(&self, event: &Event) {
        lock(&self.state).event(event);
    }

    /// Gives the terminal back, and tells what should be known afterwards.
    pub fn close(mut self) {
        self.end();
        for line in &lock(&self.state).kept {
            eprintln!("{line}");
        }
    }

    fn end(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.end();
    }
}

/// Draws and reads keys until the run is over.
fn watch(mut screen: Screen, state: &Mutex<State>, done: &AtomicBool, stop: &AtomicBool) {
    let mut drawn = Instant::now();
    while !done.load(Ordering::Relaxed) {
        {
            let mut state = lock(state);
            if std::mem::take(&mut state.changed) || drawn.elapsed() >= SECOND {
                // A terminal that is gone is no reason to end the run.
                let _ = screen.0.draw(|frame| draw(frame, &state));
                drawn = Instant::now();
            }
        }
        if !event::poll(INTERVAL).unwrap_or(false) {
            continue;
        }
        match event::read() {
            Ok(Key::Key(key)) if key.kind != KeyEventKind::Release => {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if key.code != KeyCode::Char('q') && !interrupt {
                    continue;
                }
                if stop.swap(true, Ordering::Relaxed) && interrupt {
                    drop(screen);
                    std::process::exit(130);
                }
                let mut state = lock(state);
                state.message =
                    "stopping behind this step, with a checkpoint; ctrl-c ends at once".to_owned();
                state.changed = true;
            }
            Ok(Key::Resize(..)) => lock(state).changed = true,
            Ok(_) => {}
            // Without keys there is still a drawing.
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

impl State {
    fn event(&mut self, event: &Event) {
        self.changed = true;
        match event {
            Event::Begin(start) => {
                self.begun = Some((start.step, start.steps));
                (self.step, self.steps) = (start.step, start.steps);
                self.message = line(event);
                self.kept.push(line(event));
            }
            Event::Steps { step, steps, loss, rate, norm, speed, left, preferences, memory } => {
                (self.step, self.steps) = (*step, *steps);
                self.add_loss(*step as f64, *loss);
                self.left = Some((*left, Instant::now()));
                self.figures = vec![("loss", format!("{loss:.4}"))];
                if preferences.is_some() {
                    self.figures.push(("pairs", preferred(*preferences).trim_start().to_owned()));
                }
                self.figures.push(("learning rate", format!("{rate:.2e}")));
                self.figures.push(("gradient norm", format!("{norm:.3}")));
                self.figures.push(("tokens/s", format!("{speed:.0}")));
                if let Some(memory) = memory {
                    let (now, peak) = (mib(memory.resident_bytes), mib(memory.peak_bytes));
                    self.figures.push(("memory", format!("{now:.0} MiB, at most {peak:.0}")));
                }
            }
            Event::Validation { step, loss, .. } => {
                self.validation.push((*step as f64, *loss));
                self.last_validation = Some(line(event));
                self.kept.retain(|kept| !kept.contains("validation loss"));
                self.kept.push(line(event));
            }
            Event::Samples { step, samples } => self.samples = Some((*step, samples.clone())),
            // Warnings.
            Event::Damaged { .. } | Event::Skipped(_) | Event::Dropped(_) => {
                self.message = line(event).lines().next().unwrap_or_default().to_owned();
                self.kept.push(line(event));
            }
            other => self.message = line(other),
        }
    }

    fn add_loss(&mut self, step: f64, loss: f64) {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.stride) && self.loss.len() > 1 {
            // The last one is always the newest.
            self.loss.pop();
        }
        self.loss.push((step, loss));
        if self.loss.len() > POINTS {
            let mut keep = false;
            self.loss.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }
}

fn draw(frame: &mut ratatui::Frame<'_>, state: &State) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(6),
        Constraint::Length(10),
        Constraint::Length(1),
    ];
    let [title, gauge, chart, figures, message] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(state.title.as_str()).style(Style::new().bold()), title);
    let share = if state.steps == 0 { 0.0 } else { state.step as f64 / state.steps as f64 };
    let left = match state.left {
        Some((left, at)) => format!(", {} left", clock(left.saturating_sub(at.elapsed()))),
        None => String::new(),
    };
    let label = format!("step {} of {}{left}", state.step, state.steps);
    let bar =
        Gauge::default().ratio(share.clamp(0.0, 1.0)).label(label).gauge_style(Style::new().fg(Color::Blue));
    frame.render_widget(bar, gauge);
    losses(frame, state, chart);
    let [numbers, samples] = Layout::horizontal([Constraint::Length(42), Constraint::Min(10)]).areas(figures);
    let mut lines: Vec<Line<'_>> = state
        .figures
        .iter()
        .map(|(name, value)| {
            Line::from(vec![Span::raw(format!("{name:<14}")).dim(), Span::raw(value.as_str())])
        })
        .collect();
    if let Some(text) = &state.last_validation {
        lines.push(Line::raw(text.as_str()));
    }
    let block = Block::bordered().title("now");
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block), numbers);
    let (title, lines) = match &state.samples {
        Some((step, samples)) => {
            let text = |s: &Sample| {
                Line::from(vec![Span::raw(one_line(&s.prompt)).dim(), Span::raw(one_line(&s.text))])
            };
            (format!("samples of step {step}"), samples.iter().map(text).collect())
        }
        None => ("samples".to_owned(), Vec::new()),
    };
    let block = Block::bordered().title(title);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block), samples);
    let line =
        Line::from(vec![Span::raw("q stops with a checkpoint  ").dim(), Span::raw(state.message.as_str())]);
    frame.render_widget(Paragraph::new(line), message);
}

fn losses(frame: &mut ratatui::Frame<'_>, state: &State, area: Rect) {
    let all = || state.loss.iter().chain(&state.validation).filter(|p| p.1.is_finite());
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let room = ((high - low) * 0.05).max(1e-3);
    let y = [low - room, high + room];
    let first = all().map(|p| p.0).fold(f64::MAX, f64::min).min(state.step as f64);
    let x = [first, (state.step as f64).max(first + 1.0)];
    let set = |name, points, colour, kind| {
        Dataset::default()
            .name(name)
            .marker(Marker::Braille)
            .graph_type(kind)
            .style(Style::new().fg(colour))
            .data(points)
    };
    let mut sets = vec![set("loss", &state.loss[..], Color::Blue, GraphType::Line)];
    if !state.validation.is_empty() {
        sets.push(set("validation", &state.validation, Color::Yellow, GraphType::Scatter));
    }
    let labels = |values: [f64; 2], digits: usize| {
        let [from, to] = values;
        [from, (from + to) / 2.0, to].map(|v| Line::raw(format!("{v:.digits$}")))
    };
    let chart = Chart::new(sets)
        .block(Block::bordered().title("loss"))
        .x_axis(Axis::default().bounds(x).labels(labels(x, 0)))
        .y_axis(Axis::default().bounds(y).labels(labels(y, 3)));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    fn steps(step: u64, loss: f64) -> Event {
        let left = Duration::from_secs(75);
        Event::Steps {
            step,
            steps: 400,
            loss,
            rate: 1e-3,
            norm: 0.5,
            speed: 2480.0,
            left,
            preferences: None,
            memory: None,
        }
    }

    fn drawn(state: &State, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_run_is_drawn_on_a_terminal_of_any_size() {
        let mut state =
            State { title: "bitnet train pretrain: run".to_owned(), stride: 1, ..State::default() };
        drawn(&state, 80, 24);
        for step in 1..=200 {
            state.event(&steps(step, 6.0 / step as f64 + 2.0));
        }
        state.event(&Event::Validation { step: 200, loss: 2.5, best: true, preferences: None });
        let text = " night\n\u{1b}[2Jsail".to_owned();
        state.event(&Event::Samples {
            step: 200,
            samples: vec![Sample { prompt: "ships at".to_owned(), text }],
        });
        let screen = drawn(&state, 100, 30);
        for words in [
            "bitnet train pretrain: run",
            "step 200 of 400, 1:1",
            "loss          2.0300",
            "tokens/s      2480",
            "step 200  validation loss 2.5000",
            "samples of step 200",
            "ships at night  [2Jsail",
            "q stops with a checkpoint",
        ] {
            assert!(screen.contains(words), "{words:?} is not in\n{screen}");
        }
        assert!(screen.chars().any(|c| ('\u{2801}'..='\u{28FF}').contains(&c)), "{screen}");
        // What is told afterwards: the last validation.
        assert_eq!(
            state.kept,
            [line(&Event::Validation { step: 200, loss: 2.5, best: true, preferences: None })]
        );
        for (columns, rows) in [(1, 1), (10, 3), (40, 12), (300, 90)] {
            drawn(&state, columns, rows);
        }
    }

    #[test]
    fn a_long_run_is_drawn_with_fewer_points() {
        let mut state = State { stride: 1, ..State::default() };
        for step in 1..=50_000 {
            state.event(&steps(step, f64::from(step as u32)));
        }
        assert!(state.loss.len() <= POINTS + 1 && state.loss.len() > POINTS / 4, "{}", state.loss.len());
        assert_eq!(state.loss.last(), Some(&(50_000.0, 50_000.0)));
        assert!(state.loss.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
