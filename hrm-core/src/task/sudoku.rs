//! Sudoku of size 4, 6 and 9: cells, tokens, text, rules.
//!
//! Cells are numbered row by row from 0. Tokens: 0 padding (never in a puzzle), 1 blank, `d + 1` for digit `d`.

use super::PuzzleError;

/// Largest size.
pub const MAX_SIZE: usize = 9;
/// Cells of the largest size.
pub const MAX_CELLS: usize = MAX_SIZE * MAX_SIZE;

/// Token of a blank cell.
pub const BLANK: u8 = 1;

/// The rules of one size: `n` rows, columns and boxes of `n` cells each.
///
/// ```
/// use hrm_core::task::{Sudoku, Verdict};
/// let sudoku = Sudoku::from_text("12..3...........")?;
/// let (mut puzzle, mut answer) = ([0; 16], [0; 16]);
/// sudoku.parse("12..3...........", &mut puzzle)?;
/// sudoku.parse("1243341221344321", &mut answer)?;
/// assert_eq!(sudoku.verify(&puzzle, &answer), Verdict::Valid);
/// # Ok::<(), hrm_core::task::PuzzleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Sudoku {
    size: Size,
}

/// An enumeration, so that the compiler knows that no division by a size can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
enum Size {
    Four = 4,
    Six = 6,
    Nine = 9,
}

/// What the verifier says about an answer. Cells from 0, digits from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Verdict {
    /// A complete grid by the rules that keeps all givens.
    Valid,
    /// A cell holds no digit.
    Open {
        /// The first such cell.
        cell: u8,
    },
    /// A cell holds another digit than the puzzle gives.
    Given {
        /// The first such cell.
        cell: u8,
    },
    /// Two cells of a row, column or box hold the same digit.
    Conflict {
        /// The digit.
        digit: u8,
        /// The first cell.
        first: u8,
        /// The second cell.
        second: u8,
    },
    /// The puzzle or the answer has another number of tokens than the grid has cells.
    Length,
}

impl Verdict {
    /// Whether the answer is right.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        matches!(self, Self::Valid)
    }
}

const UNITS: [&str; 3] = ["row", "column", "box"];

impl Sudoku {
    /// Number of groupings [`Sudoku::group`] knows: row, column, box, cell, row in a box, column in a box.
    pub const GROUPINGS: usize = 6;

    /// The rules of size `n`: 4 (boxes of 2 x 2), 6 (boxes of 2 rows x 3 columns) or 9 (3 x 3).
    #[must_use]
    pub const fn new(n: usize) -> Option<Self> {
        match n {
            4 => Some(Self { size: Size::Four }),
            6 => Some(Self { size: Size::Six }),
            9 => Some(Self { size: Size::Nine }),
            _ => None,
        }
    }

    /// The rules of a grid of `cells` cells: 16, 36 or 81.
    #[must_use]
    pub const fn from_cells(cells: usize) -> Option<Self> {
        match cells {
            16 => Self::new(4),
            36 => Self::new(6),
            81 => Self::new(9),
            _ => None,
        }
    }

    /// The rules of a puzzle text, told by its length.
    ///
    /// # Errors
    /// [`PuzzleError::Length`] if it has not 16, 36 or 81 characters.
    pub fn from_text(text: &str) -> Result<Self, PuzzleError> {
        let found = text.chars().count();
        Self::from_cells(found).ok_or(PuzzleError::Length { found, expected: "16 (4x4), 36 (6x6) or 81 (9x9)" })
    }

