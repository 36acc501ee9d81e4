//! What changes while a run goes on. All are pure functions of the step, so that a resumed run follows the same course.

use super::{RunConfig, Schedule};
use crate::engine::Depth;

impl RunConfig {
    /// Learning rate of optimizer step `step` (the first is 0): a pure function, so that a resumed run follows the same course.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        let t = &self.train;
        if step < t.warmup {
            return t.lr * (step + 1) as f64 / t.warmup as f64;
        }
        match t.schedule {
            Schedule::Constant => t.lr,
            Schedule::Cosine => {
                let progress = (step - t.warmup) as f64 / (t.steps.saturating_sub(t.warmup + 1)).max(1) as f64;
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
                t.lr * (t.min_ratio + (1.0 - t.min_ratio) * cosine)
            }
        }
    }

    /// Depth of optimizer step `step` (the first is 0) where it is not the model's: a pure function, as the learning rate is. Several segments are
    /// one with as many times the H cycles.
    #[must_use]
    pub fn depth(&self, step: u64) -> Option<Depth> {
        let progress = step as f64 / self.train.steps as f64;
        let own = Depth { h_cycles: self.model.h_cycles, l_cycles: self.model.l_cycles };
        let stage = self.train.depth.iter().find(|stage| progress < stage.until);
        let segment = stage.map_or(own, |s| Depth { h_cycles: s.h_cycles, l_cycles: s.l_cycles });
        let depth = Depth { h_cycles: segment.h_cycles * self.train.unroll, ..segment };
        (depth != own).then_some(depth)
    }

    /// Factor of the loss of a puzzle's segments 1 to `halt_max_steps`; empty: 1.
    #[must_use]
    pub fn supervision(&self) -> Vec<f32> {
        let t = &self.train;
        if t.supervision_decay == 1.0 {
            return Vec::new();
        }
        let raw: Vec<f64> = (0..t.halt_max_steps).scan(1.0, |w, _| Some(std::mem::replace(w, *w * t.supervision_decay))).collect();
        let mean = raw.iter().sum::<f64>() / raw.len() as f64;
        raw.iter().map(|w| (w / mean) as f32).collect()
    }
}
