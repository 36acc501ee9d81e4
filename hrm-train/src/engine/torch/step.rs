//! One training segment: forward, targets, loss, gradient.

use anyhow::{bail, ensure};
use tch::{Kind, Tensor, no_grad};

use super::TorchEngine;
use super::layout::host;
use super::loss::{binary, losses};
use super::net::Carry;
use crate::engine::fused::random::{Purpose, Stream};
use crate::engine::{Course, Depth, RowOutcome};
use crate::parallel::{DeviceSlice, Values};

/// A batch of training puzzles.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Tokens `[batch, S]`.
    pub inputs: &'a [u8],
    /// Tokens `[batch, S]`; 0 does not count.
    pub labels: &'a [u8],
    /// Rows of the table of puzzle embeddings, `[batch]`; empty means row 0 for all.
    pub identifiers: &'a [usize],
    /// Rows that hold a new puzzle, `[batch]`.
    pub reset: &'a [bool],
    /// Depth of the segment and weights of the rows.
    pub course: Course<'a>,
}

/// What one training segment saw. Sums over the batch, each row times its weight, as the published code logs them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SegmentReport {
    /// By row.
    pub rows: Vec<RowOutcome>,
    /// Logits of going on; empty for models with one Q output.
    pub q_continue: Vec<f32>,
    /// Segments each row has run since its last reset.
    pub steps: Vec<u32>,
    /// Cross entropy of the symbols.
    pub cells_loss: f64,
    /// Binary cross entropy of the halt logits.
    pub halt_loss: f64,
    /// Binary cross entropy of the logits of going on, where they are trained.
    pub continue_loss: Option<f64>,
    /// The loss: symbols + q_weight * (halt + continue).
    pub loss: f64,
}

/// Forward and backward pass of one segment, not yet applied.
pub(super) struct Computed {
    pub report: SegmentReport,
    /// Over the flat weights, of the loss of this rank's rows / batch.
    pub gradient: Tensor,
    /// Of the puzzle embeddings of this rank's rows, `[rows, ndim]`.
    pub puzzle: Option<Tensor>,
    pub identifiers: Vec<i64>,
    pub carry: Carry,
    pub starts: u64,
}

impl TorchEngine {
    fn check(&self, batch: &Batch<'_>) -> anyhow::Result<()> {
        let (n, cells) = (self.options.batch, self.options.batch * usize::from(self.net.config.tokens));
        for (what, found, expected) in
            [("inputs", batch.inputs.len(), cells), ("labels", batch.labels.len(), cells), ("reset", batch.reset.len(), n)]
        {
            ensure!(found == expected, "{what}: {found} values, expected {expected} for a batch of {n}");
        }
        ensure!(
            batch.identifiers.is_empty() || batch.identifiers.len() == n,
            "puzzle identifiers: {} values, expected {n}",
            batch.identifiers.len()
        );
        batch.course.check(&self.net.config, n)?;
        self.check_tokens("inputs", batch.inputs)?;
        self.check_tokens("labels", batch.labels)?;
        let s = usize::from(self.net.config.tokens);
        if self.net.config.fields > 1
            && let Some(at) = batch.labels.iter().position(|&t| t == 1)
        {
            bail!("labels: token 1 (blank) in puzzle {}, cell {}, expected a symbol or 0", at / s, at % s);
        }
        Ok(())
    }

    /// The identifiers of a batch, checked against the table.
    pub(super) fn identifiers(&self, given: &[usize], n: usize) -> anyhow::Result<Vec<i64>> {
        let rows = self.net.public.as_ref().map_or(0, |p| p.puzzle_identifiers);
        if let Some(id) = given.iter().find(|&&id| rows > 0 && id >= rows) {
            bail!("puzzle identifier {id}, expected below {rows}");
        }
        Ok(if given.is_empty() { vec![0; n] } else { given.iter().map(|&id| id as i64).collect() })
    }

