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
    /// The last calls of a segment, which carry gradient, in order. Empty for inference.
    tapes: Vec<CallTape>,
    buffers: [Vec<f32>; 2],
    /// Gradients of z_H and z_L; empty for inference.
    d_h: Vec<f32>,
    d_l: Vec<f32>,
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
        let first = gradient.map_or(calls(depth), |gradient| calls(depth) - calls_with_gradient(depth, gradient));
        let tapes = (first..calls(depth)).map(|call| CallTape::new(d, if updates_h(depth, call) { d.h_module() } else { 0 })).collect();
        let state = || vec![0.0; d.r * d.cp];
        let d_state = || if gradient.is_some() { state() } else { Vec::new() };
        Self {
            depth,
            scratch: Scratch::new(d),
            tapes,
            buffers: [state(), state()],
            d_h: d_state(),
            d_l: d_state(),
            classes: vec![0; d.r],
            logits: vec![0.0; d.s * loss::symbols(d)],
        }
    }

    /// How deep its segments run.
    pub fn depth(&self) -> Depth {
        self.depth
    }
}

/// Module calls of a segment.
fn calls(depth: Depth) -> usize {
    usize::from(depth.h_cycles) * (usize::from(depth.l_cycles) + 1)
}

/// Calls at the end of a segment that carry gradient.
pub fn calls_with_gradient(depth: Depth, gradient: Gradient) -> usize {
    match gradient {
        Gradient::OneStep => 2,
        Gradient::LastRecursion => usize::from(depth.l_cycles) + 1,
        Gradient::Segment => calls(depth),
    }
}

/// Whether this call of a segment ends an H cycle, and updates z_H.
fn updates_h(depth: Depth, call: usize) -> bool {
    let l_cycles = usize::from(depth.l_cycles);
    call % (l_cycles + 1) == l_cycles
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
    /// Input of a call: `z_H + z_L`, and for an L call the embedded tokens.
    fn input(&self, h_call: bool, classes: &[u8], carry: &Carry<'_>, out: &mut [f32]) {
        if h_call {
            for ((o, h), l) in out.iter_mut().zip(&*carry.h).zip(&*carry.l) {
                *o = h + l;
            }
            return;
        }
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
        let Workspace { depth, scratch, tapes, buffers, classes, .. } = ws;
        let first_kept = calls(*depth) - tapes.len();
        for call in 0..calls(*depth) {
            let h_call = updates_h(*depth, call);
            let module = if h_call { self.d.h_module() } else { 0 };
            let result = if call < first_kept {
                self.input(h_call, classes, carry, &mut buffers[0]);
                self.call(module, buffers, scratch);
                &buffers[0]
            } else {
                let tape = &mut tapes[call - first_kept];
                self.input(h_call, classes, carry, &mut tape.states[0]);
                self.call_kept(module, tape, scratch);
                &tape.states[self.d.layers[module]]
            };
            (if h_call { &mut *carry.h } else { &mut *carry.l }).copy_from_slice(result);
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
        let Workspace { depth, tapes, scratch, d_h, d_l, classes, logits, .. } = ws;
        let outcome = loss::loss(d, self.w, opts, carry.h, target, logits, d_h, grad);
        d_l.fill(0.0);
        // A call's input is the sum of both states: the gradient of its input goes to both, and to the tokens of an L call.
        let first_kept = calls(*depth) - tapes.len();
        for (call, tape) in tapes.iter_mut().enumerate().map(|(i, tape)| (first_kept + i, tape)).rev() {
            if updates_h(*depth, call) {
                self.call_backward(d.h_module(), tape, d_h, grad, scratch);
                add(d_l, d_h);
            } else {
                self.call_backward(0, tape, d_l, grad, scratch);
                add(d_h, d_l);
                for (row, &class) in d_l.chunks_exact(d.cp).zip(classes.iter()) {
                    add(&mut grad[d.grad_embed + usize::from(class) * d.cp..][..d.cp], row);
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

fn add(sum: &mut [f32], values: &[f32]) {
    for (s, v) in sum.iter_mut().zip(values) {
        *s += v;
    }
}
