//! One TOML file a run: task, data, model, training, evaluation, checkpoints.
//!
//! [`RunConfig::load`] reads a file, applies `--set key=value` overrides and refuses what cannot be built. [`RunConfig::to_toml`] writes
//! the resolved config with the documentation of every field as comments; that text reads back to the same config.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use hrm_core::task::Sudoku;
use hrm_core::{Config, Mixer, Start};
use serde::{Deserialize, Serialize};

use crate::data::grid::GridKind;
use crate::engine::{Depth, EngineOptions, Gradient, Loss, OptimizerKind};
use crate::spec::{Grouping, ModelSpec};

/// Kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Sudoku of size 4, 6 or 9.
    Sudoku,
    /// Shortest paths, [`crate::data::maze`].
    Maze,
    /// Coloured grids of ARC, [`crate::data::arc`].
    Arc,
}

impl TaskKind {
    /// The grid of a task without digits.
    #[must_use]
    pub const fn grid(self) -> Option<GridKind> {
        match self {
            Self::Sudoku => None,
            Self::Maze => Some(GridKind::Maze),
            Self::Arc => Some(GridKind::Arc),
        }
    }
}

/// Which implementation trains the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// Our own CPU engine for `group-sum` models; needs no library.
    Fused,
    /// libtorch, every member of the family, CPU or CUDA (built with `--features tch`).
    Torch,
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at `lr`.
    Constant,
    /// Half a cosine from `lr` at the end of the warm-up to `lr * min_ratio` at the last step.
    Cosine,
}

/// Number format of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16 products, 32-bit weights and sums.
    Bf16,
}

/// Paths: one string or a list of strings in TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct Paths(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Paths {
    fn from(value: OneOrMany) -> Self {
        match value {
            OneOrMany::One(path) if path.is_empty() => Self(Vec::new()),
            OneOrMany::One(path) => Self(vec![path]),
            OneOrMany::Many(paths) => Self(paths),
        }
    }
}

impl Paths {
    /// The file names alone.
    fn without_folders(&self) -> Self {
        let name = |path: &String| Path::new(path).file_name().map_or_else(|| path.clone(), |n| n.to_string_lossy().into_owned());
        Self(self.0.iter().map(name).collect())
    }
}

/// Puzzles made by the built-in generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generate {
    /// How many; 0: none.
    pub n: usize,
    /// Seed of the generator.
    pub seed: u64,
    /// Search for puzzles that need guesses.
    pub hard: bool,
    /// Up to so many givens are added to a minimal puzzle, the number uniform from 0.
    pub extra_givens: usize,
    /// Mazes: least number of steps of the shortest path.
    pub shortest: usize,
    /// Mazes: without a loop, so that there is one path; else with walls at random places.
    pub unique: bool,
}

impl Default for Generate {
    fn default() -> Self {
        Self { n: 0, seed: 1, hard: false, extra_givens: 0, shortest: 0, unique: false }
    }
}

/// One stage of the depth curriculum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthStage {
    /// Part of the run's steps at which the stage ends, above 0 to 1.
    pub until: f64,
    /// H updates a segment, at most the model's.
    pub h_cycles: u8,
    /// L updates for each H update, at most the model's.
    pub l_cycles: u8,
}

/// One line of a documented section.
struct Entry {
    key: &'static str,
    doc: &'static [&'static str],
    value: toml::Value,
}

/// Defines a section once: the struct, its defaults, its strict reader and its documented writer.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $field_doc:literal])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $field_doc])* #[doc = concat!("Default: `", stringify!($default), "`.")] pub $field: $ty,)*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
        impl $name {
            const DOC: &'static [&'static str] = &[$($doc),*];
            fn entries(&self) -> anyhow::Result<Vec<Entry>> {
                Ok(vec![$(Entry { key: stringify!($field), doc: &[$($field_doc),*], value: toml::Value::try_from(&self.$field)? },)*])
            }
        }
    };
}

