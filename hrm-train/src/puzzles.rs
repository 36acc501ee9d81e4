//! The training and the held-out puzzles a config asks for.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::checkpoint::write_atomic;
use crate::data::{GeneratorOptions, PuzzleSet, Side, csv, generate, rng};
use crate::model_file::DataRecord;
use crate::run_config::RunConfig;

/// What a run trains on.
#[derive(Clone, Debug)]
pub struct RunPuzzles {
    /// Puzzles to train on.
    pub train: PuzzleSet,
    /// Puzzles that choose the checkpoint.
    pub holdout: PuzzleSet,
    /// How many of those to train on are generated: the last ones.
    pub generated: usize,
    /// Their numbers and check sum.
    pub record: DataRecord,
}

/// The folder of a run, in which generated puzzles are kept: the hardest take minutes, and a run is resumed with the very same ones.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Whether puzzles that are not there are written there; else they are only read.
    pub write: bool,
}

impl<'a> Kept<'a> {
    /// Those of a model that is the folder of its run, to read.
    #[must_use]
    pub fn of(model: &'a Path) -> Option<Self> {
        model.is_dir().then_some(Self { folder: model, write: false })
    }

    /// The puzzles of `options`, from the folder if they are there.
    fn generated(self, options: GeneratorOptions, n: usize) -> anyhow::Result<PuzzleSet> {
        let GeneratorOptions { size, seed, extra_givens, .. } = options;
        let file = self.folder.join(format!("generated-{size}x{size}-{}-extra{extra_givens}-seed{seed}-n{n}.csv.gz", options.kind()));
        if file.exists() {
            let set = csv::read(&file).context("puzzles that were generated before (remove the file, and they are generated again)")?;
            ensure!(
                set.len() == n,
                "{} holds {} puzzles, expected {n}: remove it, and they are generated again",
                file.display(),
                set.len()
            );
            return Ok(set);
        }
        let set = generate(&options, n)?;
        if self.write {
            write_atomic(&file, &csv::to_gzip(&set)?)?;
        }
        Ok(set)
    }
}

