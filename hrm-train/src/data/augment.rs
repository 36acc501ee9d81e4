//! What training draws: a puzzle, perhaps made easier, under a random symmetry. Draw `k` is a pure function of (seed, `k`), so a resumed
//! run goes on with the same puzzles and the number of threads does not matter.

use anyhow::{Result, ensure};
use hrm_core::task::{MAX_CELLS, PuzzleError, Symmetry};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

use super::PuzzleSet;
use super::rng::{below, generator, mix, permuted, unit};

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Seed of order, symmetries and easier puzzles.
    pub seed: u64,
    /// Probability that a puzzle is made easier, 0 to 1; 0.5 in Ren & Liu, arXiv 2601.10679 (data mixing).
    pub easier: f64,
    /// Draws over which the probability falls in a straight line from 1 to `easier`; 0: it is `easier` from the first.
    pub easier_first: u64,
    /// How many blanks of such a puzzle are filled at most; 0: all but one.
    pub easier_most: usize,
    /// Whether each draw gets a random symmetry of the full group.
    pub symmetries: bool,
    /// Whether every puzzle comes once before any comes again (else each draw is independent).
    pub epochs: bool,
    /// How many of the last puzzles of the set come `times` times an epoch.
    pub last: usize,
    /// That number, 1 or more.
    pub times: u64,
}

impl Default for SamplerOptions {
    /// Seed 0, half of the puzzles made easier at any time, symmetries, whole epochs, every puzzle once an epoch.
    fn default() -> Self {
        Self { seed: 0, easier: 0.5, easier_first: 0, easier_most: 0, symmetries: true, epochs: true, last: 0, times: 1 }
    }
}

/// Draws training pairs from a set.
#[derive(Clone, Copy, Debug)]
pub struct Sampler<'a> {
    set: &'a PuzzleSet,
    options: SamplerOptions,
}

impl<'a> Sampler<'a> {
    /// A sampler over all puzzles of a set.
    ///
    /// # Errors
    /// The set is empty or has fewer than `last` puzzles, `times` is 0, or `easier` is not between 0 and 1.
    pub fn new(set: &'a PuzzleSet, options: SamplerOptions) -> Result<Self> {
        ensure!(!set.is_empty(), "there are no puzzles to draw from");
        ensure!((0.0..=1.0).contains(&options.easier), "easier is {}, expected a probability from 0 to 1", options.easier);
        ensure!(options.last <= set.len() && options.times > 0, "{} of {} puzzles {} times", options.last, set.len(), options.times);
        Ok(Self { set, options })
    }

    /// Probability that draw `k` is made easier.
    #[must_use]
    pub fn easier(&self, k: u64) -> f64 {
        let SamplerOptions { easier, easier_first, .. } = self.options;
        if k < easier_first { easier + (1.0 - easier) * (1.0 - k as f64 / easier_first as f64) } else { easier }
    }

    /// The puzzle of draw `k`.
    #[must_use]
    pub fn index(&self, k: u64) -> usize {
        let SamplerOptions { seed, epochs, last, times, .. } = self.options;
        let n = self.set.len() as u64 + last as u64 * (times - 1);
        let drawn = if epochs {
            permuted(seed, k / n, k % n, n) as usize
        } else {
            ((u128::from(mix(mix(seed) ^ !k)) * u128::from(n)) >> 64) as usize
        };
        match drawn.checked_sub(self.set.len()) {
            Some(again) => self.set.len() - last + again % last,
            None => drawn,
        }
    }

    /// Writes draw `k`: `input` and `label` receive the tokens of a puzzle and its answer, `[S]` each.
    ///
    /// # Errors
    /// A buffer has another length than `S`.
    pub fn draw(&self, k: u64, input: &mut [u8], label: &mut [u8]) -> Result<(), PuzzleError> {
        let i = self.index(k);
        let expected = self.set.sudoku.cells();
        for found in [input.len(), label.len()] {
            if found != expected {
                return Err(PuzzleError::Buffer { found, expected });
            }
        }
        let mut rng = generator(self.options.seed, k);
        let mut puzzle = [0u8; MAX_CELLS];
        let puzzle = &mut puzzle[..expected];
        puzzle.copy_from_slice(self.set.input(i));
        if unit(&mut rng) < self.easier(k) {
            make_easier(puzzle, self.set.label(i), self.options.easier_most, &mut rng);
        }
        let symmetry = if self.options.symmetries {
            Symmetry::random(&mut || rng.next_u32(), self.set.sudoku)
        } else {
            Symmetry::identity(self.set.sudoku)
        };
        symmetry.apply(puzzle, input)?;
        symmetry.apply(self.set.label(i), label)
    }
}

