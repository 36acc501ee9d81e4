//! A fast exact solver, and the rating of a puzzle.
//!
//! The candidates of each digit are one bit board over the cells. Naked and hidden singles are placed until nothing changes; then the cell
//! with the fewest candidates (the first of them) is tried with its digits in ascending order.
//!
//! **Rating**: the number of digits tried (right and wrong ones) until the solution is found, with this solver, in this order; 0 means that
//! naked and hidden singles suffice. It has the spirit of the `rating` column of Sudoku-Extreme (guesses of a backtracking solver), not its
//! exact values, and changes under the symmetries of the grid, as that does.

use hrm_core::task::{MAX_SIZE, Sudoku};

/// What a search found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Solutions, at most the limit.
    pub solutions: u32,
    /// Digits tried at branchings in the whole search.
    pub guesses: u32,
    /// Digits tried until the first solution; meaningless without one.
    pub guesses_to_first: u32,
}

/// Tables of one size. Cheap to share between threads.
#[derive(Clone, Debug)]
pub struct Solver {
    sudoku: Sudoku,
    units: Vec<u128>,
    /// Cells that share a unit with the cell, without itself.
    peers: Vec<u128>,
    all: u128,
}

/// Candidates: bit `c` of `digit[d]` is set while cell `c` may hold digit `d + 1` (or does).
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) digit: [u128; MAX_SIZE],
    /// Cells without a digit.
    pub(super) open: u128,
    /// Digits whose hidden singles may have changed.
    dirty: u16,
}

struct Search<'a> {
    limit: u32,
    /// Picks the next digit to try out of a mask of digits.
    pick: &'a mut dyn FnMut(u16) -> u32,
    on_solution: &'a mut dyn FnMut(&[u8]),
    found: Found,
}

impl Solver {
    /// The solver of one size.
    #[must_use]
    pub fn new(sudoku: Sudoku) -> Self {
        let n = sudoku.size();
        let unit = |k, g| (0..n).fold(0u128, |m, i| m | 1 << sudoku.cell_of(k, g, i));
        let units = (0..3).flat_map(|k| (0..n).map(move |g| (k, g))).map(|(k, g)| unit(k, g)).collect();
        let peers = (0..sudoku.cells()).map(|c| (0..3).fold(0, |m, k| m | unit(k, sudoku.group(k, c))) & !(1 << c)).collect();
        Self { sudoku, units, peers, all: (1 << sudoku.cells()) - 1 }
    }

    /// The rules.
    #[must_use]
    pub fn sudoku(&self) -> Sudoku {
        self.sudoku
    }

    /// Searches up to `limit` solutions and shows each as tokens to `on_solution`. Tokens that are no digits are blanks; contradicting
    /// givens have no solution. Cells beyond the grid are ignored, missing ones are blank.
    pub fn search(&self, puzzle: &[u8], limit: u32, on_solution: &mut dyn FnMut(&[u8])) -> Found {
        self.search_with(puzzle, None, limit, &mut |mask| mask.trailing_zeros(), on_solution)
    }

    /// As [`Solver::search`]; `forbid` = (cell, token) excludes one digit there, `pick` chooses the digit (bit number) to try next.
    pub(super) fn search_with(
        &self,
        puzzle: &[u8],
        forbid: Option<(usize, u8)>,
        limit: u32,
        pick: &mut dyn FnMut(u16) -> u32,
        on_solution: &mut dyn FnMut(&[u8]),
    ) -> Found {
        let mut search = Search { limit, pick, on_solution, found: Found::default() };
        let Some(mut state) = self.start(puzzle) else { return search.found };
        if let Some((cell, token)) = forbid
            && let Some(d) = self.sudoku.digit(token)
        {
            state.digit[usize::from(d) - 1] &= !(1 << cell);
        }
        if limit > 0 {
            self.descend(state, &mut search);
        }
        search.found
    }

    /// The solution, if there is exactly one.
    #[must_use]
    pub fn unique(&self, puzzle: &[u8]) -> Option<Vec<u8>> {
        let mut first = Vec::new();
        let found = self.search(puzzle, 2, &mut |solution| {
            if first.is_empty() {
                first.extend_from_slice(solution);
            }
        });
        (found.solutions == 1).then_some(first)
    }

    /// The rating as defined on the [module](self), none without a solution.
    #[must_use]
    pub fn rate(&self, puzzle: &[u8]) -> Option<u32> {
        let found = self.search(puzzle, 1, &mut |_| {});
        (found.solutions == 1).then_some(found.guesses_to_first)
    }

