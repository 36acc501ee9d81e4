//! The fields of a run's config: each is written down once, with its documentation, default and place in TOML.

use std::path::Path;

use hrm_core::{Mixer, Start};
use serde::{Deserialize, Serialize};

use crate::data::grid::GridKind;
use crate::engine::{Gradient, Loss, OptimizerKind};

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
    pub(super) fn without_folders(&self) -> Self {
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
    /// How often each of them is drawn while a puzzle of the files is drawn once, 1 or more; Sudoku only.
    pub times: u64,
    /// Search for puzzles that need guesses.
    pub hard: bool,
    /// Puzzles around a trivalue oddagon instead; 9x9 only.
    pub oddagon: bool,
    /// Up to so many givens are added to a minimal puzzle, the number uniform from 0.
    pub extra_givens: usize,
    /// Mazes: least number of steps of the shortest path.
    pub shortest: usize,
    /// Mazes: without a loop, so that there is one path; else with walls at random places.
    pub unique: bool,
}

impl Default for Generate {
    fn default() -> Self {
        Self { n: 0, seed: 1, times: 1, hard: false, oddagon: false, extra_givens: 0, shortest: 0, unique: false }
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
pub(super) struct Entry {
    pub key: &'static str,
    pub doc: &'static [&'static str],
    pub value: toml::Value,
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
            pub(super) const DOC: &'static [&'static str] = &[$($doc),*];
            pub(super) fn entries(&self) -> anyhow::Result<Vec<Entry>> {
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
        /// Probability that a puzzle is made easier: 1 to `easier_most` of its blank cells are filled from the solution; Sudoku only.
        easier: f64 = 0.5,
        /// Easier puzzles first: over so many draws that probability falls in a straight line from 1 to `easier`; 0: it never changes.
        easier_first: u64 = 0,
        /// How many of its blank cells are filled at most; 0: all but one.
        easier_most: usize = 0,
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
        /// Group also the cells that a box shares with a row, and with a column: there a digit that is locked in shows. Sudoku with groups
        /// only.
        intersections: bool = false,
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
        /// `fused` (own engine, group-sum only) or `torch` (feature `tch`).
        engine: EngineKind = EngineKind::Fused,
        /// `cpu` or `cuda:N`. With several ranks `cuda`: the GPU of the number that each has on its machine. `fused` needs feature `cuda` for a GPU,
        /// which then has the network, the optimizer and the evaluation.
        device: String = "cpu".to_owned(),
        /// `f32` or `bf16`. `fused`: f32 on the CPU, bf16 (operands of products; sums, states and weights are f32) on a GPU.
        dtype: Dtype = Dtype::F32,
        /// Model whose weights the run starts from (a run folder or a `.safetensors`), such as to fine-tune it; empty: fresh weights. Of the same
        /// architecture, but for the cycles, or with group sums of a smaller one: without the last groupings, with fewer channels or a narrower
        /// inner width; what it does not have starts so that it changes nothing. Relative to the working directory.
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
        /// Calls of a segment that carry gradient: `one-step` (the last L and H call), `last-recursion` (those of the last H cycle) or `segment`
        /// (all).
        gradient: Gradient = Gradient::LastRecursion,
        /// Segments that a step runs, 1 to 8; above 1 with gradient through all of them (`gradient` must be `segment`) and the loss of the last.
        /// Whatever else counts segments counts each.
        unroll: u8 = 1,
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
