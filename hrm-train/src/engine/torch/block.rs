//! One block: mixing between the rows, then the gated MLP of each row, both post-norm.

use hrm_core::Mixer;
use tch::{Kind, Tensor};

use crate::spec::ModelSpec;

/// What libtorch answers.
pub(super) type Answer<T> = Result<T, tch::TchError>;

/// Weights of a gated MLP, `W_down (silu(a) * b)` with `[a, b] = W_up u + bias`.
pub(super) struct Gated {
    pub up: Tensor,
    pub bias: Option<Tensor>,
    pub down: Tensor,
}

/// How rows are mixed, with the weights for it.
pub(super) enum Mix {
    /// Query, key, value in one matrix `[3C, C]`, output `[C, C]`.
    Attention { qkv: Tensor, out: Tensor },
    /// Over the token axis.
    TokenMlp(Gated),
    /// No mixing of its own: the sums over groups enter the gated MLP.
    GroupSum,
}

/// One block.
pub(super) struct Block {
    pub mix: Mix,
    pub mlp: Gated,
}

/// Sums over the groups of one grouping.
struct Groups {
    /// `[n, S]`, `alpha` where the token is in the group; `None` where every token is a group of its own.
    sum: Option<Tensor>,
    /// `[S, n]`, one where the token is in the group.
    spread: Option<Tensor>,
    alpha: f64,
    merge: bool,
}

/// Everything blocks share besides weights.
pub(super) struct Shared {
    pub heads: i64,
    pub tokens: i64,
    pub fields: i64,
    pub eps: f64,
    /// `cos` and `sin`, `[P + S, C / heads]`, f32.
    pub rope: Option<(Tensor, Tensor)>,
    /// `[heads, S, S]`, true where the key is in the query's group.
    mask: Option<Tensor>,
    groups: Vec<Groups>,
}

impl Shared {
    /// Tables of one model, in the kind it computes in.
    pub fn new(spec: &ModelSpec, theta: f64, eps: f64, kind: Kind, device: tch::Device) -> Answer<Self> {
        let c = &spec.config;
        let (tokens, heads) = (i64::from(c.tokens), i64::from(c.heads));
        let rope = if c.rope {
            let (width, options) = (i64::from(c.channels) / heads, (Kind::Float, device));
            // In the library's f32 arithmetic: the angles of far positions then round as the published code's do.
            let exponent = Tensor::f_arange_start_step(0.0, width as f64, 2.0, options)?.f_div_scalar(width as f64)?;
            let frequency = Tensor::f_pow_scalar(theta, &exponent)?.f_reciprocal()?;
            let position = Tensor::f_arange(i64::from(c.prefix) + tokens, options)?;
            let angle = position.f_outer(&frequency)?;
            let angle = Tensor::f_cat(&[&angle, &angle], -1)?;
            Some((angle.f_cos()?, angle.f_sin()?))
        } else {
            None
        };
        let same_group = |ids: &[u16], scale: f32| -> Answer<Tensor> {
            let n = ids.iter().max().map_or(0, |&id| usize::from(id) + 1);
            let mut table = vec![0.0f32; n * ids.len()];
            for (t, &id) in ids.iter().enumerate() {
                table[usize::from(id) * ids.len() + t] = scale;
            }
            Tensor::f_from_slice(&table)?.f_reshape([n as i64, ids.len() as i64])?.f_to_device(device)
        };
        let mask = if c.mixer == Mixer::GroupAttention {
            let masks: Answer<Vec<Tensor>> = (0..usize::from(c.heads))
                .map(|head| {
                    let member = same_group(&spec.groupings[head % spec.groupings.len()].ids, 1.0)?;
                    member.f_transpose(0, 1)?.f_matmul(&member)?.f_gt(0.5)
                })
                .collect();
            Some(Tensor::f_stack(&masks?, 0)?)
        } else {
            None
        };
        let mut groups = Vec::new();
        if c.mixer == Mixer::GroupSum {
            for grouping in &spec.groupings {
                let alpha = 1.0 / (grouping.largest(usize::from(c.fields)) as f64).sqrt();
                let identity = grouping.ids.iter().enumerate().all(|(t, &id)| t == usize::from(id));
                let table =
                    |scale: f64| if identity { Ok(None) } else { same_group(&grouping.ids, scale as f32)?.f_to_kind(kind).map(Some) };
                let spread = table(1.0)?.map(|t| t.f_transpose(0, 1)?.f_contiguous()).transpose()?;
                groups.push(Groups { sum: table(alpha)?, spread, alpha, merge: grouping.merge_fields });
            }
        }
        Ok(Self { heads, tokens, fields: i64::from(c.fields), eps, rope, mask, groups })
    }

