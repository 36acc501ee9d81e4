//! [`Engine`] for [`FusedEngine`]: chunks of a batch over threads, reduction in order, one optimizer step.

use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use anyhow::{bail, ensure};

use super::layout::Packed;
use super::loss::{self, Target};
use super::random::{Purpose, Stream};
use super::rounding::BlockSteps;
use super::segment::{Carry, Net, Workspace};
use super::{Accelerator, CHUNK, FusedEngine, fresh, optim, simd};
use crate::engine::{Carry as OwnedCarry, Course, Depth, Engine, Reading, RowOutcome, StartOf, Tensors, no_identifiers};
use crate::parallel::{Group, Values, checksum};
use crate::quantize::plan::ModelPlan;

/// Runs every job once, on as many threads as there are workspaces.
pub(super) fn spread<J: Send>(workspaces: &mut [Workspace], jobs: impl Iterator<Item = J> + Send, work: impl Fn(J, &mut Workspace) + Sync) {
    let jobs = Mutex::new(jobs);
    let drain = |ws: &mut Workspace| {
        loop {
            // The lock is released before the work: a poisoned queue still hands out whole jobs.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            match job {
                Some(job) => work(job, ws),
                None => break,
            }
        }
    };
    if let [only] = workspaces {
        return drain(only);
    }
    std::thread::scope(|scope| {
        for ws in workspaces {
            scope.spawn(|| drain(ws));
        }
    });
}

/// How deep a step runs, and where its random numbers come from, by row.
pub(super) struct Numbers {
    pub depth: Depth,
    /// `None`: the row goes on.
    pub starts: Vec<Option<Stream>>,
    pub noise: Vec<Stream>,
}

/// A chunk of the batch: the puzzles' numbers and their slices.
struct Chunk<'a> {
    first: usize,
    h: &'a mut [f32],
    l: &'a mut [f32],
    outcomes: &'a mut [RowOutcome],
    grad: &'a mut [f32],
}

impl FusedEngine {
    fn prepare(&mut self, depth: Depth) {
        let Self { d, opts, workspaces, grads, rows, .. } = self;
        if workspaces.first().is_none_or(|ws| ws.depth() != depth) {
            workspaces.clear();
            workspaces.extend((0..opts.threads).map(|_| Workspace::with_depth(d, Some(opts.gradient), depth)));
        }
        if grads.is_empty() {
            grads.extend((0..rows.len().div_ceil(CHUNK)).map(|_| vec![0.0; d.grad_len]));
        }
    }

    /// Checks a batch and numbers its starts and its noise.
    pub(super) fn begin_step(&mut self, inputs: &[u8], labels: &[u8], reset: &[bool], course: &Course<'_>) -> anyhow::Result<Numbers> {
        let batch = self.opts.batch;
        for (what, found, expected) in
            [("inputs", inputs.len(), batch * self.d.s), ("labels", labels.len(), batch * self.d.s), ("reset", reset.len(), batch)]
        {
            ensure!(found == expected, "{what}: {found} values, expected {expected} for a batch of {batch}");
        }
        self.check_tokens("inputs", inputs)?;
        self.check_labels(labels)?;
        course.check(&self.d.spec.config, batch)?;
        no_identifiers(course.identifiers)?;
        let mut starts = vec![None; batch];
        for (start, _) in starts.iter_mut().zip(reset).filter(|(_, reset)| **reset) {
            *start = Some(Stream::new(self.seed, Purpose::Start, self.starts));
            self.starts += 1;
        }
        let first = self.segments * batch as u64;
        self.segments += 1;
        let noise = (first..).take(batch).map(|number| Stream::new(self.seed, Purpose::Noise, number)).collect();
        Ok(Numbers { depth: course.depth.unwrap_or(Depth::of(&self.d.spec.config)), starts, noise })
    }

