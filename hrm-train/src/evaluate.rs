//! How many puzzles a model solves: exact match at chosen segments, and the first grid the verifier accepts.

use std::fmt;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::data::PuzzleSet;
use crate::data::rng::mix;
use crate::engine::Engine;
use crate::examples::Examples;
use crate::parallel::Group;

/// Puzzles iterated together. Part of the definition of a result: with random starts the start of a puzzle follows from its index in
/// the chunk and the seed of the chunk.
pub const CHUNK: usize = 256;

/// Something that iterates puzzles: a float network, or an int8 file through the deployed core.
pub trait Model {
    /// `float` or `int8`: the label of every figure.
    fn kind(&self) -> &'static str;

    /// Runs `segments` segments from fresh starts and calls `observe(segment from 0, tokens [n, S], q_halt [n])` after each.
    ///
    /// # Errors
    /// Failures of the engine.
    fn infer(&mut self, inputs: &[u8], segments: usize, seed: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()>;

    /// [`Model::infer`] of examples that have rows of their own in the table of puzzle embeddings: `identifiers` `[n]`.
    ///
    /// # Errors
    /// As [`Model::infer`]; the model has no such rows.
    fn infer_as(
        &mut self,
        identifiers: &[usize],
        inputs: &[u8],
        segments: usize,
        seed: u64,
        observe: &mut dyn FnMut(usize, &[u8], &[f32]),
    ) -> anyhow::Result<()> {
        ensure!(identifiers.iter().all(|&id| id == 0), "an {} model has no identifiers", self.kind());
        self.infer(inputs, segments, seed, observe)
    }
}

/// A float network.
pub struct Float<'a>(pub &'a mut dyn Engine);

impl Model for Float<'_> {
    fn kind(&self) -> &'static str {
        "float"
    }

    fn infer(&mut self, inputs: &[u8], segments: usize, seed: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
        self.0.infer(inputs, segments, seed, observe)
    }

    fn infer_as(
        &mut self,
        identifiers: &[usize],
        inputs: &[u8],
        segments: usize,
        seed: u64,
        observe: &mut dyn FnMut(usize, &[u8], &[f32]),
    ) -> anyhow::Result<()> {
        self.0.infer_as(identifiers, inputs, segments, seed, observe)
    }
}

/// Score on the held-out training puzzles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldoutScore {
    /// Optimizer step of the weights.
    pub step: u64,
    /// Puzzles scored.
    pub puzzles: usize,
    /// Segments each got.
    pub segments: usize,
    /// Puzzles whose answer after the last segment is right in every cell.
    pub exact: usize,
    /// Share of right cells after the last segment, givens included.
    pub cells: f64,
}

impl HoldoutScore {
    /// Whether this score is at least as good as `other`: more exact puzzles, with a tie more right cells. Of equals the later one is
    /// taken, whose learning rate is lower.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> bool {
        (self.exact, self.cells) >= (other.exact, other.cells)
    }
}

/// A share with its 95 % Wilson score interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Successes.
    pub count: usize,
    /// Of how many.
    pub of: usize,
    /// `count / of`; 0 of nothing.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Share {
    /// `count` of `of`, with the interval of Wilson (1927): centre `(k + z^2/2) / (n + z^2)`.
    #[must_use]
    pub fn new(count: usize, of: usize) -> Self {
        if of == 0 {
            return Self { count, of, share: 0.0, low: 0.0, high: 1.0 };
        }
        let (k, n, z) = (count as f64, of as f64, 1.959_963_984_540_054_f64);
        let centre = (k + z * z / 2.0) / (n + z * z);
        let half = z / (n + z * z) * (k * (n - k) / n + z * z / 4.0).sqrt();
        Self { count, of, share: k / n, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.2} % ({:.2} to {:.2})", 100.0 * self.share, 100.0 * self.low, 100.0 * self.high)
    }
}

/// Figures after a number of segments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentScore {
    /// Segments run.
    pub segments: usize,
    /// Answer right in every cell: the published figure.
    pub exact: Share,
    /// Share of right cells, givens included.
    pub cells: f64,
    /// A grid the verifier accepts (rules and givens; no label) came up at this segment or before.
    pub valid_within: Share,
    /// Puzzles with a positive halt logit.
    pub q_positive: Share,
    /// Of these, puzzles whose answer is wrong.
    pub q_positive_wrong: usize,
}

/// Figures of one range of ratings after the last segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RatingScore {
    /// Lowest rating.
    pub from: u32,
    /// Highest rating.
    pub to: u32,
    /// As [`SegmentScore::exact`].
    pub exact: Share,
    /// As [`SegmentScore::valid_within`].
    pub valid_within: Share,
}

/// What [`evaluate`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `float` or `int8`.
    pub model: String,
    /// Seed of the starts.
    pub seed: u64,
    /// Puzzles scored.
    pub puzzles: usize,
    /// By number of segments, ascending.
    pub segments: Vec<SegmentScore>,
    /// By rating, after the last segment; ranges without a puzzle are left out.
    pub ratings: Vec<RatingScore>,
}

