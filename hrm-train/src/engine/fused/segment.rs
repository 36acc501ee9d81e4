//! One segment of one puzzle: the module calls, the loss, and backpropagation through the calls that carry gradient.

use crate::engine::{Depth, EngineOptions, Gradient, RowOutcome};

use super::block::{self, BlockTape, Scratch};
use super::layout::{Dims, Packed};
use super::loss::{self, Target};
use super::simd::Isa;

/// What the backward pass of one module call needs.
struct CallTape {
    /// Input of the first block, then the output of each: `[R][Cp]`.
    states: Vec<Vec<f32>>,
    blocks: Vec<BlockTape>,
}

impl CallTape {
    fn new(d: &Dims, module: usize) -> Self {
        let layers = d.layers[module];
        Self { states: (0..=layers).map(|_| vec![0.0; d.r * d.cp]).collect(), blocks: (0..layers).map(|_| BlockTape::new(d)).collect() }
    }
}

/// Everything one thread needs besides weights, carry and gradient. Nothing is allocated during a segment.
pub struct Workspace {
    /// How deep a segment runs: the tapes are as many as it needs.
    depth: Depth,
    scratch: Scratch,
    /// Calls with gradient: L calls in order, then the H call. Empty for inference.
    tapes: Vec<CallTape>,
    buffers: [Vec<f32>; 2],
    d: Vec<f32>,
    classes: Vec<u8>,
    logits: Vec<f32>,
}

impl Workspace {
    /// Room for segments of the model's depth with gradients of this extent, or for inference only.
    pub fn new(d: &Dims, gradient: Option<Gradient>) -> Self {
        Self::with_depth(d, gradient, Depth::of(&d.spec.config))
    }

    /// Room for segments of another depth.
    pub fn with_depth(d: &Dims, gradient: Option<Gradient>, depth: Depth) -> Self {
        let mut tapes = Vec::new();
        if let Some(gradient) = gradient {
            tapes.extend((0..l_calls(depth, gradient)).map(|_| CallTape::new(d, 0)));
            tapes.push(CallTape::new(d, d.h_module()));
        }
        let state = || vec![0.0; d.r * d.cp];
        Self {
            depth,
            scratch: Scratch::new(d),
            tapes,
            buffers: [state(), state()],
            d: if gradient.is_some() { state() } else { Vec::new() },
            classes: vec![0; d.r],
            logits: vec![0.0; d.s * loss::symbols(d)],
        }
    }

    /// How deep its segments run.
    pub fn depth(&self) -> Depth {
        self.depth
    }
}

/// L calls that carry gradient.
fn l_calls(depth: Depth, gradient: Gradient) -> usize {
    match gradient {
        Gradient::OneStep => 1,
        Gradient::LastRecursion => usize::from(depth.l_cycles),
    }
}

/// The carry of one puzzle, each `[R][Cp]`.
pub struct Carry<'a> {
    /// Slow state.
    pub h: &'a mut [f32],
    /// Fast state.
    pub l: &'a mut [f32],
}

/// The network one segment runs.
#[derive(Clone, Copy)]
pub struct Net<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Extents.
    pub d: &'a Dims,
    /// Weights.
    pub w: &'a Packed,
}