    /// Carry of the batch with fresh starts in the rows to reset, and the number of starts handed out so far.
    fn started(&self, reset: &[bool]) -> anyhow::Result<(Carry, u64)> {
        let mut starts = self.starts;
        let (mut rows, mut streams) = (Vec::new(), Vec::new());
        // Starts are numbered over the whole batch, whoever has the row.
        for b in (0..reset.len()).filter(|&b| reset[b]) {
            if self.rows.contains(&b) {
                rows.push((b - self.rows.start) as i64);
                streams.push(Stream::new(self.seed, Purpose::Start, starts));
            }
            starts += 1;
        }
        if rows.is_empty() {
            return Ok((self.carry.map(Tensor::f_alias)?, starts));
        }
        let fresh = self.fresh(&streams)?;
        let at = Tensor::f_from_slice(&rows)?.f_to_device(self.net.device)?;
        let h = self.carry.h.f_index_copy(0, &at, &fresh.h)?;
        Ok((Carry { h, l: self.carry.l.f_index_copy(0, &at, &fresh.l)? }, starts))
    }

    /// Adds the noise of training segment number `self.segments`.
    fn disturbed(&self, carry: Carry) -> anyhow::Result<Carry> {
        if self.options.carry_noise == 0.0 {
            return Ok(carry);
        }
        let (batch, len) = (self.options.batch as u64, self.net.config.state_len() as u64);
        let streams: Vec<Stream> = (self.rows.start as u64..self.rows.end as u64)
            .map(|b| Stream::new(self.seed, Purpose::Noise, self.segments * batch + b))
            .collect();
        let noise = self.random_carry(&streams, |stream, half, i| stream.normal(half * len + i) * self.options.carry_noise as f32)?;
        Ok(Carry { h: carry.h.f_add(&noise.h)?, l: carry.l.f_add(&noise.l)? })
    }

