//! What a run trains on, whatever the task.

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::data::grid::{GridKind, GridSampler, GridSet};
use crate::data::maze::{self, MazeOptions};
use crate::data::rng::mix;
use crate::data::{PuzzleSet, Sampler, SamplerOptions, csv, grid_npy};
use crate::model_file::DataRecord;
use crate::puzzles;
use crate::run_config::RunConfig;

/// Examples of one task.
#[derive(Clone, Debug)]
pub enum Examples {
    /// Sudoku.
    Sudoku(PuzzleSet),
    /// Mazes and ARC.
    Grid(GridSet),
}

impl Examples {
    /// Number of examples.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Sudoku(set) => set.len(),
            Self::Grid(set) => set.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inputs and labels, `[n, S]` each; labels of 0 do not count.
    #[must_use]
    pub fn tokens(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Sudoku(set) => (&set.inputs, &set.labels),
            Self::Grid(set) => (&set.inputs, &set.labels),
        }
    }

    /// Row of the table of puzzle embeddings of each example, `[n]`; empty: row 0.
    #[must_use]
    pub fn identifiers(&self) -> Vec<usize> {
        match self {
            Self::Sudoku(_) => Vec::new(),
            Self::Grid(set) => set.places.iter().map(|p| p.identifier as usize).collect(),
        }
    }

    /// What training draws from these examples with a seed; the last `generated` of them are those of `data.generate`.
    ///
    /// # Errors
    /// There are none.
    pub fn draws(&self, config: &RunConfig, generated: usize, seed: u64) -> anyhow::Result<Draws<'_>> {
        let d = &config.data;
        Ok(match self {
            Self::Sudoku(set) => {
                let options = SamplerOptions {
                    seed,
                    easier: d.easier,
                    easier_first: d.easier_first,
                    easier_most: d.easier_most,
                    symmetries: d.symmetries,
                    last: generated,
                    times: d.generate.times,
                    ..SamplerOptions::default()
                };
                Draws::Sudoku(Sampler::new(set, options)?)
            }
            Self::Grid(set) => Draws::Grid(GridSampler::new(set, seed, d.symmetries)?),
        })
    }
}

/// Draws training examples; draw `k` is a pure function of the seed and `k`.
#[derive(Clone, Debug)]
pub enum Draws<'a> {
    /// Sudoku.
    Sudoku(Sampler<'a>),
    /// Mazes and ARC.
    Grid(GridSampler<'a>),
}

impl Draws<'_> {
    /// Writes draw `k`, `[S]` each, and gives its row of the table of puzzle embeddings.
    ///
    /// # Errors
    /// A buffer has another length than `S`.
    pub fn draw(&self, k: u64, input: &mut [u8], label: &mut [u8]) -> anyhow::Result<usize> {
        match self {
            Self::Sudoku(sampler) => Ok(sampler.draw(k, input, label).map(|()| 0)?),
            Self::Grid(sampler) => sampler.draw(k, input, label),
        }
    }
}

/// What a run trains on.
#[derive(Clone, Debug)]
pub struct RunExamples {
    /// To train on.
    pub train: Examples,
    /// To choose the checkpoint with.
    pub holdout: Examples,
    /// How many of those to train on are generated, the last ones; 0 of mazes, which are not told apart.
    pub generated: usize,
    /// Their numbers and check sum.
    pub record: DataRecord,
}

/// Seed of generated mazes: other ones than `hrm-train data generate` makes with the same seed.
const fn train_side(seed: u64) -> u64 {
    mix(seed ^ 0x6d61_7a65)
}

