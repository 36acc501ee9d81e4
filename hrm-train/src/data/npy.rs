//! The public HRM and TRM dataset layout, in and out.
//!
//! `ROOT/{train,test}/dataset.json` describes `all__{inputs,labels,puzzle_identifiers,puzzle_indices,group_indices}.npy` beside it:
//! inputs and labels are tokens `[examples, S]`, `puzzle_indices` bounds the examples of each puzzle (`[puzzles + 1]`, from 0),
//! `group_indices` the puzzles of each group (`[groups + 1]`, from 0): a group holds the augmented copies of one source puzzle. Sudoku has one
//! example a puzzle and only the identifier 0. Written as int32, read from any integer type.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hrm_core::task::{Sudoku, Symmetry};
use npyz::{AutoSerialize, WriterBuilder};
use rand_pcg::rand_core::Rng;
use serde::{Deserialize, Serialize};

use super::PuzzleSet;
use super::augment::make_easier;
use super::rng::generator;

/// Name of the file with the names of the identifiers, in the folder above the splits.
pub const IDENTIFIERS: &str = "identifiers.json";

/// `dataset.json`, with the public names. Other keys are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Padding token.
    pub pad_id: u32,
    /// Label that does not count in the loss.
    pub ignore_label_id: Option<u32>,
    /// Identifier of puzzles without one of their own.
    pub blank_identifier_id: u32,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// `S`: tokens of an example.
    pub seq_len: u32,
    /// Number of identifiers, with the blank one.
    pub num_puzzle_identifiers: u32,
    /// Number of groups.
    pub total_groups: u32,
    /// Mean number of examples of a puzzle.
    pub mean_puzzle_examples: f64,
    /// Names of the sets; each has its own `.npy` files.
    pub sets: Vec<String>,
}

/// A Sudoku dataset with the group of each puzzle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// The puzzles; the layout keeps neither ratings (0 when read) nor sources.
    pub set: PuzzleSet,
    /// Group of each puzzle, from 0, not descending and without gaps: copies of one source puzzle share a group.
    pub groups: Vec<u32>,
}

impl Grouped {
    /// Each puzzle is a group.
    #[must_use]
    pub fn single(set: PuzzleSet) -> Self {
        Self { groups: (0..set.len() as u32).collect(), set }
    }

    /// Each puzzle with `copies` random images under the symmetry group; with `easier` each of these, and the puzzle, is followed by an
    /// easier version with the same answer (Ren & Liu, arXiv 2601.10679: 1,000 copies, so 2,002 examples a group). A pure function of the arguments.
    ///
    /// # Errors
    /// None if the set is valid.
    pub fn augmented(set: &PuzzleSet, copies: usize, easier: bool, seed: u64) -> Result<Self> {
        let mut out = Self { set: PuzzleSet::new(set.sudoku), groups: Vec::new() };
        let (mut input, mut label) = (vec![0; set.sudoku.cells()], vec![0; set.sudoku.cells()]);
        for i in 0..set.len() {
            let mut rng = generator(seed, i as u64);
            for copy in 0..=copies {
                let symmetry = match copy {
                    0 => Symmetry::identity(set.sudoku),
                    _ => Symmetry::random(&mut || rng.next_u32(), set.sudoku),
                };
                symmetry.apply(set.input(i), &mut input)?;
                symmetry.apply(set.label(i), &mut label)?;
                out.set.push(&input, &label, set.ratings[i], &set.sources[i])?;
                out.groups.push(i as u32);
                if easier {
                    make_easier(&mut input, &label, 0, &mut rng);
                    out.set.push(&input, &label, set.ratings[i], &set.sources[i])?;
                    out.groups.push(i as u32);
                }
            }
        }
        Ok(out)
    }
}

