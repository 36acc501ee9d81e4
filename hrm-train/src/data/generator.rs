//! Puzzles of our own: one solution, no given that could go, rated, the same for the same seed on any number of threads.
//!
//! *Plain*: a random full grid, from which givens are taken in random order as long as the solution stays the only one. *Hard*: a walk
//! through the minimal puzzles. A step takes one or two givens away, picks one of the solutions that appear, adds givens until it is the
//! only one and makes the result minimal again; steps to puzzles that take more guesses are preferred, as in simulated annealing.
//!
//! *Oddagon*: a walk through the minimal puzzles of one grid, with the pattern of the hardest collections in their solution (oddagon.rs).
//!
//! **Train and test.** A puzzle's side follows from its class under the full symmetry group alone, by a fixed hash: one class in eight is
//! test. So puzzles of [`Side::Train`] and [`Side::Test`] are never equivalent, whatever the seeds. For 9x9 the class is that of the solution
//! grid, so the two sides do not even share a grid; 4x4 has only two grids and 6x6 a few dozen, there it is the class of the puzzle. The
//! 36 classes of minimal 4x4 puzzles would make poor sets: [`GeneratorOptions::extra_givens`] widens them. What [`super::Sampler`] makes
//! easier has more givens and so may leave its class: do not combine it with extra givens if no test puzzle may be seen.

use std::collections::HashSet;
use std::fmt;

use anyhow::{Context, Result, ensure};
use hrm_core::task::{Sudoku, Symmetry};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;
use rayon::prelude::*;

use super::canonical::Canonizer;
use super::rng::{below, generator, shuffle, unit};
use super::{PuzzleSet, Solver};

/// Which classes of puzzles to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// All of them.
    #[default]
    Any,
    /// Seven classes in eight.
    Train,
    /// The others.
    Test,
}

/// What to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// 4, 6 or 9.
    pub size: usize,
    /// Everything follows from this and the number of puzzles.
    pub seed: u64,
    /// Whether to search hard puzzles.
    pub hard: bool,
    /// Puzzles around a trivalue oddagon instead; 9x9 only.
    pub oddagon: bool,
    /// Up to so many givens are added to a minimal puzzle, the number uniform from 0.
    pub extra_givens: usize,
    /// Train or test classes.
    pub side: Side,
}

impl Default for GeneratorOptions {
    /// Plain minimal 9x9 puzzles, seed 0, of all classes.
    fn default() -> Self {
        Self { size: 9, seed: 0, hard: false, oddagon: false, extra_givens: 0, side: Side::Any }
    }
}

impl GeneratorOptions {
    /// Name of the kind of puzzles.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            o if o.oddagon => "oddagon",
            o if o.hard => "hard",
            _ => "minimal",
        }
    }
}

/// A hard walk: steps before its first puzzle is given (at least, at most), puzzles, steps at most.
const WARM_UP: (usize, usize) = (1000, 3000);
const GIVEN: usize = 40;
const STEPS: usize = 8000;
/// Solutions looked at in one step.
const VICINITY: u32 = 48;
/// Probability that a step takes two givens away instead of one.
const TWO: f64 = 0.1;
/// Temperature of the walk, in powers of two of (1 + guesses).
const TEMPERATURE: f64 = 0.35;
/// What a given more is worth, in the same unit: without it the walk drifts to fewer givens than the hardest known puzzles have.
const GIVEN_WORTH: f64 = 0.4;
/// Effort beyond which harder is not better: the hardest puzzles of Sudoku-Extreme.
const CEILING: f64 = 9.0;
/// A step is given up early if the puzzle falls so far below the present effort before it is made minimal.
const MARGIN: f64 = 2.0;
/// A minimal puzzle not farther below is given, whether or not the walk goes there.
const NEAR: f64 = 1.0;
/// Chains made before duplicates are looked for.
const BLOCK: u64 = 256;
/// So many chains must give so many new puzzles, else nearly all there are have been found.
const PATIENCE: (u64, usize) = (32 * BLOCK, 32);

/// A puzzle with its only solution.
struct Puzzle {
    input: Vec<u8>,
    label: Vec<u8>,
    rating: u32,
}

