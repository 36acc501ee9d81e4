//! Everything an exact resume needs, as named tensors: the names and shapes of the fused engine's state, so that a structured run can go on
//! with either engine.
//!
//! `weights.*`, `mean.*` (with a running mean), `m.*`, `v.*`; the buffers under their own names; `carry.H`, `carry.L` `[batch, R, C]`;
//! `counters` `[4, 4]`: seed, optimizer steps, starts handed out, segments begun, four numbers of 16 bits each, lowest first. Public models
//! also have `steps` `[batch]`.

use anyhow::Context;
use tch::Tensor;

use super::TorchEngine;
use super::layout::{device_tensor, host, take};
use super::net::Carry;
use crate::engine::{Tensors, join, split};

impl TorchEngine {
    /// Of the whole batch.
    fn carry_shape(&self) -> [usize; 3] {
        [self.options.batch, self.net.config.rows(), usize::from(self.net.config.channels)]
    }

    /// The untrained tensors: starts of the carry and the table of puzzle embeddings.
    pub(super) fn put_buffers(&self, out: &mut Tensors) -> anyhow::Result<()> {
        for buffer in &self.net.layout.buffers {
            let name = buffer.name.as_str();
            let values = match &self.puzzle {
                Some(table) if name.ends_with("puzzle_emb.weights") => host(table)?,
                _ if name.ends_with("H_init") || name == "init.H" => host(&self.net.start.0)?,
                _ => host(&self.net.start.1)?,
            };
            out.insert(name.into(), (buffer.shape.clone(), values));
        }
        Ok(())
    }

    pub(super) fn save(&self) -> anyhow::Result<Tensors> {
        let mut out = Tensors::new();
        let layout = &self.net.layout;
        layout.named(&self.flat, "weights.", &mut out)?;
        if let Some(average) = &self.optimizer.average {
            layout.named(average, "mean.", &mut out)?;
        }
        layout.named(&self.optimizer.m, "m.", &mut out)?;
        layout.named(&self.optimizer.v, "v.", &mut out)?;
        self.put_buffers(&mut out)?;
        for (name, carry) in [("carry.H", &self.carry.h), ("carry.L", &self.carry.l)] {
            out.insert(name.into(), (self.carry_shape().to_vec(), self.group.gather_floats(&host(carry)?)?));
        }
        let counters = [self.seed, self.optimizer.steps, self.starts, self.segments].into_iter().flat_map(split).collect();
        out.insert("counters".into(), (vec![4, 4], counters));
        if self.net.public.is_some() {
            let steps: Vec<f32> = self.steps.iter().map(|&s| s.min(1 << 24) as f32).collect();
            out.insert("steps".into(), (vec![self.options.batch], self.group.gather_floats(&steps)?));
        }
        Ok(out)
    }

    /// Reads all before it changes anything.
    pub(super) fn load(&mut self, state: &Tensors) -> anyhow::Result<()> {
        let (net, device) = (&self.net, self.net.device);
        let layout = &net.layout;
        let flat = layout.flat(state, "weights.", device)?;
        let average = match self.optimizer.average {
            Some(_) => Some(layout.flat(state, "mean.", device).context("the run to resume keeps a running mean of the weights")?),
            None => None,
        };
        let (m, v) = (layout.flat(state, "m.", device)?, layout.flat(state, "v.", device)?);
        let mut buffers = Vec::new();
        for buffer in &layout.buffers {
            buffers.push(device_tensor(state, &buffer.name, &buffer.shape, device)?);
        }
        let (first, count) = (self.rows.start as i64, self.rows.len() as i64);
        let carry = |name| -> anyhow::Result<Tensor> {
            let whole = device_tensor(state, name, &self.carry_shape(), device)?;
            Ok(whole.f_narrow(0, first, count)?.copy().f_to_kind(net.kind)?)
        };
        let carry = Carry { h: carry("carry.H")?, l: carry("carry.L")? };
        let counters = take(state, "counters", &[4, 4])?.chunks_exact(4).map(join).collect::<anyhow::Result<Vec<u64>>>()?;
        let steps: Vec<u32> = match net.public {
            Some(_) => take(state, "steps", &[self.options.batch])?[self.rows.clone()].iter().map(|&s| s as u32).collect(),
            None => vec![0; self.rows.len()],
        };
        let weights = net.weights(&flat, true)?;
        for (buffer, value) in layout.buffers.clone().iter().zip(buffers) {
            match buffer.name.as_str() {
                name if name.ends_with("puzzle_emb.weights") => self.puzzle = Some(value),
                name if name.ends_with("H_init") || name == "init.H" => self.net.start.0 = value,
                _ => self.net.start.1 = value,
            }
        }
        (self.flat, self.weights, self.carry, self.steps) = (flat, weights, carry, steps);
        (self.optimizer.m, self.optimizer.v, self.optimizer.average) = (m, v, average);
        (self.seed, self.optimizer.steps, self.starts, self.segments) = (counters[0], counters[1], counters[2], counters[3]);
        Ok(())
    }
}
