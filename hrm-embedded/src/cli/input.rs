//! Puzzles from files, standard input or the command line; every fault named by line and column.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use flate2::bufread::MultiGzDecoder;
use hrm_core::task::{PuzzleError, Sudoku};

use super::models::Reader;

/// Longest accepted line of a list of puzzles, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Columns of the CSV, in any order.
const COLUMNS: [&str; 4] = ["source", "question", "answer", "rating"];

/// One puzzle of the input.
pub(super) struct Puzzle {
    /// Line it stands in, from 1.
    pub line: u64,
    /// As it was written.
    pub question: String,
    /// `[S]`.
    pub tokens: Vec<u8>,
    /// The answer of a CSV, `[S]`.
    pub answer: Option<Vec<u8>>,
}

/// A stream of puzzles. After an error nothing more comes.
pub(super) type Puzzles = Box<dyn Iterator<Item = anyhow::Result<Puzzle>> + Send>;

/// What `FILE|-|PUZZLE` names.
pub(super) enum Origin {
    /// A puzzle written on the command line.
    Puzzle,
    /// A list or CSV.
    Stream,
}

/// Opens `argument`: a file, `-` or nothing for standard input, or else a puzzle.
///
/// # Errors
/// The file cannot be read, or the argument is neither a file nor a puzzle.
pub(super) fn open(argument: Option<&str>, reader: Reader) -> anyhow::Result<(Puzzles, Origin)> {
    let stdin = || -> Box<dyn BufRead + Send> { Box::new(BufReader::new(io::stdin())) };
    match argument {
        None | Some("-") => Ok((stream(stdin(), "standard input", false, reader)?, Origin::Stream)),
        Some(path) if Path::new(path).exists() => {
            let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
            let named_csv = path.ends_with(".csv") || path.ends_with(".csv.gz");
            Ok((stream(Box::new(BufReader::new(file)), path, named_csv, reader)?, Origin::Stream))
        }
        Some(text) if looks_like_puzzle(text, reader) => {
            let puzzle = puzzle("puzzle", 1, text, reader);
            Ok((Box::new(std::iter::once(puzzle)), Origin::Puzzle))
        }
        Some(path) => bail!("cannot read {path}: there is no such file, and it is no puzzle (digits, `.` or `0` for a blank)"),
    }
}

/// Reads a single puzzle written on the command line.
///
/// # Errors
/// It cannot be read.
pub(super) fn single(text: &str, reader: Reader) -> anyhow::Result<Puzzle> {
    puzzle("puzzle", 1, text, reader)
}

/// A file name hardly ever has the length of a puzzle and no separators, nor only digits.
fn looks_like_puzzle(text: &str, reader: Reader) -> bool {
    let length = text.chars().count();
    let sudoku = Sudoku::from_cells(length).is_some() && !text.contains(['/', '\\']);
    let digits = text.chars().all(|c| c.is_ascii_digit() || c == '.') && length > 4;
    let integers = matches!(reader, Reader::Grid(_)) && text.chars().all(|c| c.is_ascii_digit() || c == ' ' || c == ',');
    sudoku || digits || integers
}

fn puzzle(source: &str, line: u64, text: &str, reader: Reader) -> anyhow::Result<Puzzle> {
    let tokens = read(text, reader, 0).map_err(|e| anyhow!("{source}: line {line}, {e}"))?;
    Ok(Puzzle { line, question: text.to_owned(), tokens, answer: None })
}

/// Tokens of a puzzle that starts `skipped` characters into its line, or where and why it is wrong.
fn read(text: &str, reader: Reader, skipped: usize) -> Result<Vec<u8>, String> {
    let tokens = parse(text, reader, skipped)?;
    if !matches!(reader, Reader::Grid(_))
        && let Some(sudoku) = Sudoku::from_cells(tokens.len())
    {
        sudoku.check_givens(&tokens).map_err(|e| explain(&e, text, skipped))?;
    }
    Ok(tokens)
}

/// As [`read`], but givens may contradict each other: an answer to compare with may be as wrong as it likes.
fn parse(text: &str, reader: Reader, skipped: usize) -> Result<Vec<u8>, String> {
    reader.parse(text).map_err(|e| explain(&e, text, skipped))
}

/// `column C: what is wrong`; the column of a wrong length is the first that is missing or too many.
fn explain(error: &PuzzleError, text: &str, skipped: usize) -> String {
    let length = text.chars().count();
    match *error {
        PuzzleError::Character { column, found, expected } => format!("column {}: found {found:?}, expected {expected}", column + skipped),
        PuzzleError::Integer { column, found, vocab } => {
            format!("column {}: found {found}, expected a token from 0 to {}", column + skipped, vocab - 1)
        }
        PuzzleError::Givens { second: (row, column), .. } => {
            let size = length.isqrt();
            format!("column {}: {error}", (usize::from(row) - 1) * size + usize::from(column) + skipped)
        }
        PuzzleError::Length { expected, .. } => {
            let wanted = expected.split(' ').next().and_then(|n| n.parse().ok()).filter(|_| !expected.contains(','));
            format!("column {}: {error}", wanted.unwrap_or(length).min(length) + 1 + skipped)
        }
        _ => format!("column {}: {error}", length + 1 + skipped),
    }
}