/// A generator with its tables.
pub struct Generator {
    options: GeneratorOptions,
    pub(super) solver: Solver,
    canonizer: Option<Canonizer>,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Generates `n` different puzzles on all threads; see [`Generator::generate`].
///
/// # Errors
/// Those of [`Generator::new`] and [`Generator::generate`].
pub fn generate(options: &GeneratorOptions, n: usize) -> Result<PuzzleSet> {
    Generator::new(options.clone())?.generate(n)
}

impl Generator {
    /// Builds the tables.
    ///
    /// # Errors
    /// A size other than 4, 6, 9.
    pub fn new(options: GeneratorOptions) -> Result<Self> {
        let sudoku = Sudoku::new(options.size).with_context(|| format!("size is {}, expected 4, 6 or 9", options.size))?;
        ensure!(!options.oddagon || options.size == 9 && !options.hard, "oddagons are of size 9 and not of the walk of `hard`");
        let canonizer = (options.side != Side::Any).then(|| Canonizer::new(sudoku));
        Ok(Self { options, solver: Solver::new(sudoku), canonizer })
    }

    /// The first `n` puzzles, all different; a longer run begins with the same puzzles.
    ///
    /// # Errors
    /// There are fewer than `n` different puzzles, or the last ones are too rare to be found.
    pub fn generate(&self, n: usize) -> Result<PuzzleSet> {
        let mut set = PuzzleSet::new(self.solver.sudoku());
        let mut seen = HashSet::new();
        let source = format!("hrm_{0}x{0}_{1}", self.options.size, self.options.kind());
        let (mut block, mut passed, mut found) = (0u64, 0, 0);
        while set.len() < n {
            // Small runs do not pay for a whole block.
            let left = ((n - set.len()) as u64).div_ceil(if self.options.hard { GIVEN as u64 } else { 1 });
            let end = block + left.clamp(1, BLOCK);
            let chains: Vec<Vec<Puzzle>> = (block..end).into_par_iter().map(|chain| self.chain(chain)).collect();
            passed += end - block;
            block = end;
            for puzzle in chains.into_iter().flatten() {
                if set.len() < n && seen.insert(puzzle.input.clone()) {
                    set.push(&puzzle.input, &puzzle.label, puzzle.rating, &source).context("the generator made a wrong puzzle")?;
                }
            }
            if passed >= PATIENCE.0 {
                ensure!(
                    set.len() >= n.min(found + PATIENCE.1),
                    "found {} different puzzles and hardly any new one since, asked for {n}: ask for fewer or for more extra givens",
                    set.len()
                );
                (passed, found) = (0, set.len());
            }
        }
        Ok(set)
    }

    /// The puzzles of one chain, a pure function of seed and number.
    fn chain(&self, chain: u64) -> Vec<Puzzle> {
        let mut rng = generator(self.options.seed, chain);
        if self.options.oddagon {
            let mut out = Vec::new();
            for (input, label) in self.oddagons(&mut rng) {
                self.emit(&input, &label, &mut rng, &mut out);
            }
            return out;
        }
        let label = self.random_grid(&mut rng);
        let mut input = label.clone();
        self.minimise(&mut input, &label, &mut rng);
        let mut out = Vec::new();
        if self.options.hard {
            self.walk(input, &mut rng, &mut out);
        } else {
            self.emit(&input, &label, &mut rng, &mut out);
        }
        out
    }

    /// Adds the extra givens and keeps the puzzle if it is of the side asked for.
    fn emit(&self, input: &[u8], label: &[u8], rng: &mut Pcg32, out: &mut Vec<Puzzle>) {
        let mut input = input.to_vec();
        let mut open: Vec<usize> = (0..input.len()).filter(|&c| input[c] == 1).collect();
        let extra = below(rng, self.options.extra_givens.min(open.len().saturating_sub(1)) + 1);
        shuffle(rng, &mut open);
        for &cell in &open[..extra] {
            input[cell] = label[cell];
        }
        if self.wanted(&input, label) {
            let rating = self.solver.rate(&input).unwrap_or(0);
            out.push(Puzzle { input, label: label.to_vec(), rating });
        }
    }

    /// Whether a puzzle is of the side asked for; of size 9 the grid alone decides.
    pub(super) fn wanted(&self, input: &[u8], label: &[u8]) -> bool {
        // A puzzle without a canonical form would be a fault of the generator; push() then tells it.
        let test = self.canonizer.as_ref().and_then(|c| is_test(c, self.solver.sudoku(), input, label));
        test.is_none_or(|test| test == (self.options.side == Side::Test))
    }

