//! Planned runs as a file: why each is worth its time, what it should come to, and what it came to.
//!
//! Time on a machine comes in slices. A slice goes on with the first run that is open, or with a named one, and ends at a checkpoint; the
//! next may be on another machine, if the run's folder is taken there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::parallel::Group;
use crate::run_config::{RunConfig, find_config};
use crate::train::{self, StartOptions, Summary};

/// The file that is meant if none is named.
pub const DEFAULT: &str = "configs/queue.toml";

/// Folder of the runs, from the working directory: a run's own is `runs/NAME`.
const RUNS: &str = "runs";

/// One planned run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Name of its folder below `runs`.
    pub name: String,
    /// What is believed, so that the run can show it wrong.
    pub hypothesis: String,
    /// Config of the run.
    pub config: PathBuf,
    /// Overrides of the config, `section.key=value`.
    #[serde(default)]
    pub overrides: Vec<String>,
    /// What must be there first (a GPU, a feature, data); such a run is taken only by its name. Empty: nothing.
    #[serde(default)]
    pub needs: String,
    /// What the figure will be if the hypothesis holds, written before the run.
    pub predicted: String,
    /// What it was; empty: the run is open.
    #[serde(default)]
    pub outcome: String,
    /// Prints the figure once the run is done.
    pub command: String,
    /// Slices of ten minutes it is expected to take.
    pub slices: u32,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no checkpoint of it here.
    NotBegun,
    /// At this step of so many.
    At(u64, u64),
    /// All steps are done.
    Trained,
    /// Its outcome is written down.
    Closed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBegun => f.write_str("not begun"),
            Self::At(step, steps) => write!(f, "step {step} of {steps}"),
            Self::Trained => f.write_str("trained, outcome open"),
            Self::Closed => f.write_str("closed"),
        }
    }
}

impl Planned {
    /// Folder of the run below `base`.
    #[must_use]
    pub fn folder(&self, base: &Path) -> PathBuf {
        base.join(RUNS).join(&self.name)
    }

    /// Its config with the overrides of the queue and then those given here.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load(&self, overrides: &[String]) -> anyhow::Result<RunConfig> {
        RunConfig::load(&self.config, &[&self.overrides, overrides].concat()).with_context(|| format!("run `{}`", self.name))
    }

    /// How far it is, by the checkpoint below `base`.
    ///
    /// # Errors
    /// There is a checkpoint that cannot be read.
    pub fn state(&self, base: &Path) -> anyhow::Result<State> {
        if !self.outcome.is_empty() {
            return Ok(State::Closed);
        }
        Ok(match train::position(&self.folder(base))? {
            None => State::NotBegun,
            Some((step, steps)) if step < steps => State::At(step, steps),
            Some(_) => State::Trained,
        })
    }
}

/// The runs of a queue file, in order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// In the order in which they are to be taken.
    #[serde(rename = "run")]
    pub runs: Vec<Planned>,
}

impl Queue {
    /// Reads a queue file (looked up as configs are).
    ///
    /// # Errors
    /// It cannot be read, is no queue (with line and column), or a name is no plain file name or comes twice.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let path = find_config(path)?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read the queue {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("queue {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let queue: Self = toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))?;
        let mut names = BTreeSet::new();
        for run in &queue.runs {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            ensure!(
                !run.name.is_empty() && run.name.chars().all(plain),
                "run name `{}`: expected letters, digits, - and _, because it is the name of a folder",
                run.name
            );
            ensure!(names.insert(run.name.as_str()), "there are two runs named `{}`", run.name);
            ensure!(run.slices >= 1, "run `{}`: slices is 0, expected at least 1", run.name);
        }
        Ok(queue)
    }

    /// The run called `name`; without a name the first that needs nothing and has steps left.
    ///
    /// # Errors
    /// There is none, or its outcome is written down already.
    pub fn next(&self, base: &Path, name: Option<&str>) -> anyhow::Result<&Planned> {
        if let Some(name) = name {
            let run = self.runs.iter().find(|run| run.name == name).with_context(|| {
                let names: Vec<&str> = self.runs.iter().map(|run| run.name.as_str()).collect();
                format!("there is no run `{name}` in the queue, expected one of {}", names.join(", "))
            })?;
            ensure!(run.outcome.is_empty(), "run `{name}` is closed: its outcome is `{}`", run.outcome);
            return Ok(run);
        }
        for run in self.runs.iter().filter(|run| run.needs.is_empty()) {
            if matches!(run.state(base)?, State::NotBegun | State::At(..)) {
                return Ok(run);
            }
        }
        bail!("no run is open that needs nothing: name one, or write the next into the queue")
    }

    /// The queue as text: what is believed, predicted and known of each run.
    ///
    /// # Errors
    /// A checkpoint below `base` cannot be read.
    pub fn list(&self, base: &Path) -> anyhow::Result<String> {
        let mut text = String::new();
        for run in &self.runs {
            let slices = if run.slices == 1 { "1 slice".to_owned() } else { format!("{} slices", run.slices) };
            text += &format!("{}: {}, {slices}\n", run.name, run.state(base)?);
            let overrides: String = run.overrides.iter().map(|o| format!(" --set {o}")).collect();
            let lines = [
                ("hypothesis", run.hypothesis.clone()),
                ("config", format!("{}{overrides}", run.config.display())),
                ("needs", run.needs.clone()),
                ("predicted", run.predicted.clone()),
                ("outcome", run.outcome.clone()),
                ("command", run.command.clone()),
            ];
            for (key, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
                text += &format!("  {key:<11}{value}\n");
            }
        }
        Ok(text)
    }
}

