//! Segments from carries that the caller keeps: for analyses that look into a run or start it somewhere else.

use anyhow::ensure;

use super::layout::Packed;
use super::random::{Purpose, Stream};
use super::segment::{Carry as Slices, Net, Workspace};
use super::train::spread;
use super::{FusedEngine, fresh, loss, simd, state};
use crate::engine::{Carry, Reading, StartOf};

impl FusedEngine {
    fn check_carry(&self, carry: &Carry) -> anyhow::Result<usize> {
        let len = self.d.r * self.d.c;
        ensure!(
            carry.h.len() == carry.l.len() && carry.h.len().is_multiple_of(len),
            "carries of {} and {} elements, expected the same multiple of {len}",
            carry.h.len(),
            carry.l.len()
        );
        Ok(carry.h.len() / len)
    }

    pub(super) fn begin_at(&self, starts: &[StartOf], random: bool) -> Carry {
        let d = &self.d;
        let mut carry = Carry::default();
        let (mut h, mut l) = (vec![0.0; d.r * d.cp], vec![0.0; d.r * d.cp]);
        for s in starts {
            let stream = Stream::new(s.seed, Purpose::InferenceStart, s.number);
            if random {
                for (half, z) in [&mut h, &mut l].into_iter().enumerate() {
                    simd::truncated(self.isa, z, d.cp, d.c, stream, (half * d.r * d.c) as u64);
                }
            } else {
                fresh(self.isa, d, &self.init, stream, &mut h, &mut l);
            }
            carry.h.extend(state::unpad(d, &h));
            carry.l.extend(state::unpad(d, &l));
        }
        carry
    }

    /// Reads the heads, after a segment if `inputs` are given.
    pub(super) fn advance_or_read(&self, inputs: Option<&[u8]>, carry: &mut Carry) -> anyhow::Result<Reading> {
        let d = &self.d;
        let n = self.check_carry(carry)?;
        if let Some(inputs) = inputs {
            ensure!(inputs.len() == n * d.s, "inputs: {} tokens for {n} carries, expected {}", inputs.len(), n * d.s);
            self.check_tokens("inputs", inputs)?;
        }
        let averaged = (!self.mean.is_empty()).then(|| Packed::new(d, &self.mean, self.rounding.as_deref()));
        let net = Net { isa: self.isa, d, w: averaged.as_ref().unwrap_or(&self.packed) };
        let symbols = loss::symbols(d);
        let mut out =
            Reading { logits: vec![0.0; n * d.s * symbols], tokens: vec![0; n * d.s], q_halt: vec![0.0; n], q_continue: Vec::new() };
        let mut workspaces: Vec<_> = (0..self.opts.threads).map(|_| Workspace::new(d, None)).collect();
        let len = d.r * d.c;
        let jobs = carry
            .h
            .chunks_exact_mut(len)
            .zip(carry.l.chunks_exact_mut(len))
            .zip(out.logits.chunks_exact_mut(d.s * symbols).zip(out.tokens.chunks_exact_mut(d.s)).zip(&mut out.q_halt))
            .enumerate();
        let pad = |z: &[f32]| state::pad(d, z).unwrap_or_default();
        spread(&mut workspaces, jobs, |(b, ((h, l), ((logits, tokens), q))), ws| {
            let mut padded_h = pad(h);
            if let Some(inputs) = inputs {
                let mut padded_l = pad(l);
                net.advance(&inputs[b * d.s..(b + 1) * d.s], &mut Slices { h: &mut padded_h, l: &mut padded_l }, ws);
                h.copy_from_slice(&state::unpad(d, &padded_h));
                l.copy_from_slice(&state::unpad(d, &padded_l));
            }
            *q = loss::answer(d, net.w, &padded_h, logits, tokens);
        });
        Ok(out)
    }
}