fn stream(mut input: Box<dyn BufRead + Send>, source: &str, named_csv: bool, reader: Reader) -> anyhow::Result<Puzzles> {
    let cannot = || format!("cannot read {source}");
    if input.fill_buf().with_context(cannot)?.starts_with(&[0x1f, 0x8b]) {
        input = Box::new(BufReader::new(MultiGzDecoder::new(input)));
    }
    // The first line decides. It goes back in front of the rest.
    let mut first = Vec::new();
    input.by_ref().take(MAX_LINE).read_until(b'\n', &mut first).with_context(cannot)?;
    let is_header = first.contains(&b',') && first.iter().any(u8::is_ascii_alphabetic);
    let input = io::Cursor::new(first).chain(input);
    if named_csv || is_header { table(input, source.to_owned(), reader) } else { Ok(list(input, source.to_owned(), reader)) }
}

/// One puzzle a line; empty lines are passed over.
fn list(mut input: impl BufRead + Send + 'static, source: String, reader: Reader) -> Puzzles {
    let (mut line, mut ended) = (0, false);
    Box::new(std::iter::from_fn(move || {
        while !ended {
            let mut bytes = Vec::new();
            line += 1;
            match input.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes) {
                Ok(0) => ended = true,
                Ok(_) => match one_line(&source, line, &bytes, reader) {
                    Ok(None) => {}
                    Ok(Some(puzzle)) => return Some(Ok(puzzle)),
                    Err(e) => {
                        ended = true;
                        return Some(Err(e));
                    }
                },
                Err(e) => {
                    ended = true;
                    return Some(Err(anyhow!(e).context(format!("{source}: line {line}"))));
                }
            }
        }
        None
    }))
}

fn one_line(source: &str, line: u64, bytes: &[u8], reader: Reader) -> anyhow::Result<Option<Puzzle>> {
    if bytes.len() as u64 == MAX_LINE {
        bail!("{source}: line {line} has more than {MAX_LINE} bytes");
    }
    let bytes = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
    let whole = std::str::from_utf8(bytes)
        .map_err(|e| anyhow!("{source}: line {line}, column {}: found a byte that is not UTF-8", e.valid_up_to() + 1))?;
    let text = whole.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let skipped = whole.chars().count() - whole.trim_start().chars().count();
    let tokens = read(text, reader, skipped).map_err(|e| anyhow!("{source}: line {line}, {e}"))?;
    Ok(Some(Puzzle { line, question: text.to_owned(), tokens, answer: None }))
}

/// The CSV `source,question,answer,rating`.
fn table(input: impl io::Read + Send + 'static, source: String, reader: Reader) -> anyhow::Result<Puzzles> {
    let mut rows = csv::ReaderBuilder::new().flexible(false).from_reader(input);
    let header = rows.headers().map_err(|e| fault(&source, &e))?.clone();
    let position = |name: &str| {
        let found = header.iter().position(|h| h.trim_start_matches('\u{feff}').trim() == name);
        found.with_context(|| {
            let has = header.iter().collect::<Vec<_>>().join(",");
            format!("{source}: line 1, column 1: the header `{has}` has no column `{name}`, expected {}", COLUMNS.join(","))
        })
    };
    for name in COLUMNS {
        position(name)?;
    }
    let (question_at, answer_at) = (position("question")?, position("answer")?);
    let mut ended = false;
    let mut records = rows.into_records();
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let result = records.next()?.map_err(|e| fault(&source, &e)).and_then(|record| {
            let line = record.position().map_or(0, csv::Position::line);
            let field = |at: usize, name: &str, read: fn(&str, Reader, usize) -> Result<Vec<u8>, String>| -> anyhow::Result<Vec<u8>> {
                let text = record.get(at).unwrap_or("");
                let trimmed = text.trim();
                let skipped = text.chars().count() - text.trim_start().chars().count();
                read(trimmed, reader, skipped).map_err(|e| anyhow!("{source}: line {line}, field `{name}`, {e}"))
            };
            let question = record.get(question_at).unwrap_or("").trim().to_owned();
            let tokens = field(question_at, "question", read)?;
            let answer = field(answer_at, "answer", parse)?;
            if answer.len() != tokens.len() {
                bail!("{source}: line {line}, field `answer`: {} tokens answer a question of {}", answer.len(), tokens.len());
            }
            Ok(Puzzle { line, question, tokens, answer: Some(answer) })
        });
        ended = result.is_err();
        Some(result)
    })))
}

fn fault(source: &str, error: &csv::Error) -> anyhow::Error {
    let line = |p: &Option<csv::Position>| p.as_ref().map_or(0, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            anyhow!("{source}: line {}, column 1: found {len} fields, the header has {expected_len}", line(pos))
        }
        csv::ErrorKind::Utf8 { pos, err } => {
            anyhow!(
                "{source}: line {}, field {}, column {}: found a byte that is not UTF-8",
                line(pos),
                err.field() + 1,
                err.valid_up_to() + 1
            )
        }
        csv::ErrorKind::Io(e) => anyhow!("cannot read {source}: {e}"),
        _ => anyhow!("{source}: {error}"),
    }
}
