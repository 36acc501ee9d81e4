//! Puzzle files: CSV with the columns `source,question,answer,rating`, gzipped if the name ends in `.gz`.
//!
//! One puzzle a line, one character a cell, `.` or `0` for a blank: the public Sudoku-Extreme layout. Columns may stand in any order and
//! others are ignored. Files are read as streams. A *sidecar* `*.meta.csv[.gz]` has one line for each puzzle, in the same order.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use csv::{ReaderBuilder, StringRecord};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use hrm_core::task::{Grid, Sudoku};

use super::PuzzleSet;
use super::grid::{GridKind, GridSet};
use super::maze::{self, Maze};

const COLUMNS: [&str; 4] = ["source", "question", "answer", "rating"];

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    Ok(if is_gzip(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// Rows of a CSV stream with the line each stands in.
struct Rows<R> {
    name: String,
    reader: csv::Reader<R>,
    header: StringRecord,
}

impl<R: Read> Rows<R> {
    fn new(name: &str, reader: R) -> Result<Self> {
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(reader);
        let header = reader.headers().with_context(|| format!("{name}: cannot read the header"))?.clone();
        Ok(Self { name: name.into(), reader, header })
    }

    fn column(&self, column: &str) -> Result<usize> {
        let found = || self.header.iter().collect::<Vec<_>>().join(",");
        self.header.iter().position(|h| h.trim() == column).ok_or_else(|| {
            anyhow!("{} line 1: there is no column `{column}`, found `{}`, expected `{}`", self.name, found(), COLUMNS.join(","))
        })
    }

    /// Calls `row(fields, line)`; an error it returns gets file and line in front.
    fn each(mut self, mut row: impl FnMut(&StringRecord) -> Result<()>) -> Result<()> {
        let mut record = StringRecord::new();
        loop {
            let line = self.reader.position().line();
            match self.reader.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    let line = record.position().map_or(line, csv::Position::line);
                    ensure!(
                        record.len() == self.header.len(),
                        "{} line {line}: found {} columns, expected {}",
                        self.name,
                        record.len(),
                        self.header.len()
                    );
                    row(&record).map_err(|e| anyhow!("{} line {line}: {e:#}", self.name))?;
                }
                Err(e) => bail!("{} line {line}: {e}", self.name),
            }
        }
    }
}

/// Reads a puzzle file, gzipped if its name ends in `.gz`. The size follows from the first puzzle.
///
/// # Errors
/// The file cannot be read, misses a column or has no puzzle; a puzzle or answer has another length than the first or a wrong
/// character; givens contradict each other; an answer breaks the rules or a given; a rating is no number. Errors name file, line and column.
pub fn read(path: &Path) -> Result<PuzzleSet> {
    read_from(&path.display().to_string(), open(path)?)
}

/// As [`read`] from a stream of plain text; `name` stands for the file in errors.
///
/// # Errors
/// Those of [`read`].
pub fn read_from(name: &str, reader: impl Read) -> Result<PuzzleSet> {
    let rows = Rows::new(name, reader)?;
    let [source, question, answer, rating] = {
        let mut at = [0; 4];
        for (i, column) in at.iter_mut().zip(COLUMNS) {
            *i = rows.column(column)?;
        }
        at
    };
    let mut set: Option<PuzzleSet> = None;
    let (mut input, mut label) = (Vec::new(), Vec::new());
    rows.each(|row| {
        if set.is_none() {
            set = Some(PuzzleSet::new(Sudoku::from_text(&row[question]).context("column `question`")?));
        }
        let Some(set) = &mut set else { return Ok(()) };
        for (column, text, tokens) in [("question", &row[question], &mut input), ("answer", &row[answer], &mut label)] {
            tokens.resize(set.sudoku.cells(), 0);
            set.sudoku.parse(text, tokens).with_context(|| format!("column `{column}`"))?;
        }
        let rating = row[rating].trim();
        let rating = rating.parse().map_err(|_| anyhow!("column `rating`: found `{rating}`, expected a whole number from 0"))?;
        // A puzzle is checked before its answer: say which of them is wrong.
        set.sudoku.check_givens(&input).context("column `question`")?;
        set.push(&input, &label, rating, &row[source]).context("column `answer`")
    })?;
    set.with_context(|| format!("{name}: there is no puzzle after the header"))
}

