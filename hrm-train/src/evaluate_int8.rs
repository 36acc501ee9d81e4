//! int8 models through the deployed core: the same code, the same bits as `hrm solve` and the firmware.

use std::path::Path;

use anyhow::{Context as _, ensure};
use hrm_core::format::AlignedBytes;
use hrm_core::{Aligned, Kernel, ModelView, Network, Plan, Run};
use rayon::prelude::*;

use crate::data::PuzzleSet;
use crate::evaluate::Model;

/// An int8 file, the kernel that runs it, and the seed of its random starts.
#[derive(Debug)]
pub struct Int8 {
    file: AlignedBytes,
    kernel: Kernel,
    seed: u64,
}

/// What became of one puzzle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the answer after each segment is right in every cell, `[segments]`.
    pub exact: Vec<bool>,
    /// Segments until the verifier first accepted the answer, from 1.
    pub verified: Option<usize>,
    /// State hash after the last segment.
    pub hash: u64,
}

/// The kernel named by the environment variable `HRM_KERNEL`, or else the fastest one.
///
/// # Errors
/// This CPU has no kernel of that name.
pub fn kernel() -> anyhow::Result<Kernel> {
    match std::env::var("HRM_KERNEL") {
        Ok(name) => Kernel::by_name(&name).with_context(|| {
            let known: Vec<_> = Kernel::available().map(Kernel::name).collect();
            format!("HRM_KERNEL is `{name}`, this CPU has {}", known.join(", "))
        }),
        Err(_) => Ok(Kernel::best()),
    }
}

impl Int8 {
    /// A model from the bytes of its file.
    ///
    /// # Errors
    /// The file is refused.
    pub fn new(bytes: &[u8], kernel: Kernel, seed: u64) -> anyhow::Result<Self> {
        let file = AlignedBytes::new(bytes);
        ModelView::new_checked(file.as_slice())?;
        Ok(Self { file, kernel, seed })
    }

    /// Reads a `.hrm` file; the kernel is that of [`kernel`].
    ///
    /// # Errors
    /// The file cannot be read or is refused.
    pub fn load(path: &Path, seed: u64) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::new(&bytes, kernel()?, seed).with_context(|| format!("model {}", path.display()))
    }

    /// The seed of its starts.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The checked file.
    ///
    /// # Errors
    /// None in practice: the file has been checked when it was read.
    pub fn view(&self) -> anyhow::Result<ModelView<'_>> {
        Ok(ModelView::new_checked(self.file.as_slice())?)
    }

    /// Calls `work(index, run)` for every puzzle (tokens `[S]`) with its run, not yet started, in parallel; results in order. They do not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// The first error of `work`.
    pub fn each<T: Send>(
        &self,
        puzzles: &[&[u8]],
        work: impl Fn(usize, &mut Run<'_, '_>) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        let view = self.view()?;
        let mut packed = Aligned::new(Network::packed_words(&view, self.kernel));
        let network = Network::new(view, self.kernel, &mut packed)?;
        let words = network.required_bytes(Plan::HOST).div_ceil(8);
        (0..puzzles.len())
            .into_par_iter()
            .map_init(
                || Aligned::new(words),
                |arena, i| {
                    let mut run = Run::new(network, arena, Plan::HOST)?;
                    work(i, &mut run)
                },
            )
            .collect()
    }

    /// Runs the first `n` puzzles of a set for `segments` segments each.
    ///
    /// # Errors
    /// A puzzle does not fit to the model.
    pub fn outcomes(&self, set: &PuzzleSet, n: usize, segments: usize) -> anyhow::Result<Vec<Outcome>> {
        let puzzles: Vec<&[u8]> = (0..n.min(set.len())).map(|i| set.input(i)).collect();
        self.each(&puzzles, |i, run| {
            run.start(puzzles[i], self.seed, 0).with_context(|| format!("puzzle {i}"))?;
            let mut outcome = Outcome { exact: Vec::with_capacity(segments), verified: None, hash: 0 };
            for segment in 1..=segments {
                run.segment()?;
                outcome.exact.push(run.answer() == set.label(i));
                if outcome.verified.is_none() && set.sudoku.verify(puzzles[i], run.answer()).is_valid() {
                    outcome.verified = Some(segment);
                }
            }
            outcome.hash = run.hash();
            Ok(outcome)
        })
    }
}

impl Model for Int8 {
    fn kind(&self) -> &'static str {
        "int8"
    }

    /// Every puzzle starts as it does on a device: from guess 0 of the seed of this model, whatever the seed of the chunk.
    fn infer(&mut self, inputs: &[u8], segments: usize, _: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
        let tokens = usize::from(self.view()?.config().tokens);
        ensure!(inputs.len().is_multiple_of(tokens), "{} tokens are not a whole number of puzzles of {tokens}", inputs.len());
        let scale = self.view()?.heads().q_scale;
        let puzzles: Vec<&[u8]> = inputs.chunks_exact(tokens).collect();
        let each = self.each(&puzzles, |i, run| {
            run.start(puzzles[i], self.seed, 0).with_context(|| format!("puzzle {i}"))?;
            let (mut answers, mut q) = (Vec::with_capacity(segments * tokens), Vec::with_capacity(segments));
            for _ in 0..segments {
                run.segment()?;
                answers.extend_from_slice(run.answer());
                q.push(run.q().0 as f32 * scale);
            }
            Ok((answers, q))
        })?;
        for segment in 0..segments {
            let at = segment * tokens..(segment + 1) * tokens;
            let answers: Vec<u8> = each.iter().flat_map(|(a, _)| a[at.clone()].iter().copied()).collect();
            let q: Vec<f32> = each.iter().map(|(_, q)| q[segment]).collect();
            observe(segment, &answers, &q);
        }
        Ok(())
    }
}
