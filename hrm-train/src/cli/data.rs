//! `hrm-train data`: make, convert and filter puzzle files.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::{Subcommand, ValueEnum};
use hrm_train::data::arc::{self, DatasetOptions};
use hrm_train::data::grid::GridKind;
use hrm_train::data::maze::{self, MazeOptions};
use hrm_train::data::npy::{self, Grouped};
use hrm_train::data::{GeneratorOptions, PuzzleSet, Side, csv, generate, grid_npy};
use hrm_train::examples;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskArgument {
    Sudoku,
    Maze,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SideArgument {
    Any,
    Train,
    Test,
}

#[derive(Subcommand)]
pub enum Data {
    /// Generate puzzles with one solution, or mazes.
    Generate {
        /// What to generate.
        #[arg(long, value_enum, default_value_t = TaskArgument::Sudoku)]
        task: TaskArgument,
        /// 4, 6 or 9; mazes 3 to 64.
        #[arg(long, default_value_t = 9)]
        size: usize,
        /// How many.
        #[arg(long)]
        n: usize,
        /// Seed of the generator.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Search for puzzles that need guesses.
        #[arg(long)]
        hard: bool,
        /// Puzzles around a trivalue oddagon (three digits with two givens between them), which take the deepest guesses; 9x9 only.
        #[arg(long, conflicts_with = "hard")]
        oddagon: bool,
        /// Up to so many givens are added to each minimal puzzle.
        #[arg(long, default_value_t = 0)]
        extra_givens: usize,
        /// Mazes: least number of steps of the shortest path.
        #[arg(long, default_value_t = 0)]
        shortest: usize,
        /// Mazes: without a loop, so that there is one path; else with walls at random places.
        #[arg(long)]
        unique: bool,
        /// Classes never trained on (test), those `data.generate` trains on (train), or all; Sudoku only.
        #[arg(long, value_enum, default_value_t = SideArgument::Any)]
        side: SideArgument,
        /// CSV file to write; .gz compresses.
        #[arg(long, value_name = "CSV")]
        out: PathBuf,
    },
    /// CSV to the public npy dataset layout, or back: whichever `--from` is.
    Convert {
        /// What the files hold.
        #[arg(long, value_enum, default_value_t = TaskArgument::Sudoku)]
        task: TaskArgument,
        /// A CSV file, or a folder with the splits of a dataset.
        #[arg(long, value_name = "CSV|DIR")]
        from: PathBuf,
        /// A folder, or a CSV file.
        #[arg(long, value_name = "DIR|CSV")]
        to: PathBuf,
        /// Split of the dataset: train or test.
        #[arg(long, default_value = "train")]
        split: String,
        /// Random symmetric copies of each puzzle, to npy only; Sudoku only.
        #[arg(long, default_value_t = 0)]
        copies: usize,
        /// Add an easier version of each puzzle and each copy, to npy only.
        #[arg(long)]
        easier: bool,
        /// Seed of copies and easier versions.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// ARC tasks to the public npy dataset layout, with augmented forms of each: the split `train` to train on, `test` to answer and vote.
    Arc {
        /// Folders of JSON tasks all of whose pairs may be trained on.
        #[arg(long, value_name = "DIR")]
        training: Vec<PathBuf>,
        /// Folders of JSON tasks whose demonstrations are trained on and whose test pairs are to be answered.
        #[arg(long, value_name = "DIR")]
        evaluation: Vec<PathBuf>,
        /// The folder to write.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Rows and columns of the square that grids stand on; tasks with a larger grid are left out.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(2..=64))]
        size: u8,
        /// Forms of each task besides itself (1000 as published).
        #[arg(long, default_value_t = 1000)]
        copies: usize,
        /// Seed of forms and translations.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Drop puzzles that share their solution class with sets that must stay unseen.
    Filter {
        /// The puzzles.
        #[arg(long, value_name = "CSV")]
        from: PathBuf,
        /// Their sidecar, row by row.
        #[arg(long, value_name = "CSV")]
        meta: PathBuf,
        /// Sidecars of the unseen sets.
        #[arg(long, value_name = "CSV", required = true)]
        exclude_meta: Vec<PathBuf>,
        /// CSV file to write.
        #[arg(long, value_name = "CSV")]
        out: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: Data) -> anyhow::Result<()> {
    match args {
        Data::Generate { task: TaskArgument::Maze, size, n, seed, shortest, unique, out, .. } => {
            let set = maze::generate(&MazeOptions { size, seed, shortest, unique }, n)?;
            csv::write_mazes(&out, &set)?;
            eprintln!("{} mazes of size {size} in {}", set.len(), out.display());
        }
        Data::Generate { task: TaskArgument::Sudoku, size, n, seed, hard, oddagon, extra_givens, side, out, .. } => {
            let side = match side {
                SideArgument::Any => Side::Any,
                SideArgument::Train => Side::Train,
                SideArgument::Test => Side::Test,
            };
            let set = generate(&GeneratorOptions { size, seed, hard, oddagon, extra_givens, side }, n)?;
            csv::write(&out, &set)?;
            eprintln!("{} puzzles of size {size} in {}", set.len(), out.display());
        }
        Data::Convert { task: TaskArgument::Maze, from, to, split, copies, easier, .. } => {
            ensure!(copies == 0 && !easier, "--copies and --easier are for Sudoku: training mirrors mazes itself (data.symmetries)");
            let (set, _) = examples::read(&from, &split, GridKind::Maze)?;
            if from.is_dir() {
                csv::write_mazes(&to, &set)?;
            } else {
                grid_npy::write(&to, &split, &set, &["<blank>".to_owned()])?;
            }
            eprintln!("{} mazes in {}", set.len(), to.display());
        }
        Data::Convert { task: TaskArgument::Sudoku, from, to, split, copies, easier, seed } => {
            if from.is_dir() {
                ensure!(copies == 0 && !easier, "--copies and --easier work from CSV to npy only");
                let data = npy::read(&from, &split)?;
                csv::write(&to, &data.set)?;
                eprintln!("{} puzzles in {}", data.set.len(), to.display());
            } else {
                if to.extension().is_some_and(|e| e == "csv" || e == "gz") {
                    bail!("{} is a CSV file and so is {}: one of them must be a dataset folder", from.display(), to.display());
                }
                let set = csv::read(&from)?;
                let data = if copies > 0 || easier { Grouped::augmented(&set, copies, easier, seed)? } else { Grouped::single(set) };
                npy::write(&to, &split, &data)?;
                eprintln!("{} examples in {}", data.set.len(), to.join(&split).display());
            }
        }
        Data::Arc { training, evaluation, to, size, copies, seed } => {
            let read = |folders: &[PathBuf]| -> anyhow::Result<Vec<arc::Task>> {
                Ok(folders.iter().map(|folder| arc::read_folder(folder)).collect::<anyhow::Result<Vec<_>>>()?.concat())
            };
            let (training, evaluation) = (read(&training)?, read(&evaluation)?);
            let data = arc::dataset(&training, &evaluation, &DatasetOptions { size: usize::from(size), copies, seed })?;
            grid_npy::write(&to, "train", &data.train, &data.names)?;
            grid_npy::write(&to, "test", &data.test, &data.names)?;
            eprintln!(
                "{} examples to train on, {} to answer, {} tasks too large, in {}; model.identifiers = {}",
                data.train.len(),
                data.test.len(),
                data.left_out,
                to.display(),
                data.names.len()
            );
        }
        Data::Filter { from, meta, exclude_meta, out } => {
            let set: PuzzleSet = csv::read(&from)?;
            let exclude: Vec<&Path> = exclude_meta.iter().map(PathBuf::as_path).collect();
            let (kept, dropped) = csv::drop_shared_solution_classes(&set, &meta, &exclude)?;
            csv::write(&out, &kept)?;
            eprintln!("{} puzzles kept, {dropped} dropped, in {}", kept.len(), out.display());
        }
    }
    Ok(())
}
