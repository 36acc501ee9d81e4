//! Where everything lies: the flat vector of trained parameters, the padded copies the kernels read, the padded gradient.
//!
//! Kernels want the innermost extent padded to [`LANES`] and both orientations of each matrix; the optimizer wants one flat vector without
//! padding. The scale `alpha` of a grouping is folded into the packed columns of `W_up`, so group sums stay plain sums.

use anyhow::{Context, bail, ensure};
use hrm_core::Mixer;

use super::rounding::BlockSteps;
use super::simd::LANES;
use crate::engine::Tensors;
use crate::spec::ModelSpec;

/// Initial distribution of one trained tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Truncated normal of this standard deviation.
    Normal(f64),
    /// All the same.
    Constant(f32),
}

/// One trained tensor inside the flat vector.
#[derive(Clone, Debug)]
pub struct Param {
    /// Public name (docs/architecture.md).
    pub name: String,
    /// Public shape.
    pub shape: Vec<usize>,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Rows and columns, if Muon's rule is for it: the matrices of the modules.
    pub matrix: Option<(usize, usize)>,
    /// Start of a fresh model.
    pub init: Init,
}

/// Offsets of one block inside the padded gradient.
#[derive(Clone, Copy, Debug)]
pub struct BlockOffsets {
    /// `W_up` transposed: `[1 + G][C][2 Ip]`.
    pub up: usize,
    /// `[2 Ip]`.
    pub bias: usize,
    /// `[C][Ip]`.
    pub down: usize,
    /// End of the block.
    pub end: usize,
}

/// Extents and index tables of one model. Lower-case `cp`, `ip` are `c`, `i` padded to whole vectors.
#[derive(Clone, Debug)]
pub struct Dims {
    /// The model.
    pub spec: ModelSpec,
    /// Tokens.
    pub s: usize,
    /// Fields a token.
    pub f: usize,
    /// Rows, `s * f`.
    pub r: usize,
    /// Channels.
    pub c: usize,
    /// Padded channels.
    pub cp: usize,
    /// Inner width.
    pub i: usize,
    /// Padded inner width.
    pub ip: usize,
    /// Groupings.
    pub g: usize,
    /// First group of each grouping in the tables of all groups, and the end: `[g + 1]`.
    pub group_base: Vec<usize>,
    /// Scale of each grouping's sum.
    pub alpha: Vec<f32>,
    /// Group of row r in grouping j, counted over all groupings: `[r * g + j]`.
    pub ids: Vec<u32>,
    /// Rows of all groups, group by group.
    pub members: Vec<u32>,
    /// First member of each group, and the end.
    pub starts: Vec<u32>,
    /// Blocks of each stored module.
    pub layers: Vec<usize>,
    /// Embedding rows.
    pub classes: usize,
    /// Logits a row.
    pub head: usize,
    /// Trained tensors in the order of the flat vector.
    pub params: Vec<Param>,
    /// Length of the flat vector.
    pub len: usize,
    /// Padded gradient of the blocks, module by module.
    pub blocks: Vec<BlockOffsets>,
    /// Padded gradient: `[classes][cp]`.
    pub grad_embed: usize,
    /// Padded gradient: `[head][cp]`.
    pub grad_head: usize,
    /// Padded gradient: `[cp]`, then the bias.
    pub grad_q: usize,
    /// Length of the padded gradient.
    pub grad_len: usize,
}

impl Dims {
    /// Lays out a `group-sum` model.
    ///
    /// # Errors
    /// The specification is invalid or its mixer is another.
    pub fn new(spec: &ModelSpec) -> anyhow::Result<Self> {
        spec.validate()?;
        let config = spec.config;
        ensure!(
            config.mixer == Mixer::GroupSum,
            "the fused engine trains `group-sum` models, this one mixes by {:?}: use the torch engine (feature `tch`)",
            config.mixer
        );
        let (s, f, c, i) =
            (usize::from(config.tokens), usize::from(config.fields), usize::from(config.channels), usize::from(config.inner));
        let (r, cp, ip, g) = (s * f, c.next_multiple_of(LANES), i.next_multiple_of(LANES), usize::from(config.groupings));
        let (mut group_base, mut alpha, mut ids) = (vec![0], Vec::new(), vec![0u32; r * g]);
        for (j, grouping) in spec.groupings.iter().enumerate() {
            let base = group_base[j];
            let tokens = grouping.ids.iter().map(|&id| usize::from(id) + 1).max().unwrap_or(0);
            for row in 0..r {
                let id = usize::from(grouping.ids[row / f]);
                let local = if grouping.merge_fields { id } else { id * f + row % f };
                ids[row * g + j] = u32::try_from(base + local).context("too many groups")?;
            }
            group_base.push(base + if grouping.merge_fields { tokens } else { tokens * f });
            alpha.push(1.0 / (grouping.largest(f) as f32).sqrt());
        }
        let (mut members, mut starts) = (Vec::with_capacity(r * g), vec![0]);
        for j in 0..g {
            let mut lists = vec![Vec::new(); group_base[j + 1] - group_base[j]];
            for row in 0..r {
                lists[ids[row * g + j] as usize - group_base[j]].push(row as u32);
            }
            for list in lists {
                members.extend(list);
                starts.push(members.len() as u32);
            }
        }
        let layers: Vec<usize> = (0..config.modules()).map(|m| config.layers(m)).collect();
        let mut dims = Self {
            spec: spec.clone(),
            s,
            f,
            r,
            c,
            cp,
            i,
            ip,
            g,
            group_base,
            alpha,
            ids,
            members,
            starts,
            layers,
            classes: config.input_classes(),
            head: config.head_width(),
            params: Vec::new(),
            len: 0,
            blocks: Vec::new(),
            grad_embed: 0,
            grad_head: 0,
            grad_q: 0,
            grad_len: 0,
        };
        dims.lay_out();
        Ok(dims)
    }

