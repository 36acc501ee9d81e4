//! A progress bar on a terminal, else a line every ten seconds.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Window, clock};
use crate::engine::RowOutcome;

/// Time between lines where there is no terminal.
const LINES: Duration = Duration::from_secs(10);
/// Time between updates of the bar.
const BAR: Duration = Duration::from_millis(500);

/// Wall time, speed and what is shown to people.
pub struct Progress {
    start: Instant,
    /// Seconds before this process.
    before: f64,
    report: Instant,
    /// Sums and steps since the last report.
    window: Window,
    steps: u64,
    /// Sample-segments a second up to the last report.
    rate: f64,
    total: u64,
    tokens: usize,
    bar: Option<ProgressBar>,
    /// Whether anything is shown.
    shown: bool,
}

impl Progress {
    /// Begins at second `before` of a run of `total` steps on puzzles of `tokens` cells; shows nothing unless `shown`.
    #[must_use]
    pub fn new(before: f64, total: u64, tokens: usize, shown: bool) -> Self {
        let now = Instant::now();
        let bar = (shown && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total);
            // The template is a constant: it is right or no bar is ever shown in its style.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { start: now, before, report: now, window: Window::default(), steps: 0, rate: 0.0, total, tokens, bar, shown }
    }

    /// Seconds of the whole run.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// A row of this step, as [`Window::add`] counts it.
    pub fn row(&mut self, new: u8, steps: u32, halted: bool, outcome: &RowOutcome) {
        self.window.add(new, steps, halted, outcome);
    }

    /// Sample-segments a second since the last report, or of the time before it if it has just been made.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let seconds = self.report.elapsed().as_secs_f64();
        if seconds > 1.0 || self.rate == 0.0 { self.window.segments as f64 / seconds.max(1e-9) } else { self.rate }
    }

    /// The step is done; shows how things stand if it is time.
    pub fn step(&mut self, step: u64, lr: f64) {
        self.steps += 1;
        if self.report.elapsed() < if self.bar.is_some() { BAR } else { LINES } {
            return;
        }
        let line = self.line(step, lr);
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(line);
            }
            None if self.shown => eprintln!("step {step}/{}: {line}", self.total),
            None => {}
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.shown => eprintln!("{line}"),
            None => {}
        }
    }

    fn line(&mut self, step: u64, lr: f64) -> String {
        self.rate = self.rate();
        let left = self.report.elapsed().as_secs_f64() / self.steps.max(1) as f64 * self.total.saturating_sub(step) as f64;
        let window = std::mem::take(&mut self.window);
        self.report = Instant::now();
        self.steps = 0;
        let halted = window.at_halt().map_or("none halted".to_owned(), |(exact, segments)| {
            format!("at halt {:.1} % exact after {segments:.1} segments", 100.0 * exact)
        });
        format!(
            "{}, {} left: loss {:.4}, cells {:.2} %, {halted}, lr {lr:.2e}, {:.0} sample-segments/s",
            clock(self.seconds()),
            clock(left),
            window.loss(),
            100.0 * window.cell_accuracy(self.tokens),
            self.rate
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