    /// Whether there is a solution with another token than `solution[cell]` in `cell`, which is blank in `puzzle`.
    pub(super) fn has_other(&self, puzzle: &[u8], cell: usize, token: u8) -> bool {
        self.search_with(puzzle, Some((cell, token)), 1, &mut |mask| mask.trailing_zeros(), &mut |_| {}).solutions > 0
    }

    /// Candidates left by singles that tell something at once: assumed, they lead to a contradiction or to the solution by singles alone. The fewer
    /// there are, the less a step of trial and error helps; without a solution `u32::MAX`, 1,000 if singles solve the puzzle.
    #[must_use]
    pub fn easy_assumptions(&self, puzzle: &[u8]) -> u32 {
        self.singles(puzzle).map_or(u32::MAX, |state| self.easy_assumptions_of(&state))
    }

    /// [`Solver::easy_assumptions`] of a puzzle in which singles leave `state`.
    pub(super) fn easy_assumptions_of(&self, state: &State) -> u32 {
        if state.open == 0 {
            return 1000;
        }
        let mut told = 0;
        for d in 0..self.sudoku.size() {
            let mut cells = state.digit[d] & state.open;
            while cells != 0 {
                let mut next = *state;
                self.place(&mut next, d, cells.trailing_zeros() as usize);
                cells &= cells - 1;
                told += u32::from(!self.propagate(&mut next) || next.open == 0);
            }
        }
        told
    }

    /// What singles leave. None: contradiction.
    pub(super) fn singles(&self, puzzle: &[u8]) -> Option<State> {
        let mut state = self.start(puzzle)?;
        self.propagate(&mut state).then_some(state)
    }

    fn start(&self, puzzle: &[u8]) -> Option<State> {
        let mut state = State { digit: [0; MAX_SIZE], open: self.all, dirty: (1 << self.sudoku.size()) - 1 };
        state.digit[..self.sudoku.size()].fill(self.all);
        for (cell, &token) in puzzle.iter().take(self.sudoku.cells()).enumerate() {
            if let Some(d) = self.sudoku.digit(token) {
                if state.digit[usize::from(d) - 1] >> cell & 1 == 0 {
                    return None;
                }
                self.place(&mut state, usize::from(d) - 1, cell);
            }
        }
        Some(state)
    }

    fn place(&self, state: &mut State, d: usize, cell: usize) {
        let bit = 1u128 << cell;
        for (e, board) in state.digit[..self.sudoku.size()].iter_mut().enumerate() {
            if *board & bit != 0 {
                state.dirty |= 1 << e;
            }
            *board &= !bit;
        }
        state.digit[d] = state.digit[d] & !self.peers[cell] | bit;
        state.open &= !bit;
    }

    /// Places all singles. False: contradiction.
    fn propagate(&self, state: &mut State) -> bool {
        let n = self.sudoku.size();
        loop {
            let (mut one, mut two) = (0, 0);
            for &board in &state.digit[..n] {
                two |= one & board;
                one |= board;
            }
            if one != self.all {
                return false;
            }
            let mut singles = one & !two & state.open;
            if singles != 0 {
                while singles != 0 {
                    let cell = singles.trailing_zeros() as usize;
                    singles &= singles - 1;
                    // An earlier single of this round may have taken the digit.
                    let Some(d) = state.digit[..n].iter().position(|&b| b >> cell & 1 == 1) else { return false };
                    self.place(state, d, cell);
                }
                continue;
            }
            if state.open == 0 {
                return true;
            }
            let mut placed = false;
            for d in 0..n {
                if state.dirty >> d & 1 == 0 {
                    continue;
                }
                state.dirty &= !(1 << d);
                for &unit in &self.units {
                    let places = state.digit[d] & unit;
                    if places == 0 {
                        return false;
                    }
                    if places & (places - 1) == 0 && places & state.open != 0 {
                        self.place(state, d, places.trailing_zeros() as usize);
                        placed = true;
                    }
                }
            }
            if !placed {
                return true;
            }
        }
    }

