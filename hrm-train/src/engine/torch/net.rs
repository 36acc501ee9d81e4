//! The float network: embedding, segments, heads.

use hrm_core::{Config, Mixer};
use tch::{Device, Kind, Tensor};

use super::TorchOptions;
use super::block::{Answer, Block, Gated, Mix, Shared, linear};
use super::layout::{Layout, device_tensor};
use crate::engine::{Depth, Gradient, Tensors, symbols};
use crate::import::{PREFIX, PublicOptions};
use crate::spec::ModelSpec;

/// z_H and z_L of a batch, `[batch, R, C]` each.
#[derive(Debug)]
pub(super) struct Carry {
    pub h: Tensor,
    pub l: Tensor,
}

impl Carry {
    pub fn detach(&self) -> Answer<Self> {
        Ok(Self { h: self.h.f_detach()?, l: self.l.f_detach()? })
    }

    /// The same for both.
    pub fn map(&self, f: impl Fn(&Tensor) -> Answer<Tensor>) -> Answer<Self> {
        Ok(Self { h: f(&self.h)?, l: f(&self.l)? })
    }
}

/// Weights as the network reads them: views of one flat vector.
pub(super) struct Weights {
    /// The views by position in the layout.
    pub leaves: Vec<Tensor>,
    embed: Tensor,
    positions: Option<Tensor>,
    modules: Vec<Vec<Block>>,
    head: Tensor,
    q: (Tensor, Tensor),
}

/// Everything about a model but its trained weights.
pub(super) struct Net {
    pub config: Config,
    pub public: Option<PublicOptions>,
    pub layout: Layout,
    pub device: Device,
    pub kind: Kind,
    shared: Shared,
    /// Fixed starts of z_H and z_L, `[C]` each.
    pub start: (Tensor, Tensor),
}

impl Net {
    /// The model with its buffers out of `tensors`.
    pub fn new(spec: &ModelSpec, torch: &TorchOptions, device: Device, tensors: &Tensors) -> anyhow::Result<Self> {
        let layout = Layout::new(spec, torch);
        layout.check(tensors)?;
        let config = spec.config;
        let kind = if torch.bf16 { Kind::BFloat16 } else { Kind::Float };
        let (theta, eps) = torch.public.as_ref().map_or((10_000.0, 1e-5), |p| (p.rope_theta, p.rms_eps));
        let names = if torch.public.is_some() {
            [format!("{PREFIX}H_init"), format!("{PREFIX}L_init")]
        } else {
            ["init.H".into(), "init.L".into()]
        };
        let [h, l] = names.map(|name| device_tensor(tensors, &name, &[usize::from(config.channels)], device));
        let shared = Shared::new(spec, theta, eps, kind, device)?;
        Ok(Self { config, public: torch.public.clone(), layout, device, kind, shared, start: (h?, l?) })
    }

    /// Views of `flat` as weights; with `train` they are leaves that gradients are computed for.
    pub fn weights(&self, flat: &Tensor, train: bool) -> anyhow::Result<Weights> {
        let views: Answer<Vec<Tensor>> = self
            .layout
            .params
            .iter()
            .map(|p| {
                let shape: Vec<i64> = p.shape.iter().map(|&n| n as i64).collect();
                flat.f_narrow(0, p.offset as i64, p.len as i64)?.f_reshape(shape.as_slice())?.f_detach()?.f_set_requires_grad(train)
            })
            .collect();
        let leaves = views?;
        let find = |name: String| -> anyhow::Result<Tensor> {
            let at = self.layout.params.iter().position(|p| p.name == name);
            Ok(leaves[at.ok_or_else(|| anyhow::anyhow!("tensor `{name}` is missing"))?].shallow_clone())
        };
        let (c, public) = (&self.config, self.public.is_some());
        let modules: anyhow::Result<Vec<Vec<Block>>> = (0..c.modules())
            .map(|m| {
                (0..c.layers(m))
                    .map(|i| {
                        if public {
                            public_block(c, &format!("{PREFIX}{}_level.layers.{i}", ["L", "H"][m]), &find)
                        } else {
                            structured_block(c, &format!("module.{m}.{i}"), &find)
                        }
                    })
                    .collect()
            })
            .collect();
        let learned = self.public.as_ref().is_some_and(|p| p.learned_positions);
        let positions = if learned { Some(find(format!("{PREFIX}embed_pos.embedding_weight"))?) } else { None };
        let (embed, head, q) = if public {
            let q = (find(format!("{PREFIX}q_head.weight"))?, find(format!("{PREFIX}q_head.bias"))?);
            (find(format!("{PREFIX}embed_tokens.embedding_weight"))?, find(format!("{PREFIX}lm_head.weight"))?, q)
        } else {
            (find("embed".into())?, find("head.weight".into())?, (find("q.weight".into())?, find("q.bias".into())?))
        };
        Ok(Weights { leaves, embed, positions, modules: modules?, head, q })
    }