section! {
    /// What is learned.
    TaskSection {
        /// `sudoku`, `maze` or `arc`.
        kind: TaskKind = TaskKind::Sudoku,
        /// Rows of the grid: 4, 6 or 9; of a maze 3 to 64, of the square that an ARC grid stands on 2 to 64 (30 in the public data).
        size: usize = 9,
    }
}

section! {
    /// Where the puzzles come from. Relative paths are looked up from the working directory, then from the config's folder.
    DataSection {
        /// Name of the data protocol, written into the model's record (`A`, `B`, `generated`, ..).
        protocol: String = "unnamed".to_owned(),
        /// CSV files `source,question,answer,rating` (plain or .gz) to train on; one path or a list. Mazes and ARC: also folders in the public
        /// `.npy` layout, of which the split `train` is read (ARC: such folders alone, `hrm-train data arc` writes them).
        train: Paths = Paths::default(),
        /// Sidecar of each training CSV, in row order, whose last column names the class of the solution grid; one each, or none.
        meta: Paths = Paths::default(),
        /// Sidecars of sets that must stay unseen: training rows that share a solution class with any of them are dropped (needs `meta`).
        exclude_meta: Paths = Paths::default(),
        /// Puzzles of the built-in generator (classes of its train side), added to those of the files; n = 0: none.
        generate: Generate = Generate::default(),
        /// Training puzzles set aside to choose the checkpoint; with `meta`, whole solution classes are set aside; of mazes and ARC one form of
        /// each, and the others are dropped.
        holdout: usize = 512,
        /// Probability that a puzzle is made easier: 1 to blanks - 1 of its blank cells are filled from the solution; Sudoku only.
        easier: f64 = 0.5,
        /// Easier puzzles first: over so many draws that probability falls in a straight line from 1 to `easier`; 0: it never changes.
        easier_first: u64 = 0,
        /// Draw a random symmetry of the task for every puzzle; not for ARC, whose forms are in the data.
        symmetries: bool = true,
    }
}

section! {
    /// The network; groupings follow from the task: row, column, box, and with digit fields the cell; on other grids row, column and the pairs
    /// of neighbours.
    ModelSection {
        /// `group-sum`, `attention`, `token-mlp` or `group-attention`.
        mixer: Mixer = Mixer::GroupSum,
        /// One field of channels for each symbol, with shared weights: exactly equivariant to relabelling. Sudoku only.
        fields: bool = true,
        /// One module for both updates (true) or an L module and an H module.
        shared: bool = true,
        /// Channels of a row, 4 to 1024.
        channels: u16 = 48,
        /// Inner width of the gated MLP, 4 to 4096.
        inner: u16 = 96,
        /// Inner width of the MLP over tokens; 0 without `token-mlp`.
        token_inner: u16 = 0,
        /// Attention heads; 0 without attention.
        heads: u16 = 0,
        /// Rotary position embedding; attention only.
        rope: bool = false,
        /// Learned prefix tokens; 0 with groups.
        prefix: u16 = 0,
        /// Rows of the table of puzzle embeddings, which fill the prefix tokens: as many as the data have identifiers (ARC); else 1.
        identifiers: usize = 1,
        /// Blocks of a module, 1 to 16.
        layers: u8 = 2,
        /// H updates a segment, 1 to 16.
        h_cycles: u8 = 1,
        /// L updates for each H update, 1 to 16.
        l_cycles: u8 = 2,
        /// Carry of a fresh puzzle: `random` or `fixed`.
        start: Start = Start::Random,
    }
}

