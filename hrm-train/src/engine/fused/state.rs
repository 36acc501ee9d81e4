//! Everything an exact resume needs, as named tensors.
//!
//! `weights.*`, `mean.*` (with a running mean), `m.*`, `v.*` under the public names; `init.H`, `init.L` `[C]`; `carry.H`, `carry.L`
//! `[batch, R, C]`; `counters` `[4, 4]`: seed, optimizer steps, starts handed out, segments begun. A counter is four numbers of 16 bits,
//! lowest first: f32 holds those exactly.

use anyhow::Context;

use super::FusedEngine;
use super::layout::{Dims, Packed, tensor};
use crate::engine::{Tensors, join, split};

const INIT: [&str; 2] = ["init.H", "init.L"];
const CARRY: [&str; 2] = ["carry.H", "carry.L"];

/// The fixed starts, padded.
pub fn read_init(d: &Dims, tensors: &Tensors) -> anyhow::Result<[Vec<f32>; 2]> {
    let read = |name| pad(d, tensor(tensors, name, &[d.c])?);
    Ok([read(INIT[0])?, read(INIT[1])?])
}

pub fn pad(d: &Dims, rows: &[f32]) -> anyhow::Result<Vec<f32>> {
    let mut out = vec![0.0; rows.len() / d.c * d.cp];
    for (to, from) in out.chunks_exact_mut(d.cp).zip(rows.chunks_exact(d.c)) {
        to[..d.c].copy_from_slice(from);
    }
    Ok(out)
}

pub fn unpad(d: &Dims, rows: &[f32]) -> Vec<f32> {
    rows.chunks_exact(d.cp).flat_map(|row| &row[..d.c]).copied().collect()
}

impl FusedEngine {
    pub(super) fn put_init(&self, out: &mut Tensors) {
        for (name, values) in INIT.into_iter().zip(&self.init) {
            out.insert(name.into(), (vec![self.d.c], unpad(&self.d, values)));
        }
    }

    pub(super) fn save(&self) -> anyhow::Result<Tensors> {
        let (d, now) = (&self.d, self.parameters()?);
        let mut out = Tensors::new();
        d.to_tensors(&now.weights, "weights.", &mut out);
        if !now.mean.is_empty() {
            d.to_tensors(&now.mean, "mean.", &mut out);
        }
        d.to_tensors(&now.m, "m.", &mut out);
        d.to_tensors(&now.v, "v.", &mut out);
        self.put_init(&mut out);
        for (name, carry) in CARRY.into_iter().zip(&now.carry) {
            out.insert(name.into(), (vec![self.opts.batch, d.r, d.c], self.group.gather_floats(&unpad(d, carry))?));
        }
        let counters = [self.seed, self.optimizer.step, self.starts, self.segments].into_iter().flat_map(split).collect();
        out.insert("counters".into(), (vec![4, 4], counters));
        Ok(out)
    }

    /// Reads all before it changes anything.
    pub(super) fn load(&mut self, state: &Tensors) -> anyhow::Result<()> {
        let d = &self.d;
        let weights = d.read_tensors(state, "weights.")?;
        let mean = if self.opts.ema > 0.0 {
            d.read_tensors(state, "mean.").context("the run to resume keeps a running mean of the weights")?
        } else {
            Vec::new()
        };
        let (m, v) = (d.read_tensors(state, "m.")?, d.read_tensors(state, "v.")?);
        let init = read_init(d, state)?;
        let (own, len) = (&self.rows, d.r * d.c);
        let carry = |name| pad(d, &tensor(state, name, &[self.opts.batch, d.r, d.c])?[own.start * len..own.end * len]);
        let (carry_h, carry_l) = (carry(CARRY[0])?, carry(CARRY[1])?);
        let counters = tensor(state, "counters", &[4, 4])?.chunks_exact(4).map(join).collect::<anyhow::Result<Vec<u64>>>()?;
        // The device gets it all at the next step.
        self.accelerator = None;
        self.packed = Packed::new(d, &weights, self.rounding.as_deref());
        (self.weights, self.mean, self.init, self.carry_h, self.carry_l) = (weights, mean, init, carry_h, carry_l);
        (self.optimizer.m, self.optimizer.v) = (m, v);
        (self.seed, self.optimizer.step, self.starts, self.segments) = (counters[0], counters[1], counters[2], counters[3]);
        Ok(())
    }
}
