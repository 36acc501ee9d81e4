//! Puzzles around a trivalue oddagon ("Thor's hammer"), the pattern behind the hardest collections of recent years: three digits that have two givens
//! between them, and four boxes in a rectangle in which those digits have almost no place but three cells each, one in every row and column of the
//! box, turned so that they cannot fill all twelve. In the solution one of the twelve holds another digit, which nothing simpler tells.
//!
//! A chain makes such a grid and walks through minimal puzzles with that solution: towards those in which the twelve cells have hardly any candidate
//! besides the three digits, singles leave many candidates, and assuming one of them neither shows soon that it is wrong nor solves the puzzle.

use hrm_core::task::Symmetry;
use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

use super::generator::Generator;
use super::rng::{below, shuffle, unit};

/// Boxes of the pattern: the first of their rows and columns.
const CORNERS: [(usize, usize); 4] = [(0, 0), (0, 3), (3, 0), (3, 3)];
/// Columns of the three cells, row by row; the first three turn one way, the others the other.
const TURNS: [[usize; 3]; 6] = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [2, 1, 0], [1, 0, 2]];
/// Tokens of the three digits.
const RARE: std::ops::RangeInclusive<u8> = 2..=4;
/// Grids tried, and choices of the two givens for each.
const TRIES: usize = 64;
/// Steps of a walk, and those between two of its puzzles.
const STEPS: usize = 6000;
const APART: usize = 12;
/// A walk ends at such a step if its ease is above the second number: most grids never get there.
const RACE: [(usize, u32); 3] = [(200, 30), (500, 16), (1000, 10)];
/// Temperature of the walk, in units of ease.
const TEMPERATURE: f64 = 3.0;
/// Most ease of a puzzle that is given.
const MOST: u32 = 10;
/// Candidates that make a puzzle easier by one if two of them are missing, and strangers in the pattern that make it no easier.
const CANDIDATES: u32 = 170;
const STRANGERS: u32 = 3;

/// A grid with the pattern.
struct Oddagon {
    puzzle: Vec<u8>,
    grid: Vec<u8>,
    /// The twelve cells.
    pattern: u128,
}

impl Generator {
    /// The puzzles of one chain; none if luck is bad.
    pub(super) fn oddagons(&self, rng: &mut Pcg32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut out = Vec::new();
        let Some(Oddagon { mut puzzle, grid, pattern }) = (0..TRIES).find_map(|_| self.oddagon(rng)) else { return out };
        if !self.wanted(&puzzle, &grid) {
            return out;
        }
        // Givens of digits that are not rare come and go.
        let common: Vec<usize> = (0..grid.len()).filter(|&c| !RARE.contains(&grid[c])).collect();
        let (mut ease, mut last) = (self.ease(&puzzle, pattern), 0);
        for step in 1..=STEPS {
            if RACE.iter().any(|&(at, most)| at == step && ease > most) {
                break;
            }
            let mut next = puzzle.clone();
            let mut draw = |next: &mut [u8], given: bool| {
                let cells: Vec<usize> = common.iter().copied().filter(|&c| (next[c] > 1) == given).collect();
                if let Some(&cell) = cells.get(below(rng, cells.len().max(1))) {
                    next[cell] = if given { 1 } else { grid[cell] };
                }
            };
            let away = 1 + usize::from(step % 3 == 0);
            (0..away).for_each(|_| draw(&mut next, true));
            (0..away + step % 3).for_each(|_| draw(&mut next, false));
            // What fails to have one solution gets more givens, up to so many.
            let mut one = self.solver.unique(&next).is_some();
            for _ in 0..12 {
                if one {
                    break;
                }
                draw(&mut next, false);
                one = self.solver.unique(&next).is_some();
            }
            if !one {
                continue;
            }
            self.minimise(&mut next, &grid, rng);
            let found = self.ease(&next, pattern);
            if found <= ease || unit(rng) < ((f64::from(ease) - f64::from(found)) / TEMPERATURE).exp() {
                (puzzle, ease) = (next, found);
                if step >= last + APART && ease <= MOST {
                    last = step;
                    out.push((puzzle.clone(), grid.clone()));
                }
            }
        }
        let symmetry = Symmetry::random(&mut || rng.next_u32(), self.solver.sudoku());
        for tokens in out.iter_mut().flat_map(|(puzzle, grid)| [puzzle, grid]) {
            let from = tokens.clone();
            // Lengths agree by construction; without an image the puzzle itself is as good.
            if symmetry.apply(&from, tokens).is_err() {
                *tokens = from;
            }
        }
        out
    }

