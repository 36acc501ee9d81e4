//! Puzzles with answers, in memory.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use hrm_core::task::{Sudoku, Verdict};

use super::rng;

/// `n` puzzles of one size with their answers: tokens, 0 padding, 1 blank, `d + 1` for digit `d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PuzzleSet {
    /// Size and rules.
    pub sudoku: Sudoku,
    /// Puzzles, `[n, S]`.
    pub inputs: Vec<u8>,
    /// Answers, `[n, S]`.
    pub labels: Vec<u8>,
    /// Guesses of a backtracking solver, `[n]`; 0 where the source tells none.
    pub ratings: Vec<u32>,
    /// Where each puzzle comes from, `[n]`; the names are shared.
    pub sources: Vec<Arc<str>>,
}

impl PuzzleSet {
    /// A set without puzzles.
    #[must_use]
    pub const fn new(sudoku: Sudoku) -> Self {
        Self { sudoku, inputs: Vec::new(), labels: Vec::new(), ratings: Vec::new(), sources: Vec::new() }
    }

    /// Number of puzzles.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ratings.len()
    }

    /// Whether there is no puzzle.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of puzzle `i` below [`PuzzleSet::len`], `[S]`.
    #[must_use]
    pub fn input(&self, i: usize) -> &[u8] {
        &self.inputs[i * self.sudoku.cells()..][..self.sudoku.cells()]
    }

    /// Tokens of answer `i` below [`PuzzleSet::len`], `[S]`.
    #[must_use]
    pub fn label(&self, i: usize) -> &[u8] {
        &self.labels[i * self.sudoku.cells()..][..self.sudoku.cells()]
    }

    /// Adds a puzzle.
    ///
    /// # Errors
    /// The givens contradict each other, or the answer is no valid grid that keeps them.
    pub fn push(&mut self, input: &[u8], label: &[u8], rating: u32, source: &str) -> Result<()> {
        self.sudoku.check_givens(input)?;
        let verdict = self.sudoku.verify(input, label);
        ensure!(verdict.is_valid(), "{}", describe(self.sudoku, verdict));
        let shared = self.sources.last().filter(|last| &***last == source).cloned();
        self.sources.push(shared.unwrap_or_else(|| source.into()));
        self.inputs.extend_from_slice(input);
        self.labels.extend_from_slice(label);
        self.ratings.push(rating);
        Ok(())
    }

    /// Copies of the puzzles of a range (cut off at the end), in order.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        self.select(range.start.min(self.len())..range.end.min(self.len()))
    }

    /// Copies of the puzzles of these indices, each below [`PuzzleSet::len`], in their order.
    #[must_use]
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut out = Self::new(self.sudoku);
        for i in indices {
            out.inputs.extend_from_slice(self.input(i));
            out.labels.extend_from_slice(self.label(i));
            out.ratings.push(self.ratings[i]);
            out.sources.push(Arc::clone(&self.sources[i]));
        }
        out
    }

    /// Splits into (the rest, `n` puzzles chosen by the seed to be held out of training), both in the old order.
    ///
    /// # Errors
    /// `n` is not below the number of puzzles.
    pub fn split_holdout(&self, n: usize, seed: u64) -> Result<(Self, Self)> {
        ensure!(n < self.len(), "cannot hold {n} puzzles out of {}: none would be left to train on", self.len());
        let total = self.len() as u64;
        let held: HashSet<usize> = (0..n as u64).map(|i| rng::permuted(seed, 0, i, total) as usize).collect();
        let (out, rest): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|i| held.contains(i));
        Ok((self.select(rest), self.select(out)))
    }

    /// Appends the puzzles of another set.
    ///
    /// # Errors
    /// The sizes differ.
    pub fn extend(&mut self, other: &Self) -> Result<()> {
        let (found, expected) = (other.sudoku.size(), self.sudoku.size());
        ensure!(found == expected, "cannot join puzzles of size {found} to puzzles of size {expected}");
        self.inputs.extend_from_slice(&other.inputs);
        self.labels.extend_from_slice(&other.labels);
        self.ratings.extend_from_slice(&other.ratings);
        self.sources.extend(other.sources.iter().cloned());
        Ok(())
    }

    /// Keeps the first of each group of identical puzzles. Returns how many went.
    pub fn remove_duplicates(&mut self) -> usize {
        let before = self.len();
        let mut seen = HashSet::new();
        let keep: Vec<usize> = (0..before).filter(|&i| seen.insert(self.input(i))).collect();
        if keep.len() < before {
            *self = self.select(keep);
        }
        before - self.len()
    }
}

/// A sentence about a wrong answer; rows and columns from 1.
pub(super) fn describe(sudoku: Sudoku, verdict: Verdict) -> String {
    let at = |cell: u8| {
        let (row, col) = sudoku.position(usize::from(cell));
        format!("row {row} column {col}")
    };
    match verdict {
        Verdict::Valid => "the answer is right".into(),
        Verdict::Open { cell } => format!("the answer has no digit in {}", at(cell)),
        Verdict::Given { cell } => format!("the answer changes the given in {}", at(cell)),
        Verdict::Conflict { digit, first, second } => {
            format!("the answer breaks the rules: digit {digit} stands in {} and in {}", at(first), at(second))
        }
        Verdict::Length => format!("the puzzle or the answer has not {} cells", sudoku.cells()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{GeneratorOptions, generate};

    fn some(n: usize) -> PuzzleSet {
        generate(&GeneratorOptions { size: 6, seed: 2, ..GeneratorOptions::default() }, n).unwrap()
    }

    #[test]
    fn holdout_is_a_partition_and_depends_on_the_seed() {
        let set = some(60);
        let (rest, held) = set.split_holdout(10, 1).unwrap();
        assert_eq!((rest.len(), held.len()), (50, 10));
        let mut both = rest.clone();
        both.extend(&held).unwrap();
        let sorted = |s: &PuzzleSet| {
            let mut rows: Vec<_> = (0..s.len()).map(|i| (s.input(i).to_vec(), s.label(i).to_vec(), s.ratings[i])).collect();
            rows.sort();
            rows
        };
        assert_eq!(sorted(&both), sorted(&set));
        assert_eq!(set.split_holdout(10, 1).unwrap().1, held);
        assert_ne!(set.split_holdout(10, 2).unwrap().1, held);
        assert!(set.split_holdout(60, 1).unwrap_err().to_string().contains("hold 60 puzzles out of 60"));
    }

    #[test]
    fn duplicates_go_and_slices_stay_inside() {
        let set = some(8);
        let mut twice = set.clone();
        twice.extend(&set.slice(2..5)).unwrap();
        assert_eq!(twice.remove_duplicates(), 3);
        assert_eq!(twice, set);
        assert_eq!(set.slice(6..100).len(), 2);
        assert!(set.slice(100..200).is_empty());
        assert!(twice.extend(&PuzzleSet::new(Sudoku::new(4).unwrap())).is_err());
    }

    #[test]
    fn wrong_answers_are_refused() {
        let set = some(1);
        let (input, mut label) = (set.input(0).to_vec(), set.label(0).to_vec());
        let open = input.iter().position(|&t| t == 1).unwrap();
        label[open] = if label[open] == 2 { 3 } else { 2 };
        let mut out = PuzzleSet::new(set.sudoku);
        assert!(out.push(&input, &label, 0, "x").unwrap_err().to_string().contains("breaks the rules"));
        label[open] = 1;
        assert!(out.push(&input, &label, 0, "x").unwrap_err().to_string().contains("no digit in row"));
        assert!(out.is_empty() && out.inputs.is_empty());
    }
}