/// Reads and generates the examples of `[data]` and sets the held-out part aside.
///
/// # Errors
/// As [`puzzles::load`], which `kept` is for; a dataset of another size, with other identifiers than `model.identifiers`, or too small for the held-out part.
pub fn load(config: &RunConfig, kept: Option<puzzles::Kept<'_>>) -> anyhow::Result<RunExamples> {
    let Some(kind) = config.task.kind.grid() else {
        let puzzles::RunPuzzles { train, holdout, generated, record } = puzzles::load(config, kept)?;
        return Ok(RunExamples { train: Examples::Sudoku(train), holdout: Examples::Sudoku(holdout), generated, record });
    };
    let (size, data) = (config.task.size, &config.data);
    let mut all = GridSet::new(kind, size);
    let mut identifiers = 1;
    for path in &data.train.0 {
        let (set, known) = read(Path::new(path), "train", kind)?;
        ensure!(set.size == size, "{path} holds grids of size {}, task.size is {size}", set.size);
        ensure!(
            all.is_empty() || kind != GridKind::Arc,
            "data.train names several datasets, whose identifiers would be mixed up, expected one"
        );
        identifiers = identifiers.max(known);
        all.extend(&set)?;
    }
    ensure!(
        identifiers == config.model.identifiers,
        "the data have {identifiers} identifiers, model.identifiers is {}",
        config.model.identifiers
    );
    let g = &data.generate;
    if g.n > 0 {
        let options = MazeOptions { size, seed: train_side(g.seed), shortest: g.shortest, unique: g.unique };
        all.extend(&maze::generate(&options, g.n).context("data.generate")?)?;
    }
    let (train, holdout) = all.split_holdout(data.holdout, config.train.seed)?;
    let mut hash = crc32fast::Hasher::new();
    for tokens in [&train.inputs, &train.labels, &holdout.inputs, &holdout.labels] {
        hash.update(tokens);
    }
    let dropped = all.len() - train.len() - holdout.len();
    let record = DataRecord { train: train.len(), holdout: holdout.len(), dropped, crc32: hash.finalize() };
    Ok(RunExamples { train: Examples::Grid(train), holdout: Examples::Grid(holdout), generated: 0, record })
}

/// Mazes of a CSV file, or a split of a folder in the public `.npy` layout, with the number of identifiers.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path, split: &str, kind: GridKind) -> anyhow::Result<(GridSet, usize)> {
    if path.is_dir() {
        return grid_npy::read(path, split, kind);
    }
    ensure!(kind == GridKind::Maze, "{} is no folder, expected a dataset that `hrm-train data arc` wrote", path.display());
    Ok((csv::read_mazes(path)?, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::arc::{DatasetOptions, Form, Pair, Picture, Task, dataset};

    #[test]
    fn mazes_come_from_files_and_from_the_generator() {
        let folder = tempfile::tempdir().unwrap();
        let set = maze::generate(&MazeOptions { size: 5, seed: 1, shortest: 3, unique: false }, 20).unwrap();
        csv::write_mazes(&folder.path().join("a.csv"), &set).unwrap();
        grid_npy::write(&folder.path().join("b"), "train", &set, &["<blank>".to_owned()]).unwrap();
        let text = |size: usize| {
            let (here, head) = (folder.path().display(), format!("[task]\nkind = 'maze'\nsize = {size}"));
            let data = format!("train = ['{here}/a.csv', '{here}/b']\ngenerate = {{ n = 7 }}\nholdout = 6\neasier = 0.0");
            format!("{head}\n[data]\n{data}\n[model]\nfields = false")
        };
        let run = load(&RunConfig::parse(&text(5), &[]).unwrap(), None).unwrap();
        assert_eq!((run.record.train, run.record.holdout, run.record.dropped), (41, 6, 0));
        assert_eq!(run.train.identifiers(), [0; 41]);
        let error = load(&RunConfig::parse(&text(6), &[]).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("a.csv holds grids of size 5, task.size is 6"), "{error}");
    }

    #[test]
    fn identifiers_of_arc_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let pair = |colour| {
            let input = Picture { rows: 1, cols: 2, cells: vec![0, colour] };
            Pair { output: input.clone(), input }
        };
        let task = Task { name: "same".into(), train: vec![pair(1), pair(2), pair(3)], test: vec![pair(4)] };
        let data = dataset(std::slice::from_ref(&task), &[], &DatasetOptions { size: 4, copies: 5, seed: 1 }).unwrap();
        grid_npy::write(folder.path(), "train", &data.train, &data.names).unwrap();
        let text = format!(
            "[task]\nkind = 'arc'\nsize = 4\n[data]\ntrain = '{}'\nholdout = 1\neasier = 0.0\nsymmetries = false\n[model]\nmixer = 'attention'\n\
             fields = false\nheads = 2\nprefix = 1\n[train]\nengine = 'torch'",
            folder.path().display()
        );
        let error = load(&RunConfig::parse(&text, &[]).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("the data have 7 identifiers, model.identifiers is 1"), "{error}");
        let config = RunConfig::parse(&text, &["model.identifiers=7".to_owned()]).unwrap();
        let run = load(&config, None).unwrap();
        // One of four pairs is held out, in all its forms.
        assert_eq!((run.record.train, run.record.holdout, run.record.dropped), (18, 1, 5));
        let draws = run.train.draws(&config, 0, 3).unwrap();
        let (mut input, mut label) = ([0; 16], [0; 16]);
        let drawn: std::collections::BTreeSet<usize> = (0..200).map(|k| draws.draw(k, &mut input, &mut label).unwrap()).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(Form::parse(&data.names[1]).unwrap().1, Form::IDENTITY);
    }
}