    fn lay_out(&mut self) {
        let lecun = |fan_in: usize| Init::Normal(1.0 / (fan_in as f64).sqrt());
        let width = (1 + self.g) * self.c;
        self.param("embed".into(), vec![self.classes, self.c], true, Init::Normal(1.0));
        let mut at = 0;
        for m in 0..self.layers.len() {
            for block in 0..self.layers[m] {
                self.param(format!("module.{m}.{block}.up.weight"), vec![2 * self.i, width], true, lecun(width));
                self.param(format!("module.{m}.{block}.up.bias"), vec![2 * self.i], false, Init::Constant(0.0));
                self.param(format!("module.{m}.{block}.down.weight"), vec![self.c, self.i], true, lecun(self.i));
                let bias = at + width * 2 * self.ip;
                let down = bias + 2 * self.ip;
                let end = down + self.c * self.ip;
                self.blocks.push(BlockOffsets { up: at, bias, down, end });
                at = end;
            }
        }
        self.param("head.weight".into(), vec![self.head, self.c], true, lecun(self.c));
        self.param("q.weight".into(), vec![1, self.c], true, Init::Constant(0.0));
        self.param("q.bias".into(), vec![1], false, Init::Constant(-5.0));
        self.grad_embed = at;
        self.grad_head = at + self.classes * self.cp;
        self.grad_q = self.grad_head + self.head * self.cp;
        self.grad_len = self.grad_q + self.cp + LANES;
    }

    fn param(&mut self, name: String, shape: Vec<usize>, decay: bool, init: Init) {
        let len = shape.iter().product();
        let matrix = match shape[..] {
            [rows, columns] if name.starts_with("module.") => Some((rows, columns)),
            _ => None,
        };
        self.params.push(Param { name, shape, offset: self.len, len, decay, matrix, init });
        self.len += len;
    }

    /// Groups of all groupings together.
    pub fn groups(&self) -> usize {
        self.group_base[self.g]
    }

    /// Blocks in `blocks` and in [`Packed::blocks`] of stored module `m`.
    pub fn module(&self, m: usize) -> core::ops::Range<usize> {
        let start = if m == 0 { 0 } else { self.layers[0] };
        start..start + self.layers[m]
    }

    /// Stored module of the H updates: the shared one, or the second.
    pub fn h_module(&self) -> usize {
        self.layers.len() - 1
    }

    /// Input class of every row.
    pub fn classes_of(&self, tokens: &[u8], out: &mut [u8]) {
        for (&token, row) in tokens.iter().zip(out.chunks_exact_mut(self.f)) {
            for (f, class) in row.iter_mut().enumerate() {
                *class = match token {
                    _ if self.f == 1 => token,
                    0 | 1 => 0,
                    _ if usize::from(token) == 2 + f => 1,
                    _ => 2,
                };
            }
        }
    }

    /// The flat parameters as named tensors.
    pub fn to_tensors(&self, flat: &[f32], prefix: &str, out: &mut Tensors) {
        for p in &self.params {
            out.insert(format!("{prefix}{}", p.name), (p.shape.clone(), flat[p.offset..p.offset + p.len].to_vec()));
        }
    }

    /// Reads the flat parameters from named tensors.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn read_tensors(&self, tensors: &Tensors, prefix: &str) -> anyhow::Result<Vec<f32>> {
        let mut flat = vec![0.0; self.len];
        for p in &self.params {
            flat[p.offset..p.offset + p.len].copy_from_slice(tensor(tensors, &format!("{prefix}{}", p.name), &p.shape)?);
        }
        Ok(flat)
    }
}

/// The values of one tensor of a known shape.
///
/// # Errors
/// It is missing or has another shape.
pub fn tensor<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> anyhow::Result<&'a [f32]> {
    let (found, values) = tensors.get(name).with_context(|| format!("tensor `{name}` is missing"))?;
    if found != shape || values.len() != shape.iter().product::<usize>() {
        bail!("tensor `{name}` has shape {found:?} and {} values, expected {shape:?}", values.len());
    }
    Ok(values)
}