section! {
    /// The optimisation.
    TrainSection {
        /// `fused` (own CPU engine, group-sum only) or `torch` (feature `tch`).
        engine: EngineKind = EngineKind::Fused,
        /// `cpu` or `cuda:N`; torch only. With several ranks `cuda`: the GPU of the number that each has on its machine.
        device: String = "cpu".to_owned(),
        /// `f32` or `bf16` (torch only).
        dtype: Dtype = Dtype::F32,
        /// Model whose weights the run starts from (a run folder or a `.safetensors` of the same architecture), such as to fine-tune it; empty:
        /// fresh weights. Relative to the working directory.
        init: String = String::new(),
        /// Round weights and matmul inputs as the integer network does, with a straight-through gradient (quantisation-aware training). The ranges
        /// are those that calibration finds for `init`, which must be given; fused engine only.
        quantize: bool = false,
        /// Segments trained: optimizer steps of the whole run. The learning rate is a function of the step and of this.
        steps: u64 = 10_000,
        /// Puzzles trained at once, by all ranks together: with W ranks, rank r has the rows r batch / W to (r + 1) batch / W.
        batch: usize = 64,
        /// Peak learning rate.
        lr: f64 = 2e-3,
        /// Learning rate of the puzzle embeddings, as a multiple of `lr`; torch only (HRM: 100 for ARC).
        identifier_lr: f64 = 1.0,
        /// Steps of linear warm-up.
        warmup: u64 = 200,
        /// `constant` or `cosine`.
        schedule: Schedule = Schedule::Cosine,
        /// Last learning rate of the cosine, as a part of `lr`.
        min_ratio: f64 = 0.01,
        /// `adam-w`, `adam-atan2` or `muon` (for the matrices of the modules, AdamW for the rest).
        optimizer: OptimizerKind = OptimizerKind::AdamW,
        /// Decay of the first and second moments.
        betas: (f64, f64) = (0.9, 0.95),
        /// Decoupled weight decay.
        weight_decay: f64 = 0.1,
        /// Decay of the running mean of the weights, which is what is evaluated and shipped; 0: none.
        ema: f64 = 0.999,
        /// `softmax` or `stablemax`.
        loss: Loss = Loss::Softmax,
        /// `last-recursion` (every call of the last H cycle) or `one-step` (the last L and H call).
        gradient: Gradient = Gradient::LastRecursion,
        /// Progressive depth curriculum (CGAR, arXiv 2511.08653): stages of fewer cycles, each until a part of `steps` is done; after the last
        /// the model's own, which evaluation always has. `[{ until = 0.3, h_cycles = 1, l_cycles = 2 }, ..]`; none: always the model's.
        depth: Vec<DepthStage> = Vec::new(),
        /// Hierarchical supervision weighting (CGAR): the loss of a puzzle's segment `t` counts in proportion to this to the power `t - 1`, scaled
        /// so that the mean over `halt_max_steps` segments is 1; above 0 to 1, 1: all segments count the same.
        supervision_decay: f64 = 1.0,
        /// Distillation: a trained model (a run folder or a `.safetensors`) whose answers are part of the target; empty: none. Relative to the
        /// working directory.
        teacher: String = String::new(),
        /// Share of the target that is the teacher's answer and not the label, 0 to 1.
        teacher_share: f64 = 0.5,
        /// Segments after which the teacher answers.
        teacher_segments: usize = 16,
        /// Weight of the halting loss; 0: no Q head, rows stay for `halt_max_steps`.
        q_weight: f64 = 0.1,
        /// Segments after which a row gets a new puzzle at the latest.
        halt_max_steps: u32 = 16,
        /// Probability that a puzzle must stay for at least U{2..halt_max_steps} segments.
        halt_exploration: f64 = 0.1,
        /// Standard deviation of Gaussian noise added to the carry before each segment.
        carry_noise: f64 = 0.0,
        /// Largest norm of the gradient; 0: no clipping.
        clip: f64 = 1.0,
        /// Worker threads; 0: one for each core, of which the ranks on a machine have equal shares. Does not change the result.
        threads: usize = 0,
        /// Seed of everything random in the run.
        seed: u64 = 1,
        /// Steps between records of metrics.jsonl.
        log_every: u64 = 100,
    }
}

section! {
    /// Choice of the checkpoint on held-out training puzzles.
    EvalSection {
        /// Steps between evaluations; 0: only at the end.
        every: u64 = 500,
        /// Segments a puzzle gets; the answer after the last one counts.
        segments: usize = 16,
        /// How many of the held-out puzzles; 0: all of them.
        n: usize = 0,
    }
}

