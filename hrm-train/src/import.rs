//! Public HRM and TRM models: their configs and their checkpoints.
//!
//! The public code names its sizes in a config (`hidden_size`, `H_cycles`, ..) and its tensors by the path of the module that owns them
//! (`model.inner.L_level.layers.0.mlp.down_proj.weight`). Here both become a [`PublicModel`] and our [`Tensors`], under the same names.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use hrm_core::{Config, Mixer, Start};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{Gradient, Loss, Tensors};
use crate::spec::ModelSpec;

/// Prefix of every tensor of a public model.
pub const PREFIX: &str = "model.inner.";

/// What a public model has beyond [`ModelSpec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicOptions {
    /// Width of a puzzle's embedding, `0..=P * C`; it fills the prefix tokens and the rest of them is zero.
    pub puzzle_emb_ndim: usize,
    /// Rows of the table of puzzle embeddings.
    pub puzzle_identifiers: usize,
    /// Whether a learned vector is added to each position (mean of the two, scaled to the same variance).
    pub learned_positions: bool,
    /// Whether the second Q output is trained to predict the value of going on (HRM); else only the halt output is (TRM).
    pub q_continue: bool,
    /// Segments after which a row always halts: where the value of going on is that of halting.
    pub halt_max_steps: u32,
    /// Base of the rotary position embedding.
    pub rope_theta: f64,
    /// Added to the mean square under the root of the norm.
    pub rms_eps: f64,
}

/// A public model as its config describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct PublicModel {
    /// Shapes and cycles.
    pub spec: ModelSpec,
    /// What the shapes do not say.
    pub options: PublicOptions,
    /// Loss it was trained with.
    pub loss: Loss,
    /// Extent of its gradient: one step in HRM, the last recursion in TRM.
    pub gradient: Gradient,
    /// Whether it computes in bf16.
    pub bf16: bool,
}

/// A config with its nested sections: public run configs keep the architecture under `arch` and the loss under `arch.loss`.
struct Fields<'a>(Vec<&'a serde_json::Map<String, Value>>);

impl<'a> Fields<'a> {
    fn new(value: &'a Value) -> anyhow::Result<Self> {
        let top = value.as_object().context("the model config is not a JSON object")?;
        let mut sections = vec![top];
        if let Some(arch) = top.get("arch").and_then(Value::as_object) {
            sections.push(arch);
        }
        let loss: Vec<_> = sections.iter().filter_map(|s| s.get("loss").and_then(Value::as_object)).collect();
        sections.extend(loss);
        Ok(Self(sections))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.iter().find_map(|section| section.get(key)).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str, default: Option<f64>) -> anyhow::Result<f64> {
        match self.get(key) {
            Some(value) => value.as_f64().with_context(|| format!("model config: `{key}` is {value}, expected a number")),
            None => default.with_context(|| format!("model config: `{key}` is missing")),
        }
    }

    fn integer<T: TryFrom<u64>>(&self, key: &str, default: Option<u64>) -> anyhow::Result<T> {
        let value = match self.get(key) {
            Some(value) => value.as_u64().with_context(|| format!("model config: `{key}` is {value}, expected a whole number from 0"))?,
            None => default.with_context(|| format!("model config: `{key}` is missing"))?,
        };
        T::try_from(value).ok().with_context(|| format!("model config: `{key}` is {value}, which is too large"))
    }

    fn flag(&self, key: &str, default: bool) -> anyhow::Result<bool> {
        match self.get(key) {
            Some(value) => value.as_bool().with_context(|| format!("model config: `{key}` is {value}, expected true or false")),
            None => Ok(default),
        }
    }