/// Reads `root/split`. All sets named in `dataset.json` are joined.
///
/// # Errors
/// A file is missing, truncated or of another shape or type, an index is out of order, a token or an answer is wrong, the sequence length
/// is no Sudoku's. Errors name the file and the row.
pub fn read(root: &Path, split: &str) -> Result<Grouped> {
    let dir = root.join(split);
    let (path, meta) = read_metadata(&dir)?;
    let cells = meta.seq_len as usize;
    let sudoku = Sudoku::from_cells(cells)
        .with_context(|| format!("{}: seq_len is {cells}, expected 16, 36 or 81 (Sudoku of size 4, 6 or 9)", path.display()))?;
    ensure!(
        meta.vocab_size as usize == sudoku.vocab(),
        "{}: vocab_size is {}, expected {} for {cells} cells",
        path.display(),
        meta.vocab_size,
        sudoku.vocab()
    );
    ensure!(!meta.sets.is_empty(), "{}: sets is empty", path.display());
    let mut out = Grouped { set: PuzzleSet::new(sudoku), groups: Vec::new() };
    for name in &meta.sets {
        let file = |field: &str| dir.join(format!("{name}__{field}.npy"));
        let (inputs, labels) = read_examples(&file("inputs"), &file("labels"), cells)?;
        let puzzles = read_bounds(&file("puzzle_indices"), inputs.len() / cells)?;
        let groups = read_bounds(&file("group_indices"), puzzles.len() - 1)?;
        let first = out.groups.last().map_or(0, |&g| g + 1);
        let source = format!("{split}/{name}");
        let mut group = 0;
        for (puzzle, range) in puzzles.windows(2).enumerate() {
            while groups[group + 1] <= puzzle {
                group += 1;
            }
            for row in range[0]..range[1] {
                let at = row * cells..(row + 1) * cells;
                let label = &labels[at.clone()];
                out.set
                    .push(&inputs[at], label, 0, &source)
                    .map_err(|e| anyhow!("{} and {} row {row}: {e}", file("inputs").display(), file("labels").display()))?;
                out.groups.push(first + group as u32);
            }
        }
    }
    Ok(out)
}

/// Writes `root/split` with one set named `all`, and `root/identifiers.json`.
///
/// # Errors
/// The groups do not fit to the puzzles, or a file cannot be written.
pub fn write(root: &Path, split: &str, data: &Grouped) -> Result<()> {
    let (set, n) = (&data.set, data.set.len());
    ensure!(data.groups.len() == n, "{} groups are named for {n} puzzles", data.groups.len());
    let mut bounds = vec![0i32];
    for (i, &group) in data.groups.iter().enumerate() {
        match usize::try_from(group).unwrap_or(usize::MAX) + 1 {
            g if g == bounds.len() => {}
            g if i > 0 && g == bounds.len() + 1 => bounds.push(i32::try_from(i)?),
            _ => bail!("puzzle {i} is of group {group}: groups count from 0 without gaps"),
        }
    }
    if n > 0 {
        bounds.push(i32::try_from(n)?);
    }
    let dir = root.join(split);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let meta = Metadata {
        pad_id: 0,
        ignore_label_id: Some(0),
        blank_identifier_id: 0,
        vocab_size: set.sudoku.vocab() as u32,
        seq_len: set.sudoku.cells() as u32,
        num_puzzle_identifiers: 1,
        total_groups: (bounds.len() - 1) as u32,
        mean_puzzle_examples: 1.0,
        sets: vec!["all".into()],
    };
    let file = |field: &str| dir.join(format!("all__{field}.npy"));
    let shape = [n as u64, set.sudoku.cells() as u64];
    write_array(&file("inputs"), &shape, set.inputs.iter().map(|&t| i32::from(t)))?;
    write_array(&file("labels"), &shape, set.labels.iter().map(|&t| i32::from(t)))?;
    write_array(&file("puzzle_identifiers"), &[n as u64], std::iter::repeat_n(0i32, n))?;
    write_array(&file("puzzle_indices"), &[n as u64 + 1], 0..=i32::try_from(n)?)?;
    write_array(&file("group_indices"), &[bounds.len() as u64], bounds.into_iter())?;
    write_json(&root.join(IDENTIFIERS), &["<blank>"])?;
    write_json(&dir.join("dataset.json"), &meta)
}