    /// How far a puzzle is from those of the hardest collections, in which nothing is told by assuming a candidate, singles leave about 170 of them,
    /// and the pattern has all three digits in all twelve cells and up to three other candidates.
    fn ease(&self, puzzle: &[u8], pattern: u128) -> u32 {
        let Some(state) = self.solver.singles(puzzle) else { return u32::MAX };
        let told = self.solver.easy_assumptions_of(&state);
        if state.open == 0 {
            return told;
        }
        let left: u32 = state.digit.iter().map(|d| (d & state.open).count_ones()).sum();
        let strange: u32 =
            (2u8..).zip(&state.digit).map(|(token, d)| (if RARE.contains(&token) { !d } else { *d } & pattern).count_ones()).sum();
        told + CANDIDATES.saturating_sub(left) / 2 + 2 * strange.saturating_sub(STRANGERS)
    }

    /// A minimal puzzle with the pattern in its solution.
    fn oddagon(&self, rng: &mut Pcg32) -> Option<Oddagon> {
        let (grid, pattern) = self.oddagon_grid(rng)?;
        // There a given takes no candidate from the twelve cells.
        let outside = |cell: usize| cell / 9 >= 6 && cell % 9 >= 6;
        let mut cells: Vec<usize> = (0..grid.len()).filter(|&c| RARE.contains(&grid[c])).collect();
        for _ in 0..TRIES {
            shuffle(rng, &mut cells);
            let mut puzzle = grid.clone();
            let first = cells.iter().copied().find(|&c| outside(c))?;
            let second = cells.iter().copied().find(|&c| outside(c) && grid[c] != grid[first])?;
            cells.iter().filter(|&&c| c != first && c != second).for_each(|&c| puzzle[c] = 1);
            if self.solver.unique(&puzzle).is_some() {
                self.minimise(&mut puzzle, &grid, rng);
                return Some(Oddagon { puzzle, grid, pattern });
            }
        }
        None
    }

    /// A grid and the cells of its pattern.
    fn oddagon_grid(&self, rng: &mut Pcg32) -> Option<(Vec<u8>, u128)> {
        let mut turns = [0; 4].map(|_| below(rng, TURNS.len()));
        // An odd number of boxes turned one way: that cannot be filled.
        if turns.iter().filter(|&&t| t >= 3).count() % 2 == 0 {
            turns[3] = (turns[3] + 3) % 6;
        }
        let mut puzzle = vec![1u8; 81];
        let (guardian, mut of_guardian, mut whole) = (below(rng, 3), 0, 0);
        for (number, (&(top, left), &turn)) in CORNERS.iter().zip(&turns).enumerate() {
            let mut digits: Vec<u8> = RARE.collect();
            shuffle(rng, &mut digits);
            for (row, token) in digits.into_iter().enumerate() {
                let mut cell = (top + row) * 9 + left + TURNS[turn][row];
                whole |= 1 << cell;
                if number == 3 && row == guardian {
                    // This digit stands elsewhere in its box.
                    of_guardian = cell;
                    let pattern: Vec<usize> = (0..3).map(|r| (top + r) * 9 + left + TURNS[turn][r]).collect();
                    let others: Vec<usize> = (0..9).map(|i| (top + i / 3) * 9 + left + i % 3).filter(|c| !pattern.contains(c)).collect();
                    cell = others[below(rng, others.len())];
                }
                puzzle[cell] = token;
            }
        }
        let mut grid = Vec::new();
        let mut pick = |mask: u16| super::generator::nth_bit(mask, below(rng, mask.count_ones() as usize));
        self.solver.search_with(&puzzle, None, 1, &mut pick, &mut |solution| grid = solution.to_vec());
        (!grid.is_empty() && !RARE.contains(&grid[of_guardian])).then_some((grid, whole))
    }
}

