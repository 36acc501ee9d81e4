//! Canonical forms under the full symmetry group: equal for two puzzles exactly if a symmetry takes one to the other.
//!
//! The canonical grid is the smallest image, read row by row. Once it is known which row comes to the top, whether the grid is transposed
//! and how the columns are arranged, the digits follow (the top row reads 1, 2, .., n) and so does the order of the other rows, since
//! sorted is smallest. That leaves 2 x 9 x 1,296 arrangements of the 9x9 instead of 10^12. The canonical puzzle is the smallest image of
//! the givens among the symmetries that take its solution to the canonical grid, so the puzzle must have one solution.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use hrm_core::task::{MAX_CELLS, MAX_SIZE, Sudoku};
use rayon::prelude::*;

use super::PuzzleSet;
use super::rng::mix;

/// The canonical solution grid and the canonical puzzle, both as digits (0 blank), `[S]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Canonical {
    /// Smallest image of the solution.
    pub grid: Vec<u8>,
    /// Smallest image of the givens under the symmetries that lead to `grid`.
    pub puzzle: Vec<u8>,
}

impl Canonical {
    /// A fixed hash of the puzzle's class, the same on every machine and in every release.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.grid.iter().chain(&self.puzzle).fold(0x48_52_4d, |h, &d| mix(h ^ u64::from(d)))
    }
}

/// Canonical forms of one size.
#[derive(Clone, Debug)]
pub struct Canonizer {
    sudoku: Sudoku,
    /// Arrangements of the columns: which old column stands at each place.
    columns: Vec<[u8; MAX_SIZE]>,
}

fn permutations(n: u8) -> Vec<Vec<u8>> {
    if n == 0 {
        return vec![vec![]];
    }
    let shorter = permutations(n - 1);
    shorter.iter().flat_map(|p| (0..=p.len()).map(move |at| [&p[..at], &[n - 1], &p[at..]].concat())).collect()
}

impl Canonizer {
    /// The canonizer of one size.
    #[must_use]
    pub fn new(sudoku: Sudoku) -> Self {
        let width = sudoku.box_cols();
        let within = permutations(width as u8);
        let mut columns = Vec::new();
        for order in permutations((sudoku.size() / width) as u8) {
            // One choice of `within` for each stack, counted like the digits of a number.
            for mut choice in 0..within.len().pow(order.len() as u32) {
                let mut line = [0; MAX_SIZE];
                for (stack, &old) in order.iter().enumerate() {
                    for (i, &w) in within[choice % within.len()].iter().enumerate() {
                        line[stack * width + i] = old * width as u8 + w;
                    }
                    choice /= within.len();
                }
                columns.push(line);
            }
        }
        Self { sudoku, columns }
    }

    /// The canonical form of a puzzle and its only solution (tokens).
    ///
    /// # Errors
    /// `label` is not a valid grid that keeps the givens of `input`.
    pub fn canonical(&self, input: &[u8], label: &[u8]) -> Result<Canonical> {
        let verdict = self.sudoku.verify(input, label);
        ensure!(verdict.is_valid(), "{}", super::set::describe(self.sudoku, verdict));
        let n = self.sudoku.size();
        let mut best: Option<([u8; MAX_CELLS], [u8; MAX_CELLS])> = None;
        for transpose in [false, true] {
            if transpose && self.sudoku.box_rows() != self.sudoku.box_cols() {
                break;
            }
            let at = |r: usize, c: usize| if transpose { c * n + r } else { r * n + c };
            let mut grid = [[0u8; MAX_SIZE]; MAX_SIZE];
            for (r, row) in grid.iter_mut().enumerate().take(n) {
                for (c, digit) in row.iter_mut().enumerate().take(n) {
                    *digit = label[at(r, c)] - 1;
                }
            }
            for columns in &self.columns {
                for top in 0..n {
                    self.arrange(&grid, columns, top, &mut best, &|r, c| input[at(r, c)] > 1);
                }
            }
        }
        let (grid, puzzle) = best.unwrap_or(([0; MAX_CELLS], [0; MAX_CELLS]));
        Ok(Canonical { grid: grid[..n * n].to_vec(), puzzle: puzzle[..n * n].to_vec() })
    }