    /// Forward and backward pass; the engine is left as it was, but for the gradients that libtorch keeps with the leaves.
    pub(super) fn compute(&mut self, batch: &Batch<'_>) -> anyhow::Result<Computed> {
        self.check(batch)?;
        let (own, n) = (self.rows.clone(), self.rows.len());
        let identifiers = self.identifiers(batch.identifiers, self.options.batch)?;
        let net = &self.net;
        let s = usize::from(net.config.tokens);
        let cells = own.start * s..own.end * s;
        let (inputs, labels) = (self.tokens(&batch.inputs[cells.clone()])?, self.tokens(&batch.labels[cells])?);
        let (carry, starts) = self.started(batch.reset)?;
        let carry = self.disturbed(carry)?;
        let puzzle = self.puzzle_rows(&identifiers[own.clone()])?.map(|rows| rows.f_set_requires_grad(true)).transpose()?;
        for leaf in &mut self.weights.leaves {
            leaf.zero_grad();
        }

        let x = net.embed(&self.weights, &inputs, puzzle.as_ref())?;
        let depth = batch.course.depth.unwrap_or(Depth::of(&net.config));
        let next = net.segment(&self.weights, &carry, &x, depth, Some(self.options.gradient))?;
        let (logits, q) = net.heads(&self.weights, &next.h)?;
        let halt = q.f_select(-1, 0)?;
        let row_weights = match batch.course.weights {
            [] => None,
            weights => Some(Tensor::f_from_slice(&weights[own.clone()])?.f_to_device(net.device)?),
        };
        let advice = match batch.course.teacher {
            None => None,
            Some(t) => {
                let width = t.probabilities.len() / self.options.batch;
                let mine = Tensor::f_from_slice(&t.probabilities[own.start * width..own.end * width])?;
                Some((mine.f_reshape(logits.size())?.f_to_device(net.device)?, t.share))
            }
        };
        let advice = advice.as_ref().map(|(p, share)| (p, *share));
        let parts = losses(self.options.loss, &logits, &halt, &labels, net.first_token(), row_weights.as_ref(), advice)?;
        let steps: Vec<u32> =
            self.steps.iter().zip(&batch.reset[own]).map(|(&s, &reset)| if reset { 1 } else { s.saturating_add(1) }).collect();
        let next = next.detach()?;
        let going_on = match &net.public {
            Some(public) if public.q_continue && public.halt_max_steps > 1 && self.options.q_weight > 0.0 => {
                let targets = no_grad(|| -> anyhow::Result<Tensor> {
                    // One step of Q-learning: the value of going on is the best choice after the next segment; at the last, it is to halt.
                    let after = net.segment(&self.weights, &next, &x, depth, None)?;
                    let (_, q) = net.heads(&self.weights, &after.h)?;
                    let last: Vec<bool> = steps.iter().map(|&s| s >= public.halt_max_steps).collect();
                    let last = Tensor::f_from_slice(&last)?.f_to_device(net.device)?;
                    let (halt, going_on) = (q.f_select(-1, 0)?, q.f_select(-1, 1)?);
                    Ok(halt.f_where_self(&last, &halt.f_maximum(&going_on)?)?.f_sigmoid()?)
                })?;
                Some(binary(&q.f_select(-1, 1)?, &targets, row_weights.as_ref())?)
            }
            _ => None,
        };
        let mut q_loss = parts.halt.f_alias()?;
        if let Some(going_on) = &going_on {
            q_loss = q_loss.f_add(going_on)?;
        }
        let cells_loss = parts.weighted;
        let loss = cells_loss.f_add(&q_loss.f_mul_scalar(self.options.q_weight)?)?;
        loss.f_div_scalar(self.options.batch as f64)?.f_backward()?;

        let gradients: Result<Vec<Tensor>, tch::TchError> = self
            .weights
            .leaves
            .iter()
            .map(|leaf| {
                let gradient = leaf.grad();
                if gradient.defined() { gradient.f_reshape(-1) } else { leaf.f_detach()?.f_zeros_like()?.f_reshape(-1) }
            })
            .collect();
        let gradient = Tensor::f_cat(&gradients?, 0)?;
        let puzzle = puzzle.map(|rows| rows.grad()).filter(Tensor::defined);

        let (cells, right, exact) = (host(&parts.cells)?, host(&parts.right)?, host(&parts.exact)?);
        let q = host(&q)?;
        let outputs = q.len() / n;
        let row = |b: usize| {
            let q_halt = q[b * outputs];
            let least = if going_on.is_some() { q[b * outputs + 1] } else { 0.0 };
            RowOutcome { loss: cells[b], q_halt, halt: q_halt > least, cells: right[b] as u16, exact: exact[b] != 0.0 }
        };
        let rows: Vec<RowOutcome> = (0..n).map(row).collect();
        let report = SegmentReport {
            rows,
            q_continue: if outputs == 2 { q.iter().skip(1).step_by(2).copied().collect() } else { Vec::new() },
            steps,
            cells_loss: cells_loss.f_double_value(&[])?,
            halt_loss: parts.halt.f_double_value(&[])?,
            continue_loss: going_on.map(|t| t.f_double_value(&[])).transpose()?,
            loss: loss.f_double_value(&[])?,
        };
        Ok(Computed { report, gradient, puzzle, identifiers, carry: next, starts })
    }