    fn text(&self, key: &str, default: &'a str) -> anyhow::Result<&'a str> {
        match self.get(key) {
            Some(value) => value.as_str().with_context(|| format!("model config: `{key}` is {value}, expected a text")),
            None => Ok(default),
        }
    }
}

/// Inner width of the public gated MLP: two thirds of `expansion * width`, rounded up to a multiple of 256.
#[must_use]
pub fn inner_width(width: usize, expansion: f64) -> usize {
    ((expansion * width as f64 * 2.0 / 3.0).round_ties_even() as usize).next_multiple_of(256)
}

impl PublicModel {
    /// Reads a config in the public key names, flat or as a run config with `arch` and `loss` sections.
    ///
    /// `tensors` (names as [`read`] gives them) fill in what the public run configs leave to the dataset: `vocab_size`,
    /// `num_puzzle_identifiers` and, where a tensor has it, `seq_len`.
    ///
    /// A model without tensors of an H module is TRM's; without tensors to look at, one whose config has one of the keys `mlp_t`,
    /// `puzzle_emb_len` and `no_ACT_continue`, which HRM's never has, or no H layers.
    ///
    /// # Errors
    /// A sentence naming the key, what was found and what was expected.
    pub fn new(config: &Value, tensors: Option<&Tensors>) -> anyhow::Result<Self> {
        let fields = Fields::new(config)?;
        let shape = |name: &str, axis: usize| -> Option<u64> {
            let (shape, _) = tensors?.get(&format!("{PREFIX}{name}"))?;
            shape.get(axis).map(|&n| n as u64)
        };
        let trm = match tensors {
            Some(tensors) => !tensors.keys().any(|name| name.contains("H_level.")),
            None => {
                ["mlp_t", "puzzle_emb_len", "no_ACT_continue"].iter().any(|key| fields.get(key).is_some())
                    || fields.get("H_layers").and_then(Value::as_u64) == Some(0)
            }
        };
        let channels: u16 = fields.integer("hidden_size", None)?;
        ensure!(channels > 0, "model config: `hidden_size` is 0");
        let width = usize::from(channels);
        let expansion = fields.number("expansion", None)?;
        ensure!(expansion > 0.0 && expansion <= 64.0, "model config: `expansion` is {expansion}, expected up to 64");
        let token_mlp = fields.flag("mlp_t", false)?;

        let ndim: usize = fields.integer("puzzle_emb_ndim", Some(0))?;
        // TRM's code has 16 prefix tokens unless its config says otherwise.
        let named_len: usize = fields.integer("puzzle_emb_len", Some(if trm && ndim > 0 { 16 } else { 0 }))?;
        let prefix = if named_len > 0 { named_len } else { ndim.div_ceil(width) };
        ensure!(ndim > 0 || prefix == 0, "model config: `puzzle_emb_len` is {prefix} without a puzzle embedding (`puzzle_emb_ndim` is 0)");
        ensure!(ndim <= prefix * width, "model config: `puzzle_emb_ndim` is {ndim}, more than {prefix} tokens of {width} hold");

        let seq = shape("L_level.layers.0.mlp_t.down_proj.weight", 0).or_else(|| shape("embed_pos.embedding_weight", 0));
        let tokens: u16 = fields.integer("seq_len", seq.and_then(|all| all.checked_sub(prefix as u64)))?;
        let positions = fields.text("pos_encodings", "rope")?;
        ensure!(
            matches!(positions, "rope" | "learned" | "none"),
            "model config: `pos_encodings` is \"{positions}\", expected rope, learned or none"
        );
        let loss = match fields.text("loss_type", "stablemax_cross_entropy")? {
            "stablemax_cross_entropy" => Loss::Stablemax,
            "softmax_cross_entropy" => Loss::Softmax,
            other => bail!("model config: `loss_type` is \"{other}\", expected stablemax_cross_entropy or softmax_cross_entropy"),
        };
        let bf16 = match fields.text("forward_dtype", "bfloat16")? {
            "float32" => false,
            "bfloat16" => true,
            other => bail!("model config: `forward_dtype` is \"{other}\", expected float32 or bfloat16"),
        };

        let l_layers: u8 = fields.integer("L_layers", None)?;
        let small = |n: usize, what: &str| u16::try_from(n).ok().with_context(|| format!("model config: {what} is {n}, too large"));
        let config = Config {
            shared: trm,
            mixer: if token_mlp { Mixer::TokenMlp } else { Mixer::Attention },
            start: Start::Fixed,
            rope: positions == "rope" && !token_mlp,
            tokens,
            prefix: small(prefix, "the number of prefix tokens")?,
            vocab: fields.integer("vocab_size", shape("embed_tokens.embedding_weight", 0))?,
            fields: 1,
            channels,
            inner: small(inner_width(width, expansion), "the inner width")?,
            token_inner: if token_mlp {
                small(inner_width(prefix + usize::from(tokens), expansion), "the inner width over tokens")?
            } else {
                0
            },
            heads: if token_mlp { 0 } else { fields.integer("num_heads", None)? },
            groupings: 0,
            h_layers: if trm { l_layers } else { fields.integer("H_layers", None)? },
            l_layers,
            h_cycles: fields.integer("H_cycles", None)?,
            l_cycles: fields.integer("L_cycles", None)?,
        };
        let spec = ModelSpec { config, groupings: Vec::new() };
        spec.validate().context("model config")?;
        let options = PublicOptions {
            puzzle_emb_ndim: ndim,
            puzzle_identifiers: if ndim == 0 {
                0
            } else {
                fields.integer("num_puzzle_identifiers", shape("puzzle_emb.weights", 0).or(Some(1)))?
            },
            learned_positions: positions == "learned",
            q_continue: !trm || !fields.flag("no_ACT_continue", true)?,
            halt_max_steps: fields.integer("halt_max_steps", Some(16))?,
            rope_theta: fields.number("rope_theta", Some(10_000.0))?,
            rms_eps: fields.number("rms_norm_eps", Some(1e-5))?,
        };
        ensure!(ndim == 0 || options.puzzle_identifiers > 0, "model config: `num_puzzle_identifiers` is 0");
        Ok(Self { spec, options, loss, gradient: if trm { Gradient::LastRecursion } else { Gradient::OneStep }, bf16 })
    }
}

/// Reads a safetensors file of a public checkpoint: names are brought to `model.inner...`, values to f32, buffers that the public code
/// rebuilds are left out.
///
/// # Errors
/// The file cannot be read, is no safetensors file, or holds a tensor of integers.
pub fn read(path: &Path) -> anyhow::Result<Tensors> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut tensors = Tensors::new();
    for (name, tensor) in parse(&bytes).with_context(|| format!("{}", path.display()))? {
        let Some(name) = public_name(&name) else { continue };
        ensure!(tensors.insert(name.clone(), tensor).is_none(), "{} holds `{name}` twice", path.display());
    }
    Ok(tensors)
}