    /// Completes one arrangement and keeps it if it is smaller than the best.
    fn arrange(
        &self,
        grid: &[[u8; MAX_SIZE]; MAX_SIZE],
        columns: &[u8; MAX_SIZE],
        top: usize,
        best: &mut Option<([u8; MAX_CELLS], [u8; MAX_CELLS])>,
        given: &dyn Fn(usize, usize) -> bool,
    ) {
        let (n, height) = (self.sudoku.size(), self.sudoku.box_rows());
        let mut relabel = [0u8; MAX_SIZE + 1];
        for (c, &column) in columns[..n].iter().enumerate() {
            relabel[usize::from(grid[top][usize::from(column)])] = c as u8 + 1;
        }
        // Rows sort by their first digit; bands sort by their first row's, the band of the top row (digit 1) leads by itself.
        let first = usize::from(columns[0]);
        let key = |row: usize| relabel[usize::from(grid[row][first])];
        // The second row decides nearly always: look at it before all is sorted.
        let mates = (top / height * height..(top / height + 1) * height).filter(|&row| row != top);
        if let (Some((grid_best, _)), Some(second)) = (best.as_ref(), mates.min_by_key(|&row| key(row))) {
            let digits = columns[..n].iter().map(|&column| relabel[usize::from(grid[second][usize::from(column)])]);
            if digits.gt(grid_best[n..2 * n].iter().copied()) {
                return;
            }
        }
        let mut order = [0usize; MAX_SIZE];
        for (i, o) in order.iter_mut().enumerate() {
            *o = i;
        }
        for band in order[..n].chunks_mut(height) {
            band.sort_unstable_by_key(|&row| key(row));
        }
        let mut bands = [0usize; MAX_SIZE];
        for (b, start) in bands.iter_mut().enumerate() {
            *start = b * height;
        }
        bands[..n / height].sort_unstable_by_key(|&start| key(order[start]));
        let mut image = [0u8; MAX_CELLS];
        let mut smaller = best.is_none();
        let rows = bands[..n / height].iter().flat_map(|&start| order[start..start + height].iter());
        for (i, &row) in rows.clone().enumerate() {
            for (c, &column) in columns[..n].iter().enumerate() {
                let digit = relabel[usize::from(grid[row][usize::from(column)])];
                image[i * n + c] = digit;
                if !smaller && let Some((grid, _)) = best {
                    if digit > grid[i * n + c] {
                        return;
                    }
                    smaller = digit < grid[i * n + c];
                }
            }
        }
        let mut puzzle = [0u8; MAX_CELLS];
        for (i, &row) in rows.enumerate() {
            for (c, &column) in columns[..n].iter().enumerate() {
                if given(row, usize::from(column)) {
                    puzzle[i * n + c] = image[i * n + c];
                }
            }
        }
        if smaller || best.is_some_and(|(_, p)| puzzle < p) {
            *best = Some((image, puzzle));
        }
    }
}

