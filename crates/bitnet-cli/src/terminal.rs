//! Progress and interrupts.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Below this, nobody needs to be told.
const PATIENCE: Duration = Duration::from_millis(800);

/// A bar on a terminal, a line per 10 % elsewhere, nothing for what is quick.
pub struct Progress {
    what: &'static str,
    /// What is counted, where that is told.
    unit: Option<&'static str>,
    /// How many were done before.
    from: usize,
    begin: Instant,
    bar: Option<ProgressBar>,
    lines: bool,
    tenths: usize,
}

impl Progress {
    /// Of something whose parts say nothing to anybody.
    pub fn new(what: &'static str, quiet: bool) -> Self {
        Self::with("{msg} [{bar:40}] {percent:>3} %", what, None, 0, quiet)
    }

    /// Of things that are counted: `from` of them are done already. It tells how long the rest takes.
    pub fn of(what: &'static str, unit: &'static str, from: usize, quiet: bool) -> Self {
        let template = format!("{{msg}} [{{bar:30}}] {{human_pos}} of {{human_len}} {unit}, {{eta}} left");
        Self::with(&template, what, Some(unit), from, quiet)
    }

    fn with(
        template: &str,
        what: &'static str,
        unit: Option<&'static str>,
        from: usize,
        quiet: bool,
    ) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (terminal && !quiet).then(|| {
            // Whatever is set before its first step would draw it.
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            bar.set_position(from as u64);
            bar.reset_eta();
            let style = ProgressStyle::with_template(template);
            bar.with_message(what).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let lines = !terminal && !quiet;
        Self { what, unit, from, begin: Instant::now(), bar, lines, tenths: 0 }
    }

    pub fn at(&mut self, done: usize, all: usize) {
        let time = self.begin.elapsed();
        let line = self.line(done, all, time);
        if let Some(bar) = self.bar.as_ref().filter(|_| time >= PATIENCE) {
            if bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
        if let Some(line) = line.filter(|_| self.lines) {
            eprintln!("{line}");
        }
    }

    /// What is told after `time` where there is no bar: a line for each tenth.
    fn line(&mut self, done: usize, all: usize, time: Duration) -> Option<String> {
        let tenths = done * 10 / all.max(1);
        let news = tenths > self.tenths;
        self.tenths = self.tenths.max(tenths);
        (news && time >= PATIENCE).then(|| {
            let counted = self.unit.map_or_else(String::new, |unit| {
                let each = time.as_secs_f64() / done.saturating_sub(self.from).max(1) as f64;
                let left = Duration::from_secs_f64(each * all.saturating_sub(done) as f64);
                format!(" ({done} of {all} {unit}, {} left)", HumanDuration(left))
            });
            format!("{}: {} %{counted}", self.what, tenths * 10)
        })
    }

    /// A line beside the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
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
    on_interrupt(|seen_before| {
        if seen_before {
            std::process::exit(130);
        }
    })
}

/// A flag that the interrupt key sets, however often it is pressed.
pub fn interrupt_patiently() -> Arc<AtomicBool> {
    on_interrupt(|_| {})
}

/// `then` is told whether the flag was set already.
fn on_interrupt(then: impl Fn(bool) + Send + 'static) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    if let Err(e) = ctrlc::set_handler(move || then(seen.swap(true, Ordering::Relaxed))) {
        eprintln!("warning: interrupts end the program at once: {e}");
    }
    flag
}

/// Columns of the terminal at this moment.
pub fn columns() -> usize {
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0).max(1))
}

/// Whether a stream may be told colours: it is a terminal that knows them, and `NO_COLOR` is not set.
pub fn has_colours(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// What the terminal does with keys while this lives.
pub struct Keys {
    #[cfg(unix)]
    before: Option<rustix::termios::Termios>,
}

impl Keys {
    /// They wait, as they are, for whoever reads next. A line editor sets this up for itself and takes it back at
    /// the end of every line; without it what is typed between two lines would be drawn, or would be a signal.
    pub fn held() -> Self {
        #[cfg(unix)]
        {
            use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex};
            Self::set(|mode| {
                mode.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
                mode.input_modes.remove(InputModes::ICRNL);
                mode.special_codes[SpecialCodeIndex::VMIN] = 1;
                mode.special_codes[SpecialCodeIndex::VTIME] = 0;
            })
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// They are not drawn, and those that interrupt do.
    pub fn interrupting() -> Self {
        #[cfg(unix)]
        {
            use rustix::termios::LocalModes;
            Self::set(|mode| {
                mode.local_modes.remove(LocalModes::ECHO);
                mode.local_modes.insert(LocalModes::ISIG);
            })
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// A terminal that cannot be told goes on as it did.
    #[cfg(unix)]
    fn set(change: impl FnOnce(&mut rustix::termios::Termios)) -> Self {
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok().filter(|before| {
            let mut mode = before.clone();
            change(&mut mode);
            tcsetattr(&stdin, OptionalActions::Now, &mode).is_ok()
        });
        Self { before }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(before) = &self.before {
            let _ =
                rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, before);
        }
    }
}

/// Ends the program with its terminal, also where the signal that tells of this is ignored.
pub fn end_with_terminal() {
    #[cfg(unix)]
    std::thread::spawn(|| {
        use rustix::event::{PollFd, PollFlags, poll};
        let stdin = std::io::stdin();
        loop {
            let mut terminal = [PollFd::new(&stdin, PollFlags::empty())];
            match poll(&mut terminal, None) {
                Ok(_) if terminal[0].revents().contains(PollFlags::HUP) => std::process::exit(129),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_tenth_and_none_for_what_is_quick() {
        let lines = |mut progress: Progress, time: Duration| -> Vec<String> {
            (0..=200).filter_map(|done| progress.line(done, 200, time)).collect()
        };
        let told = lines(Progress::new("loading", true), Duration::from_secs(1));
        assert_eq!(told.len(), 10);
        assert_eq!((told[0].as_str(), told[9].as_str()), ("loading: 10 %", "loading: 100 %"));
        assert!(lines(Progress::new("loading", true), Duration::from_millis(100)).is_empty());
        // Half of those that were not done before took a minute.
        let mut progress = Progress::of("answering", "rows", 100, true);
        let line = progress.line(150, 200, Duration::from_secs(60));
        assert_eq!(line.as_deref(), Some("answering: 70 % (150 of 200 rows, 60 seconds left)"));
    }
}