    /// Elements of one carry tensor of one puzzle, `[R, C]`.
    pub fn state(&self) -> [i64; 2] {
        [self.config.rows() as i64, i64::from(self.config.channels)]
    }

    /// The fixed start for `batch` puzzles.
    pub fn fixed_start(&self, batch: i64) -> Answer<Carry> {
        let [rows, channels] = self.state();
        let spread = |v: &Tensor| v.f_to_kind(self.kind)?.f_expand([batch, rows, channels], false);
        Ok(Carry { h: spread(&self.start.0)?, l: spread(&self.start.1)? })
    }

    /// The embedded input `x`, `[batch, R, C]`, of tokens `[batch, S]` (i64) and the puzzles' embeddings `[batch, ndim]`.
    pub fn embed(&self, w: &Weights, tokens: &Tensor, puzzle: Option<&Tensor>) -> Answer<Tensor> {
        let table = w.embed.f_to_kind(self.kind)?;
        let Some(public) = &self.public else {
            let classes = if self.config.fields > 1 { self.input_classes(tokens)? } else { tokens.f_alias()? };
            return Tensor::f_embedding(&table, &classes, -1, false, false);
        };
        let mut x = Tensor::f_embedding(&table, tokens, -1, false, false)?;
        let (prefix, channels) = (i64::from(self.config.prefix), i64::from(self.config.channels));
        if let (Some(puzzle), true) = (puzzle, public.puzzle_emb_ndim > 0) {
            let missing = prefix * channels - public.puzzle_emb_ndim as i64;
            let padded = puzzle.f_to_kind(self.kind)?.f_constant_pad_nd([0, missing])?;
            x = Tensor::f_cat(&[padded.f_reshape([-1, prefix, channels])?, x], 1)?;
        }
        if let Some(positions) = &w.positions {
            // The mean of two variables of one variance has half of it: 1 / sqrt 2 keeps the scale.
            x = x.f_add(&positions.f_to_kind(self.kind)?)?.f_mul_scalar(core::f64::consts::FRAC_1_SQRT_2)?;
        }
        x.f_mul_scalar((channels as f64).sqrt())
    }

    /// Input class of every row: 0 the cell is blank, 1 it holds the field's symbol, 2 it holds another; `[batch, R]`.
    fn input_classes(&self, tokens: &Tensor) -> Answer<Tensor> {
        let fields = i64::from(self.config.fields);
        let own = Tensor::f_arange(fields, (Kind::Int64, self.device))?.f_add_scalar(2)?;
        let tokens = tokens.f_unsqueeze(-1)?;
        let other = tokens.f_ge(2)?.f_to_kind(Kind::Int64)?;
        let same = tokens.f_eq_tensor(&own)?.f_to_kind(Kind::Int64)?;
        other.f_mul_scalar(2)?.f_sub(&same)?.f_reshape([-1, i64::from(self.config.tokens) * fields])
    }

    fn module(&self, w: &Weights, m: usize, z: &Tensor, injection: &Tensor) -> Answer<Tensor> {
        let mut x = z.f_add(injection)?;
        for block in &w.modules[m] {
            x = self.shared.block(block, &x)?;
        }
        Ok(x)
    }

    /// One segment of the model's depth without gradient.
    pub fn advance(&self, w: &Weights, carry: &Carry, x: &Tensor) -> Answer<Carry> {
        self.segment(w, carry, x, Depth::of(&self.config), None)
    }

