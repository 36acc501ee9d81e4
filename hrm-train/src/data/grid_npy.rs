//! Mazes and ARC in the public HRM and TRM dataset layout ([`super::npy`]): the forms of a source puzzle are the puzzles of a group, and
//! `identifiers.json` names what each identifier stands for. Tokens are written as uint8: ARC with a thousand forms of each task has four
//! million examples.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::grid::{GridKind, GridSet, Place};
use super::npy::{IDENTIFIERS, Metadata, read_array, read_bounds, read_examples, read_metadata, write_array, write_json};

/// Reads `root/split` and the number of identifiers it counts. All sets that `dataset.json` names are joined.
///
/// # Errors
/// A file is missing, damaged or of another shape, or the dataset is of another task. Errors name the file and the row.
pub fn read(root: &Path, split: &str, kind: GridKind) -> Result<(GridSet, usize)> {
    let dir = root.join(split);
    let (path, meta) = read_metadata(&dir)?;
    let cells = meta.seq_len as usize;
    let size = cells.isqrt();
    ensure!(size * size == cells && (2..=64).contains(&size), "{}: seq_len is {cells}, expected a square of 4 to 4096", path.display());
    let (found, expected) = (meta.vocab_size as usize, kind.vocab());
    ensure!(found == expected, "{}: vocab_size is {found}, expected {expected} for {kind:?}", path.display());
    ensure!(!meta.sets.is_empty(), "{}: sets is empty", path.display());
    let mut out = GridSet::new(kind, size);
    for name in &meta.sets {
        let file = |field: &str| dir.join(format!("{name}__{field}.npy"));
        let (inputs, labels) = read_examples(&file("inputs"), &file("labels"), cells)?;
        let puzzles = read_bounds(&file("puzzle_indices"), inputs.len() / cells)?;
        let groups = read_bounds(&file("group_indices"), puzzles.len() - 1)?;
        let known = meta.num_puzzle_identifiers;
        let (shape, identifiers) = read_array(&file("puzzle_identifiers"), |i, value| {
            let fits = u32::try_from(value).ok().filter(|&v| v < known);
            fits.ok_or_else(|| anyhow!("element {i} is {value}, expected 0 to below {known}"))
        })?;
        let expected = [puzzles.len() as u64 - 1];
        ensure!(shape == expected, "{}: the shape is {shape:?}, expected {expected:?}", file("puzzle_identifiers").display());
        let first = out.places.last().map_or(0, |p| p.group + 1);
        for (group, bounds) in groups.windows(2).enumerate() {
            for puzzle in bounds[0]..bounds[1] {
                for (member, row) in (puzzles[puzzle]..puzzles[puzzle + 1]).enumerate() {
                    let place = Place { group: first + group as u32, member: member as u32, identifier: identifiers[puzzle] };
                    let at = row * cells..(row + 1) * cells;
                    out.push(&inputs[at.clone()], &labels[at], place)
                        .map_err(|e| anyhow!("{} and {} row {row}: {e}", file("inputs").display(), file("labels").display()))?;
                }
            }
        }
    }
    Ok((out, meta.num_puzzle_identifiers as usize))
}

