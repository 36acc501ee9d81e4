//! Names, shapes and starts of all trained tensors, in the order of one flat vector.
//!
//! The optimizer, the average and the gradient are flat vectors: one library call for all parameters instead of one each, which is what
//! small models spend their time on. The weights the network reads are views of the flat vector.

use anyhow::ensure;
use hrm_core::Mixer;
use tch::{Device, Kind, Tensor};

use super::TorchOptions;
use crate::engine::Tensors;
use crate::engine::fused::random::{Purpose, Stream};
use crate::import::PREFIX;
use crate::spec::ModelSpec;

/// Start of a fresh tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Init {
    /// Normal of this standard deviation, cut at two standard deviations.
    Normal(f64),
    /// One value.
    Constant(f32),
}

/// One tensor.
#[derive(Clone, Debug)]
pub(super) struct Param {
    pub name: String,
    pub shape: Vec<usize>,
    pub offset: usize,
    pub len: usize,
    /// Whether weight decay applies (the public code decays all parameters, biases too).
    pub decay: bool,
    /// Whether Muon's rule is for it: the matrices of the modules.
    pub matrix: bool,
    pub init: Init,
}

/// All tensors of one model.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Trained by gradient.
    pub params: Vec<Param>,
    /// Length of the flat vector.
    pub len: usize,
    /// Not trained by gradient: starts, puzzle embedding.
    pub buffers: Vec<Param>,
}

impl Layout {
    pub fn new(spec: &ModelSpec, torch: &TorchOptions) -> Self {
        let mut layout = Self::default();
        if torch.public.is_some() {
            layout.public(spec, torch)
        } else {
            layout.structured(spec)
        }
        layout
    }

    fn param(&mut self, name: String, shape: &[usize], decay: bool, init: Init) {
        let len = shape.iter().product();
        let matrix = shape.len() == 2 && (name.starts_with("module.") || name.contains(".layers."));
        self.params.push(Param { name, shape: shape.to_vec(), offset: self.len, len, decay, matrix, init });
        self.len += len;
    }

    /// A matrix `[out, in]` with the start of JAX's LeCun normal.
    fn matrix(&mut self, name: String, out: usize, fan_in: usize) {
        self.param(name, &[out, fan_in], true, Init::Normal(1.0 / (fan_in as f64).sqrt()));
    }

    fn buffer(&mut self, name: &str, shape: &[usize], init: Init) {
        self.buffers.push(Param {
            name: name.into(),
            shape: shape.to_vec(),
            offset: 0,
            len: shape.iter().product(),
            decay: false,
            matrix: false,
            init,
        });
    }

    fn public(&mut self, spec: &ModelSpec, torch: &TorchOptions) {
        let c = &spec.config;
        let [channels, inner, token_inner, vocab] = [c.channels, c.inner, c.token_inner, c.vocab].map(usize::from);
        let positions = usize::from(c.tokens) + usize::from(c.prefix);
        let embed = Init::Normal(1.0 / (channels as f64).sqrt());
        self.param(format!("{PREFIX}embed_tokens.embedding_weight"), &[vocab, channels], true, embed);
        if let Some(public) = torch.public.as_ref() {
            if public.learned_positions {
                self.param(format!("{PREFIX}embed_pos.embedding_weight"), &[positions, channels], true, embed);
            }
            if public.puzzle_emb_ndim > 0 {
                let shape = [public.puzzle_identifiers, public.puzzle_emb_ndim];
                self.buffer(&format!("{PREFIX}puzzle_emb.weights"), &shape, Init::Constant(0.0));
            }
        }
        for m in 0..c.modules() {
            for i in 0..c.layers(m) {
                let layer = format!("{PREFIX}{}_level.layers.{i}", ["L", "H"][m]);
                if c.mixer == Mixer::TokenMlp {
                    self.matrix(format!("{layer}.mlp_t.gate_up_proj.weight"), 2 * token_inner, positions);
                    self.matrix(format!("{layer}.mlp_t.down_proj.weight"), positions, token_inner);
                } else {
                    self.matrix(format!("{layer}.self_attn.qkv_proj.weight"), 3 * channels, channels);
                    self.matrix(format!("{layer}.self_attn.o_proj.weight"), channels, channels);
                }
                self.matrix(format!("{layer}.mlp.gate_up_proj.weight"), 2 * inner, channels);
                self.matrix(format!("{layer}.mlp.down_proj.weight"), channels, inner);
            }
        }
        self.matrix(format!("{PREFIX}lm_head.weight"), vocab, channels);
        self.param(format!("{PREFIX}q_head.weight"), &[2, channels], true, Init::Constant(0.0));
        self.param(format!("{PREFIX}q_head.bias"), &[2], true, Init::Constant(-5.0));
        self.buffer(&format!("{PREFIX}H_init"), &[channels], Init::Normal(1.0));
        self.buffer(&format!("{PREFIX}L_init"), &[channels], Init::Normal(1.0));
    }

