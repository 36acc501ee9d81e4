//! Several guesses a puzzle, and the choice among their answers: `hrm-train eval --guesses`.
//!
//! An int8 model is solved by [`hrm_core::Solver`], so answers, segments and state hashes are those of `hrm solve` with the same settings.
//! A float model gets the same treatment from the outside: every guess is a pass from other random starts (or, for models with a fixed
//! start, under another symmetry of the task), and the same selections choose.

use std::fmt;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use hrm_core::iterate::Policy;
use hrm_core::rng::{Purpose, Stream, mix};
use hrm_core::solve::{Options, Outcome, Perturb, Select, Solver};
use hrm_core::task::Symmetry;
use serde::Serialize;

use crate::data::PuzzleSet;
use crate::evaluate::{CHUNK, Model, Share};
use crate::evaluate_int8::Int8;

/// How to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessOptions {
    /// Most guesses a puzzle, at least 1.
    pub guesses: u16,
    /// Most segments a guess, at least 1.
    pub segments: u16,
    /// Choice among the answers.
    pub select: Select,
    /// Seed of starts and symmetries.
    pub seed: u64,
}

impl GuessOptions {
    /// The same for [`hrm_core::Solver`].
    #[must_use]
    pub fn of_solver(self) -> Options {
        let Self { guesses, segments, select, seed } = self;
        Options { policy: Policy::budget(segments), guesses, select, perturb: Perturb::Auto, noise: 0, seed }
    }
}

/// What came of one puzzle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guessed {
    /// The chosen answer, `[S]`; none if the verifier accepted none.
    pub answer: Option<Vec<u8>>,
    /// Guesses begun.
    pub guesses: u16,
    /// Segments run, all guesses together.
    pub segments: u32,
    /// State hash after the last segment; int8 only.
    pub hash: Option<u64>,
}

impl From<Outcome<'_>> for Guessed {
    fn from(outcome: Outcome<'_>) -> Self {
        Self { answer: outcome.answer.map(<[u8]>::to_vec), guesses: outcome.guesses, segments: outcome.segments, hash: Some(outcome.hash) }
    }
}

/// Solves the first `n` puzzles with the deployed core.
///
/// # Errors
/// A puzzle does not fit to the model or breaks the rules.
pub fn int8(model: &Int8, set: &PuzzleSet, n: usize, options: GuessOptions) -> anyhow::Result<Vec<Guessed>> {
    let puzzles: Vec<&[u8]> = (0..n.min(set.len())).map(|i| set.input(i)).collect();
    let options = options.of_solver();
    let memory = Solver::required_bytes(set.sudoku.cells(), &options);
    model.each(&puzzles, |i, run| {
        let mut memory = vec![0; memory];
        let mut solver = Solver::new(run, puzzles[i], options, &mut memory).with_context(|| format!("puzzle {}", i + 1))?;
        Ok(solver.finish()?.into())
    })
}

/// One pass of a float model on some puzzles: the last answer and halt logit of each, and where the verifier accepted one.
struct Pass {
    answers: Vec<Vec<u8>>,
    q: Vec<f32>,
    /// The first valid answer and its segment, from 1.
    valid: Vec<Option<(Vec<u8>, u32)>>,
}