/// Writes `root/split` with one set named `all`, and `root/identifiers.json`: `names[i]` is what identifier `i` stands for.
///
/// # Errors
/// An identifier has no name, or a file cannot be written.
pub fn write(root: &Path, split: &str, set: &GridSet, names: &[String]) -> Result<()> {
    let n = set.len();
    let (mut puzzles, mut groups, mut identifiers) = (vec![0], vec![0], Vec::new());
    for (i, place) in set.places.iter().enumerate() {
        ensure!((place.identifier as usize) < names.len(), "identifier {} has no name: there are {}", place.identifier, names.len());
        let before = i.checked_sub(1).map(|i| set.places[i]);
        let grown = before.is_none_or(|b| b.group != place.group);
        if grown || before.is_none_or(|b| b.identifier != place.identifier || b.member >= place.member) {
            if i > 0 {
                puzzles.push(i32::try_from(i)?);
                if grown {
                    groups.push(i32::try_from(identifiers.len())?);
                }
            }
            identifiers.push(place.identifier.cast_signed());
        }
    }
    if n > 0 {
        puzzles.push(i32::try_from(n)?);
        groups.push(i32::try_from(identifiers.len())?);
    }
    let dir = root.join(split);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let meta = Metadata {
        pad_id: 0,
        ignore_label_id: Some(0),
        blank_identifier_id: 0,
        vocab_size: set.kind.vocab() as u32,
        seq_len: set.cells() as u32,
        num_puzzle_identifiers: u32::try_from(names.len())?,
        total_groups: (groups.len() - 1) as u32,
        mean_puzzle_examples: n as f64 / identifiers.len().max(1) as f64,
        sets: vec!["all".into()],
    };
    let file = |field: &str| dir.join(format!("all__{field}.npy"));
    let shape = [n as u64, set.cells() as u64];
    write_array(&file("inputs"), &shape, set.inputs.iter().copied())?;
    write_array(&file("labels"), &shape, set.labels.iter().copied())?;
    for (field, values) in [("puzzle_identifiers", identifiers), ("puzzle_indices", puzzles), ("group_indices", groups)] {
        write_array(&file(field), &[values.len() as u64], values.into_iter())?;
    }
    write_json(&root.join(IDENTIFIERS), names)?;
    write_json(&dir.join("dataset.json"), &meta)
}

/// What each identifier of the dataset `root` stands for.
///
/// # Errors
/// The file is missing or no list of names.
pub fn read_names(root: &Path) -> Result<Vec<String>> {
    let path = root.join(IDENTIFIERS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no list of names", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::maze::{MazeOptions, generate};

    #[test]
    fn datasets_round_trip_and_faults_are_named() {
        let mazes = generate(&MazeOptions { size: 5, seed: 2, shortest: 3, unique: false }, 14).unwrap();
        let mut set = GridSet::new(GridKind::Maze, 5);
        // Groups of two forms; the first form of the second group has two examples.
        for (i, (group, member, identifier)) in [(0, 0, 1), (0, 0, 2), (1, 0, 3), (1, 1, 3), (1, 0, 4), (2, 0, 0)].into_iter().enumerate() {
            set.push(mazes.input(i), mazes.label(i), Place { group, member, identifier }).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let names = ["<blank>", "a", "b", "c", "d"].map(str::to_owned);
        write(dir.path(), "train", &set, &names).unwrap();
        assert_eq!(read(dir.path(), "train", GridKind::Maze).unwrap(), (set.clone(), 5));
        assert_eq!(read_names(dir.path()).unwrap(), names);
        write(dir.path(), "test", &mazes, &names[..1]).unwrap();
        assert_eq!(read(dir.path(), "test", GridKind::Maze).unwrap(), (mazes, 1));

        let error = |kind| format!("{:#}", read(dir.path(), "train", kind).unwrap_err());
        assert!(error(GridKind::Arc).contains("vocab_size is 6, expected 12 for Arc"));
        write_array(&dir.path().join("train/all__puzzle_identifiers.npy"), &[5], [1i32, 2, 3, 4, 5].into_iter()).unwrap();
        assert!(
            error(GridKind::Maze).contains("puzzle_identifiers.npy: element 4 is 5, expected 0 to below 5"),
            "{}",
            error(GridKind::Maze)
        );
        write_array(&dir.path().join("train/all__puzzle_identifiers.npy"), &[4], [1i32, 2, 3, 4].into_iter()).unwrap();
        assert!(error(GridKind::Maze).contains("the shape is [4], expected [5]"));
        assert!(write(dir.path(), "train", &set, &names[..2]).unwrap_err().to_string().contains("identifier 2 has no name"));
    }
}