/// Reads `dir/dataset.json`; its path too, to name it in errors.
pub(super) fn read_metadata(dir: &Path) -> Result<(PathBuf, Metadata)> {
    let path = dir.join("dataset.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let meta = serde_json::from_str(&text).with_context(|| format!("{} is no dataset description", path.display()))?;
    Ok((path, meta))
}

pub(super) fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    fs::write(path, serde_json::to_string(value)?).with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn write_array<T: AutoSerialize>(path: &Path, shape: &[u64], values: impl Iterator<Item = T>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut out = npyz::WriteOptions::<T>::new().default_dtype().shape(shape).writer(&mut file).begin_nd()?;
        out.extend(values)?;
        out.finish()?;
        file.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The shape and the values of an integer array; stops at the first value that `check(index, value)` refuses.
pub(super) fn read_array<T>(path: &Path, check: impl Fn(usize, i128) -> Result<T>) -> Result<(Vec<u64>, Vec<T>)> {
    let cannot = || format!("cannot read {}", path.display());
    let file = npyz::NpyFile::new(BufReader::new(File::open(path).with_context(cannot)?)).with_context(cannot)?;
    ensure!(file.order() == npyz::Order::C, "{}: the array is in Fortran order, expected C order", path.display());
    let shape = file.shape().to_vec();
    let mut values = Vec::new();
    macro_rules! try_types {
        ($file:ident, $first:ty $(, $rest:ty)*) => {
            match $file.try_data::<$first>() {
                Ok(data) => {
                    // The length in the header is not believed: memory grows with what is really there.
                    for (i, value) in data.enumerate() {
                        let value = value.with_context(|| format!("{} ends after {i} values", path.display()))?;
                        values.push(check(i, i128::from(value)).with_context(|| path.display().to_string())?);
                    }
                }
                #[allow(unused_variables, reason = "the last type has no successor")]
                Err(other) => { try_types!(other $(, $rest)*) }
            }
        };
        ($file:ident) => { bail!("{}: the type of the array is {}, expected integers", path.display(), $file.dtype().descr()) };
    }
    try_types!(file, i32, u8, i64, i16, u16, u32, i8, u64);
    Ok((shape, values))
}

fn read_tokens(path: &Path, cells: usize) -> Result<Vec<u8>> {
    let (shape, tokens) = read_array(path, |i, value| {
        u8::try_from(value).map_err(|_| anyhow!("row {} token {}: found {value}, expected a small number from 0", i / cells, i % cells))
    })?;
    ensure!(shape.len() == 2 && shape[1] == cells as u64, "{}: the shape is {shape:?}, expected [examples, {cells}]", path.display());
    Ok(tokens)
}

/// Inputs and labels of as many examples, `[examples, cells]` each.
pub(super) fn read_examples(inputs: &Path, labels: &Path, cells: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let (questions, answers) = (read_tokens(inputs, cells)?, read_tokens(labels, cells)?);
    let (rows, others) = (questions.len() / cells, answers.len() / cells);
    ensure!(rows == others, "{} has {rows} rows, {} has {others}", inputs.display(), labels.display());
    Ok((questions, answers))
}

/// Ascending bounds from 0 to `last`.
pub(super) fn read_bounds(path: &Path, last: usize) -> Result<Vec<usize>> {
    let expected = format!("bounds that ascend from 0 to {last}");
    let (shape, bounds) =
        read_array(path, |i, value| usize::try_from(value).map_err(|_| anyhow!("element {i} is {value}, expected {expected}")))?;
    ensure!(shape.len() == 1, "{}: the shape is {shape:?}, expected [bounds]", path.display());
    ensure!(bounds.first() == Some(&0), "{}: starts with {:?}, expected {expected}", path.display(), bounds.first());
    ensure!(bounds.last() == Some(&last), "{}: ends with {:?}, expected {expected}", path.display(), bounds.last());
    if let Some(i) = bounds.windows(2).position(|w| w[0] > w[1]) {
        bail!("{}: element {} is {} after {}, expected {expected}", path.display(), i + 1, bounds[i + 1], bounds[i]);
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{GeneratorOptions, generate};

    fn some(size: usize) -> PuzzleSet {
        generate(&GeneratorOptions { size, seed: 6, ..GeneratorOptions::default() }, 5).unwrap()
    }

    #[test]
    fn datasets_round_trip() {
        for size in [4, 6, 9] {
            let dir = tempfile::tempdir().unwrap();
            let single = Grouped::single(some(size));
            let many = Grouped::augmented(&single.set, 3, true, 1).unwrap();
            assert_eq!(many.set.len(), 5 * 4 * 2);
            assert_eq!(many.set.select((0..5).map(|i| i * 8)), single.set);
            write(dir.path(), "train", &many).unwrap();
            write(dir.path(), "test", &single).unwrap();
            for (split, data) in [("train", &many), ("test", &single)] {
                let back = read(dir.path(), split).unwrap();
                assert_eq!((&back.set.inputs, &back.set.labels, &back.groups), (&data.set.inputs, &data.set.labels, &data.groups));
            }
            let meta: Metadata = serde_json::from_str(&fs::read_to_string(dir.path().join("train/dataset.json")).unwrap()).unwrap();
            assert_eq!((meta.seq_len as usize, meta.vocab_size as usize, meta.total_groups), (size * size, size + 2, 5));
        }
    }

    #[test]
    fn the_bytes_are_those_of_numpy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        write_array(&path, &[2], [1i32, -2].into_iter()).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
        let header = String::from_utf8_lossy(&bytes[10..bytes.len() - 8]).into_owned();
        assert!(header.contains("'descr': '<i4'") && header.contains("'fortran_order': False") && header.contains("(2,"), "{header}");
        assert!(bytes.len() % 64 == 8 && bytes.ends_with(&[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]));
    }

    /// Rewrites one array of a dataset in another type or shape.
    fn replace<T: AutoSerialize + Copy>(path: &Path, shape: &[u64], values: &[T]) {
        let mut out = Vec::new();
        let mut writer = npyz::WriteOptions::<T>::new().default_dtype().shape(shape).writer(&mut out).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
        fs::write(path, out).unwrap();
    }

    #[test]
    fn all_integer_types_are_read_and_faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let data = Grouped::single(some(4));
        write(dir.path(), "train", &data).unwrap();
        let file = |name: &str| dir.path().join("train").join(name);
        let (inputs, shape) = (file("all__inputs.npy"), [5, 16]);
        replace(&inputs, &shape, &data.set.inputs);
        replace(&file("all__labels.npy"), &shape, &data.set.labels.iter().map(|&t| i64::from(t)).collect::<Vec<_>>());
        replace(&file("all__group_indices.npy"), &[6], &[0u16, 1, 2, 3, 4, 5]);
        assert_eq!(read(dir.path(), "train").unwrap().set.inputs, data.set.inputs);

        let error = || format!("{:#}", read(dir.path(), "train").unwrap_err());
        replace(&inputs, &shape, &[1.0f32; 80]);
        assert!(error().contains("all__inputs.npy: the type of the array is '<f4', expected integers"), "{}", error());
        replace(&inputs, &[10, 8], &data.set.inputs);
        assert!(error().contains("the shape is [10, 8], expected [examples, 16]"), "{}", error());
        replace(&inputs, &[4, 16], &data.set.inputs[..64]);
        assert!(error().contains("has 4 rows"), "{}", error());
        let mut wrong: Vec<i32> = data.set.inputs.iter().map(|&t| i32::from(t)).collect();
        wrong[16 + 3] = -7;
        replace(&inputs, &shape, &wrong);
        assert!(error().contains("row 1 token 3: found -7"), "{}", error());
        wrong[16 + 3] = 6;
        replace(&inputs, &shape, &wrong);
        assert!(error().contains("row 1: token 3 is 6, expected 1 to 5"), "{}", error());
        replace(&inputs, &shape, &data.set.inputs);
        let bytes = fs::read(&inputs).unwrap();
        fs::write(&inputs, &bytes[..bytes.len() - 5]).unwrap();
        assert!(error().contains("all__inputs.npy ends after 75 values"), "{}", error());
        fs::write(&inputs, b"nonsense").unwrap();
        assert!(error().contains("cannot read") && error().contains("all__inputs.npy"), "{}", error());
        replace(&inputs, &shape, &data.set.inputs);
        replace(&file("all__group_indices.npy"), &[4], &[0, 3, 2, 5]);
        assert!(error().contains("element 2 is 2 after 3, expected bounds that ascend from 0 to 5"), "{}", error());
        replace(&file("all__group_indices.npy"), &[2], &[0, 9]);
        assert!(error().contains("ends with Some(9)"), "{}", error());
        fs::write(file("dataset.json"), "{}").unwrap();
        assert!(error().contains("dataset.json is no dataset description"), "{}", error());
        assert!(read(dir.path(), "val").unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn groups_must_count_up() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = Grouped { set: some(4), groups: vec![0, 0, 2, 2, 3] };
        assert!(write(dir.path(), "train", &wrong).unwrap_err().to_string().contains("puzzle 2 is of group 2"));
        let grouped = Grouped { groups: vec![0, 0, 1, 2, 2], ..wrong };
        write(dir.path(), "train", &grouped).unwrap();
        assert_eq!(read(dir.path(), "train").unwrap().groups, grouped.groups);
    }
}