    /// `x / sqrt(mean(x^2) + eps)` along the last axis, computed in f32.
    pub fn rms(&self, x: &Tensor) -> Answer<Tensor> {
        let wide = x.f_to_kind(Kind::Float)?;
        let mean = wide.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
        wide.f_mul(&mean.f_add_scalar(self.eps)?.f_rsqrt()?)?.f_to_kind(x.f_kind()?)
    }

    /// One block on `x` of `[batch, R, C]`.
    pub fn block(&self, block: &Block, x: &Tensor) -> Answer<Tensor> {
        match &block.mix {
            Mix::Attention { qkv, out } => {
                let x = self.rms(&x.f_add(&self.attention(qkv, out, x)?)?)?;
                self.rms(&x.f_add(&gated(&block.mlp, &x)?)?)
            }
            Mix::TokenMlp(mlp) => {
                let turned = x.f_transpose(1, 2)?;
                let x = self.rms(&turned.f_add(&gated(mlp, &turned)?)?)?.f_transpose(1, 2)?;
                self.rms(&x.f_add(&gated(&block.mlp, &x)?)?)
            }
            Mix::GroupSum => self.rms(&x.f_add(&self.group_mlp(&block.mlp, x)?)?),
        }
    }

    fn attention(&self, qkv: &Tensor, out: &Tensor, x: &Tensor) -> Answer<Tensor> {
        let (batch, rows, channels) = x.size().as_slice().try_into().map(|[b, r, c]: [i64; 3]| (b, r, c)).unwrap_or_default();
        let all = linear(x, qkv, None)?.f_reshape([batch, rows, 3, self.heads, channels / self.heads])?;
        let part = |i: i64| all.f_select(2, i)?.f_transpose(1, 2);
        let (mut query, mut key, value) = (part(0)?, part(1)?, part(2)?);
        if let Some((cos, sin)) = &self.rope {
            query = rotate(&query, cos, sin)?;
            key = rotate(&key, cos, sin)?;
        }
        let mixed = Tensor::f_scaled_dot_product_attention(&query, &key, &value, self.mask.as_ref(), 0.0, false, None, false)?;
        linear(&mixed.f_transpose(1, 2)?.f_reshape([batch, rows, channels])?, out, None)
    }

    /// The gated MLP of the row and the scaled sums over its groups. The products with the sums are made once a group, then spread.
    fn group_mlp(&self, mlp: &Gated, x: &Tensor) -> Answer<Tensor> {
        let size = x.size();
        let (batch, channels) = (size[0], size[2]);
        let columns = mlp.up.f_split(channels, 1)?;
        let width = mlp.up.size()[0];
        let rows = x.f_reshape([batch, self.tokens, self.fields, channels])?;
        let mut up = linear(&rows, &columns[0], mlp.bias.as_ref())?;
        for (groups, columns) in self.groups.iter().zip(&columns[1..]) {
            let fields = if groups.merge { 1 } else { self.fields };
            let members = if groups.merge { rows.f_sum_dim_intlist(&[2i64][..], true, x.f_kind()?)? } else { rows.f_alias()? };
            let sums = match &groups.sum {
                Some(sum) => {
                    sum.f_matmul(&members.f_reshape([batch, self.tokens, fields * channels])?)?.f_reshape([batch, -1, fields, channels])?
                }
                None => members.f_mul_scalar(groups.alpha)?,
            };
            let product = linear(&sums, columns, None)?;
            let spread = match &groups.spread {
                Some(spread) => {
                    spread.f_matmul(&product.f_reshape([batch, -1, fields * width])?)?.f_reshape([batch, self.tokens, fields, width])?
                }
                None => product,
            };
            up = up.f_add(&spread)?;
        }
        close(mlp, &up.f_reshape([batch, self.tokens * self.fields, width])?)
    }
}

/// `x W^T + bias`, with the weights in the kind of `x`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Answer<Tensor> {
    let kind = x.f_kind()?;
    let bias = bias.map(|b| b.f_to_kind(kind)).transpose()?;
    x.f_linear(&weight.f_to_kind(kind)?, bias.as_ref())
}

fn gated(mlp: &Gated, x: &Tensor) -> Answer<Tensor> {
    close(mlp, &linear(x, &mlp.up, mlp.bias.as_ref())?)
}

fn close(mlp: &Gated, up: &Tensor) -> Answer<Tensor> {
    let halves = up.f_chunk(2, -1)?;
    linear(&halves[0].f_silu()?.f_mul(&halves[1])?, &mlp.down, None)
}

/// Rotary position embedding in f32: `x cos + [-x2, x1] sin` for the halves `x1`, `x2` of a head.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Answer<Tensor> {
    let wide = x.f_to_kind(Kind::Float)?;
    let halves = wide.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[halves[1].f_neg()?, halves[0].f_alias()?], -1)?;
    wide.f_mul(cos)?.f_add(&turned.f_mul(sin)?)?.f_to_kind(x.f_kind()?)
}