/// Fills some blanks from the solution: of `b` blanks `1..=b - 1`, uniform in number and place (Ren & Liu, data mixing), so one blank or
/// more stays; with `most` above 0 at most so many. A puzzle with one blank or none stays as it is.
pub fn make_easier(puzzle: &mut [u8], solution: &[u8], most: usize, rng: &mut Pcg32) {
    let blanks = puzzle.iter().filter(|&&t| t == 1).count();
    if blanks < 2 {
        return;
    }
    let most = if most == 0 { blanks - 1 } else { most.min(blanks - 1) };
    let mut needed = 1 + below(rng, most);
    let mut left = blanks;
    // Selection sampling: each subset of `needed` blanks is equally likely.
    for (token, &answer) in puzzle.iter_mut().zip(solution) {
        if *token == 1 {
            if below(rng, left) < needed {
                *token = answer;
                needed -= 1;
            }
            left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{GeneratorOptions, generate};
    use proptest::prelude::*;

    fn some() -> PuzzleSet {
        generate(&GeneratorOptions { size: 6, seed: 4, ..GeneratorOptions::default() }, 23).unwrap()
    }

    fn draw(sampler: &Sampler<'_>, k: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut input, mut label) = (vec![0; 36], vec![0; 36]);
        sampler.draw(k, &mut input, &mut label).unwrap();
        (input, label)
    }

    #[test]
    fn an_epoch_is_every_puzzle_once() {
        let set = some();
        let sampler = Sampler::new(&set, SamplerOptions { easier: 0.0, symmetries: false, ..SamplerOptions::default() }).unwrap();
        for epoch in 0..3u64 {
            let mut seen: Vec<_> = (0..23).map(|i| draw(&sampler, epoch * 23 + i)).collect();
            seen.sort();
            let mut all: Vec<_> = (0..23).map(|i| (set.input(i).to_vec(), set.label(i).to_vec())).collect();
            all.sort();
            assert_eq!(seen, all);
        }
        assert_ne!((0..23).map(|k| sampler.index(k)).collect::<Vec<_>>(), (23..46).map(|k| sampler.index(k)).collect::<Vec<_>>());
        let free = Sampler::new(&set, SamplerOptions { epochs: false, ..SamplerOptions::default() }).unwrap();
        let mut count = [0; 23];
        (0..23_000).for_each(|k| count[free.index(k)] += 1);
        assert!(count.iter().all(|c| (850..1150).contains(c)), "{count:?}");
    }

    #[test]
    fn the_last_puzzles_come_several_times_an_epoch() {
        let set = some();
        for epochs in [true, false] {
            let sampler = Sampler::new(&set, SamplerOptions { last: 3, times: 4, epochs, ..SamplerOptions::default() }).unwrap();
            let mut count = [0; 23];
            (0..32_000).for_each(|k| count[sampler.index(k)] += 1);
            let (once, often) = count.split_at(20);
            assert!(once.iter().all(|c| (850..1150).contains(c)) && often.iter().all(|c| (3700..4300).contains(c)), "{count:?}");
        }
    }

    #[test]
    fn draws_are_right_and_depend_on_seed_and_number_only() {
        let set = some();
        let options = SamplerOptions { seed: 3, ..SamplerOptions::default() };
        let sampler = Sampler::new(&set, options).unwrap();
        let mut easier = 0;
        let mut blanks = std::collections::BTreeSet::new();
        for k in 0..2000 {
            let (input, label) = draw(&sampler, k);
            assert!(set.sudoku.verify(&input, &label).is_valid());
            let count = |tokens: &[u8]| tokens.iter().filter(|&&t| t == 1).count();
            let (now, before) = (count(&input), count(set.input(sampler.index(k))));
            assert!(now >= 1 && now <= before);
            easier += u32::from(now < before);
            blanks.insert(now);
        }
        assert!((880..1120).contains(&easier), "{easier}");
        assert!(blanks.contains(&1) && blanks.len() > 20, "{blanks:?}");
        let again = Sampler::new(&set, options).unwrap();
        assert!([1999, 5, 1000].into_iter().all(|k| draw(&again, k) == draw(&sampler, k)));
        let other = Sampler::new(&set, SamplerOptions { seed: 4, ..options }).unwrap();
        assert!((0..23).any(|k| draw(&other, k) != draw(&sampler, k)));
        // The second epoch shows the same puzzle in another form.
        assert!((0..2000).map(|k| draw(&sampler, k).1).collect::<std::collections::HashSet<_>>().len() > 1900);
    }

    #[test]
    fn easier_puzzles_come_first_and_the_rest_is_as_it_was() {
        let set = some();
        let steady = SamplerOptions { seed: 3, easier: 0.25, symmetries: false, ..SamplerOptions::default() };
        let before = Sampler::new(&set, steady).unwrap();
        let sampler = Sampler::new(&set, SamplerOptions { easier_first: 4000, ..steady }).unwrap();
        assert_eq!([0, 1000, 2000, 4000, u64::MAX].map(|k| sampler.easier(k)), [1.0, 0.8125, 0.625, 0.25, 0.25]);
        let easier = |from: u64| {
            let made = |k: &u64| draw(&sampler, *k).0 != set.input(sampler.index(*k));
            (from..from + 1000).filter(made).count()
        };
        let counts = [0, 1000, 2000, 3000, 4000].map(easier);
        for (count, expected) in counts.into_iter().zip([906, 719, 531, 344, 250]) {
            assert!((expected - 60..expected + 60).contains(&count), "{counts:?}");
        }
        // A puzzle that both make easier, or neither, is the same in both: the switch moves the threshold alone.
        assert!((4000..4200).all(|k| draw(&before, k) == draw(&sampler, k)));
        assert!((0..400).filter(|&k| draw(&before, k).0 != set.input(before.index(k))).all(|k| draw(&before, k) == draw(&sampler, k)));
    }

    #[test]
    fn faults_are_told() {
        let set = some();
        assert!(Sampler::new(&PuzzleSet::new(set.sudoku), SamplerOptions::default()).is_err());
        assert!(Sampler::new(&set, SamplerOptions { easier: 1.5, ..SamplerOptions::default() }).is_err());
        assert!(Sampler::new(&set, SamplerOptions { easier: f64::NAN, ..SamplerOptions::default() }).is_err());
        assert!(Sampler::new(&set, SamplerOptions { last: 24, ..SamplerOptions::default() }).is_err());
        assert!(Sampler::new(&set, SamplerOptions { times: 0, ..SamplerOptions::default() }).is_err());
        let sampler = Sampler::new(&set, SamplerOptions::default()).unwrap();
        assert!(matches!(sampler.draw(0, &mut [0; 35], &mut [0; 36]), Err(PuzzleError::Buffer { found: 35, expected: 36 })));
    }

    proptest! {
        #[test]
        fn symmetries_keep_the_verdict_and_come_back(which in 0usize..3, seed: u64, at in 0usize..81, token in 0u8..12) {
            let sudoku = hrm_core::task::Sudoku::new([4, 6, 9][which]).unwrap();
            let mut answer = Vec::new();
            crate::data::Solver::new(sudoku).search(&vec![1; sudoku.cells()], 1, &mut |s| answer = s.to_vec());
            let puzzle: Vec<u8> = answer.iter().enumerate().map(|(i, &t)| if i % 2 == 0 { t } else { 1 }).collect();
            answer[at % sudoku.cells()] = token;
            let mut rng = generator(seed, 1);
            let s = Symmetry::random(&mut || rng.next_u32(), sudoku);
            let image = |s: &Symmetry, t: &[u8]| {
                let mut out = vec![0; t.len()];
                s.apply(t, &mut out).unwrap();
                out
            };
            let (p, a) = (image(&s, &puzzle), image(&s, &answer));
            prop_assert_eq!(sudoku.verify(&p, &a).is_valid(), sudoku.verify(&puzzle, &answer).is_valid());
            prop_assert_eq!(sudoku.conflicts(&a), sudoku.conflicts(&answer));
            prop_assert_eq!((image(&s.inverse(), &p), image(&s.inverse(), &a)), (puzzle, answer));
        }

        #[test]
        fn easier_puzzles_reveal_some_blanks_and_leave_one(open in 0usize..30, most in 0usize..40, seed: u64) {
            let solution = vec![5u8; 30];
            let mut puzzle = solution.clone();
            puzzle[..open].fill(1);
            make_easier(&mut puzzle, &solution, most, &mut generator(seed, 0));
            let now = puzzle.iter().filter(|&&t| t == 1).count();
            if open < 2 {
                prop_assert_eq!(now, open);
            } else {
                prop_assert!((1..open).contains(&now) && (most == 0 || open - now <= most));
            }
            prop_assert!(puzzle[open..].iter().all(|&t| t == 5));
        }
    }
}