#[cfg(test)]
mod tests {
    use hrm_core::task::Sudoku;

    use super::*;
    use crate::data::{GeneratorOptions, Solver, generate};

    /// Boxes in which the cells of `digits` are one in every row and column.
    fn turned(grid: &[u8], digits: &[u8]) -> Vec<bool> {
        let of = |b: usize| (0..9).map(move |i| (b / 3 * 3 + i / 3, b % 3 * 3 + i % 3));
        (0..9)
            .map(|b| {
                let cells: Vec<(usize, usize)> = of(b).filter(|&(r, c)| digits.contains(&grid[r * 9 + c])).collect();
                (0..3).all(|i| cells.iter().any(|&(r, _)| r % 3 == i) && cells.iter().any(|&(_, c)| c % 3 == i))
            })
            .collect()
    }

    #[test]
    fn puzzles_have_the_pattern_and_little_that_tells_something() {
        let n = 8;
        let set = generate(&GeneratorOptions { oddagon: true, seed: 3, ..GeneratorOptions::default() }, n).unwrap();
        let solver = Solver::new(Sudoku::new(9).unwrap());
        for i in 0..n {
            let (puzzle, grid) = (set.input(i), set.label(i));
            assert_eq!(solver.unique(puzzle).as_deref(), Some(grid));
            let givens = |token: u8| puzzle.iter().filter(|&&t| t == token).count();
            let mut digits: Vec<u8> = (2..=10).collect();
            digits.sort_by_key(|&t| givens(t));
            assert_eq!(digits[..3].iter().map(|&t| givens(t)).sum::<usize>(), 2);
            let turned = turned(grid, &digits[..3]);
            let rectangle = |a: usize, b: usize, c: usize, d: usize| [a, b, c, d].iter().filter(|&&k| turned[k]).count() >= 3;
            let found = [(0, 1), (0, 2), (1, 2)]
                .iter()
                .flat_map(|&(r, s)| [(0, 1), (0, 2), (1, 2)].map(|(x, y)| rectangle(3 * r + x, 3 * r + y, 3 * s + x, 3 * s + y)));
            assert!(found.into_iter().any(|f| f), "puzzle {i} has no three such boxes in a rectangle");
            assert!(solver.easy_assumptions(puzzle) <= MOST);
            for cell in 0..81 {
                let mut fewer = puzzle.to_vec();
                if std::mem::replace(&mut fewer[cell], 1) > 1 {
                    assert!(solver.unique(&fewer).is_none(), "puzzle {i} is not minimal");
                }
            }
        }
        // Minimal puzzles of no design say something with most assumptions.
        let plain = generate(&GeneratorOptions { seed: 3, ..GeneratorOptions::default() }, n).unwrap();
        assert!((0..n).all(|i| solver.easy_assumptions(plain.input(i)) > MOST));
    }

    #[test]
    fn the_same_seed_gives_the_same_puzzles_and_other_wishes_are_refused() {
        let o = GeneratorOptions { oddagon: true, seed: 4, ..GeneratorOptions::default() };
        assert_eq!(generate(&o, 3).unwrap(), generate(&o, 5).unwrap().slice(0..3));
        for wrong in [GeneratorOptions { size: 6, ..o.clone() }, GeneratorOptions { hard: true, ..o }] {
            assert!(generate(&wrong, 1).unwrap_err().to_string().contains("oddagons are of size 9"));
        }
    }
}