fn pass(model: &mut dyn Model, set: &PuzzleSet, puzzles: &[usize], guess: u16, symmetric: bool, o: GuessOptions) -> anyhow::Result<Pass> {
    let tokens = set.sudoku.cells();
    let mut stream = Stream::new(o.seed, Purpose::Symmetry, u64::from(guess));
    let symmetry = (symmetric && guess > 0).then(|| Symmetry::random(&mut || stream.next_u32(), set.sudoku));
    let (mut inputs, mut seen) = (Vec::with_capacity(puzzles.len() * tokens), vec![0; tokens]);
    for &i in puzzles {
        match &symmetry {
            Some(s) => s.apply(set.input(i), &mut seen)?,
            None => seen.copy_from_slice(set.input(i)),
        }
        inputs.extend_from_slice(&seen);
    }
    let back = symmetry.as_ref().map(Symmetry::inverse);
    let mut result = Pass { answers: vec![Vec::new(); puzzles.len()], q: vec![0.0; puzzles.len()], valid: vec![None; puzzles.len()] };
    let mut failure = Ok(());
    let seed = mix(mix(o.seed) ^ u64::from(guess) << 32 ^ puzzles.first().map_or(0, |&i| i as u64));
    model.infer(&inputs, usize::from(o.segments), seed, &mut |segment, answers, q| {
        let last = segment + 1 == usize::from(o.segments);
        for (k, answer) in answers.chunks_exact(tokens).enumerate() {
            if let Some(back) = &back {
                failure = back.apply(answer, &mut seen);
            } else {
                seen.copy_from_slice(answer);
            }
            if result.valid[k].is_none() && set.sudoku.verify(set.input(puzzles[k]), &seen).is_valid() {
                result.valid[k] = Some((seen.clone(), segment as u32 + 1));
            }
            if last {
                result.answers[k].clone_from(&seen);
                result.q[k] = q[k];
            }
        }
    })?;
    failure?;
    Ok(result)
}

/// Solves the first `n` puzzles with a float model. `symmetric`: guesses differ by symmetries instead of by random starts.
///
/// # Errors
/// Selection by residual, which only the integer core reports; failures of the engine.
pub fn float(model: &mut dyn Model, set: &PuzzleSet, n: usize, symmetric: bool, o: GuessOptions) -> anyhow::Result<Vec<Guessed>> {
    if o.select == Select::Residual {
        bail!("a float model is not selected by residual: quantise it, or select by verify, vote, q or first");
    }
    let budget = u32::from(o.segments);
    let mut all = Vec::new();
    let indices: Vec<usize> = (0..n.min(set.len())).collect();
    for chunk in indices.chunks(CHUNK) {
        let mut found: Vec<Guessed> = vec![Guessed { answer: None, guesses: 0, segments: 0, hash: None }; chunk.len()];
        let mut ended: Vec<Vec<(Vec<u8>, f32)>> = vec![Vec::new(); chunk.len()];
        let mut open: Vec<usize> = (0..chunk.len()).collect();
        for guess in 0..if o.select == Select::First { 1 } else { o.guesses } {
            let puzzles: Vec<usize> = open.iter().map(|&k| chunk[k]).collect();
            let pass = pass(model, set, &puzzles, guess, symmetric, o)?;
            let mut still = Vec::new();
            for (((k, answer), q), valid) in open.into_iter().zip(pass.answers).zip(pass.q).zip(pass.valid) {
                found[k].guesses += 1;
                match valid.filter(|_| o.select == Select::Verify) {
                    Some((answer, segment)) => {
                        found[k].segments += segment;
                        found[k].answer = Some(answer);
                    }
                    None => {
                        found[k].segments += budget;
                        ended[k].push((answer, q));
                        still.push(k);
                    }
                }
            }
            open = still;
            if open.is_empty() {
                break;
            }
        }
        for (found, ended) in found.iter_mut().zip(ended).filter(|_| o.select != Select::Verify) {
            found.answer = choose(&ended, o.select);
        }
        all.append(&mut found);
    }
    Ok(all)
}

/// The answer that the selection prefers, the earliest on ties.
fn choose(ended: &[(Vec<u8>, f32)], select: Select) -> Option<Vec<u8>> {
    let score = |(answer, q): &(Vec<u8>, f32)| match select {
        Select::Vote => ended.iter().filter(|e| e.0 == *answer).count() as f32,
        Select::Q => *q,
        _ => 0.0,
    };
    let mut best: Option<(f32, &Vec<u8>)> = None;
    for guess in ended {
        let s = score(guess);
        if best.is_none_or(|b| s > b.0) {
            best = Some((s, &guess.0));
        }
    }
    best.map(|b| b.1.clone())
}