/// Trains `run` for about `seconds` in its folder below `base`: from the beginning, or on from its last checkpoint.
///
/// # Errors
/// As [`train::train`].
pub fn slice(run: &Planned, base: &Path, seconds: f64, overrides: &[String], timeout: Duration) -> anyhow::Result<Summary> {
    ensure!(seconds > 0.0 && seconds.is_finite(), "a slice of {seconds} seconds, expected more than 0");
    let start = StartOptions { resume: true, seconds: Some(seconds), ..StartOptions::default() };
    let config = run.load(overrides)?;
    let group = Rc::new(Group::from_environment(&config, timeout)?);
    train::train(&config, &run.folder(base), start, &group)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn run(name: &str, more: &str) -> String {
        format!(
            "[[run]]\nname = '{name}'\nhypothesis = 'h'\nconfig = 'configs/sudoku-4x4.toml'\npredicted = 'p'\ncommand = 'c'\nslices = 2\n{more}\n"
        )
    }

    #[test]
    fn the_shipped_queue_can_be_run() {
        let queue = Queue::load(Path::new(DEFAULT)).unwrap();
        assert!(queue.runs.iter().any(|run| run.outcome.is_empty()));
        for run in &queue.runs {
            run.load(&[]).unwrap();
        }
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| format!("{:#}", Queue::parse(text).unwrap_err());
        assert!(refused(&run("a", "predictd = 'x'")).contains("predictd"));
        assert!(refused("[[run]]\nname = 'a'").contains("hypothesis"));
        assert!(refused(&run("a/../b", "")).contains("a/../b"));
        assert!(refused(&(run("a", "") + &run("a", ""))).contains("two runs named `a`"));
        assert!(refused(&run("a", "").replace("slices = 2", "slices = 0")).contains("slices is 0"));
        let unknown = Queue::parse(&run("a", "overrides = ['train.lrr=1']")).unwrap();
        assert!(format!("{:#}", unknown.runs[0].load(&[]).unwrap_err()).contains("train.lrr"));
    }

    #[test]
    fn slices_go_on_until_the_run_is_trained_and_then_with_the_next() {
        let tiny = "overrides = ['model.channels=8', 'model.inner=8', 'train.steps=6', 'train.warmup=1', 'train.batch=4', \
                    'train.threads=1', 'data.generate={n=80}', 'data.holdout=8', 'eval.every=0']";
        let text = run("closed", "outcome = 'o'") + &run("gpu", "needs = 'a GPU'") + &run("one", tiny) + &run("two", tiny);
        let queue = Queue::parse(&text).unwrap();
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        let one = queue.next(base, None).unwrap();
        assert_eq!((one.name.as_str(), one.state(base).unwrap()), ("one", State::NotBegun));
        // The shortest slice is one step.
        for step in 1..=5 {
            assert_eq!(slice(one, base, 1e-9, &[], WAIT).unwrap().step, step);
            assert_eq!(one.state(base).unwrap(), State::At(step, 6));
            assert_eq!(queue.next(base, None).unwrap().name, "one");
        }
        assert_eq!(slice(one, base, 600.0, &[], WAIT).unwrap().step, 6);
        assert_eq!(one.state(base).unwrap(), State::Trained);
        let two = queue.next(base, None).unwrap();
        assert_eq!(two.name, "two");
        slice(two, base, 600.0, &[], WAIT).unwrap();
        assert!(queue.next(base, None).unwrap_err().to_string().contains("no run is open"));
        assert_eq!(queue.next(base, Some("gpu")).unwrap().name, "gpu");
        assert!(queue.next(base, Some("closed")).unwrap_err().to_string().contains("is closed"));
        assert!(queue.next(base, Some("three")).unwrap_err().to_string().contains("closed, gpu, one, two"));
        let text = queue.list(base).unwrap();
        for line in ["closed: closed, 2 slices", "one: trained, outcome open", "  needs      a GPU", "--set train.steps=6"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        // In slices or at once, the weights are the same.
        let bytes = |run: &Planned| fs::read(run.folder(base).join("model.safetensors")).unwrap();
        let weights = |run: &Planned| crate::checkpoint::decode_tensors(&bytes(run)).unwrap().0;
        assert_eq!(weights(one), weights(two));
        assert!(slice(two, base, 0.0, &[], WAIT).is_err());
    }
}