const RATINGS: [(u32, u32); 5] = [(0, 0), (1, 9), (10, 99), (100, 999), (1000, u32::MAX)];

/// Exact match and right cells after `segments` segments on the first `n` examples; cells whose label is 0 do not count. The ranks of a
/// group take the chunks in turn.
///
/// # Errors
/// Failures of the engine; a rank is gone.
pub fn holdout(
    engine: &mut dyn Engine,
    group: &Group,
    set: &Examples,
    n: usize,
    segments: usize,
    seed: u64,
    step: u64,
) -> anyhow::Result<HoldoutScore> {
    let (puzzles, (inputs, labels), identifiers) = (n.min(set.len()), set.tokens(), set.identifiers());
    let tokens = inputs.len() / set.len().max(1);
    let (mut exact, mut right, mut of) = (0, 0, 0);
    for chunk in (group.rank()..puzzles.div_ceil(CHUNK)).step_by(group.world()) {
        let range = chunk * CHUNK..puzzles.min((chunk + 1) * CHUNK);
        let rows = if identifiers.is_empty() { &[] } else { &identifiers[range.clone()] };
        let cells = range.start * tokens..range.end * tokens;
        let labels = &labels[cells.clone()];
        engine.infer_as(rows, &inputs[cells], segments, chunk_seed(seed, chunk), &mut |segment, answers, _| {
            if segment + 1 == segments {
                for (answer, label) in answers.chunks(tokens).zip(labels.chunks(tokens)) {
                    let (same, labelled) = right_of(answer, label);
                    right += same;
                    of += labelled;
                    exact += usize::from(same == labelled);
                }
            }
        })?;
    }
    let [exact, right, of] = group.totals([exact, right, of])?;
    Ok(HoldoutScore { step, puzzles, segments, exact, cells: right as f64 / of.max(1) as f64 })
}

/// Right cells of an answer and cells that count.
pub(crate) fn right_of(answer: &[u8], label: &[u8]) -> (usize, usize) {
    let counted = || answer.iter().zip(label).filter(|&(_, &l)| l != 0);
    (counted().filter(|(a, l)| a == l).count(), counted().count())
}