impl Net<'_> {
    /// `out = z_L + z_H + x`.
    fn l_input(&self, classes: &[u8], carry: &Carry<'_>, out: &mut [f32]) {
        let cp = self.d.cp;
        let rows = out.chunks_exact_mut(cp).zip(carry.l.chunks_exact(cp)).zip(carry.h.chunks_exact(cp)).zip(classes);
        for (((out, l), h), &class) in rows {
            let x = &self.w.embed[usize::from(class) * cp..][..cp];
            for (((o, l), h), x) in out.iter_mut().zip(l).zip(h).zip(x) {
                *o = l + (h + x);
            }
        }
    }

    fn call(&self, module: usize, buffers: &mut [Vec<f32>; 2], scratch: &mut Scratch) {
        for b in self.d.module(module) {
            let [from, to] = &mut *buffers;
            block::forward(self.isa, self.d, &self.w.blocks[b], from, to, None, scratch);
            buffers.swap(0, 1);
        }
    }

    fn call_kept(&self, module: usize, tape: &mut CallTape, scratch: &mut Scratch) {
        for (i, b) in self.d.module(module).enumerate() {
            let (from, to) = tape.states.split_at_mut(i + 1);
            block::forward(self.isa, self.d, &self.w.blocks[b], &from[i], &mut to[0], Some(&mut tape.blocks[i]), scratch);
        }
    }

    fn call_backward(&self, module: usize, tape: &mut CallTape, d: &mut [f32], grad: &mut [f32], scratch: &mut Scratch) {
        for (i, b) in self.d.module(module).enumerate().rev() {
            let (x, y) = (&tape.states[i], &tape.states[i + 1]);
            let (w, at) = (&self.w.blocks[b], self.d.blocks[b]);
            block::backward(self.isa, self.d, w, at, x, y, &mut tape.blocks[i], d, grad, scratch);
        }
    }

    /// The module calls of a segment; the last ones are kept on the tapes, if the workspace has any.
    fn calls(&self, carry: &mut Carry<'_>, ws: &mut Workspace) {
        let (h_cycles, l_cycles) = (usize::from(ws.depth.h_cycles), usize::from(ws.depth.l_cycles));
        let kept = ws.tapes.len().saturating_sub(1);
        for cycle in 0..h_cycles {
            let first_kept = if cycle + 1 == h_cycles { l_cycles - kept } else { l_cycles };
            for step in 0..l_cycles {
                if step < first_kept {
                    self.l_input(&ws.classes, carry, &mut ws.buffers[0]);
                    self.call(0, &mut ws.buffers, &mut ws.scratch);
                    carry.l.copy_from_slice(&ws.buffers[0]);
                } else {
                    let tape = &mut ws.tapes[step - first_kept];
                    self.l_input(&ws.classes, carry, &mut tape.states[0]);
                    self.call_kept(0, tape, &mut ws.scratch);
                    carry.l.copy_from_slice(&tape.states[self.d.layers[0]]);
                }
            }
            let module = self.d.h_module();
            match ws.tapes.last_mut().filter(|_| cycle + 1 == h_cycles) {
                None => {
                    add(carry.h, carry.l, &mut ws.buffers[0]);
                    self.call(module, &mut ws.buffers, &mut ws.scratch);
                    carry.h.copy_from_slice(&ws.buffers[0]);
                }
                Some(tape) => {
                    add(carry.h, carry.l, &mut tape.states[0]);
                    self.call_kept(module, tape, &mut ws.scratch);
                    carry.h.copy_from_slice(&tape.states[self.d.layers[module]]);
                }
            }
        }
    }

    /// One training segment: advances the carry, adds the gradient to `grad`. The workspace must have been made for gradients.
    pub fn train(
        &self,
        opts: &EngineOptions,
        tokens: &[u8],
        target: Target<'_>,
        carry: &mut Carry<'_>,
        grad: &mut [f32],
        ws: &mut Workspace,
    ) -> RowOutcome {
        let d = self.d;
        d.classes_of(tokens, &mut ws.classes);
        self.calls(carry, ws);
        let outcome = loss::loss(d, self.w, opts, carry.h, target, &mut ws.logits, &mut ws.d, grad);
        let Workspace { tapes, scratch, d: dz, classes, .. } = ws;
        // The gradient of a call's input is the gradient of both states it sums: z_L of the call before, and the z_H from before the
        // cycle, where the graph ends.
        for (back, tape) in tapes.iter_mut().rev().enumerate() {
            let module = if back == 0 { d.h_module() } else { 0 };
            self.call_backward(module, tape, dz, grad, scratch);
            if back > 0 {
                for (row, &class) in dz.chunks_exact(d.cp).zip(classes.iter()) {
                    let at = d.grad_embed + usize::from(class) * d.cp;
                    for (g, v) in grad[at..at + d.cp].iter_mut().zip(row) {
                        *g += v;
                    }
                }
            }
        }
        outcome
    }

    /// One segment without gradient that reads nothing.
    pub fn advance(&self, tokens: &[u8], carry: &mut Carry<'_>, ws: &mut Workspace) {
        self.d.classes_of(tokens, &mut ws.classes);
        self.calls(carry, ws);
    }

    /// One segment without gradient; answers to `answer`, the halt logit is returned.
    pub fn infer(&self, tokens: &[u8], carry: &mut Carry<'_>, answer: &mut [u8], ws: &mut Workspace) -> f32 {
        self.advance(tokens, carry, ws);
        loss::answer(self.d, self.w, carry.h, &mut ws.logits, answer)
    }
}

fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
        *o = a + b;
    }
}