/// Reads a file of mazes with answers, in the same columns (the public Maze-30x30-Hard): one character a cell, row by row, of `# SGo`. The rating
/// is not read.
///
/// # Errors
/// As [`read`]; an answer that is no shortest path.
pub fn read_mazes(path: &Path) -> Result<GridSet> {
    let name = path.display().to_string();
    let rows = Rows::new(&name, open(path)?)?;
    let (question, answer) = (rows.column(COLUMNS[1])?, rows.column(COLUMNS[2])?);
    let mut set: Option<GridSet> = None;
    let (mut input, mut label) = (Vec::new(), Vec::new());
    rows.each(|row| {
        let cells = row[question].chars().count();
        if set.is_none() {
            let size = cells.isqrt();
            ensure!(
                size * size == cells && (3..=64).contains(&size),
                "column `question`: {cells} characters, expected a square of 9 to 4096"
            );
            set = Some(GridSet::new(GridKind::Maze, size));
        }
        let Some(set) = &mut set else { return Ok(()) };
        let grid = Grid::new(u16::try_from(set.cells())?, set.kind.vocab() as u16).context("a grid of this size")?;
        for (column, text, tokens) in [("question", &row[question], &mut input), ("answer", &row[answer], &mut label)] {
            tokens.resize(set.cells(), 0);
            grid.parse_symbols(text, maze::ALPHABET, tokens).with_context(|| format!("column `{column}`"))?;
        }
        let rules = Maze::new(set.size);
        rules.ends(&input).context("column `question`")?;
        ensure!(rules.is_shortest(&input, &label), "column `answer`: no shortest path from S to G in the maze of column `question`");
        set.push_alone(&input, &label)
    })?;
    set.with_context(|| format!("{name}: there is no maze after the header"))
}

/// Writes mazes for [`read_mazes`]; the rating is the number of steps of the path.
///
/// # Errors
/// The file cannot be written.
pub fn write_mazes(path: &Path, set: &GridSet) -> Result<()> {
    write_with(path, &|out| {
        let mut out = csv::Writer::from_writer(out);
        out.write_record(COLUMNS)?;
        let symbol = |&t: &u8| maze::ALPHABET.chars().nth(usize::from(t).wrapping_sub(1)).unwrap_or('?');
        for i in 0..set.len() {
            let [question, answer] = [set.input(i), set.label(i)].map(|tokens| tokens.iter().map(symbol).collect::<String>());
            let steps = set.label(i).iter().filter(|&&t| t == maze::PATH).count() + 1;
            out.write_record(["maze", &question, &answer, &steps.to_string()])?;
        }
        Ok(out.flush()?)
    })
}

/// Writes a puzzle file, gzipped if its name ends in `.gz`.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, set: &PuzzleSet) -> Result<()> {
    write_with(path, &|out| write_to(out, set))
}

fn write_with(path: &Path, content: &dyn Fn(&mut dyn Write) -> Result<()>) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(cannot)?);
    if is_gzip(path) {
        gzip(file, content).and_then(|mut file| Ok(file.flush()?)).with_context(cannot)
    } else {
        content(&mut file).and_then(|()| Ok(file.flush()?)).with_context(cannot)
    }
}

/// The bytes of a gzipped puzzle file.
///
/// # Errors
/// There is no memory for them.
pub fn to_gzip(set: &PuzzleSet) -> Result<Vec<u8>> {
    gzip(Vec::new(), &|out| write_to(out, set))
}

/// Writes `content` compressed.
fn gzip<W: Write>(out: W, content: &dyn Fn(&mut dyn Write) -> Result<()>) -> Result<W> {
    let mut out = GzEncoder::new(out, Compression::default());
    content(&mut out)?;
    Ok(out.finish()?)
}

/// As [`write()`] to a stream, not compressed.
///
/// # Errors
/// The stream fails.
pub fn write_to(out: impl Write, set: &PuzzleSet) -> Result<()> {
    let mut out = csv::Writer::from_writer(out);
    out.write_record(COLUMNS)?;
    let (mut question, mut answer) = ([0; 128], [0; 128]);
    for i in 0..set.len() {
        let question = set.sudoku.format(set.input(i), &mut question)?;
        let answer = set.sudoku.format(set.label(i), &mut answer)?;
        out.write_record([&*set.sources[i], question, answer, &set.ratings[i].to_string()])?;
    }
    Ok(out.flush()?)
}