    /// Forward, loss and backward of the batch, of which this rank does its rows: outcomes of all, and the gradient over the flat weights.
    pub(super) fn gradient(
        &mut self,
        inputs: &[u8],
        labels: &[u8],
        reset: &[bool],
        course: &Course<'_>,
    ) -> anyhow::Result<(Vec<RowOutcome>, Vec<f32>)> {
        let Numbers { depth, starts, noise } = self.begin_step(inputs, labels, reset, course)?;
        self.prepare(depth);
        let Self { isa, d, opts, init, packed, carry_h, carry_l, workspaces, grads, group, rows, .. } = self;
        let net = Net { isa: *isa, d, w: packed };
        let (state, answers) = (d.r * d.cp, d.s * loss::symbols(d));
        let first = rows.start;
        let mut outcomes = vec![RowOutcome::default(); rows.len()];
        let jobs = carry_h
            .chunks_mut(CHUNK * state)
            .zip(carry_l.chunks_mut(CHUNK * state))
            .zip(outcomes.chunks_mut(CHUNK))
            .zip(grads.iter_mut())
            .enumerate()
            .map(|(i, (((h, l), outcomes), grad))| Chunk { first: first + i * CHUNK, h, l, outcomes, grad });
        spread(workspaces, jobs, |chunk, ws| {
            chunk.grad.fill(0.0);
            let rows = chunk.h.chunks_exact_mut(state).zip(chunk.l.chunks_exact_mut(state)).zip(chunk.outcomes).zip(chunk.first..);
            for (((h, l), outcome), b) in rows {
                if let Some(start) = starts[b] {
                    fresh(net.isa, d, init, start, h, l);
                }
                let mut carry = Carry { h, l };
                if opts.carry_noise > 0.0 {
                    let stream = noise[b];
                    simd::add_normal(net.isa, carry.h, d.cp, d.c, stream, 0, opts.carry_noise as f32);
                    simd::add_normal(net.isa, carry.l, d.cp, d.c, stream, (d.r * d.c) as u64, opts.carry_noise as f32);
                }
                let cells = b * d.s..(b + 1) * d.s;
                let advice = course.teacher.map(|t| (&t.probabilities[b * answers..(b + 1) * answers], t.share));
                let weight = course.weights.get(b).map_or(1.0, |&w| f64::from(w));
                let target = Target { labels: &labels[cells.clone()], weight, teacher: advice };
                *outcome = net.train(opts, &inputs[cells], target, &mut carry, chunk.grad, ws);
            }
        });
        add(grads);
        group.sum(Values::Host(&mut grads[0]))?;
        Ok((group.gather_outcomes(outcomes)?, d.unpack_gradient(&grads[0])))
    }
}

impl FusedEngine {
    /// Fails if a loss or halt logit is no number.
    pub(super) fn check_outcomes(&self, outcomes: &[RowOutcome]) -> anyhow::Result<()> {
        match outcomes.iter().position(|o| !o.loss.is_finite() || !o.q_halt.is_finite()) {
            Some(b) => {
                bail!(
                    "the loss of batch row {b} is {}, its halt logit {}, in segment {}",
                    outcomes[b].loss,
                    outcomes[b].q_halt,
                    self.segments
                )
            }
            None => Ok(()),
        }
    }

    /// Fails if an element of a gradient is no number.
    pub(super) fn check_gradient(&self, grad: &[f32]) -> anyhow::Result<()> {
        let Some(i) = grad.iter().position(|g| !g.is_finite()) else { return Ok(()) };
        let name = self.d.params.iter().find(|p| (p.offset..p.offset + p.len).contains(&i)).map_or("?", |p| p.name.as_str());
        bail!("the gradient of `{name}` is {} in segment {}", grad[i], self.segments)
    }
}

/// Sums all into the first, the halves last: two ranks that have a half each do the same.
fn add(grads: &mut [Vec<f32>]) {
    let (a, b) = grads.split_at_mut(grads.len() / 2);
    if !a.is_empty() {
        add(a);
        add(b);
        for (s, g) in a[0].iter_mut().zip(&b[0]) {
            *s += g;
        }
    }
}

impl Engine for FusedEngine {
    fn train_course(
        &mut self,
        inputs: &[u8],
        labels: &[u8],
        reset: &[bool],
        course: &Course<'_>,
        lr: f64,
    ) -> anyhow::Result<Vec<RowOutcome>> {
        self.accelerate()?;
        if self.accelerator.is_some() {
            return self.train_on_device(inputs, labels, reset, course, lr);
        }
        let (outcomes, grad) = self.gradient(inputs, labels, reset, course)?;
        self.check_outcomes(&outcomes)?;
        self.check_gradient(&grad)?;
        self.optimizer.step(self.isa, &self.opts, &self.d.params, &mut self.weights, &grad, lr);
        if self.opts.ema > 0.0 {
            optim::average(&mut self.mean, &self.weights, self.opts.ema);
        }
        self.packed = Packed::new(&self.d, &self.weights, self.rounding.as_deref());
        Ok(outcomes)
    }

