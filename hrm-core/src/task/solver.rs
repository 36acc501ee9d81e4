//! An exact solver small enough for a microcontroller: it tells "two solutions" and "no solution" from "not solved yet".
//!
//! Depth first. Each step looks at every open cell (which digits fit?) and at every missing digit of every unit (which cells take it?) and
//! branches on the choice with the fewest ways; none means back up. No recursion, about 600 bytes of state.

use super::PuzzleError;
use super::sudoku::{MAX_CELLS, MAX_SIZE, Sudoku};

/// How many solutions a puzzle has, as far as was looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Solutions {
    /// Exactly so many; fewer than the limit.
    Exactly(u32),
    /// The limit was reached; there may be more.
    AtLeast(u32),
    /// The step budget ran out after so many solutions.
    Unknown(u32),
}

/// A branching: one cell with several digits, or one digit with several cells of a unit.
#[derive(Clone, Copy)]
struct Branch {
    /// The cell, or `MAX_CELLS + kind * n + group`.
    subject: u8,
    /// 0 if the subject is a cell, else the digit.
    digit: u8,
    /// Ways not tried: digits (bit `d - 1`) or cells of the unit (bit `i`).
    ways: u16,
    /// The placed cell; none yet: `u8::MAX`.
    cell: u8,
    /// The placed digit.
    placed: u8,
}

struct Search {
    sudoku: Sudoku,
    /// Digits present (bit `d - 1`) by kind and group.
    used: [[u16; MAX_SIZE]; 3],
    grid: [u8; MAX_CELLS],
}

impl Search {
    fn open_digits(&self, cell: usize) -> u16 {
        let used = (0..3).fold(0, |acc, k| acc | self.used[k][self.sudoku.group(k, cell)]);
        !used & ((1 << self.sudoku.size()) - 1)
    }

    fn toggle(&mut self, cell: usize, digit: u8) {
        for k in 0..3 {
            self.used[k][self.sudoku.group(k, cell)] ^= 1 << (digit - 1);
        }
    }

    /// The open choice with the fewest ways; none if the grid is full.
    fn choose(&self) -> Option<Branch> {
        let n = self.sudoku.size();
        let mut open = [0u16; MAX_CELLS];
        let mut best: Option<Branch> = None;
        let mut offer = |subject: usize, digit: u8, ways: u16| {
            if best.is_none_or(|b| ways.count_ones() < b.ways.count_ones()) {
                best = Some(Branch { subject: subject as u8, digit, ways, cell: u8::MAX, placed: 0 });
            }
        };
        for (cell, digits) in open.iter_mut().enumerate().take(n * n) {
            if self.grid[cell] == 0 {
                *digits = self.open_digits(cell);
                offer(cell, 0, *digits);
            }
        }
        for kind in 0..3 {
            for group in 0..n {
                let mut ways = [0u16; MAX_SIZE];
                for i in 0..n {
                    let digits = open[self.sudoku.cell_of(kind, group, i)];
                    for (d, w) in ways.iter_mut().enumerate().take(n) {
                        *w |= (digits >> d & 1) << i;
                    }
                }
                for (d, &w) in ways.iter().enumerate().take(n) {
                    if self.used[kind][group] >> d & 1 == 0 {
                        offer(MAX_CELLS + kind * n + group, d as u8 + 1, w);
                    }
                }
            }
        }
        best
    }
}

