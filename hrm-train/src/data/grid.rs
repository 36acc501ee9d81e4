//! Examples on a square grid of tokens: mazes and ARC.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Result, ensure};
use rand_pcg::Pcg32;

use super::rng::{below, generator, permuted};

/// What the tokens mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridKind {
    /// [`super::maze`].
    Maze,
    /// [`super::arc`].
    Arc,
}

impl GridKind {
    /// Size of the vocabulary, with padding 0.
    #[must_use]
    pub const fn vocab(self) -> usize {
        match self {
            Self::Maze => 6,
            Self::Arc => 12,
        }
    }
}

/// Where an example belongs: to a source puzzle, and in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The source puzzle, whose forms stand one after the other.
    pub group: u32,
    /// Number of the example within each form of it: the same number is the same example in another form.
    pub member: u32,
    /// Row of the table of puzzle embeddings: what tells a model which ARC task and which form of it is meant. 0 where there is one for all.
    pub identifier: u32,
}

/// Inputs with answers. Labels of 0 do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GridSet {
    /// Meaning of the tokens.
    pub kind: GridKind,
    /// Rows and columns.
    pub size: usize,
    /// Tokens `[n, S]`.
    pub inputs: Vec<u8>,
    /// Tokens `[n, S]`.
    pub labels: Vec<u8>,
    /// Of each example, `[n]`; groups ascend.
    pub places: Vec<Place>,
}

impl GridSet {
    /// A set without examples.
    #[must_use]
    pub const fn new(kind: GridKind, size: usize) -> Self {
        Self { kind, size, inputs: Vec::new(), labels: Vec::new(), places: Vec::new() }
    }

    /// Number of examples.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no example.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Tokens of an example.
    #[must_use]
    pub const fn cells(&self) -> usize {
        self.size * self.size
    }

    /// Input `i` below [`GridSet::len`], `[S]`.
    #[must_use]
    pub fn input(&self, i: usize) -> &[u8] {
        &self.inputs[i * self.cells()..][..self.cells()]
    }

    /// Label `i` below [`GridSet::len`], `[S]`.
    #[must_use]
    pub fn label(&self, i: usize) -> &[u8] {
        &self.labels[i * self.cells()..][..self.cells()]
    }

    /// Appends an example.
    ///
    /// # Errors
    /// Another number of tokens, a token outside the vocabulary, a label without a cell that counts, a group before the last.
    pub fn push(&mut self, input: &[u8], label: &[u8], place: Place) -> Result<()> {
        let vocab = self.kind.vocab();
        for (what, tokens) in [("input", input), ("label", label)] {
            ensure!(tokens.len() == self.cells(), "the {what} has {} tokens, expected {}", tokens.len(), self.cells());
            if let Some(at) = tokens.iter().position(|&t| usize::from(t) >= vocab) {
                anyhow::bail!("{what} token {at} is {}, expected 0 to {}", tokens[at], vocab - 1);
            }
        }
        ensure!(label.iter().any(|&t| t != 0), "the label has no token but padding");
        ensure!(self.places.last().is_none_or(|last| last.group <= place.group), "group {} comes after a later one", place.group);
        self.inputs.extend_from_slice(input);
        self.labels.extend_from_slice(label);
        self.places.push(place);
        Ok(())
    }

    /// Appends an example that is a group of its own.
    ///
    /// # Errors
    /// As [`GridSet::push`].
    pub fn push_alone(&mut self, input: &[u8], label: &[u8]) -> Result<()> {
        let group = self.places.last().map_or(0, |last| last.group + 1);
        self.push(input, label, Place { group, member: 0, identifier: 0 })
    }

    /// Appends another set behind the last group.
    ///
    /// # Errors
    /// Another kind or size.
    pub fn extend(&mut self, other: &Self) -> Result<()> {
        let (found, expected) = ((other.kind, other.size), (self.kind, self.size));
        ensure!(found == expected, "cannot join {:?} of size {} to {:?} of size {}", found.0, found.1, expected.0, expected.1);
        let first = self.places.last().map_or(0, |last| last.group + 1);
        self.inputs.extend_from_slice(&other.inputs);
        self.labels.extend_from_slice(&other.labels);
        self.places.extend(other.places.iter().map(|p| Place { group: p.group + first, ..*p }));
        Ok(())
    }