    /// Depth is bounded by the number of cells. False: the limit is reached.
    fn descend(&self, mut state: State, search: &mut Search<'_>) -> bool {
        if !self.propagate(&mut state) {
            return true;
        }
        let n = self.sudoku.size();
        if state.open == 0 {
            if search.found.solutions == 0 {
                search.found.guesses_to_first = search.found.guesses;
            }
            search.found.solutions += 1;
            let mut tokens = [0u8; hrm_core::task::MAX_CELLS];
            for (d, board) in state.digit[..n].iter().enumerate() {
                for (cell, token) in tokens[..self.sudoku.cells()].iter_mut().enumerate() {
                    *token |= ((board >> cell & 1) as u8) * (d as u8 + 2);
                }
            }
            (search.on_solution)(&tokens[..self.sudoku.cells()]);
            return search.found.solutions < search.limit;
        }
        // at_least[k]: cells with more than k candidates.
        let mut at_least = [0u128; MAX_SIZE];
        for &board in &state.digit[..n] {
            let mut carry = board;
            for level in &mut at_least[..n] {
                (*level, carry) = (*level | carry, *level & carry);
            }
        }
        let fewest = (1..n).map(|k| at_least[k] & if k + 1 < n { !at_least[k + 1] } else { u128::MAX } & state.open).find(|&m| m != 0);
        let Some(cells) = fewest else { return true };
        let cell = cells.trailing_zeros() as usize;
        let mut mask = (0..n).fold(0u16, |m, d| m | ((state.digit[d] >> cell & 1) as u16) << d);
        while mask != 0 {
            let d = (search.pick)(mask) as usize;
            mask &= !(1 << d);
            search.found.guesses += 1;
            let mut next = state;
            self.place(&mut next, d, cell);
            if !self.descend(next, search) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hrm_core::task::{Solutions, count_solutions};
    use proptest::prelude::*;

    /// All solutions of a 4x4 by trying every digit in every cell.
    fn naive(sudoku: Sudoku, tokens: &mut [u8], cell: usize, out: &mut Vec<Vec<u8>>) {
        if sudoku.conflicts(tokens) > 0 {
            return;
        }
        if cell == sudoku.cells() {
            out.push(tokens.to_vec());
        } else if tokens[cell] > 1 {
            naive(sudoku, tokens, cell + 1, out);
        } else {
            for t in 2..sudoku.size() as u8 + 2 {
                tokens[cell] = t;
                naive(sudoku, tokens, cell + 1, out);
            }
            tokens[cell] = 1;
        }
    }

    proptest! {
        #[test]
        fn agrees_with_brute_force_and_with_the_core_on_4x4(givens in proptest::collection::vec((0usize..16, 2u8..6), 0..9)) {
            let sudoku = Sudoku::new(4).unwrap();
            let mut puzzle = vec![1u8; 16];
            for (cell, token) in givens {
                puzzle[cell] = token;
            }
            let mut expected = Vec::new();
            naive(sudoku, &mut puzzle.clone(), 0, &mut expected);
            let mut solutions = Vec::new();
            let found = Solver::new(sudoku).search(&puzzle, u32::MAX, &mut |s| solutions.push(s.to_vec()));
            prop_assert_eq!(found.solutions as usize, expected.len());
            solutions.sort();
            expected.sort();
            prop_assert_eq!(&solutions, &expected);
            if sudoku.check_givens(&puzzle).is_ok() {
                let mut first = [0; 16];
                let counted = count_solutions(sudoku, &puzzle, u32::MAX, u32::MAX, &mut first).unwrap();
                prop_assert_eq!(counted, Solutions::Exactly(expected.len() as u32));
                prop_assert!(expected.is_empty() || expected.contains(&first.to_vec()));
            }
            prop_assert_eq!(Solver::new(sudoku).unique(&puzzle).is_some(), expected.len() == 1);
        }
    }

    #[test]
    fn counts_all_grids() {
        let four = Solver::new(Sudoku::new(4).unwrap());
        assert_eq!(four.search(&[1; 16], u32::MAX, &mut |_| {}).solutions, 288);
        assert_eq!(four.search(&[1; 16], 5, &mut |_| {}).solutions, 5);
        assert_eq!(four.search(&[1; 16], 0, &mut |_| {}).solutions, 0);
        let six = Solver::new(Sudoku::new(6).unwrap());
        let row: Vec<u8> = (2..8).chain([1; 30]).collect();
        assert_eq!(six.search(&row, u32::MAX, &mut |_| {}).solutions, 39_168);
    }

    #[test]
    fn singles_need_no_guess() {
        let sudoku = Sudoku::new(9).unwrap();
        let solver = Solver::new(sudoku);
        let grid = solver.search(&[1; 81], 1, &mut |_| {});
        assert!(grid.solutions == 1 && grid.guesses_to_first > 0);
        let mut full = Vec::new();
        solver.search(&[1; 81], 1, &mut |s| full = s.to_vec());
        for step in [1, 2, 5] {
            let mut puzzle = full.clone();
            puzzle.iter_mut().step_by(7 * step).for_each(|t| *t = 1);
            assert_eq!(solver.rate(&puzzle), Some(0));
            assert_eq!(solver.unique(&puzzle), Some(full.clone()));
        }
        // Two equal givens in a row.
        full[1] = full[0];
        assert_eq!(solver.rate(&full), None);
    }
}