/// Counts the solutions of a puzzle, at most `limit`, in at most `budget` placements.
///
/// `tokens` and `first` hold [`Sudoku::cells`] elements; `first` receives the tokens of the first solution and stays as it is if there is
/// none. The result does not depend on anything but the arguments.
///
/// ```
/// use hrm_core::task::{Solutions, Sudoku, count_solutions};
/// let sudoku = Sudoku::new(4).unwrap();
/// let (mut puzzle, mut answer) = ([0; 16], [0; 16]);
/// sudoku.parse("12..3...........", &mut puzzle)?;
/// assert_eq!(count_solutions(sudoku, &puzzle, 2, 1000, &mut answer)?, Solutions::AtLeast(2));
/// # Ok::<(), hrm_core::task::PuzzleError>(())
/// ```
///
/// # Errors
/// Those of [`Sudoku::check_givens`]; [`PuzzleError::Buffer`] if `first` is too short.
pub fn count_solutions(sudoku: Sudoku, tokens: &[u8], limit: u32, budget: u32, first: &mut [u8]) -> Result<Solutions, PuzzleError> {
    sudoku.check_givens(tokens)?;
    let cells = sudoku.cells();
    if first.len() < cells {
        return Err(PuzzleError::Buffer { found: first.len(), expected: cells });
    }
    let mut search = Search { sudoku, used: [[0; MAX_SIZE]; 3], grid: [0; MAX_CELLS] };
    for (cell, &token) in tokens.iter().enumerate() {
        if let Some(d) = sudoku.digit(token) {
            search.grid[cell] = d;
            search.toggle(cell, d);
        }
    }
    let mut stack = [Branch { subject: 0, digit: 0, ways: 0, cell: u8::MAX, placed: 0 }; MAX_CELLS];
    let (mut depth, mut found, mut spent) = (0usize, 0u32, 0u32);
    let mut descend = true;
    if limit == 0 {
        return Ok(Solutions::AtLeast(0));
    }
    loop {
        if descend {
            if let Some(branch) = search.choose() {
                stack[depth] = branch;
                depth += 1;
            } else {
                if found == 0 {
                    for (out, &d) in first.iter_mut().zip(&search.grid[..cells]) {
                        *out = d + 1;
                    }
                }
                found += 1;
                if found == limit {
                    return Ok(Solutions::AtLeast(found));
                }
            }
        }
        if depth == 0 {
            return Ok(Solutions::Exactly(found));
        }
        let branch = &mut stack[depth - 1];
        if branch.cell != u8::MAX {
            let (cell, digit) = (usize::from(branch.cell), branch.placed);
            branch.cell = u8::MAX;
            search.grid[cell] = 0;
            search.toggle(cell, digit);
        }
        if branch.ways == 0 {
            depth -= 1;
            descend = false;
            continue;
        }
        if spent == budget {
            return Ok(Solutions::Unknown(found));
        }
        spent += 1;
        let way = branch.ways.trailing_zeros() as usize;
        branch.ways &= branch.ways - 1;
        let (cell, digit) = if branch.digit == 0 {
            (usize::from(branch.subject), way as u8 + 1)
        } else {
            let unit = usize::from(branch.subject) - MAX_CELLS;
            (sudoku.cell_of(unit / sudoku.size(), unit % sudoku.size(), way), branch.digit)
        };
        branch.cell = cell as u8;
        branch.placed = digit;
        search.grid[cell] = digit;
        search.toggle(cell, digit);
        descend = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, limit: u32, budget: u32) -> (Solutions, [u8; MAX_CELLS]) {
        let sudoku = Sudoku::from_text(text).unwrap();
        let (mut tokens, mut first) = ([0; MAX_CELLS], [0; MAX_CELLS]);
        sudoku.parse(text, &mut tokens).unwrap();
        let solutions = count_solutions(sudoku, &tokens[..sudoku.cells()], limit, budget, &mut first).unwrap();
        if !matches!(solutions, Solutions::Exactly(0) | Solutions::Unknown(0) | Solutions::AtLeast(0)) {
            assert!(sudoku.verify(&tokens[..sudoku.cells()], &first[..sudoku.cells()]).is_valid());
        }
        (solutions, first)
    }

    #[test]
    fn all_4x4_grids_are_counted() {
        // 288 grids in all; 288 / 4! = 12 with the first row fixed.
        assert_eq!(count("................", 1000, u32::MAX).0, Solutions::Exactly(288));
        assert_eq!(count("1234............", 1000, u32::MAX).0, Solutions::Exactly(12));
        assert_eq!(count("................", 288, u32::MAX).0, Solutions::AtLeast(288));
    }

    #[test]
    fn no_solution_is_told_from_an_exhausted_budget() {
        // Row 1 needs a 4 in its last cell, where column 4 already holds one.
        assert_eq!(count("123....4........", 2, 1000).0, Solutions::Exactly(0));
        assert_eq!(count("................", 2, 5).0, Solutions::Unknown(0));
        assert_eq!(count("................", 0, 5).0, Solutions::AtLeast(0));
    }

    #[test]
    fn a_6x6_and_a_9x9() {
        // 28,200,960 grids of 6x6; with row 1 fixed 28,200,960 / 6! = 39,168.
        assert_eq!(count("123456..............................", u32::MAX, u32::MAX).0, Solutions::Exactly(39_168));
        let (solutions, first) = count("1..4..7..4..7..1..7..1..4..2..3..8..3..8..2..8..2..3..5..6..9..6..9..5..9..5..6..", 2, 100_000);
        assert!(matches!(solutions, Solutions::AtLeast(2)));
        assert_eq!(first[0], 2);
    }

    #[test]
    fn bad_input_is_refused() {
        let s = Sudoku::new(4).unwrap();
        let mut tokens = [1; 16];
        assert!(matches!(count_solutions(s, &tokens, 2, 9, &mut [0; 15]), Err(PuzzleError::Buffer { .. })));
        tokens[..2].copy_from_slice(&[2, 2]);
        assert!(matches!(count_solutions(s, &tokens, 2, 9, &mut [0; 16]), Err(PuzzleError::Givens { .. })));
    }
}