/// Scores a model on the first `n` puzzles of a set after each of the numbers of segments in `at`; `progress(done)` is called now and then.
///
/// # Errors
/// `at` is empty or holds 0, there is no puzzle, or the engine fails.
pub fn evaluate(
    model: &mut dyn Model,
    set: &PuzzleSet,
    n: usize,
    at: &[usize],
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Report> {
    let mut at = at.to_vec();
    at.sort_unstable();
    at.dedup();
    ensure!(at.first().is_some_and(|&s| s > 0), "the numbers of segments are {at:?}, expected one or more from 1");
    let n = n.min(set.len());
    ensure!(n > 0, "there is no puzzle to evaluate");
    let last = at[at.len() - 1];
    let tokens = set.sudoku.cells();
    let mut tally = vec![Tally::default(); at.len()];
    let mut ratings = vec![(0, 0, 0); RATINGS.len()];

    for start in (0..n).step_by(CHUNK) {
        let end = (start + CHUNK).min(n);
        let inputs = &set.inputs[start * tokens..end * tokens];
        // Once the verifier has accepted a grid the run of a product would be over.
        let mut valid = vec![false; end - start];
        let mut exact = vec![false; end - start];
        model.infer(inputs, last, chunk_seed(seed, start / CHUNK), &mut |segment, answers, q_halt| {
            let slot = at.iter().position(|&s| s == segment + 1);
            for (i, answer) in answers.chunks(tokens).enumerate() {
                let puzzle = start + i;
                valid[i] = valid[i] || set.sudoku.verify(set.input(puzzle), answer).is_valid();
                if let Some(slot) = slot {
                    let tally = &mut tally[slot];
                    let right = answer.iter().zip(set.label(puzzle)).filter(|(a, b)| a == b).count();
                    exact[i] = right == tokens;
                    tally.cells += right;
                    tally.exact += usize::from(exact[i]);
                    tally.valid += usize::from(valid[i]);
                    tally.positive += usize::from(q_halt[i] > 0.0);
                    tally.positive_wrong += usize::from(q_halt[i] > 0.0 && !exact[i]);
                }
            }
        })?;
        for i in 0..end - start {
            let rating = set.ratings[start + i];
            if let Some(range) = RATINGS.iter().position(|&(from, to)| (from..=to).contains(&rating)) {
                let (of, right, accepted) = &mut ratings[range];
                *of += 1;
                *right += usize::from(exact[i]);
                *accepted += usize::from(valid[i]);
            }
        }
        progress(end);
    }

    let segments = at.iter().zip(&tally).map(|(&segments, t)| SegmentScore {
        segments,
        exact: Share::new(t.exact, n),
        cells: t.cells as f64 / (n * tokens) as f64,
        valid_within: Share::new(t.valid, n),
        q_positive: Share::new(t.positive, n),
        q_positive_wrong: t.positive_wrong,
    });
    let ratings = RATINGS.iter().zip(&ratings).filter(|(_, r)| r.0 > 0).map(|(&(from, to), &(of, exact, valid))| RatingScore {
        from,
        to,
        exact: Share::new(exact, of),
        valid_within: Share::new(valid, of),
    });
    Ok(Report { model: model.kind().to_owned(), seed, puzzles: n, segments: segments.collect(), ratings: ratings.collect() })
}

#[derive(Clone, Copy, Default)]
struct Tally {
    exact: usize,
    cells: usize,
    valid: usize,
    positive: usize,
    positive_wrong: usize,
}

pub(crate) const fn chunk_seed(seed: u64, chunk: usize) -> u64 {
    mix(mix(seed) ^ chunk as u64)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} model, {} puzzles, seed {}; 95 % Wilson intervals", self.model, self.puzzles, self.seed)?;
        writeln!(f, "segments  exact (all cells)            valid within (verifier)      cells    Q > 0 (wrong)")?;
        for s in &self.segments {
            let q = format!("{:.2} % ({})", 100.0 * s.q_positive.share, s.q_positive_wrong);
            writeln!(f, "{:8}  {}  {}  {:6.2} %  {q}", s.segments, s.exact, s.valid_within, 100.0 * s.cells)?;
        }
        writeln!(f, "rating     puzzles  exact                        valid within")?;
        for r in &self.ratings {
            let range = match (r.from, r.to) {
                (0, 0) => "0".to_owned(),
                (from, u32::MAX) => format!("{from}+"),
                (from, to) => format!("{from}-{to}"),
            };
            writeln!(f, "{range:9}  {:7}  {}  {}", r.exact.of, r.exact, r.valid_within)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{GeneratorOptions, generate};

    /// Answers from a list made in advance: `answers[segment][puzzle]`.
    struct Script {
        answers: Vec<Vec<Vec<u8>>>,
        done: usize,
    }

    impl Model for Script {
        fn kind(&self) -> &'static str {
            "float"
        }
        fn infer(&mut self, inputs: &[u8], segments: usize, _: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
            let n = inputs.len() / 16;
            for segment in 0..segments {
                let tokens: Vec<u8> = self.answers[segment][self.done..self.done + n].concat();
                let q: Vec<f32> = (0..n).map(|i| if (self.done + i).is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
                observe(segment, &tokens, &q);
            }
            self.done += n;
            Ok(())
        }
    }

    #[test]
    fn figures_are_counted_right_over_chunks() {
        let n = CHUNK + 10;
        let set = generate(&GeneratorOptions { size: 4, seed: 1, extra_givens: 4, ..GeneratorOptions::default() }, n).unwrap();
        let wrong = |i: usize| {
            let mut answer = set.label(i).to_vec();
            answer[0] = if answer[0] == 2 { 3 } else { 2 };
            answer
        };
        // Segment 1: every fourth puzzle is right. Segment 2: all wrong. Segment 3: every second is right.
        let answers = vec![
            (0..n).map(|i| if i % 4 == 0 { set.label(i).to_vec() } else { wrong(i) }).collect(),
            (0..n).map(wrong).collect(),
            (0..n).map(|i| if i % 2 == 1 { set.label(i).to_vec() } else { wrong(i) }).collect(),
        ];
        let report = evaluate(&mut Script { answers, done: 0 }, &set, n, &[3, 1, 2], 0, &mut |_| {}).unwrap();
        let counts: Vec<_> =
            report.segments.iter().map(|s| (s.segments, s.exact.count, s.valid_within.count, s.q_positive_wrong)).collect();
        let (quarter, half) = (n.div_ceil(4), n / 2);
        assert_eq!(counts, [(1, quarter, quarter, n / 2 - quarter), (2, 0, quarter, n / 2), (3, half, half + quarter, n / 2)]);
        assert!((report.segments[1].cells - 15.0 / 16.0).abs() < 1e-12);
        assert_eq!(report.ratings.iter().map(|r| r.exact.of).sum::<usize>(), n);
        assert!(report.to_string().contains("valid within"));
    }

    #[test]
    fn wilson_intervals() {
        // Reference values: scipy.stats.binomtest(k, n).proportion_ci(method="wilson").
        for (k, n, low, high) in [(0, 10, 0.0, 0.277_53), (5, 10, 0.236_59, 0.763_41), (995, 1000, 0.988_35, 0.997_86)] {
            let share = Share::new(k, n);
            assert!((share.low - low).abs() < 1e-4 && (share.high - high).abs() < 1e-4, "{share:?}");
        }
        assert_eq!(Share::new(0, 0).share, 0.0);
    }

    #[test]
    fn later_of_equal_scores_is_better() {
        let score = |step, exact, cells| HoldoutScore { step, puzzles: 10, segments: 16, exact, cells };
        assert!(score(2, 5, 0.9).at_least(&score(1, 5, 0.9)));
        assert!(score(2, 5, 0.91).at_least(&score(1, 5, 0.9)));
        assert!(!score(2, 5, 0.89).at_least(&score(1, 5, 0.9)));
        assert!(!score(2, 4, 0.99).at_least(&score(1, 5, 0.9)));
    }
}
