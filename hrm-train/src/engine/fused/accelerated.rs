//! The engine with its network and its optimizer on a device.

use anyhow::ensure;

use super::FusedEngine;
use super::device::{Accelerator, Open, Operand, Parameters, Program, Row};
use super::layout::Packed;
use super::segment::calls_with_gradient;
use super::train::Numbers;
use crate::engine::{Course, RowOutcome};
use crate::parallel::Values;

/// Places in the padded gradient are told as f32, which counts so far.
const LARGEST: usize = 1 << 24;

impl FusedEngine {
    /// The same engine with training steps and inference on a device, whose products have operands of this kind.
    #[must_use]
    pub fn on(mut self, operand: Operand, open: Open) -> Self {
        self.open = Some((operand, open));
        self
    }

    /// [`FusedEngine::on`] the GPU named `cuda` or `cuda:N`, with operands in bf16.
    ///
    /// # Errors
    /// Another name, no CUDA driver, no such device; this program is built without feature `cuda`.
    #[cfg(feature = "cuda")]
    pub fn on_gpu(self, device: &str) -> anyhow::Result<Self> {
        // What is missing is said now, not at the first step.
        crate::cuda::open_context(device)?;
        let device = device.to_owned();
        Ok(self.on(Operand::Bf16, Box::new(move |program, slots| Ok(Box::new(super::device::Gpu::open(&device, program, slots)?)))))
    }

    /// Fails: this program is built without feature `cuda`.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "cuda"))]
    pub fn on_gpu(self, device: &str) -> anyhow::Result<Self> {
        anyhow::bail!(
            "device `{device}` for the fused engine needs feature cuda: cargo run --release -p hrm-train --features cuda -- ..; without it cpu"
        )
    }

    /// Opens the device if there is one and it is not open yet, and takes everything there.
    pub(super) fn accelerate(&mut self) -> anyhow::Result<()> {
        let Some((operand, open)) = &self.open else { return Ok(()) };
        if self.accelerator.is_none() {
            let d = &self.d;
            ensure!(d.grad_len < LARGEST, "the gradient of this model has {} values, a device takes fewer than {LARGEST}", d.grad_len);
            let program = Program::new(d, self.rounding.as_deref(), &self.init, self.opts.optimizer, *operand);
            let state = [&self.weights[..], &self.mean, &self.optimizer.m, &self.optimizer.v];
            self.accelerator = Some(Accelerator::new(program, open, d, state, [&self.carry_h, &self.carry_l])?);
        }
        Ok(())
    }

    /// All that is trained, wherever it is.
    pub(super) fn parameters(&self) -> anyhow::Result<Parameters> {
        match &self.accelerator {
            Some(accelerator) => accelerator.parameters(&self.d, self.opts.ema > 0.0),
            None => Ok(Parameters {
                weights: self.weights.clone(),
                mean: self.mean.clone(),
                m: self.optimizer.m.clone(),
                v: self.optimizer.v.clone(),
                carry: [self.carry_h.clone(), self.carry_l.clone()],
            }),
        }
    }

    /// Takes everything back from the device, which is opened again by the next step.
    pub(super) fn leave_device(&mut self) -> anyhow::Result<()> {
        if self.accelerator.is_some() {
            let now = self.parameters()?;
            [self.carry_h, self.carry_l] = now.carry;
            (self.weights, self.mean, self.optimizer.m, self.optimizer.v) = (now.weights, now.mean, now.m, now.v);
            self.packed = Packed::new(&self.d, &self.weights, self.rounding.as_deref());
            self.accelerator = None;
        }
        Ok(())
    }

    /// A training step on the device, which must be open.
    pub(super) fn train_on_device(
        &mut self,
        inputs: &[u8],
        labels: &[u8],
        reset: &[bool],
        course: &Course<'_>,
        lr: f64,
    ) -> anyhow::Result<Vec<RowOutcome>> {
        ensure!(course.teacher.is_none(), "train.teacher needs train.device = \"cpu\" with train.engine = \"fused\"");
        let Numbers { depth, starts, noise } = self.begin_step(inputs, labels, reset, course)?;
        let s = self.d.s;
        let rows: Vec<Row<'_>> = self
            .rows
            .clone()
            .map(|b| Row {
                input: &inputs[b * s..(b + 1) * s],
                labels: &labels[b * s..(b + 1) * s],
                start: starts[b],
                noise: noise[b],
                weight: course.weights.get(b).copied().unwrap_or(1.0),
            })
            .collect();
        let Some(accelerator) = &mut self.accelerator else { anyhow::bail!("the device is not open") };
        let outcomes = accelerator.gradient(&self.d, &self.opts, (depth, calls_with_gradient(depth, self.opts.gradient)), &rows)?;
        if self.group.world() > 1 {
            let mut gradient = accelerator.read_gradient()?;
            self.group.sum(Values::Host(&mut gradient))?;
            accelerator.write_gradient(&gradient)?;
        }
        let outcomes = self.group.gather_outcomes(outcomes)?;
        let norm = accelerator.norm()?;
        if !norm.is_finite() {
            let gradient = accelerator.read_gradient()?;
            self.check_gradient(&gradient)?;
        }
        self.check_outcomes(&outcomes)?;
        self.optimizer.step += 1;
        if let Some(accelerator) = &self.accelerator {
            accelerator.step(&self.opts, self.optimizer.step, norm, lr)?;
        }
        Ok(outcomes)
    }
}
