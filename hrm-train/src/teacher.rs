//! Distillation: a trained model answers the puzzles that a smaller one learns from (Hinton et al., arXiv 1503.02531).
//!
//! The teacher gets a puzzle when the student does, runs a fixed number of segments from the start that belongs to the draw's number, and
//! what it then thinks of each cell is part of the target of all the student's segments with that puzzle.

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::data::rng::mix;
use crate::engine::{Engine, Loss, StartOf, symbols};
use crate::model_file::FloatModel;
use crate::run_config::RunConfig;
use crate::spec::ModelSpec;

/// Stream of the run's seed that the teacher's random starts are drawn from.
const STARTS: u64 = 4;

/// A trained model that says how likely each symbol is.
pub struct Teacher {
    engine: Box<dyn Engine>,
    /// How its logits are to be read.
    loss: Loss,
    segments: usize,
    seed: u64,
    /// Symbols of one of its cells, and the token of the first.
    own: (usize, usize),
    /// The same of the student.
    student: (usize, usize),
}

impl Teacher {
    /// The model of `train.teacher` for a student of the architecture `spec`; `None` if none is named.
    ///
    /// # Errors
    /// It cannot be read, the run's engine cannot run it, or it is made for other puzzles.
    pub fn load(config: &RunConfig, spec: &ModelSpec) -> anyhow::Result<Option<Self>> {
        let t = &config.train;
        if t.teacher.is_empty() {
            return Ok(None);
        }
        let model = FloatModel::load(Path::new(&t.teacher)).context("train.teacher")?;
        let (own, student) = (&model.spec.config, &spec.config);
        ensure!(
            (own.tokens, own.vocab) == (student.tokens, student.vocab),
            "train.teacher: {} answers {} cells with {} tokens, expected {} with {}",
            t.teacher,
            own.tokens,
            own.vocab,
            student.tokens,
            student.vocab
        );
        let engine =
            model.engine(t.engine, &t.device, config.engine_options().threads).with_context(|| format!("train.teacher: {}", t.teacher))?;
        Ok(Some(Self {
            engine,
            loss: model.record.as_ref().map_or(Loss::Softmax, |r| r.config.train.loss),
            segments: t.teacher_segments,
            seed: mix(t.seed ^ mix(STARTS)),
            own: symbols(&model.spec.config),
            student: symbols(&spec.config),
        }))
    }

    /// Symbols of one of the student's cells.
    #[must_use]
    pub fn symbols(&self) -> usize {
        self.student.0
    }

    /// Answers the rows of a batch that have a new puzzle: `advice` `[batch, S, symbols]`, `inputs` `[batch, S]`, `draws` `[batch]`.
    ///
    /// # Errors
    /// The engine's.
    pub fn advise(&mut self, reset: &[bool], draws: &[u64], inputs: &[u8], advice: &mut [f32]) -> anyhow::Result<()> {
        let rows: Vec<usize> = (0..reset.len()).filter(|&b| reset[b]).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let tokens = inputs.len() / reset.len();
        let puzzles: Vec<u8> = rows.iter().flat_map(|&b| &inputs[b * tokens..(b + 1) * tokens]).copied().collect();
        let answers = self.answer(&rows.iter().map(|&b| draws[b]).collect::<Vec<_>>(), &puzzles)?;
        let width = tokens * self.symbols();
        for (&b, answer) in rows.iter().zip(answers.chunks_exact(width)) {
            advice[b * width..(b + 1) * width].copy_from_slice(answer);
        }
        Ok(())
    }

    /// Probabilities of the student's symbols in the puzzles `inputs` `[n, S]`, which are the draws `draws`: `[n, S, symbols]`.
    ///
    /// # Errors
    /// The engine's.
    pub fn answer(&mut self, draws: &[u64], inputs: &[u8]) -> anyhow::Result<Vec<f32>> {
        let starts: Vec<StartOf> = draws.iter().map(|&number| StartOf { seed: self.seed, number }).collect();
        let mut carry = self.engine.begin(&starts, false)?;
        let mut logits = Vec::new();
        for _ in 0..self.segments {
            logits = self.engine.advance(inputs, &mut carry)?.logits;
        }
        let mut out = Vec::with_capacity(inputs.len() * self.student.0);
        for cell in logits.chunks_exact(self.own.0) {
            probabilities(self.loss, cell, self.own.1, self.student, &mut out);
        }
        Ok(out)
    }
}

/// Appends what the logits of a cell, the first of which is token `first`, say of the `student`'s symbols. Tokens that the student cannot answer
/// are left out before the rest is scaled to 1; those that the teacher cannot answer have probability 0.
fn probabilities(loss: Loss, logits: &[f32], first: usize, student: (usize, usize), out: &mut Vec<f32>) {
    let tokens = student.1..student.1 + student.0;
    let logit = |token: usize| token.checked_sub(first).and_then(|i| logits.get(i)).map(|&x| f64::from(x));
    let largest = tokens.clone().filter_map(logit).fold(f64::NEG_INFINITY, f64::max);
    let share = |x: f64| match loss {
        Loss::Softmax => (x - largest).exp(),
        Loss::Stablemax if x >= 0.0 => x + 1.0,
        Loss::Stablemax => 1.0 / (1.0 - x),
    };
    let total: f64 = tokens.clone().filter_map(logit).map(share).sum();
    out.extend(tokens.map(|token| logit(token).map_or(0.0, |x| (share(x) / total) as f32)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(loss: Loss, logits: &[f32], first: usize, student: (usize, usize)) -> Vec<f32> {
        let mut out = Vec::new();
        probabilities(loss, logits, first, student, &mut out);
        out
    }

    #[test]
    fn logits_become_probabilities_of_the_students_symbols() {
        // Fields to fields, vocabulary to vocabulary.
        let ln = |x: f32| x.ln();
        let found = read(Loss::Softmax, &[ln(1.0), ln(2.0), ln(5.0)], 2, (3, 2));
        assert!(found.iter().zip([0.125, 0.25, 0.625]).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        assert_eq!(read(Loss::Stablemax, &[-1.0, 0.5, 1.0], 0, (3, 0)), [0.125, 0.375, 0.5]);
        // A vocabulary to fields: tokens 0 and 1 are left out. Fields to a vocabulary: they are never answered.
        assert_eq!(read(Loss::Stablemax, &[100.0, 100.0, 0.0, 2.0], 0, (2, 2)), [0.25, 0.75]);
        assert_eq!(read(Loss::Stablemax, &[0.0, 2.0], 2, (4, 0)), [0.0, 0.0, 0.25, 0.75]);
        // Large logits do not overflow.
        assert_eq!(read(Loss::Softmax, &[1000.0, -1000.0], 2, (2, 2)), [1.0, 0.0]);
    }
}