    /// One segment for every row of the batch, and one optimizer step. The puzzle embeddings step by `lr * puzzle_emb_lr_ratio`.
    ///
    /// # Errors
    /// A batch of other shapes or tokens, a loss or gradient that is not finite (weights and carry are left as they were), libtorch's errors.
    pub fn train(&mut self, batch: &Batch<'_>, lr: f64) -> anyhow::Result<SegmentReport> {
        let mut done = self.compute(batch)?;
        done.gradient = self.summed(done.gradient)?;
        done.report.rows = self.group.gather_outcomes(done.report.rows)?;
        if let Some(rows) = done.puzzle {
            let (width, device) = (rows.size()[1], rows.device());
            done.puzzle =
                Some(Tensor::f_from_slice(&self.group.gather_floats(&host(&rows)?)?)?.f_reshape([-1, width])?.f_to_device(device)?);
        }
        if let Some(b) = done.report.rows.iter().position(|o| !o.loss.is_finite() || !o.q_halt.is_finite()) {
            let row = done.report.rows[b];
            bail!("the loss of batch row {b} is {}, its halt logit {}, in segment {}", row.loss, row.q_halt, self.segments + 1);
        }
        if done.gradient.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            let values = host(&done.gradient)?;
            let at = values.iter().position(|g| !g.is_finite()).unwrap_or(0);
            let name = self.net.layout.params.iter().find(|p| (p.offset..p.offset + p.len).contains(&at)).map_or("?", |p| p.name.as_str());
            bail!("the gradient of `{name}` is {} in segment {}", values[at], self.segments + 1);
        }
        if let (Some(table), Some(gradient)) = (&mut self.puzzle, &done.puzzle) {
            let lr = lr * self.torch.puzzle_emb_lr_ratio;
            super::optim::sign_sgd(table, &done.identifiers, gradient, lr, self.torch.puzzle_emb_weight_decay)?;
        }
        self.optimizer.step(&mut self.flat, &done.gradient, lr)?;
        self.carry = done.carry;
        self.starts = done.starts;
        self.segments += 1;
        self.steps.clone_from(&done.report.steps);
        Ok(done.report)
    }

    /// The sum of a gradient over all ranks: on the GPU if the ranks are connected there, else in memory.
    fn summed(&self, gradient: Tensor) -> anyhow::Result<Tensor> {
        if self.group.world() == 1 {
            return Ok(gradient);
        }
        let gradient = gradient.f_contiguous()?;
        if gradient.device().is_cuda() && self.group.takes_device() {
            // SAFETY: a contiguous vector of f32 on this rank's GPU, made on the default stream; it lives until after the call, and nothing else
            // refers to it.
            let values = unsafe { DeviceSlice::new(gradient.data_ptr() as u64, gradient.numel()) };
            self.group.sum(Values::Device(values))?;
            return Ok(gradient);
        }
        let mut values = host(&gradient)?;
        self.group.sum(Values::Host(&mut values))?;
        Ok(Tensor::f_from_slice(&values)?.f_to_device(gradient.device())?)
    }

    /// Gradients of (loss / batch) by parameter name, and of the batch's puzzle embeddings as `puzzle_emb` `[batch, ndim]`, without a step.
    ///
    /// # Errors
    /// As [`TorchEngine::train`].
    pub fn gradients(&mut self, batch: &Batch<'_>) -> anyhow::Result<(SegmentReport, crate::engine::Tensors)> {
        let done = self.compute(batch)?;
        let mut out = crate::engine::Tensors::new();
        self.net.layout.named(&done.gradient, "", &mut out)?;
        if let Some(puzzle) = &done.puzzle {
            out.insert("puzzle_emb".into(), (puzzle.size().iter().map(|&n| n as usize).collect(), host(puzzle)?));
        }
        Ok((done.report, out))
    }

    /// Tokens `[.., S]` on the device.
    pub(super) fn tokens(&self, tokens: &[u8]) -> anyhow::Result<Tensor> {
        let s = i64::from(self.net.config.tokens);
        Ok(Tensor::f_from_slice(tokens)?.f_to_device(self.net.device)?.f_to_kind(Kind::Int64)?.f_reshape([-1, s])?)
    }

    /// Rows of the table of puzzle embeddings, detached from it.
    pub(super) fn puzzle_rows(&self, identifiers: &[i64]) -> anyhow::Result<Option<Tensor>> {
        let Some(table) = &self.puzzle else { return Ok(None) };
        let at = Tensor::f_from_slice(identifiers)?.f_to_device(self.net.device)?;
        Ok(Some(no_grad(|| table.f_index_select(0, &at))?))
    }
}
