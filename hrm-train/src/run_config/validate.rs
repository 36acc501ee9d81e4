//! What is no run: values out of range, and fields that do not go together.

use anyhow::ensure;
use hrm_core::Mixer;

use super::{DepthStage, Dtype, EngineKind, RunConfig};
use crate::data::grid::GridKind;
use crate::engine::Gradient;

impl RunConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// A sentence naming the field, what was found and what was expected.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.spec()?;
        let (d, t, e, c) = (&self.data, &self.train, &self.eval, &self.checkpoint);
        ensure!(
            !d.train.0.is_empty() || d.generate.n > 0,
            "no training data: set data.train to a CSV file or data.generate.n to a number of puzzles"
        );
        ensure!(
            d.meta.0.is_empty() || d.meta.0.len() == d.train.0.len(),
            "data.meta names {} files, expected one for each of the {} of data.train",
            d.meta.0.len(),
            d.train.0.len()
        );
        ensure!(d.exclude_meta.0.is_empty() || !d.meta.0.is_empty(), "data.exclude_meta needs data.meta, the sidecars of data.train");
        if let Some(kind) = self.task.kind.grid() {
            for (name, found) in
                [("data.easier", d.easier), ("data.easier_first", d.easier_first as f64), ("data.easier_most", d.easier_most as f64)]
            {
                ensure!(found == 0.0, "{name} is {found}, expected 0 with task.kind {kind:?}: there are no blanks to fill");
            }
            ensure!(d.meta.0.is_empty(), "data.meta goes with task.kind sudoku, found {kind:?}");
            ensure!(d.generate.times == 1, "data.generate.times is {}, expected 1 with task.kind {kind:?}", d.generate.times);
            if kind == GridKind::Arc {
                ensure!(!d.symmetries, "data.symmetries is true, expected false with ARC: its forms have identifiers of their own");
                ensure!(d.generate.n == 0, "data.generate.n is {}, expected 0: there is no generator of ARC tasks", d.generate.n);
                ensure!(t.teacher.is_empty(), "train.teacher does not go with ARC: a teacher has identifiers of its own");
            }
        }
        count("model.identifiers", self.model.identifiers as u64, 1, 1 << 31)?;
        ensure!(
            self.model.identifiers == 1 || self.model.prefix > 0,
            "model.identifiers is {}, but without model.prefix there are no puzzle embeddings",
            self.model.identifiers
        );
        number("train.identifier_lr", t.identifier_lr, 0.0, 1e6)?;
        ensure!(d.holdout >= 1, "data.holdout is 0, expected at least 1 puzzle to choose the checkpoint with");
        number("data.easier", d.easier, 0.0, 1.0)?;
        count("data.generate.times", d.generate.times, 1, 1_000_000)?;
        count("data.easier_first", d.easier_first, 0, 1 << 40)?;
        count("data.easier_most", d.easier_most as u64, 0, 80)?;
        let mut before = 0.0;
        for (i, stage) in t.depth.iter().enumerate() {
            let DepthStage { until, h_cycles, l_cycles } = *stage;
            ensure!(until > before && until <= 1.0, "train.depth[{i}].until is {until}, expected above {before} to 1");
            count(&format!("train.depth[{i}].h_cycles"), u64::from(h_cycles), 1, u64::from(self.model.h_cycles))?;
            count(&format!("train.depth[{i}].l_cycles"), u64::from(l_cycles), 1, u64::from(self.model.l_cycles))?;
            before = until;
        }
        number("train.teacher_share", t.teacher_share, 0.0, 1.0)?;
        count("train.teacher_segments", t.teacher_segments as u64, 1, 100_000)?;
        number("train.supervision_decay", t.supervision_decay, f64::MIN_POSITIVE, 1.0)?;
        count("train.unroll", u64::from(t.unroll), 1, 8)?;
        ensure!(
            t.unroll == 1 || t.gradient == Gradient::Segment,
            "train.unroll is {}, expected 1 unless train.gradient is \"segment\"",
            t.unroll
        );
        count("train.steps", t.steps, 1, 1 << 40)?;
        count("train.batch", t.batch as u64, 1, 65_536)?;
        number("train.lr", t.lr, 0.0, 10.0)?;
        ensure!(t.warmup <= t.steps, "train.warmup is {}, expected at most train.steps, {}", t.warmup, t.steps);
        number("train.min_ratio", t.min_ratio, 0.0, 1.0)?;
        for (name, beta) in [("train.betas[0]", t.betas.0), ("train.betas[1]", t.betas.1), ("train.ema", t.ema)] {
            number(name, beta, 0.0, 1.0)?;
            ensure!(beta < 1.0, "{name} is {beta}, expected less than 1");
        }
        number("train.weight_decay", t.weight_decay, 0.0, 100.0)?;
        number("train.q_weight", t.q_weight, 0.0, 100.0)?;
        count("train.halt_max_steps", u64::from(t.halt_max_steps), 1, 100_000)?;
        number("train.halt_exploration", t.halt_exploration, 0.0, 1.0)?;
        number("train.carry_noise", t.carry_noise, 0.0, 10.0)?;
        number("train.clip", t.clip, 0.0, 1e9)?;
        count("train.threads", t.threads as u64, 0, 1024)?;
        count("train.log_every", t.log_every, 1, 1 << 40)?;
        count("eval.segments", e.segments as u64, 1, 100_000)?;
        ensure!(e.n <= d.holdout, "eval.n is {}, expected at most data.holdout, {}", e.n, d.holdout);
        number("checkpoint.seconds", c.seconds, 0.0, 1e9)?;
        ensure!(
            !t.quantize || (t.engine == EngineKind::Fused && !t.init.is_empty()),
            "train.quantize needs train.engine = \"fused\" and train.init, a trained model whose ranges it keeps"
        );
        if t.engine == EngineKind::Fused {
            ensure!(
                self.model.mixer == Mixer::GroupSum,
                "train.engine is `fused`, which trains model.mixer `group-sum` only; take train.engine = \"torch\""
            );
            let (dtype, name, place) = if t.device == "cpu" { (Dtype::F32, "f32", "the CPU") } else { (Dtype::Bf16, "bf16", "a GPU") };
            ensure!(t.dtype == dtype, "train.dtype must be `{name}` on {place} with train.engine = \"fused\"");
            ensure!(t.device == "cpu" || t.teacher.is_empty(), "train.teacher needs train.device = \"cpu\" with train.engine = \"fused\"");
        }
        Ok(())
    }
}

fn number(name: &str, value: f64, min: f64, max: f64) -> anyhow::Result<()> {
    ensure!(value >= min && value <= max, "{name} is {value}, expected {min} to {max}");
    Ok(())
}

pub(super) fn count(name: &str, value: u64, min: u64, max: u64) -> anyhow::Result<()> {
    ensure!(value >= min && value <= max, "{name} is {value}, expected {min} to {max}");
    Ok(())
}