    /// One segment. `gradient`: which module calls are recorded for the backward pass; the others run on detached values.
    pub fn segment(&self, w: &Weights, carry: &Carry, x: &Tensor, depth: Depth, gradient: Option<Gradient>) -> Answer<Carry> {
        let Depth { h_cycles, l_cycles } = depth;
        let h_module = w.modules.len() - 1;
        let mut z = carry.detach()?;
        let carries = |last_cycle: bool, last_call: bool| match gradient {
            None => false,
            Some(Gradient::OneStep) => last_cycle && last_call,
            Some(Gradient::LastRecursion) => last_cycle,
            Some(Gradient::Segment) => true,
        };
        for h in 1..=h_cycles {
            for l in 1..=l_cycles {
                z.l = recording(carries(h == h_cycles, l == l_cycles), || self.module(w, 0, &z.l, &z.h.f_add(x)?))?;
            }
            z.h = recording(carries(h == h_cycles, true), || self.module(w, h_module, &z.h, &z.l))?;
        }
        Ok(z)
    }

    /// Logits of the symbols and halt logits. Logits: `[batch, S, vocab]`, or `[batch, S, F]` with fields (symbol `f` is token `f + 2`).
    /// Q: `[batch, 1]` (halt) or `[batch, 2]` (halt, continue), f32.
    pub fn heads(&self, w: &Weights, h: &Tensor) -> Answer<(Tensor, Tensor)> {
        let (prefix, tokens) = (i64::from(self.config.prefix), i64::from(self.config.tokens));
        let cells = h.f_narrow(1, prefix, tokens * i64::from(self.config.fields))?;
        let logits = linear(&cells, &w.head, None)?;
        let logits = if self.config.fields > 1 { logits.f_reshape([-1, tokens, i64::from(self.config.fields)])? } else { logits };
        // Public models read the first row, whatever it is; structured ones have no row that stands out.
        let summary = if self.public.is_some() { h.f_select(1, 0)? } else { h.f_mean_dim(&[1i64][..], false, h.f_kind()?)? };
        let q = linear(&summary, &w.q.0, Some(&w.q.1))?.f_to_kind(Kind::Float)?;
        Ok((logits, q))
    }

    /// Token of logits' class 0.
    pub fn first_token(&self) -> i64 {
        symbols(&self.config).1 as i64
    }

    /// Answered tokens `[batch, S]` (i64).
    pub fn answer(&self, logits: &Tensor) -> Answer<Tensor> {
        logits.f_argmax(-1, false)?.f_add_scalar(self.first_token())
    }
}

/// Runs `f` with or without recording it for the backward pass.
fn recording<T>(on: bool, f: impl FnOnce() -> T) -> T {
    if on { f() } else { tch::no_grad(f) }
}

fn public_block(c: &Config, layer: &str, find: &impl Fn(String) -> anyhow::Result<Tensor>) -> anyhow::Result<Block> {
    let gated = |name: &str| -> anyhow::Result<Gated> {
        let up = find(format!("{layer}.{name}.gate_up_proj.weight"))?;
        Ok(Gated { up, bias: None, down: find(format!("{layer}.{name}.down_proj.weight"))? })
    };
    let mix = if c.mixer == Mixer::TokenMlp {
        Mix::TokenMlp(gated("mlp_t")?)
    } else {
        let qkv = find(format!("{layer}.self_attn.qkv_proj.weight"))?;
        Mix::Attention { qkv, out: find(format!("{layer}.self_attn.o_proj.weight"))? }
    };
    Ok(Block { mix, mlp: gated("mlp")? })
}

fn structured_block(c: &Config, block: &str, find: &impl Fn(String) -> anyhow::Result<Tensor>) -> anyhow::Result<Block> {
    let mix = if c.mixer == Mixer::GroupAttention {
        Mix::Attention { qkv: find(format!("{block}.qkv.weight"))?, out: find(format!("{block}.out.weight"))? }
    } else {
        Mix::GroupSum
    };
    let bias = Some(find(format!("{block}.up.bias"))?);
    Ok(Block { mix, mlp: Gated { up: find(format!("{block}.up.weight"))?, bias, down: find(format!("{block}.down.weight"))? } })
}