    fn infer(&mut self, inputs: &[u8], segments: usize, seed: u64, observe: &mut dyn FnMut(usize, &[u8], &[f32])) -> anyhow::Result<()> {
        self.accelerate()?;
        let Self { isa, d, opts, init, .. } = &*self;
        ensure!(inputs.len().is_multiple_of(d.s), "inputs: {} tokens, expected a multiple of {}", inputs.len(), d.s);
        self.check_tokens("inputs", inputs)?;
        let averaged = (!self.mean.is_empty()).then(|| Packed::new(d, &self.mean, self.rounding.as_deref()));
        let net = Net { isa: *isa, d, w: averaged.as_ref().unwrap_or(&self.packed) };
        let n = inputs.len() / d.s;
        let start = |b: u64| Stream::new(seed, Purpose::InferenceStart, b);
        // A puzzle runs all its segments while its state is in the caches; the answers wait for the others'.
        let mut tokens = vec![0u8; n * segments * d.s];
        let mut halts = vec![0.0f32; n * segments];
        if let Some(accelerator) = &self.accelerator {
            (tokens, halts) = accelerator.infer(d, opts.ema > 0.0, inputs, segments, start)?;
        } else if n > 0 && segments > 0 {
            let mut workspaces: Vec<_> = (0..opts.threads).map(|_| Workspace::new(d, None)).collect();
            let jobs =
                inputs.chunks_exact(d.s).zip(tokens.chunks_exact_mut(segments * d.s)).zip(halts.chunks_exact_mut(segments)).enumerate();
            spread(&mut workspaces, jobs, |(b, ((input, tokens), halts)), ws| {
                let (mut h, mut l) = (vec![0.0; d.r * d.cp], vec![0.0; d.r * d.cp]);
                fresh(net.isa, d, init, start(b as u64), &mut h, &mut l);
                for (tokens, q) in tokens.chunks_exact_mut(d.s).zip(halts) {
                    *q = net.infer(input, &mut Carry { h: &mut h, l: &mut l }, tokens, ws);
                }
            });
        }
        let (mut answer, mut q) = (vec![0u8; n * d.s], vec![0.0f32; n]);
        for segment in 0..segments {
            for b in 0..n {
                let at = b * segments + segment;
                answer[b * d.s..(b + 1) * d.s].copy_from_slice(&tokens[at * d.s..(at + 1) * d.s]);
                q[b] = halts[at];
            }
            observe(segment, &answer, &q);
        }
        Ok(())
    }

    fn begin(&mut self, starts: &[StartOf], random: bool) -> anyhow::Result<OwnedCarry> {
        Ok(self.begin_at(starts, random))
    }

    fn advance(&mut self, inputs: &[u8], carry: &mut OwnedCarry) -> anyhow::Result<Reading> {
        self.leave_device()?;
        self.advance_or_read(Some(inputs), carry)
    }

    fn read(&mut self, carry: &OwnedCarry) -> anyhow::Result<Reading> {
        self.leave_device()?;
        self.advance_or_read(None, &mut carry.clone())
    }

    fn arithmetic(&self) -> Option<(f64, f64)> {
        self.accelerator.as_ref().and_then(Accelerator::arithmetic)
    }

    fn round_as(&mut self, plan: &ModelPlan) -> anyhow::Result<()> {
        let plans: Vec<_> = plan.modules.iter().flatten().map(|b| &b.mlp).collect();
        ensure!(plans.len() == self.d.blocks.len(), "the plan has {} blocks, the model {}", plans.len(), self.d.blocks.len());
        let steps = plans.iter().map(|p| {
            ensure!(
                p.sums.len() == self.d.g && p.hidden.len() == self.d.i,
                "the plan has {} groupings and {} hidden channels, the model {} and {}",
                p.sums.len(),
                p.hidden.len(),
                self.d.g,
                self.d.i
            );
            let sums: Vec<f32> = p.sums.iter().map(|v| v.step as f32).collect();
            let hidden: Vec<f32> = p.hidden.iter().map(|&h| h as f32).collect();
            Ok(BlockSteps::new(&self.d, p.input.step as f32, &sums, &hidden))
        });
        let rounding = Some(steps.collect::<anyhow::Result<_>>()?);
        // Other kernels.
        self.leave_device()?;
        self.rounding = rounding;
        self.packed = Packed::new(&self.d, &self.weights, self.rounding.as_deref());
        Ok(())
    }

    fn weights(&self) -> Tensors {
        let mut out = Tensors::new();
        // A lost device must end the run here: a checkpoint of anything less than all weights would replace a good one.
        let now = self.parameters().unwrap_or_else(|error| panic!("the weights cannot be copied from the device: {error:#}"));
        self.d.to_tensors(if now.mean.is_empty() { &now.weights } else { &now.mean }, "", &mut out);
        self.put_init(&mut out);
        out
    }

    fn join(&mut self, group: Rc<Group>) -> anyhow::Result<()> {
        ensure!(self.rows.len() == self.opts.batch, "this engine has joined a group already");
        self.rows = group.rows(self.opts.batch)?;
        let state = self.d.r * self.d.cp;
        ensure!(self.accelerator.is_none(), "an engine joins a group before its first step");
        for carry in [&mut self.carry_h, &mut self.carry_l] {
            *carry = carry[self.rows.start * state..self.rows.end * state].to_vec();
        }
        self.group = group;
        self.grads.clear();
        Ok(())
    }

    fn checksum(&self) -> anyhow::Result<u32> {
        let now = self.parameters()?;
        Ok(checksum([&now.weights, &now.mean, &now.m, &now.v].map(Vec::as_slice)))
    }

    fn state(&self) -> anyhow::Result<Tensors> {
        self.save()
    }

    fn restore(&mut self, state: &Tensors) -> anyhow::Result<()> {
        self.load(state)
    }
}