    /// A random full grid. Not exactly uniform: digits are tried in random order, then a random symmetry is applied.
    fn random_grid(&self, rng: &mut Pcg32) -> Vec<u8> {
        let sudoku = self.solver.sudoku();
        let mut empty = vec![1; sudoku.cells()];
        // A random first row and column, which always fit together, leave the search little to prefer.
        let n = sudoku.size();
        let mut digits: Vec<u8> = (2..n as u8 + 2).collect();
        shuffle(rng, &mut digits);
        empty[..n].copy_from_slice(&digits);
        let mut grid = Vec::new();
        self.solver.search_with(&empty, None, 1, &mut |mask| nth_bit(mask, below(rng, mask.count_ones() as usize)), &mut |solution| {
            grid = solution.to_vec();
        });
        let symmetry = Symmetry::random(&mut || rng.next_u32(), sudoku);
        let mut out = grid.clone();
        // Lengths agree by construction; without an image the grid itself is as good.
        if symmetry.apply(&grid, &mut out).is_err() {
            out = grid;
        }
        out
    }

    /// Takes givens away in random order while the solution stays the only one.
    pub(super) fn minimise(&self, puzzle: &mut [u8], solution: &[u8], rng: &mut Pcg32) {
        let mut givens: Vec<usize> = (0..puzzle.len()).filter(|&c| puzzle[c] > 1).collect();
        shuffle(rng, &mut givens);
        for cell in givens {
            puzzle[cell] = 1;
            if self.solver.has_other(puzzle, cell, solution[cell]) {
                puzzle[cell] = solution[cell];
            }
        }
    }

    /// The fitness of the walk: guesses of the whole proof that there is one solution, less a matter of luck than the rating.
    fn effort(&self, puzzle: &[u8]) -> f64 {
        let guesses = self.solver.search(puzzle, 2, &mut |_| {}).guesses;
        f64::from(1 + guesses).log2().min(CEILING) + GIVEN_WORTH * puzzle.iter().filter(|&&t| t > 1).count() as f64
    }

    fn walk(&self, mut input: Vec<u8>, rng: &mut Pcg32, out: &mut Vec<Puzzle>) {
        let warm_up = WARM_UP.0 + below(rng, WARM_UP.1 - WARM_UP.0 + 1);
        let mut effort = self.effort(&input);
        let mut given = 0;
        for step in 1..=STEPS {
            let Some((puzzle, solution, next)) = self.neighbour(&input, effort - MARGIN, rng) else { continue };
            if step > warm_up && next >= effort - NEAR {
                self.emit(&puzzle, &solution, rng, out);
                given += 1;
                if given == GIVEN {
                    break;
                }
            }
            if next >= effort || unit(rng) < ((next - effort) / TEMPERATURE).exp() {
                (input, effort) = (puzzle, next);
            }
        }
    }

    /// A minimal puzzle one or two givens away, its solution and its effort; none if it is bound to fall below `floor`.
    fn neighbour(&self, input: &[u8], floor: f64, rng: &mut Pcg32) -> Option<(Vec<u8>, Vec<u8>, f64)> {
        let mut puzzle = input.to_vec();
        let mut givens: Vec<usize> = (0..puzzle.len()).filter(|&c| puzzle[c] > 1).collect();
        shuffle(rng, &mut givens);
        for &cell in &givens[..(1 + usize::from(unit(rng) < TWO)).min(givens.len())] {
            puzzle[cell] = 1;
        }
        let mut solutions: Vec<Vec<u8>> = Vec::new();
        let mut pick = |mask: u16| nth_bit(mask, below(rng, mask.count_ones() as usize));
        self.solver.search_with(&puzzle, None, VICINITY, &mut pick, &mut |solution| solutions.push(solution.to_vec()));
        let solution = solutions.get(below(rng, solutions.len().max(1)))?.clone();
        // The given that excludes most of the other solutions, the first from a random cell on, until none is known.
        solutions.retain(|s| *s != solution);
        while !solutions.is_empty() {
            let excludes = |cell: usize| solutions.iter().filter(|s| s[cell] != solution[cell]).count();
            let shift = below(rng, puzzle.len());
            let cell = (0..puzzle.len()).map(|c| (c + shift) % puzzle.len()).max_by_key(|&c| excludes(c))?;
            puzzle[cell] = solution[cell];
            solutions.retain(|s| s[cell] == solution[cell]);
        }
        // The list may have been cut off: make sure.
        while let Some(other) = self.another(&puzzle, &solution) {
            let differ: Vec<usize> = (0..puzzle.len()).filter(|&c| other[c] != solution[c]).collect();
            let cell = *differ.get(below(rng, differ.len().max(1)))?;
            puzzle[cell] = solution[cell];
        }
        if self.effort(&puzzle) < floor {
            return None;
        }
        self.minimise(&mut puzzle, &solution, rng);
        let effort = self.effort(&puzzle);
        Some((puzzle, solution, effort))
    }

