//! Progress and interrupts.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Below this, nobody needs to be told.
const PATIENCE: Duration = Duration::from_millis(800);

/// A bar on a terminal, a line per 10 % elsewhere, nothing for what is quick.
pub struct Progress {
    what: &'static str,
    begin: Instant,
    bar: Option<ProgressBar>,
    lines: bool,
    tenths: usize,
}

impl Progress {
    pub fn new(what: &'static str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (terminal && !quiet).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent:>3} %");
            bar.with_message(what).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { what, begin: Instant::now(), bar, lines: !terminal && !quiet, tenths: 0 }
    }

    pub fn at(&mut self, done: usize, all: usize) {
        let tenths = done * 10 / all.max(1);
        let news = tenths > self.tenths;
        self.tenths = self.tenths.max(tenths);
        if self.begin.elapsed() < PATIENCE {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        } else if self.lines && news {
            eprintln!("{}: {} %", self.what, tenths * 10);
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A flag that the interrupt key sets. A second press ends the program at once.
pub fn interrupt() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let handler = move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: interrupts end the program at once: {e}");
    }
    flag
}