    /// Copies of the examples of these indices, each below [`GridSet::len`], ascending.
    #[must_use]
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut out = Self::new(self.kind, self.size);
        for i in indices {
            out.inputs.extend_from_slice(self.input(i));
            out.labels.extend_from_slice(self.label(i));
            out.places.push(self.places[i]);
        }
        out
    }

    /// Examples of each group.
    #[must_use]
    pub fn groups(&self) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        let mut from = 0;
        for run in self.places.chunk_by(|a, b| a.group == b.group) {
            out.push(from..from + run.len());
            from += run.len();
        }
        out
    }

    /// Splits into the rest and `n` examples that the seed chooses, in the first of their forms; the other forms of these go.
    ///
    /// # Errors
    /// Nothing would be left to train on.
    pub fn split_holdout(&self, n: usize, seed: u64) -> Result<(Self, Self)> {
        let mut seen = HashSet::new();
        let key = |i: usize| (self.places[i].group, self.places[i].member);
        let first: Vec<usize> = (0..self.len()).filter(|&i| seen.insert(key(i))).collect();
        ensure!(n < first.len(), "data.holdout is {n}, but there are only {} examples: at least one must be left to train on", first.len());
        let held: HashSet<usize> = (0..n as u64).map(|i| first[permuted(seed, 0, i, first.len() as u64) as usize]).collect();
        let keys: HashSet<(u32, u32)> = held.iter().map(|&i| key(i)).collect();
        let rest = self.select((0..self.len()).filter(|&i| !keys.contains(&key(i))));
        Ok((rest, self.select(first.into_iter().filter(|i| held.contains(i)))))
    }
}

/// Draws training examples; draw `k` is a pure function of (seed, `k`). Every group comes once before any comes again, as in the public HRM code,
/// with one of its examples.
#[derive(Clone, Debug)]
pub struct GridSampler<'a> {
    set: &'a GridSet,
    groups: Vec<Range<usize>>,
    seed: u64,
    symmetries: bool,
}

impl<'a> GridSampler<'a> {
    /// A sampler over a set; with `symmetries` each draw is turned or mirrored at random.
    ///
    /// # Errors
    /// The set is empty.
    pub fn new(set: &'a GridSet, seed: u64, symmetries: bool) -> Result<Self> {
        ensure!(!set.is_empty(), "there are no examples to draw from");
        Ok(Self { set, groups: set.groups(), seed, symmetries })
    }

    /// Writes draw `k`, `[S]` each, and gives its identifier.
    ///
    /// # Errors
    /// A buffer has another length than `S`.
    pub fn draw(&self, k: u64, input: &mut [u8], label: &mut [u8]) -> Result<usize> {
        let cells = self.set.cells();
        ensure!(input.len() == cells && label.len() == cells, "buffers of {} and {} tokens, expected {cells}", input.len(), label.len());
        let n = self.groups.len() as u64;
        let group = &self.groups[permuted(self.seed, k / n, k % n, n) as usize];
        let mut rng = generator(self.seed, k);
        let i = group.start + below(&mut rng, group.len());
        let symmetry = if self.symmetries { Symmetry::random(&mut rng) } else { Symmetry::IDENTITY };
        symmetry.square(self.set.size, self.set.input(i), input);
        symmetry.square(self.set.size, self.set.label(i), label);
        Ok(self.set.places[i].identifier as usize)
    }
}

/// One of the eight symmetries of the square, numbered as in the public HRM code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Symmetry(u8);

impl Symmetry {
    /// Leaves everything in place.
    pub const IDENTITY: Self = Self(0);

    /// Number 0 to 7: identity, a quarter, half and three quarters of a turn anticlockwise, mirrored left to right, top to bottom, at the
    /// main diagonal, at the other; none for other numbers.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < 8 { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Any of the eight.
    pub fn random(rng: &mut Pcg32) -> Self {
        Self(below(rng, 8) as u8)
    }

