//! How a pull looks: on a terminal a bar for each file and one for all, elsewhere a line per 10 %.

use bitnet_hub::{Event, PlannedFile};
use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Progress of a pull on standard error.
pub struct Downloads {
    quiet: bool,
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of each file that are there, and its size.
    files: BTreeMap<Arc<str>, (u64, u64)>,
    each: BTreeMap<Arc<str>, ProgressBar>,
    total: Option<ProgressBar>,
    begin: Option<Instant>,
    received: u64,
    tenths: u64,
}

impl Downloads {
    pub fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { quiet, bars, state: Mutex::default() }
    }

    /// Shows a step of a pull.
    pub fn event(&self, event: Event) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { files, .. } => self.plan(&mut state, files),
            Event::Waiting { file } => self.say(&format!("{file}: another process is fetching it")),
            Event::Started { file, present_bytes } => self.start(&mut state, file, present_bytes),
            Event::Received { file, bytes } => {
                state.received += bytes;
                self.advance(&mut state, &file, |done| done + bytes);
            }
            Event::Restarted { file } => self.advance(&mut state, &file, |_| 0),
            Event::Retrying { error, after } => {
                self.say(&format!("{error}; again in {:.1} s", after.as_secs_f64()));
            }
            Event::Verifying { file } => {
                if let Some(bar) = state.each.get(&file) {
                    bar.set_message(format!("{file} (verifying)"));
                }
            }
            Event::Finished { file } => {
                if let Some(bar) = state.each.remove(&file) {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in state.each.values().chain(&state.total) {
            bar.finish_and_clear();
        }
    }

    fn plan(&self, state: &mut State, files: Vec<PlannedFile>) {
        state.files = files.into_iter().map(|f| (f.file, (f.present_bytes, f.size_bytes))).collect();
        state.begin = Some(Instant::now());
        let (done, all) = state.total();
        if let Some(bars) = self.bars.as_ref().filter(|_| !state.files.is_empty()) {
            let bar = bars.add(ProgressBar::new(all).with_message("total"));
            bar.set_style(style(
                "{msg:32!} [{bar:30}] {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}, {eta} left",
            ));
            bar.set_position(done);
            bar.reset_eta();
            state.total = Some(bar);
        }
        state.tenths = done * 10 / all.max(1);
    }

    fn start(&self, state: &mut State, file: Arc<str>, present: u64) {
        let size = state.files.get(&file).map_or(0, |f| f.1);
        if let Some(bars) = &self.bars {
            let bar = ProgressBar::new(size).with_message(file.to_string());
            bar.set_style(style("{msg:32!} [{bar:30}] {bytes:>10} of {total_bytes:<10}"));
            let bar = bars.insert_from_back(usize::from(state.total.is_some()), bar);
            bar.set_position(present);
            state.each.insert(Arc::clone(&file), bar);
        }
        self.advance(state, &file, |_| present);
    }

    fn advance(&self, state: &mut State, file: &str, to: impl FnOnce(u64) -> u64) {
        let Some(entry) = state.files.get_mut(file) else { return };
        entry.0 = to(entry.0);
        let done = entry.0;
        if let Some(bar) = state.each.get(file) {
            bar.set_position(done);
        }
        let (done, all) = state.total();
        if let Some(bar) = &state.total {
            bar.set_position(done);
        }
        let tenths = done * 10 / all.max(1);
        if self.bars.is_none() && tenths > state.tenths {
            state.tenths = tenths;
            eprintln!("downloading: {} % of {}{}", tenths * 10, HumanBytes(all), state.speed(all - done));
        }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            // A terminal that cannot be written to shows no bars either.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}

impl State {
    fn total(&self) -> (u64, u64) {
        self.files.values().fold((0, 0), |sum, f| (sum.0 + f.0, sum.1 + f.1))
    }

    /// Bandwidth since the beginning, and how long the rest takes at it.
    fn speed(&self, left: u64) -> String {
        let seconds = self.begin.map_or(0.0, |b| b.elapsed().as_secs_f64());
        let rate = self.received as f64 / seconds.max(1e-3);
        if rate < 1.0 {
            return String::new();
        }
        let rest = Duration::from_secs_f64((left as f64 / rate).min(1e9));
        format!(", {}/s, {} left", HumanBytes(rate as u64), HumanDuration(rest))
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