/// Reads and generates the puzzles of `[data]`, drops what must stay unseen, and sets the held-out part aside.
///
/// The held-out puzzles are chosen by `train.seed`. Where sidecars name solution classes, training rows of the same classes as a held-out
/// puzzle are dropped too, so that the choice of the checkpoint does not reward memory.
///
/// # Errors
/// A file cannot be read or written or is no puzzle file (with file, line and column), a sidecar does not fit, a size differs from the task's, or
/// fewer puzzles are left than the held-out part needs.
pub fn load(config: &RunConfig, kept: Option<Kept<'_>>) -> anyhow::Result<RunPuzzles> {
    let sudoku = config.sudoku()?;
    let data = &config.data;
    let mut all = PuzzleSet::new(sudoku);
    // Solution class of each puzzle, where a sidecar tells.
    let mut classes: Vec<Option<String>> = Vec::new();
    for (i, file) in data.train.0.iter().enumerate() {
        let set = csv::read(Path::new(file))?;
        ensure!(set.sudoku == sudoku, "{file} holds puzzles of size {}, task.size is {}", set.sudoku.size(), sudoku.size());
        match data.meta.0.get(i) {
            Some(meta) => {
                let column = csv::read_column(Path::new(meta), csv::GRID_CLASS)?;
                ensure!(column.len() == set.len(), "{meta} has {} rows, {file} has {}", column.len(), set.len());
                classes.extend(column.into_iter().map(Some));
            }
            None => classes.extend(vec![None; set.len()]),
        }
        all.extend(&set)?;
    }
    let read = all.len();
    if data.generate.n > 0 {
        let g = &data.generate;
        let options = GeneratorOptions {
            size: sudoku.size(),
            seed: g.seed,
            hard: g.hard,
            oddagon: g.oddagon,
            extra_givens: g.extra_givens,
            side: Side::Train,
        };
        let set = match kept {
            Some(kept) => kept.generated(options, g.n),
            None => generate(&options, g.n),
        };
        let set = set.context("data.generate")?;
        classes.extend(vec![None; set.len()]);
        all.extend(&set)?;
    }
    let total = all.len();

    let mut unseen = HashSet::new();
    for meta in &data.exclude_meta.0 {
        unseen.extend(csv::read_column(Path::new(meta), csv::GRID_CLASS)?);
    }
    let mut puzzles = HashSet::new();
    let kept: Vec<usize> =
        (0..total).filter(|&i| classes[i].as_ref().is_none_or(|c| !unseen.contains(c))).filter(|&i| puzzles.insert(all.input(i))).collect();

    let n = data.holdout;
    ensure!(n < kept.len(), "data.holdout is {n}, but there are only {} puzzles: at least one must be left to train on", kept.len());
    let chosen: HashSet<usize> = (0..n as u64).map(|i| kept[rng::permuted(config.train.seed, 0, i, kept.len() as u64) as usize]).collect();
    let held_classes: HashSet<&String> = chosen.iter().filter_map(|&i| classes[i].as_ref()).collect();
    let (out, rest): (Vec<usize>, Vec<usize>) = kept.into_iter().partition(|i| chosen.contains(i));
    let rest: Vec<usize> = rest.into_iter().filter(|&i| classes[i].as_ref().is_none_or(|c| !held_classes.contains(c))).collect();
    ensure!(!rest.is_empty(), "no puzzle is left to train on: all share their solution class with a held-out one");

    let generated = rest.iter().filter(|&&i| i >= read).count();
    let (train, holdout) = (all.select(rest), all.select(out));
    let mut hash = crc32fast::Hasher::new();
    for tokens in [&train.inputs, &train.labels, &holdout.inputs, &holdout.labels] {
        hash.update(tokens);
    }
    let record =
        DataRecord { train: train.len(), holdout: holdout.len(), dropped: total - train.len() - holdout.len(), crc32: hash.finalize() };
    Ok(RunPuzzles { train, holdout, generated, record })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> RunConfig {
        RunConfig::parse(text, &[]).unwrap()
    }

    #[test]
    fn held_out_puzzles_are_not_trained_on() {
        let text = "[task]\nsize = 6\n[data]\nholdout = 8\ngenerate = { n = 40, seed = 3 }";
        let puzzles = load(&config(text), None).unwrap();
        assert_eq!((puzzles.record.train, puzzles.record.holdout, puzzles.record.dropped, puzzles.generated), (32, 8, 0, 32));
        for i in 0..8 {
            assert!((0..32).all(|j| puzzles.train.input(j) != puzzles.holdout.input(i)));
        }
        assert_eq!(load(&config(text), None).unwrap().record, puzzles.record);
        assert_ne!(load(&config(&format!("{text}\n[train]\nseed = 2")), None).unwrap().record.crc32, puzzles.record.crc32);
    }

    #[test]
    fn solution_classes_of_unseen_and_of_held_out_puzzles_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let set = generate(&GeneratorOptions { size: 6, seed: 5, ..GeneratorOptions::default() }, 40).unwrap();
        csv::write(Path::new(&path("train.csv")), &set).unwrap();
        // Puzzle i is said to be of class i / 2; classes 0 and 1 must stay unseen.
        let rows: String = (0..40).map(|i| format!("1,c{}\n", i / 2)).collect();
        std::fs::write(path("train.meta.csv"), format!("givens,{}\n{rows}", csv::GRID_CLASS)).unwrap();
        std::fs::write(path("test.meta.csv"), format!("{}\nc0\nc1\nc99\n", csv::GRID_CLASS)).unwrap();
        let text = format!(
            "[task]\nsize = 6\n[data]\nholdout = 5\ntrain = '{}'\nmeta = '{}'\nexclude_meta = ['{}']",
            path("train.csv"),
            path("train.meta.csv"),
            path("test.meta.csv")
        );
        let puzzles = load(&config(&text), None).unwrap();
        let class = |input: &[u8]| (0..40).find(|&i| set.input(i) == input).unwrap() / 2;
        let trained: HashSet<usize> = (0..puzzles.train.len()).map(|i| class(puzzles.train.input(i))).collect();
        let held: HashSet<usize> = (0..5).map(|i| class(puzzles.holdout.input(i))).collect();
        assert!(trained.is_disjoint(&held) && trained.is_disjoint(&HashSet::from([0, 1])) && held.is_disjoint(&HashSet::from([0, 1])));
        assert_eq!(puzzles.train.len(), 36 - 2 * held.len());
        assert_eq!((puzzles.record.dropped, puzzles.generated), (40 - 5 - puzzles.train.len(), 0));
        // Generated puzzles stand last.
        let puzzles = load(&config(&format!("{text}\ngenerate = {{ n = 50, seed = 8 }}")), None).unwrap();
        assert!((45..=50).contains(&puzzles.generated));
        let read = puzzles.train.len() - puzzles.generated;
        let of_file = |i| (0..40).any(|k| set.input(k) == puzzles.train.input(i));
        assert!((0..read).all(of_file) && !(read..puzzles.train.len()).any(of_file));
    }

    #[test]
    fn generated_puzzles_are_kept_in_the_folder_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let config = config("[task]\nsize = 4\n[data]\nholdout = 2\ngenerate = { n = 9, seed = 3 }");
        let load = |write| load(&config, Some(Kept { folder: folder.path(), write }));
        let file = folder.path().join("generated-4x4-minimal-extra0-seed3-n9.csv.gz");
        let first = load(false).unwrap();
        assert!(!file.exists());
        assert_eq!(load(true).unwrap().record, first.record);
        assert_eq!(load(false).unwrap().train, first.train);
        // It is read, not made again.
        let other = generate(&GeneratorOptions { size: 4, seed: 4, ..GeneratorOptions::default() }, 9).unwrap();
        csv::write(&file, &other).unwrap();
        assert_ne!(load(true).unwrap().record.crc32, first.record.crc32);
        csv::write(&file, &other.slice(0..8)).unwrap();
        assert!(format!("{:#}", load(true).unwrap_err()).contains("holds 8 puzzles, expected 9"));
        std::fs::write(&file, "no gzip").unwrap();
        assert!(format!("{:#}", load(true).unwrap_err()).contains("remove the file"));
    }

    #[test]
    fn faults_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("four.csv");
        csv::write(&file, &generate(&GeneratorOptions { size: 4, seed: 5, ..GeneratorOptions::default() }, 4).unwrap()).unwrap();
        let text = format!("[data]\ntrain = '{}'", file.display());
        assert!(load(&config(&text), None).unwrap_err().to_string().contains("holds puzzles of size 4, task.size is 9"));
        let text = "[task]\nsize = 4\n[data]\nholdout = 4\ngenerate = { n = 4 }";
        assert!(load(&config(text), None).unwrap_err().to_string().contains("data.holdout is 4"));
    }
}