    /// The symmetry that undoes this one.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self.0 {
            1 => Self(3),
            3 => Self(1),
            other => Self(other),
        }
    }

    /// The image of a grid of `rows * cols` cells, with its rows and columns.
    #[must_use]
    pub fn apply(self, rows: usize, cols: usize, cells: &[u8]) -> (usize, usize, Vec<u8>) {
        let (r, c) = if matches!(self.0, 1 | 3 | 6 | 7) { (cols, rows) } else { (rows, cols) };
        let from = |i: usize, j: usize| match self.0 {
            1 => (j, cols - 1 - i),
            2 => (rows - 1 - i, cols - 1 - j),
            3 => (rows - 1 - j, i),
            4 => (i, cols - 1 - j),
            5 => (rows - 1 - i, j),
            6 => (j, i),
            7 => (rows - 1 - j, cols - 1 - i),
            _ => (i, j),
        };
        let image = (0..r * c).map(|at| {
            let (i, j) = from(at / c, at % c);
            cells[i * cols + j]
        });
        (r, c, image.collect())
    }

    fn square(self, size: usize, from: &[u8], to: &mut [u8]) {
        to.copy_from_slice(&self.apply(size, size, from).2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::maze::{Maze, MazeOptions, generate};

    fn some(n: usize) -> GridSet {
        generate(&MazeOptions { size: 7, seed: 2, shortest: 5, unique: true }, n).unwrap()
    }

    #[test]
    fn symmetries_are_the_eight_of_the_square_and_come_back() {
        let cells: Vec<u8> = (0..6).collect();
        let images: HashSet<_> = (0..8).map(|n| Symmetry::new(n).unwrap().apply(2, 3, &cells)).collect();
        assert_eq!(images.len(), 8);
        assert_eq!(Symmetry(1).apply(2, 3, &cells), (3, 2, vec![2, 5, 1, 4, 0, 3]));
        assert_eq!(Symmetry(7).apply(2, 3, &cells), (3, 2, vec![5, 2, 4, 1, 3, 0]));
        for n in 0..8 {
            let s = Symmetry::new(n).unwrap();
            let (r, c, image) = s.apply(2, 3, &cells);
            assert_eq!(s.inverse().apply(r, c, &image), (2, 3, cells.clone()), "{n}");
        }
        assert_eq!(Symmetry::new(8), None);
    }

    #[test]
    fn an_epoch_is_every_group_once_and_draws_are_right() {
        let mut set = GridSet::new(GridKind::Maze, 7);
        let mazes = some(12);
        // Groups of three forms of two examples each.
        for group in 0..6 {
            for form in 0..3 {
                for member in 0..2u32 {
                    let i = 2 * group as usize + member as usize;
                    set.push(mazes.input(i), mazes.label(i), Place { group, member, identifier: 3 * group + form }).unwrap();
                }
            }
        }
        let maze = Maze::new(7);
        let (mut input, mut label) = (vec![0; 49], vec![0; 49]);
        for symmetries in [false, true] {
            let sampler = GridSampler::new(&set, 5, symmetries).unwrap();
            let mut identifiers = HashSet::new();
            for epoch in 0..40 {
                let drawn: HashSet<usize> = (0..6).map(|k| sampler.draw(6 * epoch + k, &mut input, &mut label).unwrap() / 3).collect();
                assert_eq!(drawn.len(), 6);
                identifiers.insert(sampler.draw(epoch, &mut input, &mut label).unwrap());
                assert!(maze.is_shortest(&input, &label));
            }
            assert!(identifiers.len() > 12, "{identifiers:?}");
            let first = sampler.draw(77, &mut input, &mut label).unwrap();
            let (mut again, mut answer) = (vec![0; 49], vec![0; 49]);
            assert_eq!(sampler.draw(77, &mut again, &mut answer).unwrap(), first);
            assert_eq!((&again, &answer), (&input, &label));
            assert!(sampler.draw(0, &mut input[1..], &mut label).is_err());
        }
    }

    #[test]
    fn held_out_examples_are_not_trained_on_in_any_form() {
        let mut set = GridSet::new(GridKind::Maze, 7);
        let mazes = some(10);
        for group in 0..5u32 {
            for form in 0..4 {
                for member in 0..2u32 {
                    let (_, _, input) = Symmetry(form).apply(7, 7, mazes.input((2 * group + member) as usize));
                    let (_, _, label) = Symmetry(form).apply(7, 7, mazes.label((2 * group + member) as usize));
                    set.push(&input, &label, Place { group, member, identifier: 0 }).unwrap();
                }
            }
        }
        let (rest, held) = set.split_holdout(3, 1).unwrap();
        assert_eq!((rest.len(), held.len()), (28, 3));
        for i in 0..3 {
            let p = held.places[i];
            assert_eq!(held.input(i), mazes.input((2 * p.group + p.member) as usize));
            assert!(rest.places.iter().all(|q| (q.group, q.member) != (p.group, p.member)));
        }
        assert_ne!(set.split_holdout(3, 2).unwrap().1, held);
        assert!(set.split_holdout(10, 1).unwrap_err().to_string().contains("only 10 examples"));
    }

    #[test]
    fn wrong_examples_are_refused() {
        let mut set = GridSet::new(GridKind::Maze, 2);
        let place = Place { group: 1, member: 0, identifier: 0 };
        assert!(set.push(&[1; 3], &[1; 4], place).unwrap_err().to_string().contains("input has 3 tokens, expected 4"));
        assert!(set.push(&[1; 4], &[1, 6, 1, 1], place).unwrap_err().to_string().contains("label token 1 is 6, expected 0 to 5"));
        assert!(set.push(&[1; 4], &[0; 4], place).unwrap_err().to_string().contains("padding"));
        set.push(&[1; 4], &[1; 4], place).unwrap();
        assert!(set.push(&[1; 4], &[1; 4], Place { group: 0, ..place }).is_err());
        assert!(set.extend(&GridSet::new(GridKind::Arc, 2)).is_err());
        assert!(GridSampler::new(&GridSet::new(GridKind::Maze, 2), 0, true).is_err());
    }
}