    fn structured(&mut self, spec: &ModelSpec) {
        let c = &spec.config;
        let [channels, inner] = [c.channels, c.inner].map(usize::from);
        self.param("embed".into(), &[c.input_classes(), channels], true, Init::Normal(1.0));
        for m in 0..c.modules() {
            for i in 0..c.layers(m) {
                let block = format!("module.{m}.{i}");
                if c.mixer == Mixer::GroupAttention {
                    self.matrix(format!("{block}.qkv.weight"), 3 * channels, channels);
                    self.matrix(format!("{block}.out.weight"), channels, channels);
                }
                self.matrix(format!("{block}.up.weight"), 2 * inner, c.mix_width());
                self.param(format!("{block}.up.bias"), &[2 * inner], false, Init::Constant(0.0));
                self.matrix(format!("{block}.down.weight"), channels, inner);
            }
        }
        self.matrix("head.weight".into(), c.head_width(), channels);
        self.param("q.weight".into(), &[1, channels], true, Init::Constant(0.0));
        self.param("q.bias".into(), &[1], false, Init::Constant(-5.0));
        self.buffer("init.H", &[channels], Init::Normal(1.0));
        self.buffer("init.L", &[channels], Init::Normal(1.0));
    }

    /// A fresh model: every tensor from a stream of its own.
    pub fn fresh(&self, seed: u64) -> Tensors {
        let tensors = self.params.iter().chain(&self.buffers).enumerate();
        tensors
            .map(|(number, param)| {
                let stream = Stream::new(seed, Purpose::Weights, number as u64);
                let values = match param.init {
                    Init::Constant(value) => vec![value; param.len],
                    Init::Normal(std) => (0..param.len as u64).map(|i| stream.truncated(i) * std as f32).collect(),
                };
                (param.name.clone(), (param.shape.clone(), values))
            })
            .collect()
    }

    /// The flat vector of the parameters named `prefix + name`.
    pub fn flat(&self, tensors: &Tensors, prefix: &str, device: Device) -> anyhow::Result<Tensor> {
        let mut values = Vec::with_capacity(self.len);
        for param in &self.params {
            values.extend_from_slice(take(tensors, &format!("{prefix}{}", param.name), &param.shape)?);
        }
        Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?)
    }

    /// The named tensors of a flat vector.
    pub fn named(&self, flat: &Tensor, prefix: &str, out: &mut Tensors) -> anyhow::Result<()> {
        let values = host(flat)?;
        for p in &self.params {
            out.insert(format!("{prefix}{}", p.name), (p.shape.clone(), values[p.offset..p.offset + p.len].to_vec()));
        }
        Ok(())
    }

    /// Checks that a model holds these tensors and no others.
    pub fn check(&self, tensors: &Tensors) -> anyhow::Result<()> {
        for param in self.params.iter().chain(&self.buffers) {
            take(tensors, &param.name, &param.shape)?;
        }
        let known = |name: &String| self.params.iter().chain(&self.buffers).any(|p| &p.name == name);
        if let Some(other) = tensors.keys().find(|name| !known(name)) {
            anyhow::bail!("tensor `{other}` belongs to no part of this model");
        }
        Ok(())
    }
}

/// The values of one tensor of a known shape.
pub(super) fn take<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> anyhow::Result<&'a [f32]> {
    let (found, values) = tensors.get(name).ok_or_else(|| anyhow::anyhow!("tensor `{name}` is missing"))?;
    ensure!(found == shape, "tensor `{name}` has shape {found:?}, expected {shape:?}");
    ensure!(values.len() == shape.iter().product::<usize>(), "tensor `{name}` has {} values for shape {shape:?}", values.len());
    Ok(values)
}

/// One named tensor on the device, with its shape.
pub(super) fn device_tensor(tensors: &Tensors, name: &str, shape: &[usize], device: Device) -> anyhow::Result<Tensor> {
    let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::f_from_slice(take(tensors, name, shape)?)?.f_reshape(dims.as_slice())?.f_to_device(device)?)
}

/// All values of a tensor on the host, as f32.
pub(super) fn host(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_reshape(-1)?;
    let mut values = vec![0.0f32; flat.numel()];
    flat.f_copy_data(&mut values, flat.numel())?;
    Ok(values)
}