    /// `n`: rows, columns, boxes, digits.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size as usize
    }

    /// Cells of the grid, `n * n`.
    #[must_use]
    pub const fn cells(&self) -> usize {
        self.size() * self.size()
    }

    /// Rows of a box.
    #[must_use]
    pub const fn box_rows(&self) -> usize {
        match self.size {
            Size::Four | Size::Six => 2,
            Size::Nine => 3,
        }
    }

    /// Columns of a box.
    #[must_use]
    pub const fn box_cols(&self) -> usize {
        match self.size {
            Size::Four => 2,
            Size::Six | Size::Nine => 3,
        }
    }

    /// Size of the vocabulary: padding, blank and `n` digits.
    #[must_use]
    pub const fn vocab(&self) -> usize {
        self.size() + 2
    }

    /// Group of `cell` in grouping `k`: 0 rows, 1 columns, 2 boxes, 3 the cell itself, 4 the cells that a row and a box share, else those
    /// that a column and a box share. Groups count from 0 without gaps.
    #[must_use]
    pub const fn group(&self, k: usize, cell: usize) -> usize {
        let (row, col) = (cell / self.size(), cell % self.size());
        match k {
            0 => row,
            1 => col,
            2 => row / self.box_rows() * (self.size() / self.box_cols()) + col / self.box_cols(),
            3 => cell,
            4 => row * (self.size() / self.box_cols()) + col / self.box_cols(),
            _ => col * (self.size() / self.box_rows()) + row / self.box_rows(),
        }
    }

    /// Cell number `i` of group `g` of grouping `k` (0 rows, 1 columns, else boxes); `g` and `i` below `n`.
    #[must_use]
    pub const fn cell_of(&self, k: usize, g: usize, i: usize) -> usize {
        match k {
            0 => g * self.size() + i,
            1 => i * self.size() + g,
            _ => {
                let stacks = self.size() / self.box_cols();
                let (row, col) = (g / stacks * self.box_rows() + i / self.box_cols(), g % stacks * self.box_cols() + i % self.box_cols());
                row * self.size() + col
            }
        }
    }

    /// Row and column of a cell, from 1.
    #[must_use]
    pub const fn position(&self, cell: usize) -> (u8, u8) {
        ((cell / self.size() + 1) as u8, (cell % self.size() + 1) as u8)
    }

    /// Reads one puzzle: one character a cell, row by row, `.` or `0` for a blank. `tokens` must hold [`Sudoku::cells`] elements or more.
    ///
    /// # Errors
    /// Wrong length, a character that is no digit of this size (with its column from 1), a short buffer. `tokens` is undefined then.
    /// Contradicting givens are found by [`Sudoku::check_givens`].
    pub fn parse(&self, text: &str, tokens: &mut [u8]) -> Result<(), PuzzleError> {
        let cells = self.cells();
        let (expected_length, expected) = match self.size {
            Size::Four => ("16 (4x4)", "a digit 1 to 4, or `.` or `0` for a blank"),
            Size::Six => ("36 (6x6)", "a digit 1 to 6, or `.` or `0` for a blank"),
            Size::Nine => ("81 (9x9)", "a digit 1 to 9, or `.` or `0` for a blank"),
        };
        if tokens.len() < cells {
            return Err(PuzzleError::Buffer { found: tokens.len(), expected: cells });
        }
        // A wrong character explains more than a wrong length, except past the end, where it does not matter.
        for (i, (c, token)) in text.chars().zip(tokens.iter_mut()).take(cells).enumerate() {
            *token = match c {
                '.' | '0' => BLANK,
                '1'..='9' if c as u8 - b'0' <= self.size as u8 => c as u8 - b'0' + 1,
                _ => return Err(PuzzleError::Character { column: i + 1, found: c, expected }),
            };
        }
        let found = text.chars().count();
        if found == cells { Ok(()) } else { Err(PuzzleError::Length { found, expected: expected_length }) }
    }

    /// Writes tokens as text, one byte a cell, `.` for a blank and `?` for a token that is neither blank nor digit. Returns the text.
    ///
    /// # Errors
    /// A length other than [`Sudoku::cells`], a short buffer.
    pub fn format<'a>(&self, tokens: &[u8], text: &'a mut [u8]) -> Result<&'a str, PuzzleError> {
        let cells = self.cells();
        if tokens.len() != cells {
            return Err(PuzzleError::Tokens { found: tokens.len(), expected: cells });
        }
        let found = text.len();
        let out = text.get_mut(..cells).ok_or(PuzzleError::Buffer { found, expected: cells })?;
        for (c, &t) in out.iter_mut().zip(tokens) {
            *c = match self.digit(t) {
                Some(d) => b'0' + d,
                None if t == BLANK => b'.',
                None => b'?',
            };
        }
        Ok(core::str::from_utf8(out).unwrap_or_default())
    }

    /// The digit (from 1) of a token, none if it is a blank, padding or outside the vocabulary.
    #[must_use]
    pub const fn digit(&self, token: u8) -> Option<u8> {
        if token > BLANK && token <= self.size as u8 + 1 { Some(token - 1) } else { None }
    }

    /// Two cells with the same digit in one unit: (kind of unit, digit, first, second).
    fn find_conflict(&self, tokens: &[u8]) -> Option<(&'static str, u8, u8, u8)> {
        for (k, unit) in UNITS.into_iter().enumerate() {
            for g in 0..self.size() {
                let mut holder = [u8::MAX; MAX_SIZE + 1];
                for i in 0..self.size() {
                    let cell = self.cell_of(k, g, i);
                    let digit = tokens.get(cell).and_then(|&t| self.digit(t));
                    if let Some((d, holder)) = digit.and_then(|d| Some((d, holder.get_mut(usize::from(d))?))) {
                        let first = core::mem::replace(holder, cell as u8);
                        if first != u8::MAX {
                            return Some((unit, d, first, cell as u8));
                        }
                    }
                }
            }
        }
        None
    }

    /// Checks the tokens of a puzzle: number, range, and that no two givens contradict each other.
    ///
    /// # Errors
    /// The first fault; [`PuzzleError::Givens`] names both cells and the digit.
    pub fn check_givens(&self, tokens: &[u8]) -> Result<(), PuzzleError> {
        if tokens.len() != self.cells() {
            return Err(PuzzleError::Tokens { found: tokens.len(), expected: self.cells() });
        }
        let max = self.size as u8 + 1;
        if let Some((index, &found)) = tokens.iter().enumerate().find(|&(_, &t)| t < BLANK || t > max) {
            return Err(PuzzleError::Token { index, found, min: BLANK, max });
        }
        match self.find_conflict(tokens) {
            None => Ok(()),
            Some((unit, digit, first, second)) => Err(PuzzleError::Givens {
                digit,
                first: self.position(usize::from(first)),
                second: self.position(usize::from(second)),
                unit,
            }),
        }
    }

    /// Whether `answer` is a complete grid by the rules that keeps every given of `puzzle`; else the first fault.
    #[must_use]
    pub fn verify(&self, puzzle: &[u8], answer: &[u8]) -> Verdict {
        if puzzle.len() != self.cells() || answer.len() != self.cells() {
            return Verdict::Length;
        }
        for (cell, (&p, &a)) in puzzle.iter().zip(answer).enumerate() {
            let cell = cell as u8;
            if self.digit(a).is_none() {
                return Verdict::Open { cell };
            }
            if p != BLANK && p != a {
                return Verdict::Given { cell };
            }
        }
        match self.find_conflict(answer) {
            None => Verdict::Valid,
            Some((_, digit, first, second)) => Verdict::Conflict { digit, first, second },
        }
    }

    /// Whether `cell` of `tokens` `[S]` holds a digit that stands nowhere else in its row, column and box.
    #[must_use]
    pub fn is_free_of_conflict(&self, tokens: &[u8], cell: usize) -> bool {
        let Some(&own) = tokens.get(cell).filter(|&&t| self.digit(t).is_some()) else { return false };
        let shares_unit = |other: usize| (0..3).any(|k| self.group(k, other) == self.group(k, cell));
        !tokens.iter().enumerate().any(|(other, &t)| other != cell && t == own && shares_unit(other))
    }

    /// Surplus digits: over the `3n` rows, columns and boxes, how often a digit stands there beyond its first time. 0 for a valid grid.
    /// Tokens that are no digit do not count; at most [`Sudoku::cells`] tokens are looked at.
    #[must_use]
    pub fn conflicts(&self, tokens: &[u8]) -> u32 {
        let mut surplus = 0;
        for k in 0..3 {
            for g in 0..self.size() {
                let mut seen = 0u16;
                for i in 0..self.size() {
                    if let Some(d) = tokens.get(self.cell_of(k, g, i)).and_then(|&t| self.digit(t)) {
                        surplus += u32::from(seen >> d & 1);
                        seen |= 1 << d;
                    }
                }
            }
        }
        surplus
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    const GRID: [(usize, &str); 3] = [
        (4, "1234341221434321"),
        (6, "123456456123214365365214531642642531"),
        (9, "123456789456789123789123456214365897365897214897214365531642978642978531978531642"),
    ];

    fn tokens(sudoku: Sudoku, text: &str) -> Vec<u8> {
        let mut t = std::vec![0; sudoku.cells()];
        sudoku.parse(text, &mut t).unwrap();
        t
    }

    #[test]
    fn full_grids_are_valid_and_every_single_change_is_noticed() {
        for (n, text) in GRID {
            let s = Sudoku::new(n).unwrap();
            assert_eq!(Sudoku::from_text(text), Ok(s));
            let grid = tokens(s, text);
            assert_eq!(s.verify(&std::vec![BLANK; s.cells()], &grid), Verdict::Valid);
            assert_eq!(s.conflicts(&grid), 0);
            for cell in 0..s.cells() {
                for token in 0..=u8::try_from(n + 2).unwrap() {
                    let mut wrong = grid.clone();
                    wrong[cell] = token;
                    let blank = s.verify(&std::vec![BLANK; s.cells()], &wrong);
                    assert_eq!(blank.is_valid(), token == grid[cell]);
                    if token == grid[cell] {
                        continue;
                    }
                    if s.digit(token).is_some() {
                        assert!(matches!(blank, Verdict::Conflict { digit, .. } if digit == token - 1));
                        // One surplus digit in its row, in its column and in its box.
                        assert_eq!(s.conflicts(&wrong), 3);
                        assert_eq!(s.verify(&grid, &wrong), Verdict::Given { cell: cell as u8 });
                    } else {
                        assert_eq!(blank, Verdict::Open { cell: cell as u8 });
                    }
                }
            }
        }
    }

    #[test]
    fn groups_and_their_cells_agree() {
        for (n, _) in GRID {
            let s = Sudoku::new(n).unwrap();
            for k in 0..3 {
                let mut seen = std::vec![false; s.cells()];
                for g in 0..n {
                    for i in 0..n {
                        let cell = s.cell_of(k, g, i);
                        assert_eq!(s.group(k, cell), g);
                        assert!(!core::mem::replace(&mut seen[cell], true));
                    }
                }
            }
            assert_eq!(s.group(3, 5), 5);
            // Cells share an intersection if they share a row (a column) and a box; groups count without gaps.
            for (k, line) in [(4, 0), (5, 1)] {
                for (a, b) in (0..s.cells()).flat_map(|a| (0..s.cells()).map(move |b| (a, b))) {
                    let both = s.group(line, a) == s.group(line, b) && s.group(2, a) == s.group(2, b);
                    assert_eq!(s.group(k, a) == s.group(k, b), both, "{n}: {k} {a} {b}");
                }
                let groups: std::collections::BTreeSet<usize> = (0..s.cells()).map(|c| s.group(k, c)).collect();
                assert_eq!(groups.last(), Some(&(groups.len() - 1)));
            }
        }
        // Boxes of the 6x6 are two rows high and three columns wide.
        let six = Sudoku::new(6).unwrap();
        assert_eq!([0, 2, 3, 6, 8, 12].map(|c| six.group(2, c)), [0, 0, 1, 0, 0, 2]);
    }

    #[test]
    fn text_round_trips() {
        for (n, text) in GRID {
            let s = Sudoku::new(n).unwrap();
            let open = text.replace('1', ".");
            let mut buffer = [0; 81];
            assert_eq!(s.format(&tokens(s, &open), &mut buffer).unwrap(), open);
            assert_eq!(tokens(s, &open), tokens(s, &text.replace('1', "0")));
        }
    }

    #[test]
    fn bad_text_is_named() {
        let s = Sudoku::new(4).unwrap();
        let mut t = [0; 16];
        let message = |text: &str, t: &mut [u8]| s.parse(text, t).unwrap_err().to_string();
        assert_eq!(message("12345...........", &mut t), "column 5: found '5', expected a digit 1 to 4, or `.` or `0` for a blank");
        assert_eq!(message("1é..............", &mut t), "column 2: found 'é', expected a digit 1 to 4, or `.` or `0` for a blank");
        assert_eq!(message("1...", &mut t), "the puzzle has 4 characters, expected 16 (4x4)");
        assert_eq!(message("................x", &mut t), "the puzzle has 17 characters, expected 16 (4x4)");
        assert_eq!(message("", &mut t), "the puzzle has 0 characters, expected 16 (4x4)");
        assert_eq!(s.parse("................", &mut [0; 15]), Err(PuzzleError::Buffer { found: 15, expected: 16 }));
        assert_eq!(
            Sudoku::from_text("12").unwrap_err().to_string(),
            "the puzzle has 2 characters, expected 16 (4x4), 36 (6x6) or 81 (9x9)"
        );
    }

    #[test]
    fn contradicting_givens_are_named() {
        let s = Sudoku::new(4).unwrap();
        let message = |text: &str| s.check_givens(&tokens(s, text)).unwrap_err().to_string();
        assert!(message("1..1............").ends_with("digit 1 stands twice in a row, at row 1 column 1 and at row 1 column 4"));
        assert!(message(".2...........2..").ends_with("digit 2 stands twice in a column, at row 1 column 2 and at row 4 column 2"));
        assert!(message("..3....3........").ends_with("digit 3 stands twice in a box, at row 1 column 3 and at row 2 column 4"));
        assert_eq!(s.check_givens(&tokens(s, "1....1..........").as_slice()[..15]), Err(PuzzleError::Tokens { found: 15, expected: 16 }));
        let mut pad = tokens(s, "................");
        pad[3] = 0;
        assert_eq!(s.check_givens(&pad), Err(PuzzleError::Token { index: 3, found: 0, min: 1, max: 5 }));
        assert!(s.check_givens(&tokens(s, "1234............")).is_ok());
    }
}
