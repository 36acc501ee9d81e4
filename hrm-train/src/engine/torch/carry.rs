//! Segments from carries that the caller keeps: for analyses that look into a run or start it somewhere else.

use anyhow::ensure;
use tch::{Kind, Tensor, no_grad};

use super::net::{Carry as Device, Net, Weights};
use super::{Purpose, Stream, TorchEngine, host};
use crate::engine::{Carry, Reading, StartOf};

impl TorchEngine {
    pub(super) fn begin_at(&self, starts: &[StartOf], random: bool) -> anyhow::Result<Carry> {
        let streams: Vec<Stream> = starts.iter().map(|s| Stream::new(s.seed, Purpose::InferenceStart, s.number)).collect();
        let len = self.net.config.state_len() as u64;
        no_grad(|| {
            let carry = if random {
                self.random_carry(&streams, |stream, half, i| stream.truncated(half * len + i))?
            } else {
                self.fresh(&streams)?
            };
            Ok(Carry { h: host(&carry.h)?, l: host(&carry.l)? })
        })
    }

    /// Runs `f` with the weights of evaluation.
    fn with_weights<T>(&self, f: impl FnOnce(&Net, &Weights) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let averaged = self.optimizer.average.as_ref().map(|flat| self.net.weights(flat, false)).transpose()?;
        no_grad(|| f(&self.net, averaged.as_ref().unwrap_or(&self.weights)))
    }

    fn upload(&self, z: &[f32]) -> anyhow::Result<Tensor> {
        let [rows, channels] = self.net.state();
        ensure!(
            z.len().is_multiple_of((rows * channels) as usize),
            "a carry of {} elements, expected a multiple of {}",
            z.len(),
            rows * channels
        );
        Ok(Tensor::f_from_slice(z)?.f_reshape([-1, rows, channels])?.f_to_device(self.net.device)?.f_to_kind(self.net.kind)?)
    }

    pub(super) fn advance_from(&self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading> {
        self.check_tokens("inputs", inputs)?;
        let (s, len) = (usize::from(self.net.config.tokens), self.net.config.state_len());
        let n = inputs.len() / s;
        ensure!(carry.h.len() == n * len && carry.l.len() == n * len, "{n} puzzles with carries of {} elements", carry.h.len());
        let mut out = Reading::default();
        let mut next = Carry::default();
        let batch = self.options.batch.max(64);
        self.with_weights(|net, weights| {
            for first in (0..n).step_by(batch) {
                let end = (first + batch).min(n);
                let tokens = self.tokens(&inputs[first * s..end * s])?;
                let identifiers = self.identifiers(&[], end - first)?;
                let x = net.embed(weights, &tokens, self.puzzle_rows(&identifiers)?.as_ref())?;
                let part = |z: &[f32]| self.upload(&z[first * len..end * len]);
                let z = net.advance(weights, &Device { h: part(&carry.h)?, l: part(&carry.l)? }, &x)?;
                next.h.extend(host(&z.h)?);
                next.l.extend(host(&z.l)?);
                append(&mut out, net, weights, &z.h)?;
            }
            Ok(())
        })?;
        *carry = next;
        Ok(out)
    }

    pub(super) fn read_from(&self, carry: &Carry) -> anyhow::Result<Reading> {
        let mut out = Reading::default();
        let h = self.upload(&carry.h)?;
        self.with_weights(|net, weights| append(&mut out, net, weights, &h))?;
        Ok(out)
    }
}

fn append(out: &mut Reading, net: &Net, weights: &Weights, h: &Tensor) -> anyhow::Result<()> {
    let (logits, q) = net.heads(weights, h)?;
    let tokens = net.answer(&logits)?.f_to_kind(Kind::Float)?;
    out.tokens.extend(host(&tokens)?.iter().map(|&t| t as u8));
    out.logits.extend(host(&logits)?);
    out.q_halt.extend(host(&q.f_select(1, 0)?)?);
    if q.size()[1] == 2 {
        out.q_continue.extend(host(&q.f_select(1, 1)?)?);
    }
    Ok(())
}