/// Weights of a block as the kernels read them.
#[derive(Clone, Debug)]
pub struct PackedBlock {
    /// `[1 + G][C][2 Ip]`.
    pub up_t: Vec<f32>,
    /// `[1 + G][2 Ip][Cp]`.
    pub up: Vec<f32>,
    /// `[2 Ip]`.
    pub bias: Vec<f32>,
    /// `[Ip][Cp]`.
    pub down_t: Vec<f32>,
    /// `[C][Ip]`.
    pub down: Vec<f32>,
    /// The int8 roundings of the block; the weights above are rounded then.
    pub rounding: Option<BlockSteps>,
}

/// All weights as the kernels read them.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Blocks of module 0, then of module 1.
    pub blocks: Vec<PackedBlock>,
    /// `[classes][Cp]`.
    pub embed: Vec<f32>,
    /// `[head][Cp]`.
    pub head: Vec<f32>,
    /// `[Cp]`.
    pub q: Vec<f32>,
    /// Bias of the halt logit.
    pub q_bias: f32,
}

impl Packed {
    /// Packs flat parameters; rounds those that are int8 weights if `rounding` gives the steps of each block.
    pub fn new(d: &Dims, flat: &[f32], rounding: Option<&[BlockSteps]>) -> Self {
        let width = (1 + d.g) * d.c;
        let mut at = d.params.iter().map(|p| &flat[p.offset..p.offset + p.len]);
        let mut next = || at.next().unwrap_or_default();
        let rows = |source: &[f32], count: usize| {
            let mut out = vec![0.0; count * d.cp];
            for (to, from) in out.chunks_exact_mut(d.cp).zip(source.chunks_exact(d.c)) {
                to[..d.c].copy_from_slice(from);
            }
            out
        };
        let embed = rows(next(), d.classes);
        let mut blocks = Vec::new();
        for block in 0..d.blocks.len() {
            let (mut up, up_bias, mut down) = (next().to_vec(), next(), next().to_vec());
            let rounding = rounding.map(|r| r[block].clone());
            if let Some(steps) = &rounding {
                up.chunks_exact_mut(width).for_each(|row| steps.up(d, row));
                down.chunks_exact_mut(d.i).for_each(|row| steps.down(row));
            }
            let mut b = PackedBlock {
                up_t: vec![0.0; width * 2 * d.ip],
                up: vec![0.0; (1 + d.g) * 2 * d.ip * d.cp],
                bias: vec![0.0; 2 * d.ip],
                down_t: vec![0.0; d.ip * d.cp],
                down: vec![0.0; d.c * d.ip],
                rounding,
            };
            for n in 0..2 * d.i {
                let padded = d.pad_inner(n);
                b.bias[padded] = up_bias[n];
                for part in 0..=d.g {
                    let alpha = if part == 0 { 1.0 } else { d.alpha[part - 1] };
                    for c in 0..d.c {
                        let w = alpha * up[n * width + part * d.c + c];
                        b.up_t[(part * d.c + c) * 2 * d.ip + padded] = w;
                        b.up[(part * 2 * d.ip + padded) * d.cp + c] = w;
                    }
                }
            }
            for c in 0..d.c {
                for i in 0..d.i {
                    b.down[c * d.ip + i] = down[c * d.i + i];
                    b.down_t[i * d.cp + c] = down[c * d.i + i];
                }
            }
            blocks.push(b);
        }
        let head = rows(next(), d.head);
        let q = rows(next(), 1);
        Self { blocks, embed, head, q, q_bias: next()[0] }
    }
}

impl Dims {
    /// Row of `W_up` in the padded order: gate rows from 0, the others from `ip`.
    fn pad_inner(&self, n: usize) -> usize {
        if n < self.i { n } else { n - self.i + self.ip }
    }

    /// Takes the padding out of a gradient.
    pub fn unpack_gradient(&self, grad: &[f32]) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.len);
        let rows = |flat: &mut Vec<f32>, at: usize, count: usize| {
            for row in grad[at..at + count * self.cp].chunks_exact(self.cp) {
                flat.extend_from_slice(&row[..self.c]);
            }
        };
        rows(&mut flat, self.grad_embed, self.classes);
        for b in &self.blocks {
            for n in 0..2 * self.i {
                let padded = self.pad_inner(n);
                for part in 0..=self.g {
                    let alpha = if part == 0 { 1.0 } else { self.alpha[part - 1] };
                    for c in 0..self.c {
                        flat.push(alpha * grad[b.up + (part * self.c + c) * 2 * self.ip + padded]);
                    }
                }
            }
            flat.extend((0..2 * self.i).map(|n| grad[b.bias + self.pad_inner(n)]));
            for row in grad[b.down..b.end].chunks_exact(self.ip) {
                flat.extend_from_slice(&row[..self.i]);
            }
        }
        rows(&mut flat, self.grad_head, self.head);
        rows(&mut flat, self.grad_q, 1);
        flat.push(grad[self.grad_q + self.cp]);
        flat
    }
}