section! {
    /// When the state for a resume is written.
    CheckpointSection {
        /// Seconds between checkpoints; 0: not by time.
        seconds: f64 = 60.0,
        /// Steps between checkpoints; 0: not by steps.
        steps: u64 = 0,
        /// Older checkpoints kept besides the newest.
        keep: usize = 0,
        /// Steps between snapshots of the averaged weights (`snapshots/step-N.safetensors`); 0: none.
        snapshot_every: u64 = 0,
    }
}

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

    /// The rules of the task.
    ///
    /// # Errors
    /// A size that no Sudoku has, another task.
    pub fn sudoku(&self) -> anyhow::Result<Sudoku> {
        ensure!(self.task.kind == TaskKind::Sudoku, "task.kind is {:?}, expected sudoku here", self.task.kind);
        Sudoku::new(self.task.size).with_context(|| format!("task.size is {}, expected 4, 6 or 9", self.task.size))
    }

    /// The architecture.
    ///
    /// # Errors
    /// A sentence naming the field that cannot be built.
    pub fn spec(&self) -> anyhow::Result<ModelSpec> {
        let m = &self.model;
        let grouped = matches!(m.mixer, Mixer::GroupSum | Mixer::GroupAttention);
        let (tokens, vocab, groupings) = match self.task.kind.grid() {
            None => {
                let sudoku = self.sudoku()?;
                (sudoku.cells(), sudoku.vocab(), if grouped { sudoku_groupings(sudoku, m.fields) } else { Vec::new() })
            }
            Some(kind) => {
                let size = self.task.size;
                count("task.size", size as u64, if kind == GridKind::Maze { 3 } else { 2 }, 64)?;
                ensure!(!m.fields, "model.fields is true, expected false with task.kind {:?}: its tokens are no digits", self.task.kind);
                (size * size, kind.vocab(), if grouped { grid_groupings(size) } else { Vec::new() })
            }
        };
        let spec = ModelSpec {
            config: Config {
                shared: m.shared,
                mixer: m.mixer,
                start: m.start,
                rope: m.rope,
                tokens: u16::try_from(tokens)?,
                prefix: m.prefix,
                vocab: u16::try_from(vocab)?,
                fields: if m.fields { u16::try_from(self.task.size)? } else { 1 },
                channels: m.channels,
                inner: m.inner,
                token_inner: m.token_inner,
                heads: m.heads,
                groupings: u8::try_from(groupings.len())?,
                h_layers: m.layers,
                l_layers: m.layers,
                h_cycles: m.h_cycles,
                l_cycles: m.l_cycles,
            },
            groupings,
        };
        spec.validate().context("[model]")?;
        Ok(spec)
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

    /// Learning rate of optimizer step `step` (the first is 0): a pure function, so that a resumed run follows the same course.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let t = &self.train;
        if step < t.warmup {
            return t.lr * (step + 1) as f64 / t.warmup as f64;
        }
        match t.schedule {
            Schedule::Constant => t.lr,
            Schedule::Cosine => {
                let progress = (step - t.warmup) as f64 / (t.steps.saturating_sub(t.warmup + 1)).max(1) as f64;
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
                t.lr * (t.min_ratio + (1.0 - t.min_ratio) * cosine)
            }
        }
    }

    /// Depth of optimizer step `step` (the first is 0) where it is not the model's: a pure function, as the learning rate is.
    #[must_use]
    pub fn depth(&self, step: u64) -> Option<Depth> {
        let progress = step as f64 / self.train.steps as f64;
        let stage = self.train.depth.iter().find(|stage| progress < stage.until)?;
        Some(Depth { h_cycles: stage.h_cycles, l_cycles: stage.l_cycles })
    }

    /// Factor of the loss of a puzzle's segments 1 to `halt_max_steps`; empty: 1.
    #[must_use]
    pub fn supervision(&self) -> Vec<f32> {
        let t = &self.train;
        if t.supervision_decay == 1.0 {
            return Vec::new();
        }
        let raw: Vec<f64> = (0..t.halt_max_steps).scan(1.0, |w, _| Some(std::mem::replace(w, *w * t.supervision_decay))).collect();
        let mean = raw.iter().sum::<f64>() / raw.len() as f64;
        raw.iter().map(|w| (w / mean) as f32).collect()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// A sentence naming the field, what was found and what was expected.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.spec()?;
        let (d, t, e, c) = (&self.data, &self.train, &self.eval, &self.checkpoint);
        ensure!(
            !d.train.0.is_empty() || d.generate.n > 0,
            "no training data: set data.train to a CSV file or data.generate.n to a number of puzzles"
        );
        ensure!(
            d.meta.0.is_empty() || d.meta.0.len() == d.train.0.len(),
            "data.meta names {} files, expected one for each of the {} of data.train",
            d.meta.0.len(),
            d.train.0.len()
        );
        ensure!(d.exclude_meta.0.is_empty() || !d.meta.0.is_empty(), "data.exclude_meta needs data.meta, the sidecars of data.train");
        if let Some(kind) = self.task.kind.grid() {
            for (name, found) in [("data.easier", d.easier), ("data.easier_first", d.easier_first as f64)] {
                ensure!(found == 0.0, "{name} is {found}, expected 0 with task.kind {kind:?}: there are no blanks to fill");
            }
            ensure!(d.meta.0.is_empty(), "data.meta goes with task.kind sudoku, found {kind:?}");
            if kind == GridKind::Arc {
                ensure!(!d.symmetries, "data.symmetries is true, expected false with ARC: its forms have identifiers of their own");
                ensure!(d.generate.n == 0, "data.generate.n is {}, expected 0: there is no generator of ARC tasks", d.generate.n);
                ensure!(t.teacher.is_empty(), "train.teacher does not go with ARC: a teacher has identifiers of its own");
            }
        }
        count("model.identifiers", self.model.identifiers as u64, 1, 1 << 31)?;
        ensure!(
            self.model.identifiers == 1 || self.model.prefix > 0,
            "model.identifiers is {}, but without model.prefix there are no puzzle embeddings",
            self.model.identifiers
        );
        number("train.identifier_lr", t.identifier_lr, 0.0, 1e6)?;
        ensure!(d.holdout >= 1, "data.holdout is 0, expected at least 1 puzzle to choose the checkpoint with");
        number("data.easier", d.easier, 0.0, 1.0)?;
        count("data.easier_first", d.easier_first, 0, 1 << 40)?;
        let mut before = 0.0;
        for (i, stage) in t.depth.iter().enumerate() {
            let DepthStage { until, h_cycles, l_cycles } = *stage;
            ensure!(until > before && until <= 1.0, "train.depth[{i}].until is {until}, expected above {before} to 1");
            count(&format!("train.depth[{i}].h_cycles"), u64::from(h_cycles), 1, u64::from(self.model.h_cycles))?;
            count(&format!("train.depth[{i}].l_cycles"), u64::from(l_cycles), 1, u64::from(self.model.l_cycles))?;
            before = until;
        }
        number("train.teacher_share", t.teacher_share, 0.0, 1.0)?;
        count("train.teacher_segments", t.teacher_segments as u64, 1, 100_000)?;
        number("train.supervision_decay", t.supervision_decay, f64::MIN_POSITIVE, 1.0)?;
        count("train.steps", t.steps, 1, 1 << 40)?;
        count("train.batch", t.batch as u64, 1, 65_536)?;
        number("train.lr", t.lr, 0.0, 10.0)?;
        ensure!(t.warmup <= t.steps, "train.warmup is {}, expected at most train.steps, {}", t.warmup, t.steps);
        number("train.min_ratio", t.min_ratio, 0.0, 1.0)?;
        for (name, beta) in [("train.betas[0]", t.betas.0), ("train.betas[1]", t.betas.1), ("train.ema", t.ema)] {
            number(name, beta, 0.0, 1.0)?;
            ensure!(beta < 1.0, "{name} is {beta}, expected less than 1");
        }
        number("train.weight_decay", t.weight_decay, 0.0, 100.0)?;
        number("train.q_weight", t.q_weight, 0.0, 100.0)?;
        count("train.halt_max_steps", u64::from(t.halt_max_steps), 1, 100_000)?;
        number("train.halt_exploration", t.halt_exploration, 0.0, 1.0)?;
        number("train.carry_noise", t.carry_noise, 0.0, 10.0)?;
        number("train.clip", t.clip, 0.0, 1e9)?;
        count("train.threads", t.threads as u64, 0, 1024)?;
        count("train.log_every", t.log_every, 1, 1 << 40)?;
        count("eval.segments", e.segments as u64, 1, 100_000)?;
        ensure!(e.n <= d.holdout, "eval.n is {}, expected at most data.holdout, {}", e.n, d.holdout);
        number("checkpoint.seconds", c.seconds, 0.0, 1e9)?;
        ensure!(
            !t.quantize || (t.engine == EngineKind::Fused && !t.init.is_empty()),
            "train.quantize needs train.engine = \"fused\" and train.init, a trained model whose ranges it keeps"
        );
        if t.engine == EngineKind::Fused {
            ensure!(
                self.model.mixer == Mixer::GroupSum,
                "train.engine is `fused`, which trains model.mixer `group-sum` only; take train.engine = \"torch\""
            );
            ensure!(t.device == "cpu", "train.device is `{}`, expected `cpu` with train.engine = \"fused\"", t.device);
            ensure!(t.dtype == Dtype::F32, "train.dtype must be `f32` with train.engine = \"fused\"");
        }
        Ok(())
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

/// Row, column and box for each field, and with fields the cell over all of them.
fn sudoku_groupings(sudoku: Sudoku, fields: bool) -> Vec<Grouping> {
    let count = if fields { Sudoku::GROUPINGS } else { Sudoku::GROUPINGS - 1 };
    (0..count)
        .map(|k| Grouping {
            // At most 81 groups: the cast cannot truncate.
            ids: (0..sudoku.cells()).map(|cell| sudoku.group(k, cell) as u16).collect(),
            merge_fields: k == Sudoku::GROUPINGS - 1,
        })
        .collect()
}

/// Row, column, and the pairs of neighbours: along rows and along columns, from an even and from an odd cell on. The last four show a cell all
/// its neighbours.
fn grid_groupings(size: usize) -> Vec<Grouping> {
    let pairs = size / 2 + 1;
    let of = |id: &dyn Fn(usize, usize) -> usize| {
        let raw: Vec<usize> = (0..size * size).map(|cell| id(cell / size, cell % size)).collect();
        let mut used = raw.clone();
        used.sort_unstable();
        used.dedup();
        // At most 64 * 33 groups: the cast cannot truncate.
        let ids = raw.iter().map(|id| used.partition_point(|u| u < id) as u16).collect();
        Grouping { ids, merge_fields: false }
    };
    vec![
        of(&|row, _| row),
        of(&|_, col| col),
        of(&|row, col| row * pairs + col / 2),
        of(&|row, col| row * pairs + col.div_ceil(2)),
        of(&|row, col| col * pairs + row / 2),
        of(&|row, col| col * pairs + row.div_ceil(2)),
    ]
}

fn number(name: &str, value: f64, min: f64, max: f64) -> anyhow::Result<()> {
    ensure!(value >= min && value <= max, "{name} is {value}, expected {min} to {max}");
    Ok(())
}

fn count(name: &str, value: u64, min: u64, max: u64) -> anyhow::Result<()> {
    ensure!(value >= min && value <= max, "{name} is {value}, expected {min} to {max}");
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[data]\ngenerate = { n = 10 }\n";

    fn refused(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        format!("{:#}", RunConfig::parse(text, &overrides).expect_err("must be refused"))
    }

    #[test]
    fn the_documented_text_reads_back_and_documents_every_field() {
        let overrides = ["train.lr=1.5e-3", "data.train=a.csv", "task.size=6", "train.betas=[0.5, 0.75]"].map(str::to_owned);
        let config = RunConfig::parse(MINIMAL, &overrides).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(RunConfig::parse(&text, &[]).unwrap(), config);
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(lines[i - 1].starts_with("# "), "{line} has no documentation");
            }
        }
        assert_eq!(config.data.train.0, ["a.csv"]);
        assert_eq!(config.data.generate, Generate { n: 10, ..Generate::default() });
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&str, &[&str], &[&str]); 21] = [
            ("[data]\ngenerate = { n = 10 }\n[train]\nlearning_rate = 1", &[], &["learning_rate", "line 4"]),
            ("[trian]\nlr = 1", &[], &["trian", "line 1"]),
            ("[train]\nlr = \"x\"", &[], &["line 2"]),
            (MINIMAL, &["task.size=5"], &["task.size is 5", "4, 6 or 9"]),
            (MINIMAL, &["train.lrr=1"], &["train.lrr"]),
            (MINIMAL, &["lr"], &["section.key=value"]),
            (MINIMAL, &["model.channels=2"], &["channels", "is 2", "4 to 1024"]),
            (MINIMAL, &["model.heads=3"], &["heads", "is 3", "0 without attention"]),
            (MINIMAL, &["train.ema=1.0"], &["train.ema is 1"]),
            (MINIMAL, &["train.batch=0"], &["train.batch is 0"]),
            (MINIMAL, &["train.lr=nan"], &["train.lr is NaN"]),
            (MINIMAL, &["train.quantize=true"], &["train.quantize needs", "train.init"]),
            (MINIMAL, &["train.depth=[{until=0.5,h_cycles=1,l_cycles=3}]"], &["train.depth[0].l_cycles is 3", "1 to 2"]),
            (
                MINIMAL,
                &["train.depth=[{until=0.5,h_cycles=1,l_cycles=1},{until=0.5,h_cycles=1,l_cycles=2}]"],
                &["depth[1].until", "above 0.5"],
            ),
            (MINIMAL, &["train.depth=[{until=0.5,h_cycles=1,cycles=1}]"], &["cycles"]),
            (MINIMAL, &["train.depth=3"], &["train", "sequence"]),
            (MINIMAL, &["train.supervision_decay=0.0"], &["train.supervision_decay is 0"]),
            (MINIMAL, &["train.teacher_share=1.5"], &["train.teacher_share is 1.5"]),
            (MINIMAL, &["train.teacher_segments=0"], &["train.teacher_segments is 0"]),
            (MINIMAL, &["data.easier_first=-1"], &["-1"]),
            ("", &[], &["no training data"]),
        ];
        for (text, overrides, expected) in cases {
            let message = refused(text, overrides);
            for word in expected {
                assert!(message.contains(word), "{overrides:?}: {message:?} does not name {word:?}");
            }
        }
    }

    #[test]
    fn groupings_follow_the_task() {
        let config = RunConfig::parse(MINIMAL, &["task.size=6".to_owned()]).unwrap();
        let spec = config.spec().unwrap();
        assert_eq!((spec.config.tokens, spec.config.vocab, spec.config.fields, spec.config.groupings), (36, 8, 6, 4));
        assert_eq!(spec.groupings.iter().map(|g| g.largest(6)).collect::<Vec<_>>(), [6, 6, 6, 6]);
        let plain = RunConfig::parse(MINIMAL, &["model.fields=false".to_owned()]).unwrap().spec().unwrap();
        assert_eq!((plain.config.fields, plain.config.groupings), (1, 3));
    }

    #[test]
    fn grids_have_rows_columns_and_neighbours() {
        let text = "[task]\nkind = \"maze\"\nsize = 5\n[data]\ngenerate = { n = 10 }\neasier = 0.0\n[model]\nfields = false\n";
        let spec = RunConfig::parse(text, &[]).unwrap().spec().unwrap();
        assert_eq!((spec.config.tokens, spec.config.vocab, spec.config.fields, spec.config.groupings), (25, 6, 1, 6));
        assert_eq!(spec.groupings.iter().map(|g| g.largest(1)).collect::<Vec<_>>(), [5, 5, 2, 2, 2, 2]);
        // Each pair of neighbours shares one grouping of pairs, and no others do.
        for (a, b) in (0..25).flat_map(|a| (0..25).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let near = (a / 5usize).abs_diff(b / 5) + (a % 5usize).abs_diff(b % 5) == 1;
            let shared = spec.groupings[2..].iter().filter(|g| g.ids[a] == g.ids[b]).count();
            assert_eq!(shared, usize::from(near), "{a} {b}");
        }
        let refusals: [(&[&str], &str); 7] = [
            (&["task.size=65"], "task.size is 65, expected 3 to 64"),
            (&["model.fields=true"], "model.fields is true, expected false"),
            (&["data.easier=0.5"], "data.easier is 0.5, expected 0"),
            (&["task.kind=arc"], "data.symmetries is true, expected false with ARC"),
            (&["task.kind=arc", "data.symmetries=false"], "data.generate.n is 10, expected 0"),
            (&["model.identifiers=3"], "model.identifiers is 3, but without model.prefix"),
            (&["task.kind=labyrinth"], "labyrinth"),
        ];
        for (overrides, expected) in refusals {
            assert!(refused(text, overrides).contains(expected), "{}", refused(text, overrides));
        }
    }

    #[test]
    fn the_learning_rate_warms_up_and_anneals() {
        let set = ["train.steps=1000", "train.warmup=100", "train.lr=1.0", "train.min_ratio=0.1"].map(str::to_owned);
        let config = RunConfig::parse(MINIMAL, &set).unwrap();
        assert!((config.learning_rate(0) - 0.01).abs() < 1e-12);
        assert!((config.learning_rate(99) - 1.0).abs() < 1e-12);
        assert!((config.learning_rate(999) - 0.1).abs() < 1e-12);
        let rates: Vec<f64> = (100..1000).map(|s| config.learning_rate(s)).collect();
        assert!(rates.windows(2).all(|w| w[1] < w[0]));
    }

    #[test]
    fn depth_and_supervision_follow_the_config() {
        let stages = "train.depth=[{until=0.3,h_cycles=1,l_cycles=2},{until=0.6,h_cycles=2,l_cycles=4}]";
        let sets =
            [stages, "model.h_cycles=3", "model.l_cycles=6", "train.steps=1000", "train.supervision_decay=0.5", "train.halt_max_steps=3"];
        let config = RunConfig::parse(MINIMAL, &sets.map(str::to_owned)).unwrap();
        let depth = |step| config.depth(step).map(|d| (d.h_cycles, d.l_cycles));
        assert_eq!([0, 299, 300, 599, 600, 999].map(depth), [Some((1, 2)), Some((1, 2)), Some((2, 4)), Some((2, 4)), None, None]);
        assert_eq!(config.supervision(), [12.0 / 7.0, 6.0 / 7.0, 3.0 / 7.0].map(|w: f64| w as f32));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
        let plain = RunConfig::parse(MINIMAL, &[]).unwrap();
        assert_eq!((plain.depth(0), plain.supervision()), (None, Vec::new()));
    }

    #[test]
    fn only_what_decides_the_weights_counts_as_a_difference() {
        let a = RunConfig::parse(MINIMAL, &[]).unwrap();
        let b = RunConfig::parse(MINIMAL, &["train.threads=7".to_owned(), "checkpoint.seconds=1".to_owned()]).unwrap();
        assert!(a.differences(&b).unwrap().is_empty());
        let at = |folder: &str| RunConfig::parse(MINIMAL, &[format!("data.train={folder}/a.csv")]).unwrap();
        assert!(at("/here").differences(&at("there")).unwrap().is_empty());
        assert_eq!(a.differences(&at("here")).unwrap().len(), 1);
        let c = RunConfig::parse(MINIMAL, &["train.steps=7".to_owned(), "train.warmup=1".to_owned()]).unwrap();
        assert_eq!(c.differences(&a).unwrap()[0], "train.steps is 7, the run was started with 10000");
    }
}
