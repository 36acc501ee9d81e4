//! What can be seen of a run: a progress bar and lines for people, `metrics.jsonl`, TensorBoard event files, and the report at its end.
//!
//! Nothing of it enters the weights. `metrics.jsonl` is the source: it is cut back to the step a run goes on from, and the event file and
//! the report are made from it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::write_atomic;
use crate::engine::RowOutcome;

mod events;
mod progress;
mod report;

pub use progress::Progress;
pub use report::write_report;

use events::EventFile;

/// Name of the metrics inside a run's folder.
const METRICS: &str = "metrics.jsonl";

/// Sums over the rows of some training steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    segments: u64,
    loss: f64,
    cells: u64,
    halted: u64,
    halted_exact: u64,
    halted_steps: u64,
}

impl Window {
    /// Adds a row that has run `new` segments, has had `steps` and halted there or not. Its outcome counts for each new one.
    pub fn add(&mut self, new: u8, steps: u32, halted: bool, outcome: &RowOutcome) {
        self.segments += u64::from(new);
        self.loss += f64::from(new) * f64::from(outcome.loss);
        self.cells += u64::from(new) * u64::from(outcome.cells);
        if halted {
            self.halted += 1;
            self.halted_exact += u64::from(outcome.exact);
            self.halted_steps += u64::from(steps);
        }
    }

    fn loss(&self) -> f64 {
        self.loss / self.segments.max(1) as f64
    }

    fn cell_accuracy(&self, tokens: usize) -> f64 {
        self.cells as f64 / (self.segments.max(1) * tokens as u64) as f64
    }

    /// Share of exact answers among the halted rows, and their mean number of segments; nothing if none halted.
    fn at_halt(&self) -> Option<(f64, f64)> {
        let n = self.halted as f64;
        (self.halted > 0).then(|| (self.halted_exact as f64 / n, self.halted_steps as f64 / n))
    }

    /// A record of `metrics.jsonl`. `mfu`: used part of what the device can compute, if that is known.
    #[must_use]
    pub fn record(&self, step: u64, lr: f64, tokens: usize, seconds: f64, rate: f64, mfu: Option<f64>) -> Value {
        let mut record = json!({
            "kind": "train", "step": step, "seconds": seconds, "lr": lr, "sample_segments": self.segments, "loss": self.loss(),
            "cells": self.cell_accuracy(tokens), "halted": self.halted, "exact_at_halt": self.at_halt().map(|h| h.0),
            "segments_at_halt": self.at_halt().map(|h| h.1), "sample_segments_per_second": rate,
        });
        if let Some(mfu) = mfu {
            record["mfu"] = mfu.into();
        }
        record
    }
}

/// `metrics.jsonl`, one JSON object a line, and the TensorBoard event file beside it.
pub struct Metrics {
    file: File,
    events: EventFile,
}

impl Metrics {
    /// Opens both and drops what was written after `step`, the step the run goes on from.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(folder: &Path, step: u64) -> anyhow::Result<Self> {
        let kept: Vec<Value> = read(folder)?.into_iter().filter(|v| v["step"].as_u64().is_some_and(|s| s <= step)).collect();
        let path = folder.join(METRICS);
        let text: String = kept.iter().map(|v| format!("{v}\n")).collect();
        write_atomic(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = EventFile::create(folder)?;
        for record in &kept {
            events.write(record)?;
        }
        Ok(Self { file, events })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&mut self, record: &Value) -> anyhow::Result<()> {
        self.file.write_all(format!("{record}\n").as_bytes()).context("cannot write metrics.jsonl")?;
        self.events.write(record)
    }
}

/// The records of a run in order; a last line that was cut off by the end of the process is left out.
fn read(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let path = folder.join(METRICS);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A span of time for people: `1:02:03` or `2:03`.
fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s >= 3600 { format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60) } else { format!("{}:{:02}", s / 60, s % 60) }
}