    /// A solution other than the given one.
    fn another(&self, puzzle: &[u8], solution: &[u8]) -> Option<Vec<u8>> {
        let mut other = None;
        self.solver.search(puzzle, 2, &mut |s| {
            if s != solution {
                other = Some(s.to_vec());
            }
        });
        other
    }
}

/// Whether a puzzle's class is a test class; none if `label` is no solution.
#[must_use]
pub fn is_test(canonizer: &Canonizer, sudoku: Sudoku, input: &[u8], label: &[u8]) -> Option<bool> {
    let mut form = canonizer.canonical(input, label).ok()?;
    if sudoku.size() == 9 {
        form.puzzle.clear();
    }
    Some(form.hash().is_multiple_of(8))
}

/// The number of the set bit `i` (from 0) of `mask`, which has more.
pub(super) fn nth_bit(mut mask: u16, i: usize) -> u32 {
    for _ in 0..i {
        mask &= mask - 1;
    }
    mask.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size: usize) -> GeneratorOptions {
        GeneratorOptions { size, seed: 7, ..GeneratorOptions::default() }
    }

    #[test]
    fn puzzles_have_one_solution_and_are_minimal_and_different() {
        for (size, n, hard) in [(4, 60, false), (6, 40, false), (9, 20, false), (9, 18, true), (6, 16, true)] {
            let set = generate(&GeneratorOptions { hard, ..options(size) }, n).unwrap();
            assert_eq!(set.len(), n);
            let solver = Solver::new(set.sudoku);
            for i in 0..n {
                assert_eq!(solver.unique(set.input(i)).as_deref(), Some(set.label(i)));
                assert_eq!(solver.rate(set.input(i)), Some(set.ratings[i]));
                for cell in 0..set.sudoku.cells() {
                    let mut fewer = set.input(i).to_vec();
                    if std::mem::replace(&mut fewer[cell], 1) > 1 {
                        assert!(solver.unique(&fewer).is_none());
                    }
                }
            }
            assert_eq!(set.clone().remove_duplicates(), 0);
        }
    }

    #[test]
    fn same_seed_same_puzzles_on_any_number_of_threads() {
        for hard in [false, true] {
            let o = GeneratorOptions { hard, ..options(9) };
            let on =
                |threads, n| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| generate(&o, n).unwrap());
            let set = on(1, 20);
            assert_eq!(on(3, 20), set);
            assert_eq!(on(2, 30).slice(0..20), set);
            assert_ne!(generate(&GeneratorOptions { seed: 8, ..o.clone() }, 20).unwrap(), set);
        }
    }

    #[test]
    fn hard_puzzles_are_harder() {
        let mean = |hard| {
            let set = generate(&GeneratorOptions { hard, ..options(9) }, 64).unwrap();
            set.ratings.iter().map(|&r| f64::from(r)).sum::<f64>() / 64.0
        };
        let (plain, hard) = (mean(false), mean(true));
        assert!(hard > 4.0 * plain, "mean rating {plain} plain, {hard} hard");
    }

    #[test]
    fn train_and_test_share_no_class() {
        for size in [4, 6] {
            let sudoku = Sudoku::new(size).unwrap();
            let canonizer = Canonizer::new(sudoku);
            let classes = |side, seed| {
                let set = generate(&GeneratorOptions { side, seed, extra_givens: 3, ..options(size) }, 300).unwrap();
                (0..set.len()).map(|i| canonizer.canonical(set.input(i), set.label(i)).unwrap()).collect::<HashSet<_>>()
            };
            // The same seed walks through the same puzzles: only the split keeps them apart.
            let (train, test) = (classes(Side::Train, 1), classes(Side::Test, 1));
            assert!(train.is_disjoint(&test));
            assert!(train.len() > 100 && test.len() > 20, "{} and {} classes", train.len(), test.len());
        }
        let grids = |side| {
            let set = generate(&GeneratorOptions { side, ..options(9) }, 10).unwrap();
            let canonizer = Canonizer::new(set.sudoku);
            (0..10).map(|i| canonizer.canonical(set.input(i), set.label(i)).unwrap().grid).collect::<HashSet<_>>()
        };
        assert!(grids(Side::Train).is_disjoint(&grids(Side::Test)));
    }

    #[test]
    fn impossible_wishes_are_told() {
        assert!(generate(&options(5), 1).unwrap_err().to_string().contains("size is 5, expected 4, 6 or 9"));
        let many = generate(&GeneratorOptions { side: Side::Test, ..options(4) }, 80_000).unwrap_err().to_string();
        assert!(many.contains("asked for 80000"), "{many}");
    }
}