/// All tensors of a safetensors file in memory, under their own names, floats of any width and 32-bit integers as f32.
///
/// # Errors
/// The bytes are no safetensors file, or a tensor has another type.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Tensors> {
    let file = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data();
            let values: Vec<f32> = match view.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
                Dtype::BF16 => data.as_chunks().0.iter().map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)).collect(),
                Dtype::F16 => data.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
                Dtype::I32 => data.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect(),
                other => bail!("tensor `{name}` holds {other:?}, expected floats"),
            };
            Ok((name, (view.shape().to_vec(), values)))
        })
        .collect()
}

/// Our name of a public tensor; `None` for buffers that are no weights.
fn public_name(name: &str) -> Option<String> {
    let name: Vec<&str> = name.split('.').filter(|part| !matches!(*part, "_orig_mod" | "module")).collect();
    let name = name.join(".");
    let bare = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix("inner.")).unwrap_or(&name);
    let last = bare.rsplit('.').next().unwrap_or(bare);
    (!matches!(last, "local_weights" | "local_ids" | "cos_cached" | "sin_cached")).then(|| format!("{PREFIX}{bare}"))
}

/// Reads a public model: its config (JSON in the public key names) and its checkpoint (safetensors).
///
/// # Errors
/// As [`PublicModel::new`] and [`read`].
pub fn load(config: &Path, weights: &Path) -> anyhow::Result<(PublicModel, Tensors)> {
    let tensors = read(weights)?;
    let text = std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", config.display()))?;
    let model = PublicModel::new(&value, Some(&tensors)).with_context(|| format!("{}", config.display()))?;
    Ok((model, tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hrm() -> Value {
        serde_json::json!({"seq_len": 81, "vocab_size": 11, "hidden_size": 512, "expansion": 4, "num_heads": 8, "H_cycles": 2, "L_cycles": 2,
            "H_layers": 4, "L_layers": 4, "pos_encodings": "rope", "puzzle_emb_ndim": 512, "num_puzzle_identifiers": 1})
    }

    #[test]
    fn published_sizes() {
        let model = PublicModel::new(&hrm(), None).unwrap();
        let c = model.spec.config;
        assert_eq!((c.inner, c.prefix, c.shared, c.heads, c.h_layers), (1536, 1, false, 8, 4));
        assert!(c.rope && model.options.q_continue && model.gradient == Gradient::OneStep);

        let mut trm = hrm();
        let map = trm.as_object_mut().unwrap();
        map.extend([("mlp_t".into(), true.into()), ("puzzle_emb_len".into(), 16.into()), ("no_ACT_continue".into(), true.into())]);
        map.insert("H_layers".into(), 0.into());
        map.insert("L_layers".into(), 2.into());
        let model = PublicModel::new(&trm, None).unwrap();
        let c = model.spec.config;
        assert_eq!((c.token_inner, c.prefix, c.shared, c.heads, c.h_layers), (512, 16, true, 0, 2));
        assert!(!c.rope && !model.options.q_continue && model.gradient == Gradient::LastRecursion);
    }

    #[test]
    fn run_configs_have_sections() {
        let mut flat = hrm();
        let arch = flat.as_object_mut().unwrap();
        arch.insert("loss".into(), serde_json::json!({"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"}));
        let nested = serde_json::json!({"arch": flat, "lr": 1e-4});
        let model = PublicModel::new(&nested, None).unwrap();
        assert_eq!((model.loss, model.spec.config.channels), (Loss::Softmax, 512));
    }

    #[test]
    fn errors_name_the_key() {
        for (key, value, expected) in [
            ("hidden_size", Value::from("wide"), "hidden_size"),
            ("num_heads", Value::from(7), "heads"),
            ("pos_encodings", Value::from("alibi"), "pos_encodings"),
            ("loss_type", Value::from("mse"), "loss_type"),
            ("H_cycles", Value::Null, "H_cycles"),
            ("puzzle_emb_ndim", Value::from(-1), "puzzle_emb_ndim"),
        ] {
            let mut config = hrm();
            config.as_object_mut().unwrap().insert(key.into(), value);
            let error = format!("{:#}", PublicModel::new(&config, None).unwrap_err());
            assert!(error.contains(expected), "{key}: {error}");
        }
    }

    #[test]
    fn names_of_compiled_and_bare_checkpoints() {
        let expected = Some("model.inner.L_level.layers.0.mlp.down_proj.weight".to_owned());
        for prefix in ["model.inner.", "_orig_mod.model.inner.", "", "inner.", "module.model._orig_mod.inner."] {
            assert_eq!(public_name(&format!("{prefix}L_level.layers.0.mlp.down_proj.weight")), expected, "{prefix}");
        }
        assert_eq!(public_name("model.inner.puzzle_emb.local_weights"), None);
    }
}
