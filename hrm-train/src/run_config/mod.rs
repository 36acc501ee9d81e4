//! One TOML file a run: task, data, model, training, evaluation, checkpoints.
//!
//! [`RunConfig::load`] reads a file, applies `--set key=value` overrides and refuses what cannot be built. [`RunConfig::to_toml`] writes
//! the resolved config with the documentation of every field as comments; that text reads back to the same config.

mod architecture;
mod course;
mod sections;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::EngineOptions;
use sections::Entry;
pub use sections::*;

/// Everything that decides a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// `[task]`
    pub task: TaskSection,
    /// `[data]`
    pub data: DataSection,
    /// `[model]`
    pub model: ModelSection,
    /// `[train]`
    pub train: TrainSection,
    /// `[eval]`
    pub eval: EvalSection,
    /// `[checkpoint]`
    pub checkpoint: CheckpointSection,
}

/// Finds a config: as given, else below the repository this binary was built from.
///
/// # Errors
/// The file is in neither place.
pub fn find_config(path: &Path) -> anyhow::Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [built.join(".."), built.to_owned()] {
        let candidate = folder.join(path);
        if path.is_relative() && candidate.exists() {
            return Ok(candidate);
        }
    }
    bail!("there is no config {}: give the path of a TOML file, such as configs/sudoku-4x4.toml", path.display())
}

impl RunConfig {
    /// The config as a model's record shows it: data files by name, because a shipped model should not tell where they lay.
    #[must_use]
    pub fn without_folders(&self) -> Self {
        let mut config = self.clone();
        for paths in [&mut config.data.train, &mut config.data.meta, &mut config.data.exclude_meta] {
            *paths = paths.without_folders();
        }
        for path in [&mut config.train.init, &mut config.train.teacher] {
            if let Some(name) = Path::new(path).file_name() {
                *path = name.to_string_lossy().into_owned();
            }
        }
        config
    }

    /// Reads `path` (see [`find_config`]), applies `overrides` of the form `section.key=value`, makes data paths independent of the
    /// config's folder and validates.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has an unknown key or a value of a wrong type (with line and column), an override names no
    /// field, or [`RunConfig::validate`] refuses.
    pub fn load(path: &Path, overrides: &[String]) -> anyhow::Result<Self> {
        let path = find_config(path)?;
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read the config {}", path.display()))?;
        let mut config = Self::parse(&text, overrides).with_context(|| format!("config {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        for list in [&mut config.data.train, &mut config.data.meta, &mut config.data.exclude_meta] {
            for file in &mut list.0 {
                let beside = folder.join(&*file);
                if !Path::new(file).exists() && beside.exists() {
                    *file = beside.to_string_lossy().into_owned();
                }
            }
        }
        Ok(config)
    }

    /// Reads TOML text, applies the overrides and validates.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, overrides: &[String]) -> anyhow::Result<Self> {
        // Read once as it stands, so that mistakes of the file are shown with line and column.
        let mut config: Self = toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))?;
        if !overrides.is_empty() {
            let mut table = toml::Table::try_from(&config)?;
            for item in overrides {
                set(&mut table, item)?;
            }
            config = table.try_into().map_err(|e: toml::de::Error| anyhow::anyhow!("after --set: {}", e.to_string().trim_end()))?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The config as TOML with the documentation of every field.
    ///
    /// # Errors
    /// A value TOML cannot hold (an integer above `i64::MAX`).
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let mut section = |name: &str, doc: &[&str], entries: Vec<Entry>| {
            let _ = writeln!(text, "{}[{name}]\n#{}\n", if text.is_empty() { "" } else { "\n" }, doc.join("\n#"));
            for Entry { key, doc, value } in entries {
                let _ = writeln!(text, "#{}\n{key} = {value}", doc.join("\n#"));
            }
        };
        section("task", TaskSection::DOC, self.task.entries()?);
        section("data", DataSection::DOC, self.data.entries()?);
        section("model", ModelSection::DOC, self.model.entries()?);
        section("train", TrainSection::DOC, self.train.entries()?);
        section("eval", EvalSection::DOC, self.eval.entries()?);
        section("checkpoint", CheckpointSection::DOC, self.checkpoint.entries()?);
        Ok(text)
    }

    /// The settings the engine needs.
    #[must_use]
    pub fn engine_options(&self) -> EngineOptions {
        let t = &self.train;
        EngineOptions {
            batch: t.batch,
            loss: t.loss,
            gradient: t.gradient,
            optimizer: t.optimizer,
            betas: t.betas,
            weight_decay: t.weight_decay,
            ema: t.ema,
            q_weight: t.q_weight,
            carry_noise: t.carry_noise,
            clip: t.clip,
            threads: resolve_threads(t.threads),
            seed: t.seed,
        }
    }

    /// Keys of everything that decides the weights and differs between two configs, with both values (`here`, `other`). Thread count,
    /// logging and checkpoint times do not decide them; evaluation decides which weights are shipped. Files are compared by name: they lie
    /// elsewhere on another machine, and the data's check sum tells whether they are the same.
    ///
    /// # Errors
    /// A value TOML cannot hold.
    pub fn differences(&self, other: &Self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let (here, there) = (self.without_folders(), other.without_folders());
        let sections = [
            ("task", here.task.entries()?, there.task.entries()?),
            ("data", here.data.entries()?, there.data.entries()?),
            ("model", here.model.entries()?, there.model.entries()?),
            ("train", here.train.entries()?, there.train.entries()?),
            ("eval", here.eval.entries()?, there.eval.entries()?),
        ];
        for (name, here, there) in sections {
            for (a, b) in here.iter().zip(&there) {
                let free = name == "train" && ["threads", "log_every"].contains(&a.key);
                if a.value != b.value && !free {
                    found.push(format!("{name}.{} is {}, the run was started with {}", a.key, a.value, b.value));
                }
            }
        }
        Ok(found)
    }
}

/// `threads`, or the number of cores for 0.
#[must_use]
pub fn resolve_threads(threads: usize) -> usize {
    if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// Applies one override `section.key=value`; a value that is no TOML is taken as a string.
fn set(table: &mut toml::Table, item: &str) -> anyhow::Result<()> {
    let (key, value) = item.split_once('=').with_context(|| format!("--set {item}: expected section.key=value"))?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().unwrap_or_default();
    let mut here = table;
    for part in path {
        here = here
            .get_mut(part)
            .and_then(toml::Value::as_table_mut)
            .with_context(|| format!("--set {item}: there is no section `{part}` (see `hrm-train config`)"))?;
    }
    ensure!(here.contains_key(last), "--set {item}: there is no field `{}` (see `hrm-train config`)", key.trim());
    here.insert(last.to_owned(), value);
    Ok(())
}