/// Figures of [`Guessed`] puzzles with known answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GuessReport {
    /// `float` or `int8`.
    pub model: String,
    /// Most guesses a puzzle.
    pub guesses: u16,
    /// Most segments a guess.
    pub segments: u16,
    /// `verify`, `vote`, `q`, `residual` or `first`.
    pub select: Select,
    /// Seed.
    pub seed: u64,
    /// Right in every cell.
    pub exact: Share,
    /// Answers that are wrong; with `verify` a valid grid other than the known answer (a puzzle of several solutions).
    pub wrong: Share,
    /// No answer.
    pub declined: Share,
    /// Mean number of segments a puzzle.
    pub mean_segments: f64,
    /// Mean number of guesses a puzzle.
    pub mean_guesses: f64,
}

impl GuessReport {
    /// Scores the puzzles of `set` in order.
    #[must_use]
    pub fn new(kind: &str, set: &PuzzleSet, guessed: &[Guessed], o: GuessOptions) -> Self {
        let n = guessed.len();
        let right = guessed.iter().enumerate().filter(|(i, g)| g.answer.as_deref() == Some(set.label(*i))).count();
        let declined = guessed.iter().filter(|g| g.answer.is_none()).count();
        let mean = |sum: u64| sum as f64 / n.max(1) as f64;
        Self {
            model: kind.to_owned(),
            guesses: o.guesses,
            segments: o.segments,
            select: o.select,
            seed: o.seed,
            exact: Share::new(right, n),
            wrong: Share::new(n - right - declined, n),
            declined: Share::new(declined, n),
            mean_segments: mean(guessed.iter().map(|g| u64::from(g.segments)).sum()),
            mean_guesses: mean(guessed.iter().map(|g| u64::from(g.guesses)).sum()),
        }
    }
}

impl fmt::Display for GuessReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let select = format!("{:?}", self.select).to_lowercase();
        writeln!(
            f,
            "{} model, {} puzzles, seed {}, up to {} guesses of up to {} segments, selected by {select}; 95 % Wilson intervals",
            self.model, self.exact.of, self.seed, self.guesses, self.segments
        )?;
        writeln!(f, "exact     {}", self.exact)?;
        writeln!(f, "wrong     {} ({})", self.wrong, self.wrong.count)?;
        writeln!(f, "declined  {}", self.declined)?;
        writeln!(f, "a puzzle: {:.1} segments, {:.2} guesses on average", self.mean_segments, self.mean_guesses)
    }
}

/// Writes one JSON object a puzzle: `index` from 0, `answer` (tokens as text, or null), `segments`, `guesses`, `hash` (int8).
///
/// # Errors
/// The file system refuses.
pub fn write_puzzles(path: &Path, set: &PuzzleSet, guessed: &[Guessed]) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for (index, g) in guessed.iter().enumerate() {
        let answer = g.answer.as_ref().and_then(|tokens| set.sudoku.format(tokens, &mut [0; 81]).map(str::to_owned).ok());
        let hash = g.hash.map(|h| format!("{h:016x}"));
        let line = serde_json::json!({ "index": index, "answer": answer, "segments": g.segments, "guesses": g.guesses, "hash": hash });
        writeln!(text, "{line}")?;
    }
    crate::checkpoint::write_atomic(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_choose_by_count_and_by_q_and_the_earliest_on_ties() {
        let ended = [(vec![1], 0.5), (vec![2], 2.0), (vec![3], 2.0), (vec![3], -1.0)];
        assert_eq!(choose(&ended, Select::Vote), Some(vec![3]));
        assert_eq!(choose(&ended, Select::Q), Some(vec![2]));
        assert_eq!(choose(&ended, Select::First), Some(vec![1]));
        assert_eq!(choose(&[], Select::Vote), None);
    }
}