/// Reads one column of a CSV file or sidecar, gzipped if the name ends in `.gz`.
///
/// # Errors
/// The file cannot be read or misses the column.
pub fn read_column(path: &Path, column: &str) -> Result<Vec<String>> {
    let rows = Rows::new(&path.display().to_string(), open(path)?)?;
    let at = rows.header.iter().position(|h| h.trim() == column).with_context(|| {
        let found: Vec<_> = rows.header.iter().collect();
        format!("{} line 1: there is no column `{column}`, found `{}`", path.display(), found.join(","))
    })?;
    let mut values = Vec::new();
    rows.each(|row| {
        values.push(row[at].to_string());
        Ok(())
    })?;
    Ok(values)
}

/// The column of a sidecar that names the canonical class of the solution grid.
pub const GRID_CLASS: &str = "canon_solution_grid";

/// Drops the puzzles of `set` whose solution-grid class is also in a held-out set, by the column [`GRID_CLASS`] of the sidecars. `meta`
/// belongs to `set`, line by line. Returns the rest and the number dropped.
///
/// # Errors
/// A sidecar cannot be read, misses the column, or `meta` has another number of lines than the set has puzzles.
pub fn drop_shared_solution_classes(set: &PuzzleSet, meta: &Path, held_out: &[&Path]) -> Result<(PuzzleSet, usize)> {
    let classes = read_column(meta, GRID_CLASS)?;
    ensure!(
        classes.len() == set.len(),
        "{} has {} lines after the header, expected {}, one for each puzzle",
        meta.display(),
        classes.len(),
        set.len()
    );
    let mut shared = HashSet::new();
    for path in held_out {
        shared.extend(read_column(path, GRID_CLASS)?);
    }
    let rest = set.select((0..set.len()).filter(|&i| !shared.contains(&classes[i])));
    let dropped = set.len() - rest.len();
    Ok((rest, dropped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::canonical::Canonizer;
    use crate::data::{GeneratorOptions, generate};
    use std::fs;

    fn some(size: usize, n: usize) -> PuzzleSet {
        generate(&GeneratorOptions { size, seed: 3, ..GeneratorOptions::default() }, n).unwrap()
    }

    #[test]
    fn files_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        for (size, name) in [(4, "a.csv"), (6, "b.csv.gz"), (9, "c.csv.gz")] {
            let set = some(size, 12);
            let path = dir.path().join(name);
            write(&path, &set).unwrap();
            assert_eq!(read(&path).unwrap(), set);
            assert_eq!(fs::read(&path).unwrap().starts_with(&[0x1f, 0x8b]), name.ends_with("gz"));
        }
    }

    #[test]
    fn mazes_round_trip_and_faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let set = maze::generate(&maze::MazeOptions { size: 7, seed: 1, shortest: 4, unique: false }, 9).unwrap();
        for name in ["a.csv", "b.csv.gz"] {
            let path = dir.path().join(name);
            write_mazes(&path, &set).unwrap();
            assert_eq!(read_mazes(&path).unwrap(), set);
        }
        let path = dir.path().join("x.csv");
        let error = |question: &str, answer: &str| {
            fs::write(&path, format!("source,question,answer,rating\nm,{question},{answer},0\n")).unwrap();
            let error = read_mazes(&path).unwrap_err().to_string();
            assert!(error.contains("x.csv line 2: column"), "{error}");
            error
        };
        assert!(error("S  #", "S  #").contains("4 characters, expected a square of 9"));
        assert!(error("S   # G x", "S   # G x").contains("`question`: column 9: found 'x'"));
        assert!(error("S   # G S", "S   # G S").contains("`question`: the maze has 2 cells `S`"));
        assert!(error("S   #   G", "So ##oG  ").contains("`answer`: no shortest path"));
        assert!(error("S   #   G", "So").contains("`answer`"));
    }

    #[test]
    fn columns_may_stand_in_any_order_and_zeros_are_blanks() {
        let text = "rating,x,answer,question,source\n7,?,1234341221434321,12003.......000.,a\n";
        let set = read_from("f", text.as_bytes()).unwrap();
        assert_eq!((set.len(), set.ratings[0], &*set.sources[0], &set.input(0)[..5]), (1, 7, "a", &[2, 3, 1, 1, 4][..]));
    }

    #[test]
    fn faults_name_file_line_and_column() {
        let error = |text: &str| read_from("f.csv", text.as_bytes()).unwrap_err().to_string();
        let row = |line: &str| error(&format!("source,question,answer,rating\na,1...............,1234341221434321,0\n{line}\n"));
        assert_eq!(
            error("source,question,rating\n"),
            "f.csv line 1: there is no column `answer`, found `source,question,rating`, expected `source,question,answer,rating`"
        );
        assert_eq!(error("source,question,answer,rating\n"), "f.csv: there is no puzzle after the header");
        assert!(error("").contains("f.csv line 1: there is no column `source`"));
        assert!(
            error("source,question,answer,rating\na,12,12,0\n").starts_with("f.csv line 2: column `question`: the puzzle has 2 characters")
        );
        assert!(row("a,1...,1234341221434321,0").starts_with("f.csv line 3: column `question`: the puzzle has 4 characters"));
        assert!(row("a,1......5........,1234341221434321,0").starts_with("f.csv line 3: column `question`: column 8: found '5'"));
        assert!(row("a,1...............,123434122143432x,0").starts_with("f.csv line 3: column `answer`: column 16: found 'x'"));
        assert!(row("a,11..............,1234341221434321,0").starts_with("f.csv line 3: column `question`: the givens contradict"));
        assert!(
            row("a,2...............,1234341221434321,0")
                .starts_with("f.csv line 3: column `answer`: the answer changes the given in row 1 column 1")
        );
        assert!(row("a,1...............,1234341221434322,0").starts_with("f.csv line 3: column `answer`: the answer breaks the rules"));
        assert!(
            row("a,1...............,123434122143432.,0")
                .starts_with("f.csv line 3: column `answer`: the answer has no digit in row 4 column 4")
        );
        assert!(row("a,1...............,1234341221434321,-1").starts_with("f.csv line 3: column `rating`: found `-1`"));
        assert_eq!(row("a,1...............,1234341221434321"), "f.csv line 3: found 3 columns, expected 4");
        let binary = b"source,question,answer,rating\na,\xff\xfe,b,0\n";
        assert!(read_from("f.csv", &binary[..]).unwrap_err().to_string().starts_with("f.csv line 2"));
        assert!(read(Path::new("/nowhere/x.csv")).unwrap_err().to_string().contains("cannot open /nowhere/x.csv"));
    }

    #[test]
    fn a_truncated_gzip_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv.gz");
        write(&path, &some(9, 20)).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("x.csv.gz"));
    }

    #[test]
    fn shared_solution_classes_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let set = some(6, 40);
        let canonizer = Canonizer::new(set.sudoku);
        let class = |i: usize| format!("{:?}", canonizer.canonical(set.input(i), set.label(i)).unwrap().grid).replace(", ", "");
        let sidecar = |name: &str, rows: std::ops::Range<usize>| {
            let path = dir.path().join(name);
            let lines: String = rows.map(|i| format!("17,{}\n", class(i))).collect();
            fs::write(&path, format!("givens,{GRID_CLASS}\n{lines}")).unwrap();
            path
        };
        // The first 30 train, the last 10 are held out.
        let (train, meta, held) = (set.slice(0..30), sidecar("train.meta.csv", 0..30), sidecar("held.meta.csv", 30..40));
        let (rest, dropped) = drop_shared_solution_classes(&train, &meta, &[&held]).unwrap();
        let out: HashSet<String> = (30..40).map(class).collect();
        let keep: Vec<usize> = (0..30).filter(|&i| !out.contains(&class(i))).collect();
        assert_eq!(rest, train.select(keep));
        assert!(dropped > 0 && dropped < 30 && rest.len() + dropped == 30, "{dropped}");
        let short = drop_shared_solution_classes(&set, &meta, &[&held]).unwrap_err().to_string();
        assert!(short.contains("has 30 lines after the header, expected 40"));
        fs::write(&meta, "givens\n17\n").unwrap();
        assert!(
            drop_shared_solution_classes(&train, &meta, &[&held])
                .unwrap_err()
                .to_string()
                .contains("there is no column `canon_solution_grid`")
        );
    }
}