/// Drops the puzzles of `set` whose solution grid is equivalent to one of a held-out set: the strictest split, for files without sidecars.
/// Returns the rest and the number dropped. Takes about a millisecond a puzzle and thread for 9x9.
///
/// # Errors
/// The sizes differ.
pub fn drop_shared_grids(set: &PuzzleSet, held_out: &[&PuzzleSet]) -> Result<(PuzzleSet, usize)> {
    let canonizer = Canonizer::new(set.sudoku);
    // The givens do not matter here, and without them ties need no second look.
    let blank = vec![1; set.sudoku.cells()];
    let grids = |set: &PuzzleSet| -> Result<Vec<Vec<u8>>> {
        (0..set.len()).into_par_iter().map(|i| Ok(canonizer.canonical(&blank, set.label(i))?.grid)).collect()
    };
    let mut unseen = HashSet::new();
    for other in held_out {
        let (found, expected) = (other.sudoku.size(), set.sudoku.size());
        ensure!(found == expected, "the held-out puzzles are of size {found}, expected {expected}");
        unseen.extend(grids(other)?);
    }
    let own = grids(set)?;
    let rest = set.select((0..set.len()).filter(|&i| !unseen.contains(&own[i])));
    let dropped = set.len() - rest.len();
    Ok((rest, dropped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::generator;
    use crate::data::{GeneratorOptions, generate};
    use hrm_core::task::Symmetry;
    use rand_pcg::rand_core::Rng;

    fn image(s: &Symmetry, tokens: &[u8]) -> Vec<u8> {
        let mut out = vec![0; tokens.len()];
        s.apply(tokens, &mut out).unwrap();
        out
    }

    #[test]
    fn equivalent_puzzles_have_one_form_and_others_another() {
        for (size, n, tries) in [(4, 20, 40), (6, 20, 20), (9, 3, 4)] {
            let set = generate(&GeneratorOptions { size, seed: 9, ..GeneratorOptions::default() }, n).unwrap();
            let canonizer = Canonizer::new(set.sudoku);
            let mut rng = generator(1, 2);
            for i in 0..n {
                let form = canonizer.canonical(set.input(i), set.label(i)).unwrap();
                assert!(form.puzzle.iter().zip(&form.grid).all(|(&p, &g)| p == 0 || p == g));
                assert_eq!(form.puzzle.iter().filter(|&&d| d > 0).count(), set.input(i).iter().filter(|&&t| t > 1).count());
                for _ in 0..tries {
                    let s = Symmetry::random(&mut || rng.next_u32(), set.sudoku);
                    let (p, l) = (image(&s, set.input(i)), image(&s, set.label(i)));
                    assert_eq!(canonizer.canonical(&p, &l).unwrap(), form);
                }
                // One given less is another puzzle.
                let mut fewer = set.input(i).to_vec();
                *fewer.iter_mut().find(|t| **t > 1).unwrap() = 1;
                let other = canonizer.canonical(&fewer, set.label(i)).unwrap();
                assert_eq!(other.grid, form.grid);
                assert_ne!(other, form);
                assert_ne!(other.hash(), form.hash());
            }
        }
    }

    #[test]
    fn puzzles_of_equivalent_grids_are_dropped() {
        let set = generate(&GeneratorOptions { seed: 3, ..GeneratorOptions::default() }, 6).unwrap();
        let mut rng = generator(1, 1);
        // Other givens on images of the grids 1 and 4.
        let mut held = PuzzleSet::new(set.sudoku);
        for i in [1, 4] {
            let label = image(&Symmetry::random(&mut || rng.next_u32(), set.sudoku), set.label(i));
            held.push(&label, &label, 0, "held").unwrap();
        }
        assert_eq!(drop_shared_grids(&set, &[&held]).unwrap(), (set.select([0, 2, 3, 5]), 2));
        let small = PuzzleSet::new(Sudoku::new(4).unwrap());
        assert!(drop_shared_grids(&set, &[&small]).unwrap_err().to_string().contains("size 4, expected 9"));
    }

    #[test]
    fn numbers_of_classes_are_the_known_ones() {
        // 2 classes of 4x4 grids.
        let sudoku = Sudoku::new(4).unwrap();
        let canonizer = Canonizer::new(sudoku);
        let mut classes = HashSet::new();
        crate::data::Solver::new(sudoku).search(&[1; 16], u32::MAX, &mut |grid| {
            classes.insert(canonizer.canonical(&[1; 16], grid).unwrap().grid);
        });
        assert_eq!(classes.len(), 2);
    }

    #[test]
    fn matches_brute_force_on_4x4() {
        let sudoku = Sudoku::new(4).unwrap();
        let canonizer = Canonizer::new(sudoku);
        let set = generate(&GeneratorOptions { size: 4, seed: 5, ..GeneratorOptions::default() }, 30).unwrap();
        for i in 0..set.len() {
            let mut smallest: Option<(Vec<u8>, Vec<u8>)> = None;
            for g in 0..Symmetry::geometries(sudoku) {
                let s = Symmetry::geometry(sudoku, g);
                let grid = image(&s, set.label(i));
                let mut digits = [0u8; 4];
                for (c, &t) in grid[..4].iter().enumerate() {
                    digits[usize::from(t) - 2] = c as u8 + 1;
                }
                let both = s.compose(&Symmetry::relabel(sudoku, &digits).unwrap()).unwrap();
                let less = |t: Vec<u8>| t.into_iter().map(|t| t - 1).collect::<Vec<u8>>();
                let pair = (less(image(&both, set.label(i))), less(image(&both, set.input(i))));
                if smallest.as_ref().is_none_or(|s| pair < *s) {
                    smallest = Some(pair);
                }
            }
            let form = canonizer.canonical(set.input(i), set.label(i)).unwrap();
            assert_eq!(smallest.unwrap(), (form.grid, form.puzzle));
        }
    }
}
